"""Multi-scale deformable attention in plain PyTorch.

Paper: Zhu et al., Deformable DETR, arXiv 2010.04159, section 4.1, equation 3. Each query reads a few
points of every level; a point is a bilinear mix of four cells. The whole sum over levels, points and
corners is one weighted gather (`embedding_bag`), which needs no copy of the values: the temporaries
are the row numbers and weights. Its gradient has to sort those rows, so training samples map by map.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .geometry import Shapes


@lru_cache(maxsize=8)
def level_table(shapes: Shapes, points: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Width, height and first row of the level that each of the levels * points samples reads, int32."""
    starts = [sum(h * w for h, w in shapes[:i]) for i in range(len(shapes))]
    columns = zip(*((w, h, start) for (h, w), start in zip(shapes, starts)))
    with torch.inference_mode(False):
        return tuple(torch.tensor(c, dtype=torch.int32, device=device).repeat_interleave(points) for c in columns)


def neighbours(coordinate: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The two cells (int32) on either side of a coordinate (a fraction of `size`), and the share of each.

    (B, Q, h, N) -> 2 x (B, Q, h, 2, N). A cell outside the map gets share 0, and any number inside it.
    """
    pixel = coordinate * size - 0.5
    low = pixel.floor()
    cells = torch.stack((low, low + 1), -2)
    share = torch.stack((low + 1 - pixel, pixel - low), -2) * ((cells >= 0) & (cells < size))
    # Clamped as integers, so that even a NaN of a diverged training names an existing row.
    return torch.minimum(cells.int().clamp_(min=0), size.int() - 1), share


def deformable_sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples, zero outside the maps, differentiable in all of its inputs.

    value (B, S, h, d), S = sum of height * width; locations (B, Q, h, levels, points, 2), (x, y) as
    fractions of the canvas; weights (B, Q, h, levels, points) -> (B, Q, h * d).
    """
    if torch.is_grad_enabled() and value.requires_grad:
        return sample_by_maps(value, shapes, locations, weights)
    (B, S, h, d), (_, Q, _, _, points) = value.shape, weights.shape
    width, height, start = level_table(shapes, points, value.device)
    x, y = locations.flatten(3, 4).unbind(-1)  # (B, Q, h, N), N = levels * points
    column, across = neighbours(x, width)  # (B, Q, h, 2, N)
    line, down = neighbours(y, height)
    # Row of the table (B * S * h, d) where cell (line, column) of the head's own map stands.
    image = torch.arange(B, device=value.device, dtype=torch.int32).view(B, 1, 1, 1, 1) * S
    head = torch.arange(h, device=value.device, dtype=torch.int32).view(h, 1, 1)
    line = (line * width + (start + image)) * h + head
    rows = line[..., :, None, :] + (column * h)[..., None, :, :]  # (B, Q, h, 2, 2, N)
    share = (weights.flatten(3).float()[..., None, :] * down)[..., :, None, :] * across[..., None, :, :]
    out = F.embedding_bag(
        rows.view(B * Q * h, -1),
        value.reshape(B * S * h, d),
        mode="sum",
        per_sample_weights=share.view(B * Q * h, -1).to(value.dtype),
    )
    return out.view(B, Q, h * d)


def sample_by_maps(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The same, level by level with `grid_sample`: on a CPU no slower, and its gradient takes a quarter of the time."""
    (B, _, h, d), Q, out = value.shape, weights.shape[1], 0
    levels = value.split([height * width for height, width in shapes], 1)
    # Queries last, so that the sums over the few points run over long rows: (B * h, levels, points, Q[, 2]).
    where = (2 * locations - 1).permute(0, 2, 3, 4, 1, 5).flatten(0, 1)
    share = weights.permute(0, 2, 3, 4, 1).flatten(0, 1)
    for level, (height, width), grid, part in zip(levels, shapes, where.unbind(1), share.unbind(1)):
        maps = level.permute(0, 2, 3, 1).reshape(B * h, d, height, width)  # (B, S', h, d) -> (B * h, d, H, W)
        samples = F.grid_sample(maps, grid.to(maps.dtype), align_corners=False)  # (B * h, d, points, Q)
        out = out + (samples * part[:, None]).sum(2)
    return out.view(B, h * d, Q).transpose(1, 2)  # (B * h, d, Q) -> (B, Q, h * d)


class MSDeformAttn(nn.Module):
    """Attention of queries to sampled points of multi-level maps."""

    def __init__(self, dim: int, levels: int, heads: int, points: int):
        super().__init__()
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """At first every head looks in its own direction, point p at p + 1 cells' distance, all weighted alike."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)  # onto the unit square
        steps = torch.arange(1, self.points + 1)[:, None]
        offsets = direction[:, None, None] * steps  # (h, 1, points, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())

    def forward(self, query: Tensor, reference: Tensor, value: Tensor, shapes: Shapes, mask: Tensor | None) -> Tensor:
        """query (B, Q, C), value (B, S, C) with the levels in a row, mask (B, S) True at padding -> (B, Q, C).

        reference: (B, Q, levels, 2) points (x, y), or (B, Q, levels, 4) boxes cxcywh, as fractions of the canvas.
        """
        return self.attend(query, reference, self.project(value, mask), shapes)

    def project(self, value: Tensor, mask: Tensor | None) -> Tensor:
        """(B, S, C) -> (B, S, h, d)."""
        value = self.value_proj(value)
        if mask is not None:
            value = value.masked_fill(mask[..., None], 0)  # after the projection: its bias must not leak in
        return value.unflatten(-1, (self.heads, -1))

    def attend(self, query: Tensor, reference: Tensor, value: Tensor, shapes: Shapes) -> Tensor:
        """As `forward`, for projected values."""
        B, Q, _ = query.shape
        # (B, Q, C) -> (B, Q, h, levels, points, 2) and (B, Q, h, levels, points)
        offsets = self.sampling_offsets(query).float().view(B, Q, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).view(B, Q, self.heads, -1).softmax(-1).view(offsets.shape[:-1])
        reference = reference[:, :, None, :, None]
        if reference.shape[-1] == 2:
            width, height, _ = level_table(shapes, self.points, query.device)
            locations = reference + offsets / torch.stack((width, height), -1).view(self.levels, self.points, 2)
        else:
            locations = reference[..., :2] + offsets / self.points * reference[..., 2:] * 0.5
        return self.output_proj(deformable_sample(value, shapes, locations, weights))
