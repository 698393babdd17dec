"""A detection on a later frame: which tracked object it shows again, or whether it is a new one.

Detections and objects that cover the same pixels are one (confirm). What is left over lies elsewhere (unclaimed), and
is an object that was lost (revive) or a new one. Masks are bool (n, h, w) at any size that is the same for both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .assignment import hungarian
from .masks import mask_iou

SAME = 0.5  # mask IoU from which a detection and an object are one; share of a detection that may lie on objects


def confirm(detected: Tensor, tracked: Tensor, same_label: Tensor) -> dict[int, int]:
    """Pairs of a detection and the object that it shows again: the greatest sum of IoU, each at least SAME.

    same_label: bool (detections, objects); only such pairs can be one.
    """
    return assign(mask_iou(detected, tracked) * same_label, SAME)


def unclaimed(detected: Tensor, tracked: Tensor, same_label: Tensor, confirmed: dict[int, int]) -> list[int]:
    """Detections that show no object yet: not confirmed, not empty, and mostly outside objects of their label."""
    if not len(detected):
        return []
    owned = torch.stack([tracked[same].any(0) for same in same_label])  # pixels of any object of the same label
    area = detected.sum((1, 2))
    inside = (detected & owned).sum((1, 2)) / area.clamp(min=1)
    return [row for row in range(len(detected)) if row not in confirmed and inside[row] <= SAME and area[row]]


def revive(pointers: Tensor, remembered: Tensor, same_label: Tensor) -> dict[int, int]:
    """Pairs of a detection and the lost object that it shows: as many as labels allow, and the most alike.

    pointers (n, C), remembered (m, C): object pointers of detections, and of lost objects when they were prompted.
    """
    cosine = F.normalize(pointers.float(), dim=1) @ F.normalize(remembered.float(), dim=1).T
    gain = torch.where(same_label, cosine + 2, 0)  # 1 to 3 for a pair that may be: two pairs are never worse than one
    return assign(gain, 0.5)


def assign(gain: Tensor, least: float) -> dict[int, int]:
    """Rows to columns of gain (n, m) so that its sum is greatest; pairs of less than `least` are left out."""
    cost = -gain.double().cpu().numpy()
    if cost.shape[0] > cost.shape[1]:
        pairs = ((row, column) for column, row in enumerate(hungarian(cost.T)))
    else:
        pairs = enumerate(hungarian(cost))
    return {row: column for row, column in pairs if -cost[row, column] >= least}
