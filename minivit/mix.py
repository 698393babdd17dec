"""Mixing a batch with itself: mixup (arXiv 1710.09412, section 2) and CutMix (arXiv 1905.04899, section 3).

Row i is mixed with row i-1 (the batch rolled by one), so that any batch size works, odd ones too, and
one lambda is drawn per batch. Random numbers are drawn on the CPU, so that they are the same for every device;
the rest runs on the device of the images. Left out: per-image lambdas, boxes between given ratios.
"""

import math
import random

import torch
from torch import Tensor

Box = tuple[int, int, int, int]  # top, bottom, left, right in pixels; the ends are exclusive


def check_labels(labels: Tensor, classes: int) -> None:
    """ValueError unless these are indices (N,) of so many classes, int64."""
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}: give int64 (N,)")
    if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < classes):
        raise ValueError(f"labels go from {int(labels.min())} to {int(labels.max())}, of {classes} classes")


def one_hot(target: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Class indices (B,) -> soft targets (B, C): s/C off the class, 1 - s + s/C on it (arXiv 1512.00567, section 7).

    ValueError for other shapes. That they are below C is not asked, which would have a GPU wait: see check_labels.
    """
    if target.ndim != 1 or target.dtype != torch.int64:
        raise ValueError(f"labels are {target.dtype} {tuple(target.shape)}: give int64 (B,)")
    off = smoothing / num_classes
    soft = torch.full((len(target), num_classes), off, device=target.device)
    return soft.scatter_(1, target[:, None], 1 - smoothing + off)


def mixup(x: Tensor, target: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """lam * own + (1 - lam) * the row before, for float images (B, 3, H, W) and soft targets (B, C)."""
    return torch.lerp(x.roll(1, 0), x, lam), torch.lerp(target.roll(1, 0), target, lam)


def cutmix(x: Tensor, target: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Paste `box` of the row before into images (B, 3, H, W); targets (B, C) are mixed by the area that is kept."""
    top, bottom, left, right = box
    mixed = x.clone()
    mixed[:, :, top:bottom, left:right] = x.roll(1, 0)[:, :, top:bottom, left:right]
    return mixed, torch.lerp(target.roll(1, 0), target, kept_area(box, *x.shape[2:]))


def kept_area(box: Box, height: int, width: int) -> float:
    """The share of the image that is outside the box: CutMix's lambda after clipping."""
    top, bottom, left, right = box
    return 1 - (bottom - top) * (right - left) / (height * width)


def cutmix_box(lam: float, height: int, width: int, centre: tuple[int, int]) -> Box:
    """The box of sides sqrt(1 - lam) times the image's around a centre (y, x), clipped to the image.

    The paper's code rounds each side down to an even number of pixels; here odd ones stay.
    """
    ratio = math.sqrt(1 - lam)
    cut_h, cut_w = int(height * ratio), int(width * ratio)
    top, left = centre[0] - cut_h // 2, centre[1] - cut_w // 2
    return max(top, 0), min(top + cut_h, height), max(left, 0), min(left + cut_w, width)


def draw_beta(alpha: float, generator: torch.Generator) -> float:
    """One number from Beta(alpha, alpha)."""
    # torch.distributions takes no generator; the standard library does, seeded from ours.
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return random.Random(seed).betavariate(alpha, alpha)


def mix_batch(
    x: Tensor, target: Tensor, mixup_alpha: float, cutmix_alpha: float, prob: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Apply mixup or CutMix to a batch with probability `prob`; if both alphas are above 0, a fair coin decides which.

    x: float images (B, 3, H, W). target: soft targets (B, C) that sum to one; so do those returned.
    An alpha of 0 switches that one off. generator: on the CPU. ValueError for a negative alpha, for images or targets
    of whole numbers, and for more of one than of the other.
    """
    if not (x.is_floating_point() and target.is_floating_point() and target.ndim == 2) or len(x) != len(target):
        raise ValueError(
            f"images are {x.dtype} {tuple(x.shape)}, targets {target.dtype} {tuple(target.shape)}: give float images, "
            "and soft targets (B, C) of each, which one_hot makes of class indices"
        )
    if mixup_alpha < 0 or cutmix_alpha < 0:
        raise ValueError(f"mixup_alpha and cutmix_alpha are {mixup_alpha} and {cutmix_alpha}: use 0 (off) or more")
    happens, coin = torch.rand(2, generator=generator).tolist()
    if happens >= prob or mixup_alpha == cutmix_alpha == 0:
        return x, target
    if cutmix_alpha == 0 or (mixup_alpha > 0 and coin < 0.5):
        return mixup(x, target, draw_beta(mixup_alpha, generator))
    height, width = x.shape[2:]
    row, column = (int(torch.randint(side, (1,), generator=generator)) for side in (height, width))
    return cutmix(x, target, cutmix_box(draw_beta(cutmix_alpha, generator), height, width, (row, column)))
