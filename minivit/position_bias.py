"""Learned scores for relative positions, added to the scores of attention before the softmax.

Per offset: Swin, Liu et al., arXiv 2103.14030, section 3.2, with BEiT's three extra rows for a class
token (arXiv 2106.08254, as published with its code). Per row and per column: the same idea with the
table split into a sum. B is batch, N patches, h heads, T special tokens (class, distillation).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RelativePositionBias(nn.Module):
    """A learned score for each offset between two patches, per head: one row of a table for each (dy, dx).

    forward returns (1, h, T + N, T + N), for T special tokens (0 or 1) that come before the N patches of
    the grid, or of a smaller `grid` (down, across), whose offsets lie in the middle of the table. With a
    special token the table has three more rows: its scores token -> patch, patch -> token and
    token -> token. Layout as in Swin and BEiT. ValueError for more than one special token.
    """

    def __init__(self, grid: tuple[int, int], heads: int, tokens: int = 0):
        super().__init__()
        if tokens > 1:
            raise ValueError("the joint table knows one special token at most: use the decomposed bias")
        self.grid, self.tokens = grid, tokens
        offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets + 3 * tokens, heads))
        dy, dx = patch_offsets(grid)
        index = dy * (2 * grid[1] - 1) + dx
        if tokens:
            index = F.pad(index, (1, 0, 1, 0))
            index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
        self.register_buffer("index", index, persistent=False)

    def forward(self, grid: tuple[int, int] | None = None) -> Tensor:
        index = self.index
        if grid is not None and grid != self.grid:
            corner = upper_left(self.grid, grid, self.tokens).to(index.device)
            index = index[corner][:, corner]
        return self.relative_position_bias_table[index].permute(2, 0, 1).unsqueeze(0)


class TokenBias(nn.Module):
    """Learned scores of the T special tokens, which have no place on the grid, to each other and to all patches.

    A token has one score per head for all N patches. forward returns (1, h, T, T + N): the rows that class-attention
    adds to its scores.
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
    """A learned score for each row offset plus one for each column offset, per head.

    For a grid of H x W patches that is 2 (H + W) - 2 numbers per head, where the joint table has about 4 H W.
    forward returns (1, h, T + N, T + N), for T special tokens that come before the N patches. The rows of
    the special tokens are those of `TokenBias`; from all patches to a special token there is one more score.
    """

    def __init__(self, grid: tuple[int, int], heads: int, tokens: int = 0):
        super().__init__()
        self.grid, self.tokens = grid, tokens
        self.row_table = nn.Parameter(torch.zeros(2 * grid[0] - 1, heads))
        self.col_table = nn.Parameter(torch.zeros(2 * grid[1] - 1, heads))
        dy, dx = patch_offsets(grid)
        self.register_buffer("dy", dy, persistent=False)
        self.register_buffer("dx", dx, persistent=False)
        self.token_rows = TokenBias(len(dy), heads, tokens) if tokens else None
        if tokens:
            self.patch_to_token = nn.Parameter(torch.zeros(heads, 1, tokens))

    def forward(self, grid: tuple[int, int] | None = None) -> Tensor:
        bias = (self.row_table[self.dy] + self.col_table[self.dx]).permute(2, 0, 1)  # (N, N, h) -> (h, N, N)
        if self.token_rows is not None:
            bias = torch.cat([self.patch_to_token.expand(-1, len(self.dy), -1), bias], dim=2)
            bias = torch.cat([self.token_rows()[0], bias], dim=1)
        if grid is not None and grid != self.grid:
            corner = upper_left(self.grid, grid, self.tokens).to(bias.device)
            bias = bias[:, corner][..., corner]
        return bias.unsqueeze(0)


def upper_left(grid: tuple[int, int], smaller: tuple[int, int], tokens: int) -> Tensor:
    """Indices, among T special tokens and a grid of patches, of the tokens and of a smaller grid in its corner.

    ValueError for a grid that is larger.
    """
    if any(small > side for small, side in zip(smaller, grid)):
        raise ValueError(f"a grid of {smaller} patches is larger than the {grid} that the positions are of")
    rows, cols = torch.arange(smaller[0]), torch.arange(smaller[1])
    return torch.cat([torch.arange(tokens), (rows[:, None] * grid[1] + cols).flatten() + tokens])


def patch_offsets(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column offset of each patch from each other one, shifted to start at 0: two (N, N) index tables."""
    rows, cols = (g.flatten() for g in torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij"))
    return rows[:, None] - rows + grid[0] - 1, cols[:, None] - cols + grid[1] - 1
