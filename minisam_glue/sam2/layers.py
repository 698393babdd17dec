"""Layers that the modules of SAM 2 share: layer norm of maps, attention, sine positions, resizing.

Ravi et al., "SAM 2: Segment Anything in Images and Videos", arXiv 2408.00714; sine positions as in DETR, Carion
et al., arXiv 2005.12872. Tokens are (B, N, C) with N = height * width, row by row; maps are (B, C, H, W). Left out:
dropout and stochastic depth, which act in training alone.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head attention, softmax(q k^T / sqrt(d)) v; its inner width may be smaller than its outer one."""

    def __init__(self, dim: int, heads: int = 1, inner: int | None = None, kv_dim: int | None = None):
        super().__init__()
        inner, kv_dim = inner or dim, kv_dim or dim
        self.heads = heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(kv_dim, inner)
        self.v_proj = nn.Linear(kv_dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, h * d) -> (B, h, N, d)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Projected q (B or 1, N, h * d), k and v (B or 1, M, h * d) -> (B, N, C)."""
        B = len(k) if len(q) == 1 else len(q)
        q, k, v = (self.split(x).expand(B, -1, -1, -1) for x in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(x.transpose(1, 2).flatten(2))  # (B, h, N, d) -> (B, N, h * d)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B or 1, N, C), k and v (B or 1, M, Ck) -> (B, N, C)."""
        return self.attend(self.q_proj(q), self.k_proj(k), self.v_proj(v))


def resize_antialiased(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, h, w), bilinear with antialiasing; size: (h, w), or the side of a square.

    PyTorch 2.6 has no such kernel for MPS: the CPU does it there.
    """
    source = x.cpu() if x.device.type == "mps" else x
    size = (size, size) if isinstance(size, int) else size
    return F.interpolate(source, size=size, mode="bilinear", antialias=True).to(x.device)


def pool_to(x: Tensor, side: int) -> Tensor:
    """(C, H, W) -> (C, side, side), the mean of what falls into each cell. MPS pools only to sides that divide: the CPU
    does it there."""
    source = x.cpu() if x.device.type == "mps" else x
    return F.adaptive_avg_pool2d(source, side).to(x.device)


def sine_angles(position: Tensor, channels: int) -> Tensor:
    """position (N,) -> angles (N, channels): channels 2 i and 2 i + 1 share the frequency 10000^(-2 i / channels)."""
    index = torch.arange(channels, device=position.device)
    return position.float()[:, None] / 10000 ** ((2 * (index // 2)).float() / channels)


def sine_position_1d(position: Tensor, dim: int) -> Tensor:
    """Encode positions (N,) as (N, dim): sines in the first half, cosines in the second."""
    angle = sine_angles(position, dim // 2)
    return torch.cat((angle.sin(), angle.cos()), -1)


def sine_position_2d(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """Encode the cells of a grid as (height * width, dim): y in the first half, x in the second; sines and cosines
    take turns. Positions run from 2 pi / cells to 2 pi, as DETR's do when they are normalised."""

    def encode(cells: int) -> Tensor:
        position = torch.arange(1, cells + 1, dtype=torch.float32, device=device) / (cells + 1e-6) * 2 * math.pi
        angle = sine_angles(position, dim // 2)
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), -1).flatten(1)  # (cells, dim / 2)

    y, x = encode(height), encode(width)
    return torch.cat((y.repeat_interleave(width, 0), x.repeat(height, 1)), -1)
