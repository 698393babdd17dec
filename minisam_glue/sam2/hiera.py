"""The image encoder of SAM 2: Hiera trunk and feature pyramid neck.

Hiera: Ryali et al., arXiv 2306.00989; absolute window position embedding: Bolya et al., arXiv 2311.05613;
SAM 2: arXiv 2408.00714, appendix D.1. Maps are (B, H, W, C). Left out: stochastic depth and the coarsest
neck level's output, which SAM 2 computes and drops.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..layers import MLP
from .layers import ParameterCache

CPU_TOKENS = 4096


def pool(x: Tensor) -> Tensor:
    """2 x 2 max pooling of (B, H, W, C)."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def to_windows(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) -> (B * windows, size, size, C), padded with zeros at the bottom and right."""
    B, H, W, C = x.shape
    if H % size or W % size:
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


class WindowAttention(nn.Module):
    """Self-attention inside windows (window = 0: over the whole map), with max-pooled queries where the map shrinks."""

    def __init__(self, dim: int, dim_out: int, heads: int, window: int, shrink: bool):
        super().__init__()
        self.heads, self.window, self.shrink = heads, window, shrink
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H', W', C')."""
        H, W = (s // 2 if self.shrink else s for s in x.shape[1:3])
        if self.window and (x.shape[1] % self.window or x.shape[2] % self.window):
            # Tokens of the padding are zeros, so their projection is the bias: only the others are projected.
            qkv = to_windows(F.linear(x, self.qkv.weight), self.window) + self.qkv.bias
        else:
            qkv = self.qkv(to_windows(x, self.window) if self.window else x)
        q, k, v = qkv.chunk(3, -1)  # each (B * windows, size, size, C')
        if self.shrink:
            q = pool(q)
        rows, cols = q.shape[1:3]
        # (B, size, size, h * d) -> (B, h, N, d)
        q, k, v = (t.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v)
        x = x.transpose(1, 2).reshape(-1, rows, cols, self.proj.in_features)  # (B, h, N, d) -> (B, rows, cols, C')
        if self.window:
            x = from_windows(x, H, W)
        return self.proj(x)


class Block(nn.Module):
    """Pre-norm transformer block; the first block of a later stage doubles the channels and halves the map."""

    def __init__(self, dim: int, dim_out: int, heads: int, window: int):
        super().__init__()
        self.shrink = dim != dim_out
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = WindowAttention(dim, dim_out, heads, window, self.shrink)
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6)
        self.mlp = MLP(dim_out, 4 * dim_out, dim_out, activation=F.gelu)
        if self.shrink:
            self.proj = nn.Linear(dim, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not self.attn.window:
            return self.whole(x)
        # Windows do not see each other: a CPU takes a few rows of them at a time, which then stay in its cache.
        rows = max(1, CPU_TOKENS // (self.attn.window * x.shape[2])) * self.attn.window
        return torch.cat([self.whole(strip) for strip in x.split(rows, 1)], 1)

    def whole(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = (pool(self.proj(y)) if self.shrink else x) + self.attn(y)
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
                self.blocks.append(Block(width // 2 if first else width, width, heads << stage, window))
        self.position_cache = ParameterCache()

    def position(self, height: int, width: int) -> Tensor:
        """The coarse embedding stretched over the map plus the window embedding repeated: (1, H, W, C)."""

        def make() -> Tensor:
            coarse = F.interpolate(self.pos_embed, size=(height, width), mode="bicubic")
            size = self.pos_embed_window.shape[-1]
            return (coarse + self.pos_embed_window.tile(height // size, width // size)).permute(0, 2, 3, 1)

        return self.position_cache.get([self.pos_embed, self.pos_embed_window], (height, width), make)

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

    convs are kept in the official order, coarsest first.
    """

    def __init__(self, dim: int, widths: list[int]):
        super().__init__()
        self.convs = nn.ModuleList(nn.Sequential() for _ in widths)
        for conv, width in zip(self.convs, reversed(widths)):
            conv.add_module("conv", nn.Conv2d(width, dim, 1))

    def weights(self, level: int) -> tuple[Tensor, Tensor]:
        """Weight (C, width) and bias of a level, 0 = finest."""
        conv = self.convs[len(self.convs) - 1 - level].conv
        return conv.weight.flatten(1), conv.bias

    def forward(self, stages: list[Tensor]) -> Tensor:
        """The stride 16 map, (B, H, W, dim)."""
        coarse = F.linear(stages[3], *self.weights(3))
        fine = F.linear(stages[2], *self.weights(2))
        B, H, W, C = fine.shape
        # Each coarse cell is added to the 2 x 2 fine cells that it covers.
        fine = fine.view(B, H // 2, 2, W // 2, 2, C) + coarse[:, :, None, :, None]
        return fine.view(B, H, W, C)


class ImageEncoder(nn.Module):
    """Trunk and neck. forward gives the two finest trunk maps and the neck's stride 16 map, all (B, H, W, C)."""

    def __init__(self, trunk: Hiera, neck: Neck):
        super().__init__()
        self.trunk, self.neck = trunk, neck

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stages = self.trunk(x)
        return stages[0], stages[1], self.neck(stages)

    def folded(self, level: int, x: Tensor, conv: nn.Conv2d) -> Tensor:
        """The neck's level (0 or 1) followed by another 1 x 1 convolution, as one product: (B, H, W, conv width)."""
        weight, bias = self.neck.weights(level)
        after = conv.weight.flatten(1)
        return F.linear(x, after @ weight, after @ bias + conv.bias)
