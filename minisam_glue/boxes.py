"""Boxes: conversions and non-maximum suppression.

xyxy = left, top, right, bottom; cxcywh = centre and size. Any unit, as long as it is one.
"""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) -> (..., 4)."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centre - size / 2, centre + size / 2), -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) -> (..., 4)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), -1)


def area(boxes: Tensor) -> Tensor:
    """xyxy (..., 4) -> (...)."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def suppress(boxes: Tensor, scores: Tensor, iou: float, classes: Tensor | None = None) -> Tensor:
    """Rows to keep of xyxy boxes (n, 4), best first; boxes of different `classes` (n,) never suppress each other."""
    return nms(boxes, scores, iou) if classes is None else batched_nms(boxes, scores, classes, iou)
