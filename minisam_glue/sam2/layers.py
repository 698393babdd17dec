"""Parts that the modules of SAM 2 share: norms, attention, sine position encodings, a cache.

Ravi et al., "SAM 2: Segment Anything in Images and Videos", arXiv 2408.00714. Token layout throughout:
(B, N, C), batch first, N = height * width in raster order. Left out: dropout and stochastic depth, which
act in training alone.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

# Up to this many prompt tokens the folded attention below does fewer multiplications than the plain one.
FEW = 16


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than its outer one.

    forward is the fused path. `read` and `write` give the same numbers where few tokens meet a whole image:
    the projections of the image side move to the token side, so that no projected copy of the image is made.
    """

    def __init__(self, dim: int, heads: int = 1, inner: int | None = None, kv_dim: int | None = None):
        super().__init__()
        inner, kv_dim = inner or dim, kv_dim or dim
        self.heads = heads
        self.scale = (inner // heads) ** -0.5
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(kv_dim, inner)
        self.v_proj = nn.Linear(kv_dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, h * d) -> (B, h, N, d)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, N, C), k and v (B or 1, M, Ck) -> (B, N, C)."""
        B = max(q.shape[0], k.shape[0])
        q, k, v = (
            self.split(proj(x)).expand(B, -1, -1, -1)
            for proj, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(x.transpose(1, 2).flatten(2))  # (B, h, N, d) -> (B, N, h * d)

    def read(self, tokens: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Few tokens (B, N, C) look at an image, k and v (B or 1, M, C). Equal to forward.

        q . (W k + b) = (W^T q) . k + const: the bias shifts all scores of a query alike and cancels. The
        weights sum to one, so the value projection can follow the sum.
        """
        B, N, _ = tokens.shape
        if N > FEW:
            return self(tokens, k, v)
        h = self.heads
        q = self.split(self.q_proj(tokens) * self.scale)
        q = q @ self.k_proj.weight.unflatten(0, (h, -1))  # (B, h, N, d) @ (h, d, C)
        # With one image for all, (B, h, N, C) becomes (1, B * h * N, C): a single product.
        weights = (q.reshape(k.shape[0], -1, q.shape[-1]) @ k.mT).softmax(-1)
        x = (weights @ v).view(B, h, N, -1) @ self.v_proj.weight.unflatten(0, (h, -1)).mT  # (B, h, N, d)
        return self.out_proj(x.transpose(1, 2).flatten(2) + self.v_proj.bias)

    def write(self, image: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """An image (B or 1, M, C) looks at few tokens, k and v (B, N, C). Equal to forward."""
        B, N, _ = k.shape
        if N > FEW:
            return self(image, k, v)
        h = self.heads
        k = self.split(self.k_proj(k) * self.scale)  # (B, h, N, d)
        bias = (k @ self.q_proj.bias.unflatten(0, (h, -1)).unsqueeze(-1)).view(B, 1, h * N)
        k = (k @ self.q_proj.weight.unflatten(0, (h, -1))).flatten(1, 2)  # (B, h * N, C)
        weights = (image @ k.mT + bias).unflatten(-1, (h, N)).softmax(-1).flatten(-2)  # (B, M, h * N)
        v = self.split(self.v_proj(v)) @ self.out_proj.weight.T.unflatten(0, (h, -1))  # (B, h, N, C)
        return weights @ v.flatten(1, 2) + self.out_proj.bias


def resize_antialiased(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side), bilinear with antialiasing. MPS has no such kernel: the CPU does it there."""
    source = x.cpu() if x.device.type == "mps" else x
    return F.interpolate(source, size=(side, side), mode="bilinear", antialias=True).to(x.device)


class ParameterCache:
    """Keeps a tensor computed from parameters until one of them changes."""

    def __init__(self):
        self.state, self.value = None, None

    def get(self, sources: list[Tensor], key: tuple, make: Callable[[], Tensor]) -> Tensor:
        # A change in place bumps the version, a move or a load with assign=True changes the address.
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or any(s.is_inference() for s in sources):
            return make()
        state = [key, torch.is_inference_mode_enabled()]
        state += [(s.data_ptr(), s._version, s.dtype, s.device) for s in sources]
        if state != self.state:
            self.state, self.value = state, make()
        return self.value


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # a table made while tracking must serve training too
def sine_position_2d(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """The sine encoding of each cell of a grid as (height * width, dim): y in the first half, x in the second."""

    def encode(n: int) -> Tensor:
        position = torch.arange(1, n + 1, dtype=torch.float32, device=device)
        position = position / (n + 1e-6) * 2 * math.pi
        index = torch.arange(dim // 2, dtype=torch.float32, device=device)
        angle = position[:, None] / 10000 ** (2 * (index // 2) / (dim // 2))
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), -1).flatten(1)  # (n, dim / 2)

    y, x = encode(height), encode(width)
    grid = torch.cat((y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)), -1)
    return grid.flatten(0, 1)


def sine_position_1d(position: Tensor, dim: int) -> Tensor:
    """(N,) -> (N, dim): sines in the first half, cosines in the second."""
    index = torch.arange(dim // 2, dtype=torch.float32, device=position.device)
    angle = position[:, None] / 10000 ** (2 * (index // 2) / (dim // 2))
    return torch.cat((angle.sin(), angle.cos()), -1)
