"""Multi-scale deformable attention: each query reads a few points of each level instead of every cell.

Paper: Zhu et al., Deformable DETR, arXiv 2010.04159, section 4.1, equation 3:

    MSDeformAttn(z_q, p_q, x) = sum_m W_m [ sum_l sum_k A_mlqk . W'_m x_l(phi_l(p_q) + dp_mlqk) ]

over the heads m, levels l and points k (K in all). z_q is the content of query q, p_q its reference point from 0 to 1,
phi_l the scaling to the cells of level l; here places stay fractions, and offsets dp are scaled instead. Offsets and
weights A are linear in z_q; A, after a softmax, sums to one over l and k. Left out: the CUDA kernel. A faster form of
the sum on a CPU is in fast.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .geometry import Shapes


def deformable_sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Sum over levels l and points k of A_mlqk . x_l(location), bilinear and zero outside the maps.

    value (B, S, h, d), the levels in a row, S = sum of height * width; locations (B, Q, h, levels, K, 2): (x, y) as
    fractions of the canvas; weights (B, Q, h, levels, K) -> (B, Q, h * d). Computed in the precision of the locations.
    """
    (B, _, h, d), Q, out = value.shape, locations.shape[1], 0
    levels = value.to(locations.dtype).split([height * width for height, width in shapes], 1)
    for l, (level, (height, width)) in enumerate(zip(levels, shapes)):
        x = level.permute(0, 2, 3, 1).reshape(B * h, d, height, width)  # (B, H * W, h, d) -> (B * h, d, H, W)
        where = locations[:, :, :, l].permute(0, 2, 3, 1, 4).flatten(0, 1)  # (B, Q, h, K, 2) -> (B * h, K, Q, 2)
        A = weights[:, :, :, l].permute(0, 2, 3, 1).flatten(0, 1)  # (B, Q, h, K) -> (B * h, K, Q)
        samples = F.grid_sample(x, 2 * where - 1, align_corners=False)  # (B * h, d, K, Q)
        out = out + (A[:, None] * samples).sum(2)
    return out.view(B, h * d, Q).transpose(1, 2).to(value.dtype)  # (B * h, d, Q) -> (B, Q, h * d)


class MSDeformAttn(nn.Module):
    """Attention of queries to sampled points of multi-level maps (equation 3)."""

    def __init__(self, dim: int, levels: int, heads: int, points: int):
        super().__init__()
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)  # dp
        self.attention_weights = nn.Linear(dim, heads * levels * points)  # A, before the softmax
        self.value_proj = nn.Linear(dim, dim)  # W'
        self.output_proj = nn.Linear(dim, dim)  # W
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give each head a direction of its own, with point k at a distance of k + 1 cells, and equal weights."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)  # onto the unit square
        steps = torch.arange(1, self.points + 1)[:, None]
        offsets = direction[:, None, None] * steps  # (h, 1, K, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())

    def forward(self, query: Tensor, reference: Tensor, value: Tensor, shapes: Shapes, valid: Tensor | None) -> Tensor:
        """query (B, Q, C), value (B, S, C) with the levels in a row, valid (B, S) False at padding -> (B, Q, C).

        reference: (B, Q, levels, 2) points (x, y), or (B, Q, levels, 4) boxes cxcywh, as fractions of the canvas.
        """
        value = self.project_value(value, valid)
        locations, weights = self.sampling_points(query, reference, shapes)
        return self.output_proj(deformable_sample(value, shapes, locations, weights))

    def project_value(self, value: Tensor, valid: Tensor | None) -> Tensor:
        """W' x, zero at padding: (B, S, C) -> (B, S, h, d)."""
        value = self.value_proj(value)
        if valid is not None:
            value = value.masked_fill(~valid[..., None], 0)  # after the projection: its bias must not leak in
        return value.unflatten(-1, (self.heads, -1))

    def sampling_points(self, query: Tensor, reference: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
        """Locations (B, Q, h, levels, K, 2), phi_l(p_q) + dp_mlqk, and weights A (B, Q, h, levels, K)."""
        grid = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).float().unflatten(-1, (*grid, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, grid[1:])
        reference = reference[:, :, None, :, None]  # (B, Q, 1, levels, 1, 2 or 4)
        if reference.shape[-1] == 2:  # offsets in cells of the level
            cells = [[(width, height)] * self.points for height, width in shapes]  # (levels, K, 2)
            return reference + offsets / torch.tensor(cells, dtype=offsets.dtype, device=query.device), weights
        # Reference boxes, as in the paper's appendix on iterative refinement: offsets in parts of half the box, so that
        # the K points of a head reach from its centre to its edge at first.
        return reference[..., :2] + offsets / self.points * reference[..., 2:] * 0.5, weights
