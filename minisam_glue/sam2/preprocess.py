"""Preprocessing: images, frames and prompts are checked here and become the model's tensors.

As in the official predictors (facebookresearch/sam2): the whole image is stretched to a square;
images are resized as floats with antialiased bilinear weights, video frames as bytes with Pillow's bicubic.
Left out: reading files, which is the caller's.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..pixels import normalise
from .layers import resize_antialiased
from .prompt_encoder import BOTTOM_RIGHT, NO_POINT, TOP_LEFT

Array = np.ndarray | Tensor | list | tuple


def image_pixels(image: np.ndarray, size: int, device: torch.device) -> Tensor:
    """uint8 (H, W, 3) -> (1, 3, size, size) for the image predictor. Bytes travel to the device, not floats."""
    pixels = torch.tensor(image, device=device).permute(2, 0, 1)[None].float() / 255
    return normalise(resize_antialiased(pixels, size))


def frame_pixels(frame: np.ndarray, size: int, device: torch.device) -> Tensor:
    """uint8 (H, W, 3) -> (1, 3, size, size) for the video tracker."""
    frame = np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))
    return normalise(torch.tensor(frame, device=device).permute(2, 0, 1)[None].float() / 255)


def finite_tensor(value: Array, name: str) -> Tensor:
    """Turn anything array-like into a finite float32 tensor on the CPU. ValueError for what is not numbers."""
    try:
        if isinstance(value, np.ndarray):  # a copy, as torch takes neither negative strides nor foreign byte orders
            value = np.array(value, np.float32, order="C")
        value = torch.as_tensor(value, dtype=torch.float32).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: not a rectangular array of numbers ({error})") from None
    if not value.isfinite().all():
        raise ValueError(f"{name} has values that are not finite: drop those rows before the call")
    return value


def above_zero(mask: Array, name: str) -> Tensor:
    """A mask as bool on the CPU: true above 0. ValueError for probabilities, whose threshold is not 0."""
    mask = finite_tensor(mask, name)
    low, high = (mask.min(), mask.max()) if mask.numel() else (0, 0)
    if low >= 0 and high <= 1 and bool(((mask > 0) & (mask < 1)).any()):
        raise ValueError(f"{name} has numbers between 0 and 1: give a bool mask, such as probabilities > 0.5")
    return mask > 0


def is_relative(coordinates: Sequence[float]) -> bool:
    """Whether they look like shares from 0 to 1: none is outside, and some are no whole numbers."""
    return all(0 <= value <= 1 for value in coordinates) and any(value % 1 for value in coordinates)


def box_points(boxes: Array, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """xyxy boxes (4,) or (B, 4) -> corner points (B, 2, 2) and their labels (B, 2). Boxes may leave the image.

    Raises ValueError for another shape, for corners in the wrong order, and for shares of an image of (height, width).
    """
    boxes = finite_tensor(boxes, "boxes")
    if boxes.numel() == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim > 2 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes have shape {tuple(boxes.shape)}: give (4,) or (B, 4), xyxy in pixels")
    boxes = boxes.reshape(-1, 4)
    if min(size) > 1 and is_relative(boxes.flatten().tolist()):
        raise ValueError("boxes are in pixels, not shares of the picture: multiply by its width and height")
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise ValueError("boxes must be xyxy with x1 <= x2 and y1 <= y2: one is not, is it xywh or cxcywh?")
    return boxes.view(-1, 2, 2), torch.tensor([TOP_LEFT, BOTTOM_RIGHT]).expand(len(boxes), 2)


def click_points(points: Array | None, labels: Array | None) -> tuple[Tensor, Tensor]:
    """xy points (P, 2) or (B, P, 2) with labels (P,) or (B, P) -> (B, P, 2), (B, P).

    Labels: 1 positive, 0 negative, -1 for no point at all, which fills up rows of fewer points. ValueError for one
    without the other, other shapes and other labels.
    """
    if points is None or labels is None:
        raise ValueError("points and labels go together: give both")
    points, labels = finite_tensor(points, "points"), finite_tensor(labels, "labels")
    if points.numel() == 0:
        points = points.reshape(*points.shape[:-1], 2) if points.ndim > 1 else points.reshape(0, 2)
    if points.ndim not in (2, 3) or points.shape[-1] != 2 or labels.shape != points.shape[:-1]:
        raise ValueError(
            f"points have shape {tuple(points.shape)} and labels {tuple(labels.shape)}: "
            "give (P, 2) and (P,), or (B, P, 2) and (B, P)"
        )
    if not ((labels == 0) | (labels == 1) | (labels == NO_POINT)).all():
        raise ValueError("labels must be 1 for positive and 0 for negative points, or -1 for none")
    return (points, labels.long()) if points.ndim == 3 else (points[None], labels.long()[None])


def prompt_points(
    boxes: Array | None, points: Array | None, labels: Array | None, size: tuple[int, int], target: int
) -> tuple[Tensor, Tensor] | None:
    """Boxes and clicks in pixels of an image of size (H, W) -> points (B, P, 2) in the model's pixels, labels (B, P).

    target: side of the model's image in pixels. Corners come before clicks; one set of clicks serves all boxes. None
    without boxes and clicks.
    """
    parts = [box_points(boxes, size)] if boxes is not None else []
    if points is not None or labels is not None:
        parts.append(click_points(points, labels))
    if not parts:
        return None
    if len(parts) == 2:
        parts = repeat_clicks([p[0] for p in parts], [p[1] for p in parts])
    xy, labels = torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1)
    return xy / torch.tensor([size[1], size[0]]) * target, labels


def repeat_clicks(points: list[Tensor], labels: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Repeat the clicks, if there is one set of them, once per box."""
    B = len(points[0])
    if len(points[1]) not in (1, B):
        raise ValueError(f"{B} boxes but {len(points[1])} sets of points: give one set, or one per box")
    return [(p.expand(B, -1, -1), q.expand(B, -1)) for p, q in zip(points, labels)]
