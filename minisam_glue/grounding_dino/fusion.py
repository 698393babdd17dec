"""Feature enhancer's fusion: bi-directional attention between image tokens and text tokens.

Paper: Grounding DINO, arXiv 2303.05499, section 3.1, after GLIP, arXiv 2112.03857, section 3.2 (X-MHA). One score
matrix of S image tokens v and L text tokens l is read in both directions, per head of d channels:

    scores = (v Wq) (l Wk)^T / sqrt(d)               v_proj and l_proj
    read_v = softmax over l (scores)   (l Wl) Ov     values_l_proj, out_v_proj: image tokens read text tokens
    read_l = softmax over v (scores)^T (v Wv) Ol     values_v_proj, out_l_proj: text tokens read image tokens

Left out: dropout, stochastic depth, and the official clamp of scores to +-50000. The folded form is in fast.py.
"""

import torch
from torch import Tensor, nn


def masked_softmax(scores: Tensor, valid: Tensor | None) -> Tensor:
    """Softmax over the last axis of scores (B, h, M, N), with no weight where valid (B, N) is False."""
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None], -torch.inf)
    return scores.softmax(-1)


class BiMultiHeadAttention(nn.Module):
    """Attention of image tokens v (B, S, C) to text tokens l (B, L, C), and of l to v, from one score matrix."""

    def __init__(self, dim: int, inner: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (inner // heads) ** -0.5
        self.v_proj = nn.Linear(dim, inner)
        self.l_proj = nn.Linear(dim, inner)
        self.values_v_proj = nn.Linear(dim, inner)
        self.values_l_proj = nn.Linear(dim, inner)
        self.out_v_proj = nn.Linear(inner, dim)
        self.out_l_proj = nn.Linear(inner, dim)

    def forward(self, v: Tensor, l: Tensor, valid_v: Tensor | None, valid_l: Tensor | None) -> tuple[Tensor, Tensor]:
        """valid_v (B, S) and valid_l (B, L) are False at padding -> what v reads (B, S, C), and l (B, L, C)."""
        query, key = self.split_heads(self.v_proj(v)), self.split_heads(self.l_proj(l))
        scores = query @ key.transpose(2, 3) * self.scale  # (B, h, S, L)
        read_v = masked_softmax(scores, valid_l) @ self.split_heads(self.values_l_proj(l))  # (B, h, S, d)
        read_l = masked_softmax(scores.transpose(2, 3), valid_v) @ self.split_heads(self.values_v_proj(v))
        # (B, h, N, d) -> (B, N, h * d)
        read_v, read_l = (read.transpose(1, 2).flatten(2) for read in (read_v, read_l))
        return self.out_v_proj(read_v), self.out_l_proj(read_l)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, N, h * d) -> (B, h, N, d)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class BiAttentionBlock(nn.Module):
    """Pre-norm fusion with a learned scale, 1e-4 at first; as in the official code (BiAttentionBlock) the residual
    starts from the normalised tokens."""

    def __init__(self, dim: int, inner: int, heads: int):
        super().__init__()
        self.layer_norm_v = nn.LayerNorm(dim)
        self.layer_norm_l = nn.LayerNorm(dim)
        self.attn = BiMultiHeadAttention(dim, inner, heads)
        self.gamma_v = nn.Parameter(torch.full((dim,), 1e-4))
        self.gamma_l = nn.Parameter(torch.full((dim,), 1e-4))

    def forward(self, v: Tensor, l: Tensor, valid_v: Tensor | None, valid_l: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens and masks as for BiMultiHeadAttention -> image tokens (B, S, C) and text tokens (B, L, C)."""
        v, l = self.layer_norm_v(v), self.layer_norm_l(l)
        read_v, read_l = self.attn(v, l, valid_v, valid_l)
        return v + self.gamma_v * read_v, l + self.gamma_l * read_l
