"""SAM 2 and SAM 2.1: configuration, presets, the model, and loading of official checkpoints.

Ravi et al., arXiv 2408.00714. Attribute names are the official state-dict keys, so checkpoints load strictly
and without a table. Methods are the stages of the paper's figure 3: encode_image, condition (on memory),
decode, encode_memory. Left out: training, and options that have one value in every published checkpoint.
"""

from dataclasses import dataclass, replace
from os import PathLike

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..layers import MLP
from .hiera import Hiera, ImageEncoder, Neck
from .layers import resize_antialiased, sine_position_1d, sine_position_2d
from .mask_decoder import Decoded, MaskDecoder, nest
from .memory import POINTERS, SLOTS, MemoryAttention, MemoryEncoder, Recall
from .prompt_encoder import NO_POINT, PromptEncoder

ABSENT = -1024.0  # mask logit of an object that is not in the frame


@dataclass(frozen=True)
class SAM2Config:
    """Sizes of the trunk, the four switches that tell 2.1 (all true) from 2.0 (all false), and sizes that only the
    demo changes."""

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
    use_signed_tpos_enc_to_obj_ptrs: bool = True  # ... with its sign
    dim: int = 256  # channels of image tokens, prompts and pointers; a multiple of 32 and of mem_dim
    mem_dim: int = 64  # channels of memories, a multiple of 4
    mlp_dim: int = 2048  # inner width of the mask decoder's and the memory attention's MLPs
    memory_layers: int = 4
    mask_width: int = 1  # times dim / 4 and dim / 8: channels of the mask decoder at strides 8 and 4

    def __post_init__(self):
        if self.image_size <= 0 or self.image_size % 32:
            raise ValueError(f"image_size {self.image_size}: give a positive multiple of 32")
        if self.dim % 32 or self.mem_dim % 4 or self.dim % self.mem_dim:
            raise ValueError(
                f"dim {self.dim} and mem_dim {self.mem_dim}: give a multiple of 32, and a divisor of it "
                "that is a multiple of 4"
            )


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
}


@dataclass
class ImageFeatures:
    """tokens (B, N, C) at stride 16; high: the maps of stride 4 and 8 for the mask decoder, in nested order.

    begun: where memory attention begins, the same for all objects, made by the first of them.
    """

    tokens: Tensor
    high: tuple[Tensor, Tensor]  # (B, N, 16, c0), (B, N, 4, c1), channels as in MaskDecoder
    begun: Tensor | None = None  # (1, N, C)

    def __getitem__(self, i: int) -> "ImageFeatures":
        """The features of one image, as a batch of one."""
        return ImageFeatures(self.tokens[i : i + 1], (self.high[0][i : i + 1], self.high[1][i : i + 1]))


@dataclass
class ObjectOutput:
    """logits (B, S / 4, S / 4) fp32, pointer (B, C), presence (B,): logit, positive where the object is there."""

    logits: Tensor
    pointer: Tensor
    presence: Tensor


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
        return self.no_mem_embed.device

    def resize(self, image_size: int) -> None:
        """Take images of this side, in pixels; no weight depends on it. ValueError unless a multiple of 32."""
        self.config = replace(self.config, image_size=image_size)
        self.sam_prompt_encoder.resize(image_size)

    @property
    def grid(self) -> int:
        """Image tokens along a side."""
        return self.config.image_size // 16

    @property
    def pointer_tokens(self) -> int:
        """Memory tokens that an object pointer is cut into."""
        return self.config.dim // self.config.mem_dim

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """(B, 3, S, S) -> features. The decoder's 1 x 1 convolutions on the finer maps are part of it."""
        fine, middle, tokens = self.image_encoder(images.to(self.no_mem_embed.dtype))
        s0 = self.image_encoder.folded(0, fine, self.sam_mask_decoder.conv_s0)
        s1 = self.image_encoder.folded(1, middle, self.sam_mask_decoder.conv_s1)
        return ImageFeatures(tokens.flatten(1, 2), (nest(s0, self.grid), nest(s1, self.grid)))

    def decode(
        self,
        tokens: Tensor,
        high: tuple[Tensor, Tensor],
        points: Tensor,
        labels: Tensor,
        mask: Tensor | None,
        multimask: bool,
        best_only: bool = False,
    ) -> Decoded:
        """Image tokens (B or 1, N, C) and prompts in the model's pixels -> masks; see PromptEncoder, MaskDecoder."""
        sparse, dense = self.sam_prompt_encoder(points, labels, mask)
        image_pe = self.sam_prompt_encoder.image_position()
        return self.sam_mask_decoder(tokens + dense, image_pe, sparse, high, multimask, best_only)

    def decode_object(
        self,
        tokens: Tensor,
        high: tuple[Tensor, Tensor],
        points: Tensor | None = None,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        multimask: bool = False,
    ) -> ObjectOutput:
        """As decode, for video: the best mask, the object pointer, and what absence makes of both."""
        if points is None:
            points, labels = self.no_points(len(tokens))
        return self.as_object(self.decode(tokens, high, points, labels, mask, multimask, best_only=True))

    def no_points(self, count: int) -> tuple[Tensor, Tensor]:
        """What the official model gives where nothing is prompted: one point that is none, (count, 1, 2), its label."""
        return (torch.zeros(count, 1, 2, device=self.device), torch.full((count, 1), NO_POINT, device=self.device))

    def as_object(self, out: Decoded) -> ObjectOutput:
        """The mask of the highest predicted IoU and its pointer, or what absence makes of both."""
        row, best = torch.arange(len(out.ious), device=out.ious.device), out.ious.argmax(1)
        there = (out.presence > 0)[:, None]
        logits = torch.where(there[..., None], out.masks[row, best].float(), ABSENT)
        pointer = torch.where(there, self.obj_ptr_proj(out.tokens[row, best]), self.no_obj_ptr)
        return ObjectOutput(logits, pointer, out.presence)

    def decode_given_mask(self, features: ImageFeatures, mask: Tensor) -> ObjectOutput:
        """A mask prompt (1, 1, S, S) of zeros and ones is its own output; only the pointer comes from the decoder."""
        return self.as_given(mask, self.decode_mask(features, mask))

    def decode_mask(self, features: ImageFeatures, mask: Tensor) -> Decoded:
        """What the decoder makes of mask prompts (B, 1, S, S)."""
        prompt = self.mask_downsample(mask.to(self.no_mem_embed.dtype))
        return self.decode(features.tokens, features.high, *self.no_points(len(mask)), prompt, multimask=False)

    def as_given(self, mask: Tensor, out: Decoded) -> ObjectOutput:
        """Mask prompts (B, 1, S, S) as they are, with the pointers that the decoder found."""
        logits, there = resize_antialiased(20 * mask - 10, self.config.image_size // 4)[:, 0], mask.flatten(1).any(1)
        pointer = torch.where(there[:, None], self.as_object(out).pointer, self.no_obj_ptr)
        return ObjectOutput(logits, pointer, 20.0 * there - 10)

    def memory_position(self, recall: Recall, pointer_count: int) -> Tensor:
        """Positions of the memory tokens and pointers of a recall: (1, M, c), c = mem_dim."""
        place = sine_position_2d(self.grid, self.grid, self.config.mem_dim, self.device)
        # Slot 0 has the last embedding, the newest memory the first.
        parts = [place + self.maskmem_tpos_enc[SLOTS - 1 - slot, 0] for slot, _ in recall.recent]
        if recall.pointers:
            offsets = torch.tensor([float(offset) for offset, _ in recall.pointers], device=self.device)
            position = self.pointer_position(offsets / max(pointer_count - 1, 1))
            parts.append(position.repeat_interleave(self.pointer_tokens, 0))
        return torch.cat(parts)[None]

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

    def condition(self, features: ImageFeatures, recalls: list[Recall], pointer_count: int = POINTERS) -> Tensor:
        """The frame as each object's memories see it: (B, N, C). The recalls, one per object, have one layout."""
        dtype = features.tokens.dtype
        memory = torch.stack(
            [
                torch.cat(
                    [
                        *(m.tokens.to(dtype) for _, m in r.recent),
                        *(m.pointer.to(dtype).view(-1, self.config.mem_dim) for _, m in r.pointers),
                    ]
                )
                for r in recalls
            ]
        )  # (B, F * N + p P, c): a pointer is p tokens
        position = self.memory_position(recalls[0], pointer_count)
        if features.begun is None:
            place = sine_position_2d(self.grid, self.grid, self.config.dim, self.device)
            features.begun = self.memory_attention.begin(features.tokens, place)
        return self.memory_attention(features.begun, memory, position, len(recalls[0].pointers) * self.pointer_tokens)

    def encode_memory(self, features: ImageFeatures, logits: Tensor, presence: Tensor, prompted: bool) -> Tensor:
        """Mask logits (B, S / 4, S / 4) on a frame -> memory tokens (B, N, mem_dim) in bfloat16.

        Masks of prompted frames are made binary first.
        """
        size = (self.config.image_size,) * 2
        logits = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)
        masks = (logits > 0).float() if prompted else logits.sigmoid()
        tokens = self.memory_encoder(features.tokens, 20 * masks - 10)
        if self.config.no_obj_embed_spatial:
            tokens = tokens + (presence <= 0)[:, None, None] * self.no_obj_embed_spatial
        return tokens.to(torch.bfloat16)


def build(preset: str | SAM2Config) -> SAM2:
    """A model with random weights, in eval mode. preset: a name of PRESETS, or a configuration."""
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
    width = len(state.get("image_encoder.trunk.patch_embed.proj.bias", ()))
    later = "no_obj_embed_spatial" in state
    for name, config in PRESETS.items():
        if (sum(config.stages), config.embed_dim, config.no_obj_embed_spatial) == (depth, width, later):
            return name
    raise ValueError(
        f"weights of {depth} trunk blocks and width {width} belong to none of {', '.join(PRESETS)}: "
        "give their configuration"
    )


def load(path: str | PathLike, preset: str | SAM2Config | None = None) -> SAM2:
    """An official checkpoint file, {"model": state dict}, as a model in eval mode on the CPU.

    Without a preset the weights tell which one they are. Every key must fit. Raises ValueError for another layout.
    """
    file = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(file, dict) or "model" not in file:
        raise ValueError(f'{path}: expected a SAM 2 checkpoint, {{"model": state dict}}')
    state = file["model"]
    with torch.device("meta"):  # no time for random weights that are replaced at once
        model = build(preset or preset_of(state))
    model.load_state_dict(state, strict=True, assign=True)
    return model


def compile_model(model: SAM2) -> SAM2:
    """Compile the heavy parts in place with torch.compile; the first calls are slow, the masks stay the same."""
    model.image_encoder.compile(dynamic=False)
    model.memory_encoder.compile()
    model.memory_attention.compile(dynamic=True)  # the memory grows during the first frames
    return model
