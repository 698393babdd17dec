"""SAM 2 and SAM 2.1: configuration, presets, the model, and loading of official checkpoints.

Ravi et al., arXiv 2408.00714. Attribute names are the official state-dict keys, so checkpoints load strictly
and without a table. Methods are the stages of the paper's figure 3: encode_image, condition_on_memory, decode,
encode_memory. fast.py has equal and faster forms of it. Left out: training, and options that have one value in
every published checkpoint.
"""

from dataclasses import dataclass, replace
from os import PathLike

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..layers import MLP, load_strictly, without_weights
from ..support.reading import load_state_dict
from .hiera import Hiera, ImageEncoder, Neck
from .layers import resize_antialiased, sine_position_1d, sine_position_2d
from .mask_decoder import Decoded, MaskDecoder
from .memory import MemoryAttention, MemoryEncoder
from .memory_bank import POINTERS, SLOTS, MemorySelection
from .prompt_encoder import NO_POINT, PromptEncoder

ABSENT = -1024.0  # mask logit of an object that is not in the frame (NO_OBJ_SCORE of the official SAM2Base)


STRIDE = 32  # side of a cell of the coarsest map, in pixels of the image
LARGEST_IMAGE = 4096  # pixels of a side: global attention over more takes tens of gigabytes


@dataclass(frozen=True)
class SAM2Config:
    """Sizes of the trunk, the four switches that tell 2.1 (all true) from 2.0 (all false), and sizes that only the
    demo changes. The defaults are those of facebookresearch/sam2's sam2.1_hiera_t.yaml."""

    embed_dim: int = 96
    num_heads: int = 1
    stages: tuple[int, ...] = (1, 2, 7, 2)
    global_att_blocks: tuple[int, ...] = (5, 7, 9)
    window_spec: tuple[int, ...] = (8, 4, 14, 7)
    window_pos_embed_bkg_spatial_size: tuple[int, int] = (7, 7)
    image_size: int = 1024  # pixels, a multiple of 32
    no_obj_embed_spatial: bool = True  # memories of absent frames carry an embedding
    add_tpos_enc_to_obj_ptrs: bool = True  # pointers carry their temporal offset
    proj_tpos_enc_in_obj_ptrs: bool = True  # ... through a linear layer
    use_signed_tpos_enc_to_obj_ptrs: bool = True  # ... with its sign; the same here, as only earlier frames are read
    dim: int = 256  # channels of image tokens, prompts and pointers; a multiple of 32 and of mem_dim
    mem_dim: int = 64  # channels of memories, a multiple of 4
    mlp_dim: int = 2048  # inner width of the mask decoder's and the memory attention's MLPs
    memory_layers: int = 4
    mask_width: int = 1  # times dim / 4 and dim / 8: channels of the mask decoder at strides 8 and 4

    def __post_init__(self):
        check_image_size(self.image_size)
        if self.dim % 32 or self.mem_dim % 4 or self.dim % self.mem_dim:
            raise ValueError(
                f"dim {self.dim} and mem_dim {self.mem_dim}: give a multiple of 32, and a divisor of it "
                "that is a multiple of 4"
            )


def check_image_size(size: int, name: str = "image_size") -> None:
    """ValueError, which begins with the name and gives the nearest sizes that fit, for what is no side of images."""
    if type(size) is not int or not 0 < size <= LARGEST_IMAGE:
        raise ValueError(f"{name} {size!r}: give a multiple of {STRIDE} from {STRIDE} to {LARGEST_IMAGE}")
    if size % STRIDE:
        below = size // STRIDE * STRIDE
        nearest = f"{below} and {below + STRIDE}" if below else str(STRIDE)
        raise ValueError(f"{name} {size}: it must be a multiple of {STRIDE}; the nearest: {nearest}")


TINY = SAM2Config()
SMALL = replace(TINY, stages=(1, 2, 11, 2), global_att_blocks=(7, 10, 13))
BASE_PLUS = replace(
    TINY,
    embed_dim=112,
    num_heads=2,
    stages=(2, 3, 16, 3),
    global_att_blocks=(12, 16, 20),
    window_pos_embed_bkg_spatial_size=(14, 14),
)
LARGE = replace(
    TINY, embed_dim=144, num_heads=2, stages=(2, 6, 36, 4), global_att_blocks=(23, 33, 43), window_spec=(8, 4, 16, 8)
)
DEMO = SAM2Config(
    embed_dim=16,
    stages=(2, 2, 3, 1),
    global_att_blocks=(5, 6),
    window_spec=(8, 8, 8, 8),
    image_size=384,
    dim=96,
    mem_dim=32,
    mlp_dim=224,
    memory_layers=2,
    mask_width=3,
)
DEMO_WIDE = replace(DEMO, embed_dim=32, stages=(2, 2, 2, 1))


def first_release(config: SAM2Config) -> SAM2Config:
    """The 2.0 form of a 2.1 configuration."""
    return replace(
        config,
        no_obj_embed_spatial=False,
        add_tpos_enc_to_obj_ptrs=False,
        proj_tpos_enc_in_obj_ptrs=False,
        use_signed_tpos_enc_to_obj_ptrs=False,
    )


PRESETS = {
    "sam2.1_hiera_tiny": TINY,  # 38,962,498 parameters
    "sam2.1_hiera_small": SMALL,  # 46,060,354
    "sam2.1_hiera_base_plus": BASE_PLUS,  # 80,850,178
    "sam2.1_hiera_large": LARGE,  # 224,446,642
    # 16,512 fewer each: no pointer projection, no embedding of absence
    "sam2_hiera_tiny": first_release(TINY),
    "sam2_hiera_small": first_release(SMALL),
    "sam2_hiera_base_plus": first_release(BASE_PLUS),
    "sam2_hiera_large": first_release(LARGE),
    "demo": DEMO,  # minisam_glue/demo, 1,310,586
    "demo_wide": DEMO_WIDE,  # what train_segmenter makes, 2,204,778: twice as many channels in the trunk
}


@dataclass
class ImageFeatures:
    """Features of B images: all that prompts and memories need of them."""

    tokens: Tensor  # (B, N, C), stride 16
    # For the mask decoder: (B, c0, 4 h, 4 w) and (B, c1, 2 h, 2 w); accelerate keeps them in an order of its own.
    high_res: tuple[Tensor, Tensor]

    def __getitem__(self, rows: slice | Tensor) -> "ImageFeatures":
        """Take the features of some of the images, by a slice or by their numbers."""
        return type(self)(self.tokens[rows], (self.high_res[0][rows], self.high_res[1][rows]))


@dataclass
class ObjectOutput:
    """Masks of B objects on a frame, and the decoder's share of their memories."""

    logits: Tensor  # (B, S / 4, S / 4), fp32
    pointer: Tensor  # (B, C)
    object_score_logits: Tensor  # (B,), positive where the object is in the frame


class SAM2(nn.Module):
    """The whole model. Images are (B, 3, S, S), normalised, S = config.image_size."""

    def __init__(self, config: SAM2Config):
        super().__init__()
        self.config, dim, mem_dim = config, config.dim, config.mem_dim
        trunk = Hiera(
            config.embed_dim,
            config.num_heads,
            config.stages,
            config.global_att_blocks,
            config.window_spec,
            config.window_pos_embed_bkg_spatial_size,
        )
        self.image_encoder = ImageEncoder(trunk, Neck(dim, [config.embed_dim << i for i in range(4)]))
        self.sam_prompt_encoder = PromptEncoder(dim, config.image_size)
        self.sam_mask_decoder = MaskDecoder(dim, config.mlp_dim, config.mask_width)
        self.memory_attention = MemoryAttention(dim, mem_dim, config.mlp_dim, config.memory_layers)
        self.memory_encoder = MemoryEncoder(dim, mem_dim)
        self.mask_downsample = nn.Conv2d(1, 1, 4, stride=4)
        self.obj_ptr_proj = MLP(dim, dim, dim, dim)
        if config.proj_tpos_enc_in_obj_ptrs:
            self.obj_ptr_tpos_proj = nn.Linear(dim, mem_dim)
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(SLOTS, 1, 1, mem_dim))
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, dim))
        self.no_mem_pos_enc = nn.Parameter(torch.zeros(1, 1, dim))  # never used, but in every checkpoint
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, dim))
        if config.no_obj_embed_spatial:
            self.no_obj_embed_spatial = nn.Parameter(torch.zeros(1, mem_dim))

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.no_mem_embed.device

    def resize(self, image_size: int) -> None:
        """Take images of this side, in pixels; no weight depends on it. ValueError unless a multiple of 32."""
        self.config = replace(self.config, image_size=image_size)
        self.sam_prompt_encoder.resize(image_size)

    # --- An image and its prompts -----------------------------------------------------------------------------

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Encode images (B, 3, S, S). The decoder's 1 x 1 convolutions on the finer maps are part of it."""
        s4, s8, s16 = self.image_encoder(images.to(self.no_mem_embed.dtype))
        decoder = self.sam_mask_decoder
        return ImageFeatures(s16.flatten(2).mT, (decoder.conv_s0(s4), decoder.conv_s1(s8)))

    def without_memory(self, features: ImageFeatures) -> Tensor:
        """Image tokens (B, N, C) plus the embedding of "no memory": for images, and for frames of new objects."""
        return features.tokens + self.no_mem_embed

    def decode(
        self,
        tokens: Tensor,
        high_res: tuple[Tensor, Tensor],
        points: Tensor | None = None,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        multimask: bool = False,
    ) -> Decoded:
        """Decode image tokens (B or 1, N, C) and prompts in the model's pixels; see PromptEncoder and MaskDecoder.

        Without points each object gets one with the label "no point", as in the official model.
        """
        if points is None:
            count = len(tokens) if mask is None else len(mask)
            points = torch.zeros(count, 1, 2, dtype=torch.float32, device=self.device)
            labels = torch.full((count, 1), NO_POINT, device=self.device)
        sparse, dense = self.sam_prompt_encoder(points, labels, mask)
        image_pe = self.sam_prompt_encoder.image_position()
        return self.sam_mask_decoder(tokens + dense, image_pe, sparse, high_res, multimask)

    # --- A frame and its objects ------------------------------------------------------------------------------

    def as_object(self, out: Decoded) -> ObjectOutput:
        """Choose the mask of the highest predicted IoU and its pointer; an absent object gets ABSENT and no_obj_ptr."""
        row, best = torch.arange(len(out.ious), device=out.ious.device), out.ious.argmax(1)
        there = (out.object_score_logits > 0)[:, None]
        logits = torch.where(there[..., None], out.masks[row, best].float(), ABSENT)
        pointer = torch.where(there, self.obj_ptr_proj(out.tokens[row, best]), self.no_obj_ptr)
        return ObjectOutput(logits, pointer, out.object_score_logits)

    def decode_mask(self, features: ImageFeatures, mask: Tensor) -> Decoded:
        """Decode mask prompts of a video, (B, 1, S, S) of zeros and ones."""
        prompt = self.mask_downsample(mask.to(self.no_mem_embed.dtype))
        return self.decode(features.tokens, features.high_res, mask=prompt)

    def as_given(self, mask: Tensor, out: Decoded) -> ObjectOutput:
        """Take mask prompts (B, 1, S, S) as the output, as logits of +-10; only the pointers are the decoder's.

        In the official code: _use_mask_as_output.
        """
        logits = resize_antialiased(20 * mask - 10, self.config.image_size // 4)[:, 0]
        there = mask.flatten(1).any(1)
        pointer = torch.where(there[:, None], self.as_object(out).pointer, self.no_obj_ptr)
        return ObjectOutput(logits, pointer, 20.0 * there - 10)

    def encode_memory(self, features: ImageFeatures, out: ObjectOutput, prompted: bool) -> Tensor:
        """Encode objects on a frame as memory maps (B, N, mem_dim) in bfloat16; prompted masks are made binary.

        Probabilities 0 to 1 go in as -10 to 10: sigmoid_scale_for_mem_enc and sigmoid_bias_for_mem_enc of the official
        configurations.
        """
        size = (self.config.image_size,) * 2
        logits = F.interpolate(out.logits[:, None], size=size, mode="bilinear", align_corners=False)
        masks = (logits > 0).float() if prompted else logits.sigmoid()
        tokens = self.memory_encoder(features.tokens, 20 * masks - 10)
        if self.config.no_obj_embed_spatial:
            tokens = tokens + (out.object_score_logits <= 0)[:, None, None] * self.no_obj_embed_spatial
        return tokens.to(torch.bfloat16)

    def condition_on_memory(
        self, features: ImageFeatures, selections: list[MemorySelection], pointer_count: int = POINTERS
    ) -> Tensor:
        """Let the frame attend to the memories of B objects: tokens (B, N, C). All selections have one layout."""
        return self.memory_attention(
            features.tokens, self.grid_position(self.config.dim), *self.memory_inputs(selections, pointer_count)
        )

    def grid_position(self, dim: int) -> Tensor:
        """Sine positions of the image tokens: (N, dim)."""
        grid = self.config.image_size // 16
        return sine_position_2d(grid, grid, dim, self.device)

    def memory_inputs(self, selections: list[MemorySelection], pointer_count: int) -> tuple[Tensor, Tensor, int]:
        """Memory tokens (B, M, c), their positions (1, M, c), and how many tokens at the end are pointers'."""
        mem_dim, first = self.config.mem_dim, selections[0]
        memory = torch.stack([s.tokens(mem_dim) for s in selections])
        place, pieces = self.grid_position(mem_dim), self.config.dim // mem_dim
        # Slot 0 has the last embedding, the newest memory the first.
        position = [place + self.maskmem_tpos_enc[SLOTS - 1 - slot, 0] for slot, _ in first.maps]
        if first.pointers:
            offsets = torch.tensor([offset for offset, _ in first.pointers], dtype=torch.float32, device=self.device)
            pointer_position = self.pointer_position(offsets / max(pointer_count - 1, 1))
            position.append(pointer_position.repeat_interleave(pieces, 0))  # all pieces of a pointer have its position
        return memory, torch.cat(position)[None], len(first.pointers) * pieces

    def pointer_position(self, offsets: Tensor) -> Tensor:
        """Temporal offsets (P,), divided by the number of pointers less one -> (P, mem_dim)."""
        config = self.config
        if not config.add_tpos_enc_to_obj_ptrs:
            return offsets.new_zeros(len(offsets), config.mem_dim)
        if not config.use_signed_tpos_enc_to_obj_ptrs:
            offsets = offsets.abs()
        if not config.proj_tpos_enc_in_obj_ptrs:
            return sine_position_1d(offsets, config.mem_dim)
        return self.obj_ptr_tpos_proj(sine_position_1d(offsets, config.dim).to(self.obj_ptr_tpos_proj.weight.dtype))


def build(preset: str | SAM2Config) -> SAM2:
    """A model with random weights, in eval mode. preset: a name of PRESETS (else ValueError), or a configuration."""
    if isinstance(preset, str) and preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}: choose one of {', '.join(PRESETS)}")
    model = SAM2(PRESETS[preset] if isinstance(preset, str) else preset)
    for name, parameter in model.named_parameters():
        if name.startswith(("no_", "maskmem_tpos_enc")):
            nn.init.trunc_normal_(parameter, std=0.02)
    return model.eval()


def preset_of(state: dict[str, Tensor]) -> str:
    """The name of the preset whose trunk and switches a state dict has. Raises ValueError if there is none."""
    depth = len({k.split(".")[3] for k in state if k.startswith("image_encoder.trunk.blocks.")})
    bias = state.get("image_encoder.trunk.patch_embed.proj.bias", torch.empty(0))
    width = len(bias) if bias.ndim else 0
    later = "no_obj_embed_spatial" in state
    for name, config in PRESETS.items():
        if (sum(config.stages), config.embed_dim, config.no_obj_embed_spatial) == (depth, width, later):
            return name
    raise ValueError(
        f"weights of {depth} trunk blocks and width {width} belong to none of {', '.join(PRESETS)}: "
        "give their configuration"
    )


def load(path: str | PathLike, preset: str | SAM2Config | None = None) -> SAM2:
    """An official checkpoint file, a state dict under "model", as a model in eval mode on the CPU.

    Without a preset the weights tell which one they are. Every key must fit. Raises ValueError for another layout.
    """
    state = load_state_dict(path)
    with without_weights():
        model = build(preset or preset_of(state))
    load_strictly(model, state)
    return model
