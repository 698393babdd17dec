"""What the detector derives from shapes alone: padding, positions, reference points, proposals.

Papers: Deformable DETR, arXiv 2010.04159, sections 4.1 and A.4; DINO, arXiv 2203.03605. All of it is
float32, whatever the precision of the model, and cached: equal shapes pay once.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = tuple[tuple[int, int], ...]  # (height, width) in cells, of each level


@dataclass(frozen=True)
class Geometry:
    """B images on one canvas of S cells, all levels in a row; each image fills the top left of its levels."""

    shapes: Shapes
    mask: Tensor | None  # (B, S), True at padding; None where there is none
    position: Tensor  # (B, S, C), sine embedding
    valid_ratios: Tensor  # (B, levels, 2): width and height of the image / those of the canvas
    reference: Tensor  # (B, S, levels, 2): the centre (x, y) of each cell, as a fraction of each level's canvas
    usable: Tensor  # (B, S), False at padding and at cells whose proposal leaves (0.01, 0.99)
    proposals: Tensor  # (B, >= S, 4): a box per cell, cxcywh in fractions of the image, before the sigmoid; or inf
    filler: Tensor  # (B, >= S), True at padding, and at cells added where an image has fewer than the queries


def inverse_sigmoid(x: Tensor) -> Tensor:
    """log(x / (1 - x)), with x clamped to [0, 1] and both terms to at least 1e-3."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=1e-3) / (1 - x).clamp(min=1e-3))


def sine_embedding(x: Tensor, features: int, temperature: float = 10000.0) -> Tensor:
    """(...) -> (..., features): sine and cosine in turn, over 2 pi x / temperature^(2i / features)."""
    exponent = 2 * (torch.arange(features, device=x.device) // 2) / features
    angle = x[..., None].float() * (2 * math.pi) / temperature**exponent
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2)


def box_embedding(boxes: Tensor, channels: int) -> Tensor:
    """Boxes (..., 4) cxcywh -> (..., 2 * channels), in the order y, x, w, h."""
    return sine_embedding(boxes[..., [1, 0, 2, 3]], channels // 2).flatten(-2)


def inside_mask(height: int, width: int, valid: Tensor) -> Tensor:
    """(B, height, width): True in the valid (B, 2) = (h, w) cells at the top left."""
    rows = torch.arange(height, device=valid.device) < valid[:, :1]
    columns = torch.arange(width, device=valid.device) < valid[:, 1:]
    return rows[:, :, None] & columns[:, None]


def map_position(height: int, width: int, valid: Tensor, channels: int) -> Tensor:
    """(B, height, width, channels) for images of valid (B, 2) = (h, w) cells: y first, temperature 20."""

    def axis(length: int, filled: Tensor) -> Tensor:  # -> (B, length), from 0 to 1 over the image
        count = torch.arange(1, length + 1, device=valid.device)
        return torch.minimum(count, filled[:, None]) / (filled[:, None] + 1e-6)

    inside = inside_mask(height, width, valid)
    y = axis(height, valid[:, 0])[:, :, None] * inside.any(1, keepdim=True)
    x = axis(width, valid[:, 1])[:, None] * inside.any(2, keepdim=True)
    return torch.cat((sine_embedding(y, channels // 2, 20.0), sine_embedding(x, channels // 2, 20.0)), -1)


def scaled_valid(sizes: list[tuple[int, int]], canvas: tuple[int, int], shapes: Shapes) -> tuple[Shapes, ...]:
    """Valid cells of each image and level, when images of (h, w) pixels lie on one canvas (nearest sampling)."""

    def cells(filled: int, length: int, number: int) -> int:
        line = (torch.arange(length) < filled).float()
        return int(F.interpolate(line[None, None], size=number).sum())

    return tuple(tuple((cells(h, canvas[0], H), cells(w, canvas[1], W)) for H, W in shapes) for h, w in sizes)


def cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """(height * width, 2): (x, y) of the cell centres, in cells."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack((x, y), -1).flatten(0, 1) + 0.5


@lru_cache(maxsize=4)
def build_geometry(
    shapes: Shapes, valid: tuple[Shapes, ...], channels: int, queries: int, device: torch.device
) -> Geometry:
    """Geometry of B = len(valid) images on levels of the given shapes; at least `queries` proposals each."""
    with torch.inference_mode(False):  # the cache serves training too
        cells = torch.tensor(valid, device=device)  # (B, levels, 2), (h, w)
        size = cells.flip(-1)  # (w, h)
        canvas = torch.tensor(shapes, device=device).flip(-1)  # (levels, 2), (w, h)
        inside = torch.cat([inside_mask(*shape, cells[:, i]).flatten(1) for i, shape in enumerate(shapes)], 1)
        position = [map_position(*shape, cells[:, i], channels).flatten(1, 2) for i, shape in enumerate(shapes)]
        ratios = size / canvas
        centre = torch.cat([cell_centres(*shape, device) / size[:, i, None] for i, shape in enumerate(shapes)], 1)
        side = torch.cat([torch.full((h * w,), 0.05 * 2.0**i, device=device) for i, (h, w) in enumerate(shapes)])
        boxes = torch.cat((centre, side[None, :, None].expand(len(valid), -1, 2)), -1)  # (B, S, 4)
        usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & inside
        logits = torch.log(boxes / (1 - boxes)).masked_fill(~usable[..., None], torch.inf)
        mask, missing = None if bool(inside.all()) else ~inside, max(0, queries - inside.shape[1])
        return Geometry(
            shapes,
            mask,
            torch.cat(position, 1),
            ratios,
            centre[:, :, None] * ratios[:, None],
            usable,
            F.pad(logits, (0, 0, 0, missing), value=torch.inf),
            F.pad(~inside, (0, missing), value=True),
        )
