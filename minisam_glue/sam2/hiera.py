"""The image encoder of SAM 2: Hiera trunk and feature pyramid neck.

Hiera: Ryali et al., arXiv 2306.00989; absolute window position embedding: Bolya et al., arXiv 2311.05613; neck:
Lin et al., arXiv 1612.03144; SAM 2: arXiv 2408.00714, section 4. The trunk's maps are (B, H, W, C), the neck's
(B, C, H, W). Left out: stochastic depth, and the coarsest output of the neck, which SAM 2 computes and drops.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..layers import MLP


def max_pool(x: Tensor) -> Tensor:
    """2 x 2 max pooling: (B, H, W, C) -> (B, H / 2, W / 2, C)."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def to_windows(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) -> (B * windows, size, size, C), padded with zeros at the bottom and right."""
    B, H, W, C = x.shape
    x = F.pad(x, (0, 0, 0, -W % size, 0, -H % size))
    rows, cols = x.shape[1] // size, x.shape[2] // size
    return x.view(B, rows, size, cols, size, C).transpose(2, 3).reshape(-1, size, size, C)


def from_windows(x: Tensor, height: int, width: int) -> Tensor:
    """(B * windows, size, size, C) -> (B, height, width, C): the inverse of to_windows, without its padding."""
    size, C = x.shape[1], x.shape[3]
    rows, cols = -(-height // size), -(-width // size)
    x = x.view(-1, rows, cols, size, size, C).transpose(2, 3).reshape(-1, rows * size, cols * size, C)
    return x[:, :height, :width]


class PatchEmbed(nn.Module):
    """7 x 7 convolution of stride 4: (B, 3, H, W) -> (B, H / 4, W / 4, C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 7, stride=4, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class HieraAttention(nn.Module):
    """Self-attention of a window or of a whole map; with q_pool the queries are max-pooled 2 x 2, and so the output."""

    def __init__(self, dim: int, dim_out: int, heads: int, q_pool: bool):
        super().__init__()
        self.heads, self.q_pool = heads, q_pool
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(d)) v of each window: q, k and v (B, H, W, h * d) -> as forward."""
        q = max_pool(q) if self.q_pool else q
        H, W = q.shape[1:3]
        # (B, H, W, h * d) -> (B, h, H * W, d)
        q, k, v = (t.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v)
        return x.transpose(1, 2).flatten(2).unflatten(1, (H, W))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C'), with q_pool (B, H / 2, W / 2, C')."""
        return self.proj(self.attend(*self.qkv(x).chunk(3, -1)))


class HieraBlock(nn.Module):
    """Pre-norm transformer block, in windows of `window` x `window` tokens or (window = 0) over the whole map.

    The first block of a later stage doubles the channels and halves the map.
    """

    def __init__(self, dim: int, dim_out: int, heads: int, window: int):
        super().__init__()
        self.window, self.q_pool = window, dim != dim_out
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = HieraAttention(dim, dim_out, heads, self.q_pool)
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6)
        self.mlp = MLP(dim_out, 4 * dim_out, dim_out, activation=F.gelu)
        if self.q_pool:
            self.proj = nn.Linear(dim, dim_out)

    def attend(self, x: Tensor) -> Tensor:
        """Attention in each window: (B, H, W, C) -> (B, H', W', C')."""
        if not self.window:
            return self.attn(x)
        H, W = (side // 2 if self.q_pool else side for side in x.shape[1:3])
        return from_windows(self.attn(to_windows(x, self.window)), H, W)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C')."""
        y = self.norm1(x)
        x = (max_pool(self.proj(y)) if self.q_pool else x) + self.attend(y)
        return x + self.mlp(self.norm2(x))


class Hiera(nn.Module):
    """Images (B, 3, S, S) -> one (B, H, W, C) map per stage, at strides 4, 8, 16 and 32.

    windows holds a window size per stage; the blocks whose index is in global_blocks see the whole map.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        stages: tuple[int, ...],
        global_blocks: tuple[int, ...],
        windows: tuple[int, ...],
        background: tuple[int, int],
    ):
        super().__init__()
        self.patch_embed = PatchEmbed(dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, *background))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, dim, windows[0], windows[0]))
        self.stage_ends = [sum(stages[: i + 1]) - 1 for i in range(len(stages))]
        self.blocks = nn.ModuleList()
        for stage, depth in enumerate(stages):
            for i in range(depth):
                first = stage > 0 and i == 0
                # The first block of a stage still sees the previous stage's map, hence its window.
                window = 0 if len(self.blocks) in global_blocks else windows[stage - first]
                width = dim << stage
                self.blocks.append(HieraBlock(width // 2 if first else width, width, heads << stage, window))

    def position(self, height: int, width: int) -> Tensor:
        """The coarse embedding stretched over the map plus the window embedding repeated: (1, H, W, C)."""
        coarse = F.interpolate(self.pos_embed, size=(height, width), mode="bicubic")
        size = self.pos_embed_window.shape[-1]
        return (coarse + self.pos_embed_window.tile(height // size, width // size)).permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embed(x)
        x = x + self.position(*x.shape[1:3])
        stages = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.stage_ends:
                stages.append(x)
        return stages


class Neck(nn.Module):
    """1 x 1 convolutions to one width; the stride 16 map also gets the stride 32 map, enlarged.

    A feature pyramid whose way down ends there (fpn_top_down_levels): the finer maps are their own convolutions alone.
    convs are kept in the official order, coarsest first.
    """

    def __init__(self, dim: int, widths: list[int]):
        super().__init__()
        self.convs = nn.ModuleList(nn.Sequential() for _ in widths)
        for conv, width in zip(self.convs, reversed(widths)):
            conv.add_module("conv", nn.Conv2d(width, dim, 1))

    def forward(self, stages: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Trunk maps (B, H, W, C) of strides 4 to 32 -> (B, dim, H, W) of strides 4, 8 and 16."""
        s4, s8, s16, s32 = (conv(x.permute(0, 3, 1, 2)) for conv, x in zip(reversed(self.convs), stages))
        return s4, s8, s16 + F.interpolate(s32, scale_factor=2.0, mode="nearest")


class ImageEncoder(nn.Module):
    """Trunk and neck: images (B, 3, S, S) -> maps (B, dim, H, W) of strides 4, 8 and 16."""

    def __init__(self, trunk: Hiera, neck: Neck):
        super().__init__()
        self.trunk, self.neck = trunk, neck

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.neck(self.trunk(x))
