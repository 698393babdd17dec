"""Memory encoder and memory attention of SAM 2.

arXiv 2408.00714, section 4 and the appendix on its architecture; rotary position embedding: Su et al., arXiv
2104.09864, in its axial form of Heo et al., arXiv 2403.13298. Which memories a frame attends to: memory_bank.py.
S is the side of the model's image in pixels, N = (S / 16)^2 the number of image tokens, B the number of objects, M
that of memory tokens, object pointers among them. Left out: dropout.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .layers import Attention, LayerNorm2d

POSITION_WEIGHT = 0.1  # of the frame's position; the official MemoryAttention has it for pos_enc_at_input


class MaskDownSampler(nn.Module):
    """Mask (B, 1, S, S) -> (B, dim, S / 16, S / 16): four convolutions of stride 2.

    Each gives four times as many channels, 4, 16, 64, 256, but not more than `dim`.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.encoder = nn.Sequential()
        widths = [min(width, dim) for width in (1, 4, 16, 64, 256)]
        for width, wider in zip(widths, widths[1:]):
            conv = nn.Conv2d(width, wider, 3, stride=2, padding=1)
            self.encoder.extend([conv, LayerNorm2d(wider), nn.GELU()])
        self.encoder.append(nn.Conv2d(widths[-1], dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


class ConvNeXtBlock(nn.Module):
    """Block of ConvNeXt (Liu et al., arXiv 2201.03545): (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = LayerNorm2d(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)
        y = self.pwconv2(F.gelu(self.pwconv1(y))) * self.gamma
        return x + y.permute(0, 3, 1, 2)


class Fuser(nn.Module):
    """Two ConvNeXt blocks that mix the frame and its mask: (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.ModuleList(ConvNeXtBlock(dim) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class MemoryEncoder(nn.Module):
    """Frame features and masks -> memory tokens."""

    def __init__(self, dim: int, mem_dim: int):
        super().__init__()
        self.mask_downsampler = MaskDownSampler(dim)
        self.pix_feat_proj = nn.Conv2d(dim, dim, 1)
        self.fuser = Fuser(dim)
        self.out_proj = nn.Conv2d(dim, mem_dim, 1)

    def forward(self, frame: Tensor, masks: Tensor) -> Tensor:
        """frame (B or 1, N, C), masks (B, 1, S, S) scaled to +-10 -> (B, N, mem_dim)."""
        masks = self.mask_downsampler(masks.to(self.out_proj.weight.dtype))
        frame = self.pix_feat_proj(frame.mT.unflatten(2, masks.shape[2:]))  # (B, N, C) -> (B, C, h, w)
        return self.out_proj(self.fuser(frame + masks)).flatten(2).mT


def axial_angles(grid: int, dim: int, device: torch.device) -> Tensor:
    """Rotary angles (N, dim / 2) of the N = grid * grid cells of a map: the first half turn with x, the others with y.

    Both halves have the frequencies 10000^(-4 i / dim), i = 0, ..., dim / 4 - 1. The base is that of Su et al. and of
    the official configurations (rope_theta); Heo et al. take 100.
    """
    frequency = 10000.0 ** -(torch.arange(0, dim, 4, dtype=torch.float32, device=device) / dim)  # (dim / 4,)
    cell = torch.arange(grid * grid, device=device)[:, None]
    return torch.cat((cell % grid * frequency, cell // grid * frequency), 1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of channels (2 i, 2 i + 1) of x (..., N, dim) by angles[:, i]; angles (N, dim / 2)."""
    cos, sin = angles.cos(), angles.sin()
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class RotaryAttention(Attention):
    """One-head attention, softmax(q k^T / sqrt(d)) v, with q and k turned by their place in the map.

    The keys are the maps of F frames, each turned like the queries, and then object pointers, which have no place.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, pointers: int = 0) -> Tensor:
        """q (B or 1, N, C); k and v (B, F * N + pointers, Ck) -> (B, N, C)."""
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        N, of_maps = q.shape[1], k.shape[1] - pointers
        angles = axial_angles(round(N**0.5), q.shape[2], q.device)
        maps = k[:, :of_maps].unflatten(1, (-1, N))  # (B, F * N, d) -> (B, F, N, d)
        k = torch.cat((rotate(maps, angles).flatten(1, 2), k[:, of_maps:]), 1)
        return self.attend(rotate(q, angles), k, v)


class MemoryAttentionLayer(nn.Module):
    """The frame attends to itself, then to the memories; then an MLP."""

    def __init__(self, dim: int, mem_dim: int, mlp_dim: int):
        super().__init__()
        self.self_attn = RotaryAttention(dim)
        self.cross_attn_image = RotaryAttention(dim, kv_dim=mem_dim)
        self.linear1 = nn.Linear(dim, mlp_dim)
        self.linear2 = nn.Linear(mlp_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def attend_to_frame(self, x: Tensor) -> Tensor:
        """Self-attention of the frame, with its residual: (B, N, C) -> (B, N, C)."""
        y = self.norm1(x)
        return x + self.self_attn(y, y, y)

    def attend_to_memory(self, x: Tensor, memory_with_position: Tensor, memory: Tensor, pointers: int) -> Tensor:
        """Cross-attention to the memories, then the MLP: x (B or 1, N, C), keys and values (B, M, c) -> (B, N, C)."""
        x = x + self.cross_attn_image(self.norm2(x), memory_with_position, memory, pointers)
        return x + self.linear2(F.relu(self.linear1(self.norm3(x))))


class MemoryAttention(nn.Module):
    """A frame's tokens attend to themselves and to an object's memories, in each layer."""

    def __init__(self, dim: int, mem_dim: int, mlp_dim: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(MemoryAttentionLayer(dim, mem_dim, mlp_dim) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, frame: Tensor, position: Tensor, memory: Tensor, memory_position: Tensor, pointers: int
    ) -> Tensor:
        """frame (B or 1, N, C) with position (N, C); memory (B, M, c) with memory_position (1, M, c), of which the last
        `pointers` tokens are object pointers -> (B, N, C)."""
        position, memory, memory_position = (t.to(frame.dtype) for t in (position, memory, memory_position))
        x, memory_with_position = frame + POSITION_WEIGHT * position, memory + memory_position
        for layer in self.layers:
            x = layer.attend_to_frame(x)
            x = layer.attend_to_memory(x, memory_with_position, memory, pointers)
        return self.norm(x)
