"""Bi-directional attention between image and text tokens, with the image side folded into the text.

Paper: Grounding DINO, arXiv 2303.05499, section 3.2 (after GLIP, arXiv 2112.03857). One score matrix
serves both directions. Few text tokens meet many image tokens, so every projection of the image tokens
is moved to the text's side, by associativity (equal up to rounding):
    scores        (v Wq + bq) . k  =  v . (Wq k) + bq . k
    text reads    a (v Wv + bv)    =  (a v) Wv + bv          as the weights a sum to one
    image reads   (p u) Wo         =  p (u Wo)
Left out: dropout, stochastic depth, and the official clamp of scores to +-50000.
"""

import torch
from torch import Tensor, nn


class BiMultiHeadAttention(nn.Module):
    """What image tokens v (B, S, C) read from text tokens l (B, L, C), and the reverse."""

    def __init__(self, dim: int, inner: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (inner // heads) ** -0.5
        self.v_proj = nn.Linear(dim, inner)
        self.l_proj = nn.Linear(dim, inner)
        self.values_v_proj = nn.Linear(dim, inner)
        self.values_l_proj = nn.Linear(dim, inner)
        self.out_v_proj = nn.Linear(inner, dim)
        self.out_l_proj = nn.Linear(inner, dim)

    def forward(self, v: Tensor, l: Tensor, mask_v: Tensor | None, mask_l: Tensor | None) -> tuple[Tensor, Tensor]:
        """Masks (B, S) and (B, L) are True at padding. -> (B, S, C) and (B, L, C)."""
        (B, L, _), h = l.shape, self.heads
        scores = self.scores(v, l)  # (B, h * L, S)
        over_text = scores.view(B, h, L, -1)
        if mask_l is not None:
            over_text = over_text.masked_fill(mask_l[:, None, :, None], -torch.inf)
        over_text = over_text.softmax(2).flatten(1, 2)
        read_v = torch.baddbmm(self.out_v_proj.bias, over_text.transpose(1, 2), self.text_values(l))
        if mask_v is not None:
            scores = scores.masked_fill(mask_v[:, None], -torch.inf)
        return read_v, self.read_image(scores.softmax(-1), v)

    def scores(self, v: Tensor, l: Tensor) -> Tensor:
        """(B, h * L, S): scaled dot products of the projected tokens."""
        (B, L, _), h = l.shape, self.heads
        key = self.l_proj(l).view(B, L, h, -1).transpose(1, 2) * self.scale  # (B, h, L, d)
        folded = key @ self.v_proj.weight.view(h, -1, v.shape[-1])  # (h, d, C) -> (B, h, L, C)
        bias = key @ self.v_proj.bias.view(h, -1, 1)  # (B, h, L, 1)
        return folded.flatten(1, 2) @ v.transpose(1, 2) + bias.flatten(1, 2)

    def text_values(self, l: Tensor) -> Tensor:
        """(B, h * L, C): each token's value, already through the head's part of the output projection."""
        (B, L, C), h = l.shape, self.heads
        value = self.values_l_proj(l).view(B, L, h, -1).transpose(1, 2)  # (B, h, L, d)
        return (value @ self.out_v_proj.weight.view(C, h, -1).permute(1, 2, 0)).flatten(1, 2)  # (h, d, C)

    def read_image(self, weights: Tensor, v: Tensor) -> Tensor:
        """weights (B, h * L, S) -> (B, L, C): mix the raw image tokens first, project the few results."""
        (B, _, C), h = v.shape, self.heads
        mixed = (weights @ v).view(B, h, -1, C)  # (B, h, L, C)
        read = mixed @ self.values_v_proj.weight.view(h, -1, C).transpose(1, 2)  # (h, C, d) -> (B, h, L, d)
        return self.out_l_proj(read.transpose(1, 2).flatten(2) + self.values_v_proj.bias)


class BiAttentionBlock(nn.Module):
    """Pre-norm fusion with a learned scale; the residual starts from the normalised tokens."""

    def __init__(self, dim: int, inner: int, heads: int):
        super().__init__()
        self.layer_norm_v = nn.LayerNorm(dim)
        self.layer_norm_l = nn.LayerNorm(dim)
        self.attn = BiMultiHeadAttention(dim, inner, heads)
        self.gamma_v = nn.Parameter(torch.full((dim,), 1e-4))
        self.gamma_l = nn.Parameter(torch.full((dim,), 1e-4))

    def forward(self, v: Tensor, l: Tensor, mask_v: Tensor | None, mask_l: Tensor | None) -> tuple[Tensor, Tensor]:
        v, l = self.layer_norm_v(v), self.layer_norm_l(l)
        read_v, read_l = self.attn(v, l, mask_v, mask_l)
        return torch.addcmul(v, self.gamma_v, read_v), torch.addcmul(l, self.gamma_l, read_l)
