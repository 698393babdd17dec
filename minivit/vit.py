"""The Vision Transformer, with options that help on small images.

ViT: Dosovitskiy et al., arXiv 2010.11929. Distillation token: DeiT, arXiv 2012.12877. Class-attention
tail, LayerScale, talking heads: CaiT, arXiv 2103.17239. One class covers them, so that the official
checkpoints of all three load; parameter names are timm's. Left out: windows, pyramids, registers, RoPE.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minivit.attention import Attention
from minivit.cait import ClassBlock, TalkingHeadsAttention
from minivit.hybrid import CNNEmbed, ResNetEmbed
from minivit.layers import MLP, ConvStem, DropPath, PatchEmbed, drop_path_rates, make_layer_scale, sincos_2d
from minivit.position_bias import DecomposedPositionBias, RelativePositionBias, TokenBias
from minivit.reading import Kind, any_of, check_config, flag_of, optional, positive, sequence, whole, within
from minivit.stem import WhiteningStem

STEMS = {"patch": PatchEmbed, "conv": ConvStem, "whitening": WhiteningStem, "cnn": CNNEmbed, "resnet18": ResNetEmbed}

MOST_BLOCKS, MOST_OTHERS = 1000, 1 << 16  # upper bounds: of counts of blocks, of other numbers
FLAGS = (  # settings that the command line has a flag for
    *("image_size", "patch", "dim", "depth", "heads", "mlp_ratio", "stem", "stem_depth", "whiten", "mlp_conv"),
    *("relative_bias", "class_attention", "layer_scale", "dropout", "head_dropout", "drop_path"),
)
SIDE = whole(1, MOST_OTHERS)
MODEL_KINDS: dict[str, Kind] = {  # ranges; of the other settings, the annotation says what they may be
    "image_size": any_of(SIDE, sequence(SIDE, 2)),
    **dict.fromkeys(("patch", "classes", "dim", "heads"), SIDE),
    **dict.fromkeys(("depth", "stem_depth", "class_attention"), whole(0, MOST_BLOCKS)),
    **dict.fromkeys(("mlp_ratio", "tail_mlp_ratio"), within(0, MOST_OTHERS, "(]")),
    **dict.fromkeys(("dropout", "head_dropout", "drop_path"), within(0, 1, "[)")),
    "layer_scale": optional(within(0)),
    "norm_eps": positive,
}


@dataclass(frozen=True)
class ViTConfig:
    """Architecture of a VisionTransformer. Sizes are in pixels, rates are probabilities.

    ValueError for a value out of its range, if the patch does not divide the image, or if settings contradict each
    other. depth 0, with pool "mean", is a stem and a head: what a model without attention learns, for comparison.
    """

    image_size: int | tuple[int, int] = 32  # a side, or (height, width)
    patch: int = 4
    classes: int = 10
    dim: int = 256
    depth: int = 12  # number of blocks, class-attention blocks included
    heads: int = 8
    mlp_ratio: float = 4.0
    stem: Literal["patch", "conv", "whitening", "cnn", "resnet18"] = "patch"
    stem_depth: int = 1  # residual 3x3 convolutions after each halving of the whitening stem
    whiten: bool = True  # its first layer is set from images and frozen; False: it learns from a random start
    position: Literal["learned", "sincos", "none"] = "learned"
    relative_bias: Literal["none", "decomposed", "joint"] = "none"
    mlp_conv: bool = False  # 3x3 depth-wise convolution inside the MLP
    class_token: bool = True
    distillation: bool = False  # distillation token with its own head, trained on a teacher's labels (DeiT)
    pool: Literal["cls", "mean"] = "cls"
    class_attention: int = 0  # how many of the blocks, at the end, are class-attention blocks (cait.py)
    tail_mlp_ratio: float = 4.0  # MLP ratio of those blocks: a wide MLP costs little, it sees one or two tokens
    tokens_enter_late: bool = False  # tokens join at the first class-attention block (CaiT), not at the first block
    talking_heads: bool = False
    qk_norm: bool = False
    qk_temperature: bool = False  # a learned factor on the scores of each head, for sharp attention on few images
    attention_biases: bool = True  # in the projections of attention; class-attention always has them
    activation: Literal["gelu", "silu"] = "gelu"  # in the MLP, of full blocks alone; on a CPU SiLU costs half of GELU
    # Takes smaller images too, for cheap first epochs: absolute positions are interpolated, of relative ones the middle
    # of the table counts.
    smaller_images: bool = False
    init: Literal["variance", "norm"] = "variance"  # of matrices: "norm" is the one at which Muon keeps hidden ones
    layer_scale: float | None = None  # initial gain; None for no LayerScale
    dropout: float = 0.0
    head_dropout: float = 0.0  # of the pooled token, before each head
    drop_path: float = 0.0  # of the last block; rises linearly from 0 at the first
    norm_eps: float = 1e-6  # of layer norms, as in Google's and timm's ViT

    def __post_init__(self):
        check_config(self, MODEL_KINDS, {name: flag_of(name) for name in FLAGS})
        height, width = self.size
        if height % self.patch or width % self.patch:
            raise ValueError(f"--patch {self.patch} does not divide a {height}x{width} image; " + self._suggestion())
        if self.dim % self.heads:
            fits = [n for n in range(1, self.dim + 1) if self.dim % n == 0]
            near = sorted(sorted(fits, key=lambda n: abs(n - self.heads))[:2])
            raise ValueError(
                f"--dim {self.dim} does not divide into {self.heads} heads: the nearest --heads that "
                f"{'does is' if len(near) == 1 else 'do are'} {', '.join(map(str, near))}"
            )
        for name, ratio in (("--mlp-ratio", self.mlp_ratio), ("tail_mlp_ratio", self.tail_mlp_ratio)):
            if int(self.dim * ratio) < 1:
                raise ValueError(f"{name} is {ratio:g}, of dimension {self.dim}: give at least {1 / self.dim:.3g}")
        if self.class_attention > self.depth:
            raise ValueError(
                f"--class-attention is {self.class_attention}, of --depth {self.depth}: give a number from 0 to "
                f"{self.depth}"
            )
        if self.class_attention and not self.class_token:
            raise ValueError(
                f"--class-attention {self.class_attention}: class-attention blocks need the class token, which this "
                "model lacks: take one that has it, such as --preset distilled"
            )
        if self.class_attention and self.pool == "mean" and not self.distillation:
            raise ValueError(
                f"--class-attention {self.class_attention}: its blocks change the special tokens alone, which no head "
                "of this model reads: take pool 'cls', or --class-attention 0"
            )
        if self.tokens_enter_late and not self.class_attention:
            raise ValueError("tokens_enter_late needs class-attention blocks, where they enter: set class_attention")
        if self.stem_depth != 1 and self.stem != "whitening":
            raise ValueError(f"--stem-depth {self.stem_depth} is of the whitening stem, not of --stem {self.stem}")
        if not self.whiten and self.stem != "whitening":
            raise ValueError(f"--no-whiten is of the whitening stem, not of --stem {self.stem}")
        if self.qk_norm and self.qk_temperature:
            raise ValueError("qk_norm has a learned factor already: leave qk_temperature out")
        if self.smaller_images and self.class_attention:
            raise ValueError(
                "the class-attention tail takes images of one size: leave out --sizes, which sets smaller_images"
            )
        if self.pool == "cls" and not self.class_token:
            raise ValueError("pool 'cls' needs the class token: take pool 'mean' without one")
        if self.pool == "cls" and not self.depth:
            raise ValueError(
                "--depth is 0, of a model whose class token would see no patch: give at least 1, or take one with "
                "pool 'mean', such as --preset cifar-fast"
            )

    def _suggestion(self) -> str:
        height, width = self.size
        fits = [p for p in range(1, min(height, width) + 1) if height % p == 0 and width % p == 0]
        patch = min(fits, key=lambda p: abs(p - self.patch))
        sides = [max(1, round(s / self.patch)) * self.patch for s in (height, width)]
        return (
            f"the nearest --patch that does is {patch}, "
            f"the nearest --image-size for patch {self.patch} is {sides[0]}x{sides[1]}"
        )

    @property
    def size(self) -> tuple[int, int]:
        """Image (height, width)."""
        return (self.image_size,) * 2 if isinstance(self.image_size, int) else tuple(self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across)."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    def takes(self, height: int, width: int) -> bool:
        """Whether the model takes images of this size."""
        smaller = height <= self.size[0] and width <= self.size[1]
        fits = min(height, width) > 0 and height % self.patch == 0 and width % self.patch == 0
        return (height, width) == self.size or (self.smaller_images and smaller and fits)

    @property
    def tokens(self) -> int:
        """The number of special tokens (class, distillation)."""
        return self.class_token + self.distillation


VIT_B16 = ViTConfig(image_size=224, patch=16, classes=1000, dim=768, depth=12, heads=12)
PRESETS: dict[str, ViTConfig] = {
    # The plain ViT, scaled up step by step: width, depth, smaller patches.
    "vit-d128-l6": ViTConfig(dim=128, depth=6, heads=4),  # 1,205,898 parameters
    "vit-d256-l6": ViTConfig(dim=256, depth=6, heads=4),  # 4,771,082
    "vit-d256-l12": ViTConfig(dim=256, depth=12, heads=8),  # 9,509,642
    "vit-d256-l12-p2": ViTConfig(dim=256, depth=12, heads=8, patch=2),  # 9,549,578
    # The distillation model: two tokens, and a class-attention tail in the last four blocks.
    "distilled": ViTConfig(
        dim=256,
        depth=12,
        heads=8,
        distillation=True,
        class_attention=4,
        tail_mlp_ratio=6.0,
        relative_bias="decomposed",
        dropout=0.05,
        drop_path=0.15,
    ),  # 10,565,972
    # Hybrids: a feature map of a convolutional network as patches.
    "hybrid-cnn": ViTConfig(dim=256, depth=6, heads=8, stem="cnn"),  # 5,970,634
    "hybrid-resnet18": ViTConfig(dim=256, depth=6, heads=8, stem="resnet18"),  # 7,599,434
    # ImageNet's ViTs, as torchvision and timm have them. vit-b16-last3 has a recipe of its own (recipes.py).
    "vit-b16": VIT_B16,  # 86,567,656
    "vit-b16-last3": VIT_B16,  # 86,567,656
    "vit-b32": ViTConfig(image_size=224, patch=32, classes=1000, dim=768, depth=12, heads=12),  # 88,224,232
    "vit-l16": ViTConfig(image_size=224, patch=16, classes=1000, dim=1024, depth=24, heads=16),  # 304,326,632
    # For small data sets: convolutions in the stem and the MLPs for locality, attention for the rest.
    "cifar": ViTConfig(
        dim=256,
        depth=12,
        heads=8,
        stem="conv",
        mlp_conv=True,
        relative_bias="decomposed",
        class_token=False,
        pool="mean",
        layer_scale=0.1,
        drop_path=0.1,
    ),  # 10,065,546
    "cifar-small": ViTConfig(
        dim=128,
        depth=4,
        heads=4,
        mlp_ratio=2.0,
        stem="conv",
        mlp_conv=True,
        relative_bias="decomposed",
        class_token=False,
        pool="mean",
    ),  # 660,362, for a CPU
    # Fast to train on two CPU cores: convolutions do the local work, three blocks of attention the rest.
    "cifar-fast": ViTConfig(
        patch=8,
        dim=192,
        depth=3,
        heads=3,
        mlp_ratio=2.0,
        stem="whitening",
        relative_bias="joint",
        class_token=False,
        pool="mean",
        qk_temperature=True,
        attention_biases=False,
        activation="silu",
        layer_scale=0.3,
        smaller_images=True,
        init="norm",
    ),  # 2,054,444
    "shapes-demo": ViTConfig(
        dim=64, depth=4, heads=4, mlp_ratio=2.0, stem="conv", mlp_conv=True, class_token=False, pool="mean"
    ),  # 171,738, for the generated shapes
}


class Block(nn.Module):
    """Pre-norm transformer block over all tokens: (B, T + N, C) -> the same. ViT, equations 2 and 3:

        z' = MSA(LN(z)) + z,    z = MLP(LN(z')) + z'

    with LayerScale and stochastic depth, where they are on, on both branches. tokens: T, the number of special
    tokens, which come first. forward takes the patch grid (down, across) for the convolution inside the MLP and the
    position bias.
    """

    def __init__(self, config: ViTConfig, drop_path: float, tokens: int):
        super().__init__()
        attention = TalkingHeadsAttention if config.talking_heads else Attention
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = attention(
            config.dim,
            config.heads,
            config.dropout,
            config.qk_norm,
            config.norm_eps,
            qk_temperature=config.qk_temperature,
            biases=config.attention_biases,
        )
        self.bias = make_position_bias(config, tokens)
        self.ls1 = make_layer_scale(config.dim, config.layer_scale)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        hidden = int(config.dim * config.mlp_ratio)
        self.mlp = MLP(config.dim, hidden, config.dropout, config.mlp_conv, config.activation)
        self.ls2 = make_layer_scale(config.dim, config.layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        bias = self.bias(grid) if self.bias is not None else None
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), bias)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x), grid)))


class VisionTransformer(nn.Module):
    """Map normalised images (B, 3, H, W) to class logits (B, classes).

    With a distillation token there are two classifying heads: `forward` averages their logits before the softmax, as
    DeiT's code does (the paper adds their softmax outputs), and `forward(x, each_head=True)` returns both, class head
    first, for a loss that treats them differently. `features` returns the tokens (B, T + N, C) after the last block,
    normalised if pool is "cls" (else their mean is), with the T special tokens (class, distillation) before the N
    patches. ValueError for images of a shape or type that the model does not take.

    checkpointing: in training, keep the input of each block alone and compute the block again in the backward pass
    (Chen et al., arXiv 1604.06174): less memory for a second forward pass. The last block of the fast form, where it
    computes a few tokens alone (fast.py), is left out.
    """

    checkpointing = False

    def __init__(self, config: ViTConfig):
        super().__init__()
        if not isinstance(config, ViTConfig):
            raise TypeError(f"the settings are {config!r:.40}: give a ViTConfig, such as PRESETS['cifar']")
        self.config = config
        patches, dim = config.grid[0] * config.grid[1], config.dim
        self.patch_embed = make_stem(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.distillation else None
        tokens = 0 if config.tokens_enter_late else config.tokens
        if config.position == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, tokens + patches, dim))
        elif config.position == "sincos":
            self.register_buffer("pos_embed", F.pad(sincos_2d(config.grid, dim), (0, 0, tokens, 0)).unsqueeze(0))
        else:
            self.pos_embed = None
        self.pos_dropout = nn.Dropout(config.dropout)
        rates = drop_path_rates(config.drop_path, config.depth)
        full = config.depth - config.class_attention
        self.blocks = nn.ModuleList(Block(config, rate, tokens) for rate in rates[:full])
        self.class_blocks = nn.ModuleList(make_class_block(config, rate) for rate in rates[full:])
        # timm's names: `norm` normalises all tokens, `fc_norm` the mean of the patches (and the distillation token).
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps) if config.pool == "cls" else nn.Identity()
        self.fc_norm = nn.LayerNorm(dim, eps=config.norm_eps) if config.pool == "mean" else nn.Identity()
        self.head = nn.Linear(dim, config.classes)
        self.head_dist = nn.Linear(dim, config.classes) if config.distillation else None
        init_weights(self)

    def forward(self, x: Tensor, each_head: bool = False) -> Tensor | tuple[Tensor, ...]:
        logits = self.heads(self.features(x))
        return logits if each_head else sum(logits) / len(logits)

    def features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> tokens (B, T + N, C) after the last block, special tokens first; see above."""
        grid = self.grid_of(x)
        x = self.embed(x)
        for block in self.blocks:
            x = self.through(block, x, grid)
        if self.config.class_attention:
            x = self.class_attention_tail(x)
        return self.norm(x)

    def through(self, block: nn.Module, *inputs: Tensor | tuple[int, int]) -> Tensor:
        """Call a block, with checkpointing if that is on and gradients are wanted."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def embed(self, x: Tensor) -> Tensor:
        """Patches, special tokens in front of them unless they enter late, position embedding added: (B, T + N, C)."""
        grid = self.grid_of(x)
        x = self.patch_embed(x)
        if not self.config.tokens_enter_late:
            x = torch.cat([*self.special_tokens(x.shape[0]), x], dim=1)
        if self.pos_embed is not None:
            x = x + self.positions(grid).to(x.dtype)
        return self.pos_dropout(x)

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        """Patches (down, across) of images (B, 3, H, W). ValueError for what are no images that the model takes."""
        height, width = self.config.size
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise ValueError(
                f"this model takes normalised images, a tensor of floating-point numbers, not {kind}: "
                "minivit.augment.normalise makes them from uint8"
            )
        if x.ndim != 4 or x.shape[1] != 3:
            wanted = f"RGB images of shape (B, 3, {height}, {width})"
            raise ValueError(f"this model takes {wanted}, not {tuple(x.shape)}{shape_hint(x)}")
        if not self.config.takes(*x.shape[2:]):
            raise ValueError(
                f"this model takes {height}x{width} images, not {x.shape[2]}x{x.shape[3]}: "
                "resize them, or build the model for that size"
            )
        return x.shape[2] // self.config.patch, x.shape[3] // self.config.patch

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding (1, T + N, C), interpolated to a grid of patches (down, across). T is 0 if the special
        tokens enter late."""
        if grid == self.config.grid:
            return self.pos_embed
        T = self.pos_embed.shape[1] - self.config.grid[0] * self.config.grid[1]
        patches = self.pos_embed[:, T:].mT.unflatten(2, self.config.grid)  # (1, N, C) -> (1, C, h, w)
        patches = F.interpolate(patches, grid, mode="bilinear")
        return torch.cat([self.pos_embed[:, :T], patches.flatten(2).mT], dim=1)

    def special_tokens(self, batch: int) -> list[Tensor]:
        """The special tokens that the model has, class token first, each (B, 1, C)."""
        return [t.expand(batch, -1, -1) for t in (self.cls_token, self.dist_token) if t is not None]

    def class_attention_tail(self, x: Tensor) -> Tensor:
        """Run the class-attention blocks, which update the T special tokens and leave the N patches as they are.

        (B, T + N, C), or (B, N, C) if the special tokens join here, to (B, T + N, C).
        """
        if self.config.tokens_enter_late:
            special, patches = torch.cat(self.special_tokens(x.shape[0]), dim=1), x
        else:
            special, patches = x[:, : self.config.tokens], x[:, self.config.tokens :]
        for block in self.class_blocks:
            special = self.through(block, special, patches)
        return torch.cat([special, patches], dim=1)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Tokens (B, T + N, C) -> logits (B, classes) of the class head and, if there is one, the distillation head."""
        T = self.config.tokens
        pooled = [x[:, 0] if self.config.pool == "cls" else self.fc_norm(x[:, T:].mean(dim=1))]
        heads = [self.head]
        if self.head_dist is not None:
            # The distillation token is the last special token.
            pooled, heads = [*pooled, self.fc_norm(x[:, T - 1])], [*heads, self.head_dist]
        pooled = [F.dropout(token, self.config.head_dropout, self.training) for token in pooled]
        return tuple(head(token) for head, token in zip(heads, pooled))


def shape_hint(x: Tensor) -> str:
    """A hint that makes RGB images (B, 3, H, W) of a tensor, if its shape tells; "" if not."""
    if x.ndim == 3 and x.shape[0] == 3:
        return ": x[None] is a batch of one image"
    if x.ndim == 4 and x.shape[1] == 1:
        return ": x.expand(-1, 3, -1, -1) makes grey ones RGB"
    return ": x.permute(0, 3, 1, 2) puts the channels first" if x.ndim == 4 and x.shape[3] == 3 else ""


def make_stem(config: ViTConfig) -> nn.Module:
    """The patch embedding of a configuration: images (B, 3, H, W) -> patches (B, N, C)."""
    own = (config.stem_depth, config.whiten) if config.stem == "whitening" else ()
    return STEMS[config.stem](config.patch, config.dim, *own)


def make_position_bias(config: ViTConfig, tokens: int) -> nn.Module | None:
    """The relative position bias of one block, None if the configuration has none."""
    kinds = {"none": None, "joint": RelativePositionBias, "decomposed": DecomposedPositionBias}
    kind = kinds[config.relative_bias]
    return kind and kind(config.grid, config.heads, tokens)


def make_class_block(config: ViTConfig, drop_path: float) -> ClassBlock:
    """One block of the class-attention tail."""
    patches = config.grid[0] * config.grid[1]
    bias = None if config.relative_bias == "none" else TokenBias(patches, config.heads, config.tokens)
    hidden = int(config.dim * config.tail_mlp_ratio)
    return ClassBlock(
        config.dim, config.heads, hidden, config.dropout, drop_path, config.layer_scale, config.norm_eps, bias
    )


def init_weights(model: VisionTransformer) -> None:
    """Initialise the weights of a new model.

    | what                                   | initial values                                 |
    |----------------------------------------|------------------------------------------------|
    | linear layers                          | uniform, variance 2 / (fan-in + fan-out)       |
    | heads                                  | normal, std 0.02, cut at two std               |
    | patch projection                       | as the linear layer it is                      |
    | convolutions of the stem               | normal, variance 2 / fan-in                    |
    | depth-wise convolution in the MLP      | normal, std 0.1                                |
    | all biases                             | 0                                              |
    | class, distillation, position          | normal, std 0.02, cut at two std               |
    | relative position bias                 | 0: no offset is preferred                      |
    | norms, LayerScale                      | as built: 1 and 0; the configured gain         |

    With `init` "norm" linear layers and convolutions are normal noise of Frobenius norm sqrt(rows), at which
    minivit/muon.py keeps hidden matrices. Heads begin at a tenth of it.

    The usual std of 0.02 for linear layers suits a width of 768; at 192 it makes the branches too faint
    to learn from at first.
    """
    for name, module in model.named_modules():
        if name.startswith("head"):
            nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
        elif isinstance(module, nn.Linear) or name == "patch_embed.proj":
            nn.init.xavier_uniform_(module.weight.flatten(1))
        elif isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1) if module.groups > 1 else nn.init.kaiming_normal_(module.weight)
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if model.config.init == "norm" and isinstance(module, (nn.Linear, nn.Conv2d)):
            init_norm(module.weight, 0.1 if name.startswith("head") else 1.0)
    for embedding in (model.cls_token, model.dist_token, model.pos_embed):
        if isinstance(embedding, nn.Parameter):
            nn.init.trunc_normal_(embedding, std=0.02, a=-0.04, b=0.04)


def init_norm(weight: Tensor, gain: float = 1.0) -> None:
    """Fill a weight (rows, ...) with normal noise of Frobenius norm gain * sqrt(rows)."""
    nn.init.normal_(weight)
    with torch.no_grad():
        weight.mul_(gain * len(weight) ** 0.5 / weight.norm())
