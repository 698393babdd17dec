"""TrivialAugment's operations as torchvision has them for tensors, and bilinear warps of both kinds.

The package has torchvision's operations on PIL images with the nearest pixel, which differ by a level in
colours and by more in rotations. Here are the others, from the package's own parts, for the golden files.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit import augment
from minivit.augment import OPS

WARPS = OPS[1:6]


def apply_tensor_op(x: Tensor, op: str, magnitude: Tensor, bilinear: bool = False, fill: int = 0) -> Tensor:
    """One operation on uint8 images (B, 3, H, W) with magnitudes (B,), with the rounding of tensors."""
    if op in WARPS:
        return warp_by_grid(x, *augment.inverse_affine(op, magnitude, *x.shape[2:]), bilinear, fill)
    if op == "AutoContrast":
        return autocontrast(x)
    if op not in ("Brightness", "Color", "Contrast", "Sharpness"):
        return augment.apply_op(x, op, magnitude)
    magnitude = magnitude.view(-1, 1, 1, 1)
    return ((1 + magnitude) * x.float() - magnitude * degenerate(x, op)).clamp_(0, 255).to(torch.uint8)


def degenerate(x: Tensor, op: str) -> Tensor | int:
    if op == "Brightness":
        return 0
    if op == "Sharpness":
        return augment.smooth(x)
    red, green, blue = x.split(1, dim=1)
    gray = (0.2989 * red + 0.587 * green + 0.114 * blue).int()
    return gray if op == "Color" else gray.float().mean((1, 2, 3), keepdim=True)


def autocontrast(x: Tensor) -> Tensor:
    low, high = (value.flatten(2).float() for value in (x.amin((2, 3), True), x.amax((2, 3), True)))
    level = torch.arange(256).float()
    table = (level - low) * (255 * (high - low).reciprocal())
    return augment.look_up(x, torch.where(high > low, table.clamp(0, 255), level).to(torch.uint8))


def warp_by_grid(x: Tensor, A: Tensor, t: Tensor, bilinear: bool, fill: int) -> Tensor:
    """Images resampled at A p + t through float32 coordinates in -1..1 and grid_sample.

    The sums are written out: those of a matrix product differ between processors in the last bit, which
    turns a half level the other way.
    """
    H, W = x.shape[2:]
    columns, rows = (torch.arange(side) - (side - 1) / 2 for side in (W, H))
    half = torch.tensor([W / 2, H / 2])
    (a, b), c = (A.mT.float() / half).unbind(1), t.float() / half  # (B, 2) each
    grid = columns[None, None, :, None] * a[:, None, None] + rows[None, :, None, None] * b[:, None, None]
    grid = grid + c[:, None, None]  # (B, H, W, 2)
    image = torch.cat([x.float(), torch.ones_like(x[:, :1], dtype=torch.float32)], dim=1)
    image = F.grid_sample(image, grid, "bilinear" if bilinear else "nearest", align_corners=False)
    image, inside = image.split([3, 1], dim=1)
    return (image * inside + (1 - inside) * fill).round().to(torch.uint8)


def warp_bilinear(x: Tensor, op: str, magnitude: Tensor, fill: int) -> Tensor:
    """PIL's bilinear warp: the edge is repeated by half a pixel, the result truncated, every sum in PIL's order."""
    A, t = augment.inverse_affine(op, magnitude, *x.shape[2:])
    column, row = augment.positions(x, A, augment.from_corner(x, A, t), 0.5)
    inside = augment.is_inside(x, column, row)
    column, row = column - 0.5, row - 0.5
    left, top = column.floor(), row.floor()
    upper, lower = (
        a + (b - a) * (column - left)
        for a, b in (
            (augment.pick(x, left, line).to(row), augment.pick(x, left + 1, line).to(row)) for line in (top, top + 1)
        )
    )
    return torch.where(inside, (upper + (lower - upper) * (row - top)).to(torch.uint8), fill)
