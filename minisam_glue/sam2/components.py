"""Small connected components of masks (8-connectivity) in pure torch: holes to fill, sprinkles to remove.

Follows what the official code (facebookresearch/sam2) does where its CUDA extension is built; this version
needs no compiler and gives the same masks on every machine. Left out: labels of large components (../masks.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def small_components(mask: Tensor, max_area: int) -> Tensor:
    """The pixels of a bool mask (..., H, W) in components of at most max_area pixels.

    Each pixel takes the largest pixel number within max_area - 1 steps inside the mask. A component that small
    then has one label, and no neighbour with another; only such labels count. The cost grows with max_area. ValueError
    for masks of 4096 x 4096 pixels or more: float32 can't number them.
    """
    if mask.numel() == 0 or max_area <= 0:
        return torch.zeros_like(mask)
    *_, H, W = mask.shape
    if H * W >= 1 << 24:
        raise ValueError(f"mask of {H} x {W} pixels: components are found in masks of less than 4096 x 4096 pixels")
    inside = mask.reshape(-1, 1, H, W)
    number = torch.arange(1, H * W + 1, dtype=torch.float32, device=mask.device).view(1, 1, H, W)
    label = number * inside
    for _ in range(max_area - 1):
        label = F.max_pool2d(label, 3, stride=1, padding=1) * inside
    highest = F.max_pool2d(label, 3, stride=1, padding=1)
    lowest = -F.max_pool2d(torch.where(inside, -label, -torch.inf), 3, stride=1, padding=1)
    open_pixel = inside & ((highest != label) | (lowest != label))
    index = label.long().flatten(1)
    area = number.new_zeros(len(index), H * W + 1).scatter_add_(1, index, inside.flatten(1).float())
    area.scatter_add_(1, index, open_pixel.flatten(1).float() * max_area)  # too large, as soon as one pixel is open
    return (inside.flatten(1) & (area.gather(1, index) <= max_area)).view(mask.shape)


def fill_holes(logits: Tensor, max_area: int, value: float) -> Tensor:
    """Set the logits (..., H, W) of holes, background components of at most max_area pixels, to a positive value."""
    return torch.where(small_components(logits <= 0, max_area), value, logits) if max_area > 0 else logits


def clean(logits: Tensor, max_hole: int, max_sprinkle: int, hole_value: float, sprinkle_value: float) -> Tensor:
    """Fill holes and remove sprinkles, foreground components of at most max_sprinkle pixels.

    Both are found in the mask as it came.
    """
    filled = fill_holes(logits, max_hole, hole_value)
    if max_sprinkle <= 0:
        return filled
    return torch.where(small_components(logits > 0, max_sprinkle), sprinkle_value, filled)
