"""Multi-head self-attention: Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, section 3.2.

B is batch, N tokens, C channels, h heads, d channels per head (C = h * d). Left out: masks, caches,
and a class for cross-attention. PyTorch's fused kernel, which computes the same, stands in fast.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Equation 1 of the paper, with position scores added: softmax(q k^T / sqrt(d) + bias) v.

    q: (B, h, Q, d); k, v: (B, h, N, d); bias broadcasts to (B, h, Q, N). Returns (B, h, Q, d).
    """
    # Scaling q costs less than scaling the scores.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, h, Q, N)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1) @ v


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Cut the channels into heads: (B, N, C) -> (B, h, N, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Put the heads side by side: (B, h, N, d) -> (B, N, C)."""
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head self-attention (section 3.2.2): tokens (B, N, C) -> (B, N, C).

    qk_norm: layer-normalise queries and keys per head (ViT-22B, arXiv 2302.05442, section 2).
    qk_temperature: multiply the scores of each head by a learned number: the learned temperature of locality
    self-attention (LSA, Lee et al., arXiv 2112.13492), without its mask of the diagonal. LSA learns the whole factor,
    which begins at 1 / sqrt(d); here 1 / sqrt(d) stays and the learned number begins at 1.
    dropout: probability, of the output. biases: whether both projections have them.
    ValueError if `heads` does not divide `dim`, or for both of qk_norm and qk_temperature.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float = 0.0,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        qk_temperature: bool = False,
        biases: bool = True,
    ):
        super().__init__()
        check_heads(dim, heads)
        if qk_norm and qk_temperature:
            raise ValueError("qk_norm and qk_temperature: give one of them, as both scale the queries")
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=biases)
        self.q_norm = nn.LayerNorm(dim // heads, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads, eps=norm_eps) if qk_norm else nn.Identity()
        if qk_temperature:  # under this name, although it norms nothing: the key stands in the weights that ship
            self.q_norm = Temperature(heads)
        self.proj = nn.Linear(dim, dim, bias=biases)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x: (B, N, C); bias: scores that are added before the softmax, broadcastable to (B, h, N, N)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # each (B, N, C)
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))  # each (B, h, N, d)
        out = self.attend(self.q_norm(q), self.k_norm(k), v, bias)
        return F.dropout(self.proj(merge_heads(out)), self.dropout, self.training)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of queries to keys, by head. q: (B, h, Q, d); k, v: (B, h, N, d) -> (B, h, Q, d)."""
        return scaled_dot_product_attention(q, k, v, bias)


class Temperature(nn.Module):
    """Multiply the queries (B, h, N, d) of each head, and so its scores, by a learned number that starts at 1."""

    def __init__(self, heads: int):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, q: Tensor) -> Tensor:
        return q * self.temperature.to(q.dtype)  # in the precision of q: autocast has no rule for products


def check_heads(dim: int, heads: int) -> None:
    """Raise ValueError if `heads` does not divide `dim`."""
    if dim % heads:
        raise ValueError(f"width {dim} does not divide into {heads} heads")
