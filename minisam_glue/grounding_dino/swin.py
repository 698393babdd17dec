"""Swin Transformer backbone: an image -> maps at strides 8, 16 and 32.

Paper: Liu et al., arXiv 2103.14030, section 3. N = w * w is the number of tokens of a window, h of heads, d of
channels of a head. Key names are those of the official detector's `backbone.0`. Left out:
absolute position embeddings, stochastic depth and the classification head. The padding that fills up windows is not
masked, as in the official code.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 4


@dataclass(frozen=True)
class SwinConfig:
    """Channels of stage 0 (doubled at each stage), blocks and heads of each stage, window side in tokens."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps that the backbone returns."""
        return tuple(self.embed_dim * 2**i for i in range(1, len(self.depths)))


def relative_position_index(window: int) -> Tensor:
    """(N, N): the row of the bias table for each pair of tokens of a window."""
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    row, column = row.flatten(), column.flatten()
    down = row[:, None] - row[None] + window - 1
    across = column[:, None] - column[None] + window - 1
    return down * (2 * window - 1) + across


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(windows, N, N): -100 between tokens that only the shift has brought into one window, else 0.

    The value is the official code's: it is added to scores before the softmax, in place of minus infinity.
    """

    def band(length: int) -> Tensor:  # 0, 1 or 2: before the last window, in it, and rolled around from the front
        position = torch.arange(length, device=device)
        return (position >= length - window).int() + (position >= length - shift).int()

    region = 3 * band(height)[:, None] + band(width)[None]
    region = to_windows(region[None, :, :, None], window)[..., 0]  # (windows, N)
    return (region[:, :, None] != region[:, None]).float() * -100.0


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C), whole windows of side w -> (B * windows, w * w, C)."""
    B, H, W, C = x.shape
    x = x.view(B, H // window, window, W // window, window, C)
    return x.transpose(2, 3).reshape(-1, window * window, C)


def from_windows(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """(B * windows, w * w, C) -> (B, height, width, C)."""
    x = x.view(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])


class PatchEmbed(nn.Module):
    """(B, 3, H, W) -> (B, ceil(H/4), ceil(W/4), C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[-2:]
        x = self.proj(F.pad(x, (0, -W % PATCH, 0, -H % PATCH)))
        return self.norm(x.permute(0, 2, 3, 1))  # (B, C, H, W) -> (B, H, W, C)


class WindowAttention(nn.Module):
    """Self-attention within windows of N = w * w tokens, with a learned bias for each relative offset."""

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (windows, N, C) of one or more images -> the same shape; mask: `shift_mask`, added to the scores."""
        windows, N, C = x.shape
        # (windows, N, 3C) -> 3 x (windows, h, N, d)
        q, k, v = self.qkv(x).view(windows, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]  # (1, h, N, N)
        if mask is not None:
            bias = bias + mask.repeat(windows // len(mask), 1, 1)[:, None]  # (windows, h, N, N)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(x.transpose(1, 2).reshape(windows, N, C))


class MLP(nn.Module):
    """Two linear layers with GELU between: (..., C) -> (..., C). Swin calls them fc1 and fc2, unlike layers.MLP."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Window attention (shifted in every second block) and an MLP, both pre-norm, on (B, H, W, C)."""

    def __init__(self, dim: int, heads: int, window: int, shift: int):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.windowed_attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def windowed_attention(self, x: Tensor) -> Tensor:
        """Pad (B, H, W, C) to whole windows, shift, attend within each window, and undo all of it."""
        (H, W), w, s = x.shape[1:3], self.window, self.shift
        x = F.pad(x, (0, 0, 0, -W % w, 0, -H % w))
        padded, mask = x.shape[1:3], None
        if s:
            x = x.roll((-s, -s), (1, 2))
            mask = shift_mask(*padded, w, s, x.device)
        x = from_windows(self.attn(to_windows(x, w), mask), w, *padded)
        return (x.roll((s, s), (1, 2)) if s else x)[:, :H, :W]


class PatchMerging(nn.Module):
    """Halve the map, (B, H, W, C) -> (B, H/2, W/2, 2C), rounded up: the four tokens of each 2x2 square, concatenated,
    are projected to 2C channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        x = torch.cat((x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]), -1)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    """Blocks of one resolution, every second one with shifted windows; `downsample` leads to the next stage."""

    def __init__(self, dim: int, depth: int, heads: int, window: int, last: bool):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads, window, window // 2 * (i % 2)) for i in range(depth))
        self.downsample = None if last else PatchMerging(dim)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Swin(nn.Module):
    """Images (B, 3, H, W), normalised -> list of maps (B, C_i, H_i, W_i) of all stages but the first."""

    def __init__(self, config: SwinConfig):
        super().__init__()
        self.patch_embed = PatchEmbed(config.embed_dim)
        self.layers = nn.ModuleList()
        for i, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
            last = i == len(config.depths) - 1
            self.layers.append(Stage(config.embed_dim * 2**i, depth, heads, config.window_size, last))
        for i, channels in enumerate(config.channels, 1):
            self.add_module(f"norm{i}", nn.LayerNorm(channels))

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = self.patch_embed(images), []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i > 0:
                maps.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2))  # (B, H, W, C) -> (B, C, H, W)
            if layer.downsample is not None:
                x = layer.downsample(x)
        return maps
