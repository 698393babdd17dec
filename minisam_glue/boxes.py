"""Boxes: conversions and non-maximum suppression.

xyxy = left, top, right, bottom; cxcywh = centre and size. Any unit, as long as it is one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert boxes (..., 4) from centre and size to corners."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centre - size / 2, centre + size / 2), -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert boxes (..., 4) from corners to centre and size."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), -1)


def area(boxes: Tensor) -> Tensor:
    """Areas (...) of xyxy boxes (..., 4), in squared units of the boxes; 0 where a corner is beyond the other."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two xyxy boxes share an area."""
    return all(max(one[i], other[i]) < min(one[i + 2], other[i + 2]) for i in (0, 1))


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two xyxy boxes; 0 for boxes that share nothing."""
    if not overlap(one, other):
        return 0.0
    shared = (*map(max, one[:2], other[:2]), *map(min, one[2:], other[2:]))
    both, *areas = ((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (shared, one, other))
    return both / (sum(areas) - both)


def suppress(boxes: Tensor, scores: Tensor, iou: float, classes: Tensor | None = None) -> Tensor:
    """Non-maximum suppression of xyxy boxes (n, 4) that overlap by more than `iou`: the rows to keep, best first.

    Boxes of different `classes` (n,) never suppress each other.
    """
    from torchvision.ops import batched_nms, nms  # loads for as long as torch itself; help texts and clicks do without

    if classes is None:
        return nms(boxes, scores, iou)
    # Of up to 1,000 boxes it moves those of each class to a place of their own, where float32 would round them.
    return batched_nms(boxes.double(), scores.double(), classes, iou)
