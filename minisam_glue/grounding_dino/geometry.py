"""Positions, reference points and proposals: all that follows from the shapes of the maps alone.

Papers: Deformable DETR, arXiv 2010.04159, section 4.1 (reference points) and appendix A.4 (proposals of the first
stage, of side 0.05 * 2^(l - 1) on level l); DETR, arXiv 2005.12872 (sine positions). Images of unequal sizes lie at the
top left of one canvas; each of the four levels is a map of that canvas, and the cells of all levels stand in a row of
S. Everything here is float32, whatever the precision of the model.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = tuple[tuple[int, int], ...]  # (height, width) in cells, of each level
PROPOSAL_SIDE = 0.05  # of the finest level, as a fraction of the image; twice as long on each level after it


@dataclass(frozen=True)
class Geometry:
    """The S cells of a batch of B images."""

    shapes: Shapes  # of the canvas
    valid: Tensor | None  # (B, S), False at padding; None where there is none
    position: Tensor  # (B, S, C), sine embedding of each cell's place in its map
    valid_ratios: Tensor  # (B, levels, 2): width and height of the image / those of the canvas
    reference: Tensor  # (B, S, levels, 2): centre (x, y) of each cell, as a fraction of each level's canvas
    proposals: Tensor  # (B, S, 4): a box at each cell, cxcywh in fractions of the image, before the sigmoid
    usable: Tensor  # (B, S), False at padding and where one of cx, cy, w, h is outside (0.01, 0.99): it is infinite


def build_geometry(shapes: Shapes, image_shapes: tuple[Shapes, ...], channels: int, device: torch.device) -> Geometry:
    """Geometry of a canvas with levels of `shapes` (cells); image_shapes: the (h, w) of each image on each level."""
    sizes = torch.tensor(image_shapes, device=device)  # (B, levels, 2), (h, w)
    valid = [valid_cells(*shape, sizes[:, level]) for level, shape in enumerate(shapes)]  # (B, H, W) each
    position = torch.cat([sine_position(mask, channels).flatten(1, 2) for mask in valid], 1)
    sizes, canvas = sizes.flip(-1), torch.tensor(shapes, dtype=torch.float32, device=device).flip(-1)  # (w, h)
    ratios = sizes / canvas  # (B, levels, 2)
    centres = [cell_centres(*shape, device) / sizes[:, level, None] for level, shape in enumerate(shapes)]
    reference = torch.cat(centres, 1)[:, :, None] * ratios[:, None]  # of the image -> of the canvas of each level
    inside = torch.cat([mask.flatten(1) for mask in valid], 1)  # (B, S)
    proposals, usable = propose_boxes(centres, inside)
    full = all(own == shapes for own in image_shapes)
    return Geometry(shapes, None if full else inside, position, ratios, reference, proposals, usable)


def shapes_on_levels(sizes: list[tuple[int, int]], canvas: tuple[int, int], shapes: Shapes) -> tuple[Shapes, ...]:
    """Cells (h, w) on each level of images of (h, w) pixels on one canvas, whose mask is resized to the nearest."""

    def cells(filled: int, length: int, number: int) -> int:
        line = (torch.arange(length) < filled).float()
        return int(F.interpolate(line[None, None], size=number).sum())

    return tuple(tuple((cells(h, canvas[0], H), cells(w, canvas[1], W)) for H, W in shapes) for h, w in sizes)


def valid_cells(height: int, width: int, size: Tensor) -> Tensor:
    """(B, height, width): True in the size (B, 2) = (h, w) cells at the top left."""
    rows = torch.arange(height, device=size.device) < size[:, :1]
    columns = torch.arange(width, device=size.device) < size[:, 1:]
    return rows[:, :, None] & columns[:, None]


def cell_centres(height: int, width: int, device: torch.device) -> Tensor:
    """(height * width, 2): (x, y) of the cell centres, in cells."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack((x, y), -1).flatten(0, 1).float() + 0.5


def propose_boxes(centres: list[Tensor], inside: Tensor) -> tuple[Tensor, Tensor]:
    """A square at each cell -> boxes (B, S, 4) before the sigmoid, infinite where not usable; and usable (B, S).

    centres: (B, H * W, 2) per level, (x, y) as fractions of the image; inside (B, S): False at padding.
    """
    squares = [torch.full_like(xy, PROPOSAL_SIDE * 2.0**level) for level, xy in enumerate(centres)]
    boxes = torch.cat((torch.cat(centres, 1), torch.cat(squares, 1)), -1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & inside
    return torch.log(boxes / (1 - boxes)).masked_fill(~usable[..., None], torch.inf), usable


def sine_position(valid: Tensor, channels: int) -> Tensor:
    """valid (B, H, W) -> (B, H, W, channels): each cell's row, then column, from 0 to 1 over the image.

    The temperature is the official configurations' (pe_temperatureH, pe_temperatureW).
    """
    rows, columns = (valid.cumsum(axis, dtype=torch.float32) for axis in (1, 2))
    y = rows / (rows[:, -1:] + 1e-6)
    x = columns / (columns[:, :, -1:] + 1e-6)
    return torch.cat([sine_embedding(axis, channels // 2, temperature=20.0) for axis in (y, x)], -1)


def sine_embedding(x: Tensor, features: int, temperature: float = 10000.0) -> Tensor:
    """(...) -> (..., features): channels 2i and 2i + 1 are sine and cosine of 2 pi x / temperature^(2i / features)."""
    exponent = (2 * (torch.arange(features, device=x.device) // 2)).float() / features
    angle = x[..., None].float() * (2 * math.pi) / temperature**exponent
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2)


def box_embedding(boxes: Tensor, channels: int) -> Tensor:
    """Boxes (..., 4) cxcywh -> (..., 2 * channels), in the order y, x, w, h."""
    return sine_embedding(boxes[..., [1, 0, 2, 3]], channels // 2).flatten(-2)


def inverse_sigmoid(x: Tensor) -> Tensor:
    """log(x / (1 - x)), with x clamped to [0, 1] and both terms to at least 1e-3 (official util/misc.py)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=1e-3) / (1 - x).clamp(min=1e-3))
