"""Attention by hand: self-attention, class-attention and the position biases that are added to their scores.

Multi-head self-attention: Vaswani et al., arXiv 1706.03762, section 3.2. Class-attention and talking
heads: CaiT, Touvron et al., arXiv 2103.17239, section 3 (talking heads: arXiv 2003.02436). Relative
position bias: Swin, Liu et al., arXiv 2103.14030, section 3.2, and BEiT's rows for the class token.
Here B is batch, N tokens, C channels, h heads, d channels per head, T class and distillation tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, written out: the reference for the fused kernels.

    q: (B, h, Q, d); k, v: (B, h, N, d); bias broadcasts to (B, h, Q, N). Returns (B, h, Q, d).
    """
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1) @ v


class Attention(nn.Module):
    """Multi-head self-attention: (B, N, C) -> (B, N, C), with an optional additive bias on the scores.

    `qk_norm` layer-normalises queries and keys per head. `fused = False` on an instance takes the
    explicit path instead of PyTorch's fused kernel; the two are equal.
    """

    fused = True

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, qk_norm: bool = False, norm_eps: float = 1e-6):
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} does not divide into {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // heads, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads, eps=norm_eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None, first: int | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C), or (B, first, C) when only the first tokens' outputs are wanted."""
        B, N, C = x.shape
        Q = N if first is None else first
        # Each (B, N, C) -> (B, h, N, d), of the queries with Q tokens.
        q, k, v = (t.view(B, -1, self.heads, C // self.heads).transpose(1, 2) for t in self.project(x, Q))
        out = self.attend(self.q_norm(q), self.k_norm(k), v, bias if bias is None else bias[:, :, :Q])
        out = self.proj(out.transpose(1, 2).reshape(B, Q, C))  # (B, h, Q, d) -> (B, Q, C)
        return F.dropout(out, self.dropout, self.training)

    def project(self, x: Tensor, Q: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the first Q tokens (B, Q, C), keys and values of all (B, N, C)."""
        B, N, C = x.shape
        if Q == N:
            return self.qkv(x).chunk(3, dim=-1)
        q = F.linear(x[:, :Q], self.qkv.weight[:C], self.qkv.bias[:C])
        return q, *F.linear(x, self.qkv.weight[C:], self.qkv.bias[C:]).chunk(2, dim=-1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return explicit_attention(q, k, v, bias)


class TalkingHeadsAttention(Attention):
    """Self-attention whose heads are mixed linearly before and after the softmax, as in CaiT's patch blocks."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, qk_norm: bool = False, norm_eps: float = 1e-6):
        super().__init__(dim, heads, dropout, qk_norm, norm_eps)
        self.proj_l = nn.Linear(heads, heads)
        self.proj_w = nn.Linear(heads, heads)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
        scores = self.proj_l(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # mixes h: (B, h, N, N) in and out
        if bias is not None:
            scores = scores + bias
        weights = self.proj_w(scores.softmax(dim=-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return weights @ v


class ClassAttention(nn.Module):
    """The first T tokens attend to all N tokens, themselves included: (B, N, C) -> (B, T, C).

    T queries meet N keys with T much smaller than N, so keys and values are never formed. With
    k = W_k x and v = W_v x,

        q . k = (W_k^T q) . x     and     sum_n a_n v_n = W_v (sum_n a_n x_n),

    which is exact, and moves both projections from N tokens to T * h vectors. The bias of W_k adds
    the same number to all scores of a query, which the softmax takes out; the weights sum to one,
    so the bias of W_v is added as it is. `fused = False` forms keys and values as the paper has it.
    """

    fused = True

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} does not divide into {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, tokens: int, bias: Tensor | None = None) -> Tensor:
        B, N, C = x.shape
        q = self.q(x[:, :tokens]).view(B, tokens, self.heads, -1).transpose(1, 2)  # (B, h, T, d)
        out = self._attend_folded(q, x, bias) if self.fused else self._attend_explicit(q, x, bias)
        out = self.proj(out.transpose(1, 2).reshape(B, tokens, C))  # (B, h, T, d) -> (B, T, C)
        return F.dropout(out, self.dropout, self.training)

    def _attend_folded(self, q: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        B, h, T, d = q.shape
        w_k, w_v = self.kv.weight.view(2, h, d, -1).unbind(0)  # each (h, d, C)
        b_v = self.kv.bias.view(2, h, 1, d)[1]
        queries = (q * d**-0.5) @ w_k  # (B, h, T, C): the queries as the tokens themselves see them
        scores = (queries.flatten(1, 2) @ x.transpose(1, 2)).view(B, h, T, -1)  # (B, h, T, N)
        if bias is not None:
            scores = scores + bias
        weights = scores.softmax(dim=-1).to(x.dtype)
        means = (weights.flatten(1, 2) @ x).view(B, h, T, -1)  # (B, h, T, C): each head's average token
        return means @ w_v.transpose(1, 2) + b_v

    def _attend_explicit(self, q: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        B, N, C = x.shape
        k, v = (t.view(B, N, self.heads, -1).transpose(1, 2) for t in self.kv(x).chunk(2, dim=-1))  # (B, h, N, d)
        return explicit_attention(q, k, v, bias)


class RelativePositionBias(nn.Module):
    """A learned score for each offset between two patches, per head: one row of a table per (dy, dx).

    Returns (1, h, T + N, T + N) for T special tokens (0 or 1) that come before the h * w patches. The
    table's last three rows, there only with a special token, are its scores token -> patch,
    patch -> token and token -> token. Layout as in Swin and BEiT.
    """

    def __init__(self, grid: tuple[int, int], heads: int, tokens: int = 0):
        super().__init__()
        if tokens > 1:
            raise ValueError("the joint table knows one special token at most: use the decomposed bias")
        offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets + 3 * tokens, heads))
        dy, dx = patch_offsets(grid)
        index = dy * (2 * grid[1] - 1) + dx
        if tokens:
            index = F.pad(index, (1, 0, 1, 0))
            index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
        self.register_buffer("index", index, persistent=False)

    def forward(self) -> Tensor:
        return self.relative_position_bias_table[self.index].permute(2, 0, 1).unsqueeze(0)


class TokenBias(nn.Module):
    """Learned scores of T special tokens, which have no place on the grid: to each other and to all patches.

    Returns (1, h, T, T + N), the rows that class-attention adds.
    """

    def __init__(self, patches: int, heads: int, tokens: int):
        super().__init__()
        self.patches = patches
        self.token_to_token = nn.Parameter(torch.zeros(heads, tokens, tokens))
        self.token_to_patch = nn.Parameter(torch.zeros(heads, tokens, 1))

    def forward(self) -> Tensor:
        to_patches = self.token_to_patch.expand(-1, -1, self.patches)
        return torch.cat([self.token_to_token, to_patches], dim=2).unsqueeze(0)


class DecomposedPositionBias(nn.Module):
    """A learned score per row offset plus one per column offset, per head: 2(h + w) - 2 numbers instead of 4hw.

    Returns (1, h, T + N, T + N) for T special tokens that come before the patches. Their rows are
    those of `TokenBias`; all patches see a special token with one more learned score.
    """

    def __init__(self, grid: tuple[int, int], heads: int, tokens: int = 0):
        super().__init__()
        self.row_table = nn.Parameter(torch.zeros(2 * grid[0] - 1, heads))
        self.col_table = nn.Parameter(torch.zeros(2 * grid[1] - 1, heads))
        dy, dx = patch_offsets(grid)
        self.register_buffer("dy", dy, persistent=False)
        self.register_buffer("dx", dx, persistent=False)
        self.token_rows = TokenBias(len(dy), heads, tokens) if tokens else None
        if tokens:
            self.patch_to_token = nn.Parameter(torch.zeros(heads, 1, tokens))

    def forward(self) -> Tensor:
        bias = (self.row_table[self.dy] + self.col_table[self.dx]).permute(2, 0, 1)  # (N, N, h) -> (h, N, N)
        if self.token_rows is None:
            return bias.unsqueeze(0)
        bias = torch.cat([self.patch_to_token.expand(-1, len(self.dy), -1), bias], dim=2)
        return torch.cat([self.token_rows(), bias.unsqueeze(0)], dim=2)


def patch_offsets(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column offset of each patch from each other one, shifted to start at 0: two (N, N) index tables."""
    rows, cols = (g.flatten() for g in torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij"))
    return rows[:, None] - rows + grid[0] - 1, cols[:, None] - cols + grid[1] - 1
