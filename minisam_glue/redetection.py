"""A detection on a later frame: which tracked object it shows again, or whether it is a new one.

Detections and objects that cover the same pixels are one (confirm). A track that no detection confirms, and that lies
on something unlike its object, has lost it (strayed). What is left of the detections lies elsewhere (unclaimed), and
is an object that was lost (revive) or a new one. Two objects never share one mask (sharing). Masks are bool (n, h, w)
at any size that is the same for both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .assignment import hungarian
from .masks import mask_iou

SAME = 0.5  # mask IoU from which a detection and an object are one; share of a detection that may lie on objects
SHARED = 0.7  # IoU of the masks of two objects from which they are one mask
ALIKE = 0.8  # likeness from which a detection may be an object that was lost
UNLIKE = 0.6  # likeness below which a track lies on something else than its object


def looks(masks: Tensor, tokens: Tensor, image: Tensor) -> Tensor:
    """Looks of objects: the mean image token inside each mask, less that of the frame, as a unit vector; and the mean
    colour, 0 to 1. Rows (n, C + 3); zeros for a mask without pixels.

    tokens: (N, C), a square of the frame's tokens. image: the frame, uint8 (H, W, 3).
    """
    grid, side = round(len(tokens) ** 0.5), masks.shape[-1]
    shares = F.adaptive_avg_pool2d(masks.to(tokens.dtype)[None], grid)[0].flatten(1)  # (n, N)
    inside = F.normalize(shares @ (tokens - tokens.mean(0)), dim=1)
    colours = F.adaptive_avg_pool2d(image.permute(2, 0, 1).to(tokens.dtype) / 255, side).flatten(1)  # (3, s * s)
    area = masks.sum((1, 2)).clamp(min=1)[:, None]
    return torch.cat((inside, masks.flatten(1).to(tokens.dtype) @ colours.T / area), 1)


def likeness(looks: Tensor, look: Tensor) -> Tensor:
    """How alike n looks (n, C + 3) are to one (C + 3,), at most 1: the cosine of the tokens, or 1 less the distance of
    the colours, whichever is less. SAM 2's tokens alone take two things on plain grounds for the same."""
    cosine = looks[:, :-3] @ F.normalize(look[:-3], dim=0)
    return torch.minimum(cosine, 1 - (looks[:, -3:] - look[-3:]).norm(dim=1))


def confirm(detected: Tensor, tracked: Tensor, same_label: Tensor) -> dict[int, int]:
    """Pairs of a detection and the object that it shows again: the greatest sum of IoU, each at least SAME.

    same_label: bool (detections, objects); only such pairs can be one.
    """
    return assign(mask_iou(detected, tracked) * same_label, SAME)


def strayed(detected: Tensor, tracked: Tensor, alike: Tensor, confirmed: dict[int, int], present: Tensor) -> list[int]:
    """Objects whose tracks lie on something else.

    alike: likeness (detections, objects) of detections to the objects as they were. present: (objects,), the same of
    what each track lies on now. An object is there for sure if a detection of its own phrase confirms it.
    """
    overlap = mask_iou(detected, tracked)
    lost = []
    for column in set(range(len(tracked))) - set(confirmed.values()):
        others = [row for row in range(len(detected)) if overlap[row, column] >= SAME]
        unlike = any(alike[row, column] < ALIKE for row in others) or present[column] < UNLIKE
        if tracked[column].any() and unlike:
            lost.append(column)
    return lost


def unclaimed(detected: Tensor, tracked: Tensor, same_label: Tensor, confirmed: dict[int, int]) -> list[int]:
    """Detections that show no object yet: not confirmed, not empty, mostly outside objects of their label, and not
    another phrase for the mask of an object."""
    if not len(detected):
        return []
    owned = torch.stack([tracked[same].any(0) for same in same_label])  # pixels of any object of the same label
    area = detected.sum((1, 2))
    inside = (detected & owned).sum((1, 2)) / area.clamp(min=1)
    named = (mask_iou(detected, tracked) >= SHARED).any(1)
    return [
        row
        for row in range(len(detected))
        if row not in confirmed and inside[row] <= SAME and area[row] and not named[row]
    ]


def revive(alike: Tensor, same_label: Tensor) -> dict[int, int]:
    """Pairs of a detection and the lost object that it shows: as many as labels and looks allow, and the most alike.

    alike: likeness (detections, lost objects) of detections to the objects as they were.
    """
    gain = torch.where(same_label & (alike >= ALIKE), alike + 2, 0)  # 1 to 3: two pairs are never worse than one
    return assign(gain, 0.5)


def sharing(masks: Tensor) -> list[tuple[int, int]]:
    """Pairs of objects that have one mask."""
    return (mask_iou(masks, masks).triu(1) >= SHARED).nonzero().tolist() if len(masks) > 1 else []


def assign(gain: Tensor, least: float) -> dict[int, int]:
    """Rows to columns of gain (n, m) so that its sum is greatest; pairs of less than `least` are left out."""
    cost = -gain.double().cpu().numpy()
    if cost.shape[0] > cost.shape[1]:
        pairs = ((row, column) for column, row in enumerate(hungarian(cost.T)))
    else:
        pairs = enumerate(hungarian(cost))
    return {row: column for row, column in pairs if -cost[row, column] >= least}
