"""A detection on a later frame: which tracked object it shows again, or whether it is a new one.

Detections and objects that cover the same pixels are one (confirm). A track that no detection confirms, and that lies
on something unlike its object, has lost it (drifted). What is left of the detections lies elsewhere (unmatched), and
is an object that was lost (revive) or a new one. Of two objects that share one mask the one that
resembles it less, or the later one, is emptied, unless the rules of identity/ know which is which (separate). Masks are
bool (n, h, w) at any size that is the same for both. The functions decide; Redetection asks them and acts on a tracker.
"""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .assignment import hungarian
from .looks import colour_distance, mean_colours, mean_tokens, token_likeness
from .masks import mask_iou
from .records import HeatMap, Segment
from .sam2 import FrameResult
from .sam2.layers import pool_to
from .seeding import Box, Seed, Seeds

if TYPE_CHECKING:  # propagators.py imports this file
    from .propagators import MemoryPropagator

# Mask IoU from which a detection and an object match; largest share of a new detection inside known objects:
MATCH_IOU = 0.5
SHARED = 0.7  # IoU of the masks of two objects from which they are one mask
RETURN_LIKENESS = 0.8  # likeness from which a detection may be an object that was lost
DRIFT_LIKENESS = 0.6  # likeness below which a track lies on something else than its object
EMA = 0.9  # weight of the appearance of an object before, when it is seen for sure again
COLD = 0.25  # a mask is cold if the heat map covers less than this share of it


class Redetection:
    """The objects of one tracking and what is detected on later frames: who is confirmed, lost, found again, new.

    tracker: a propagator (propagators.py). known: the latest record of each object, by its number; scores are brought
    up to date here. appearances: (C + 4,) of each object, as appearances() has them. image, of the methods: the frame
    that the tracker was last shown, uint8 (H, W, 3).
    """

    def __init__(self, tracker: "MemoryPropagator", known: dict[int, Segment]):
        self.tracker, self.known = tracker, known
        self.appearances: dict[int, Tensor] = {}

    def reconcile(
        self, found: Seeds, result: FrameResult, image: np.ndarray, add: Callable[[int, Seed], None] | None = None
    ) -> None:
        """Match detections with the tracked objects of a frame: confirm, revive, add. It is not encoded again.

        add: what makes a detection of no known object a new one, from the frame and the detection; None leaves it out.
        """
        shown = self.tracker.masks_for_boxes(found.boxes)
        detected, tracked = shown.logits > 0, result.low_res > 0
        same, alike = self._same_label(found, result), self._likeness(detected, result.ids, image)
        confirmed = confirm(detected, tracked, same)
        for row, column in confirmed.items():
            self.known[result.ids[column]].score = found.objects[row].score
        present = self._likeness(tracked, result.ids, image).diagonal()
        for column in drifted(detected, tracked, alike, confirmed, present):
            self.tracker.lose(result.ids[column])
            tracked[column] = False
        new = unmatched(detected, tracked, same, confirmed)
        lost = [column for column, there in enumerate(are_shown(tracked)) if not there]
        # An object of which no appearance is known can't be told from another of its label: it does not return.
        returning = [column for column in lost if result.ids[column] in self.appearances]
        revived = revive(alike[new][:, returning], same[new][:, returning]) if new and returning else {}
        ranks = [(i in revived, found.objects[row].score) for i, row in enumerate(new)]
        for i in sorted(suppress_duplicates(detected[new], [found.boxes[row] for row in new], ranks)):
            row = new[i]
            if i in revived:
                self._revive(result.ids[returning[revived[i]]], shown.logits[row], found.objects[row].score)
            elif add:
                add(result.frame, found.objects[row])
        doubtful = set(range(len(result.ids))) - {*confirmed.values(), *lost}
        hot = hot_pixels(found.heat, tuple(tracked.shape[1:])) if doubtful else {}
        for column in doubtful:
            if is_cold(tracked[column], hot.get(self.known[result.ids[column]].label)):
                self.tracker.mistrust(result.ids[column])
        self.tracker.detection_done()
        sure = {result.ids[column] for column in confirmed.values()}
        self.separate(image, sure)
        result = self.tracker.result()
        prompted = {number for number in result.ids if self.tracker.is_prompted(number)}
        self.learn_appearances(sure | prompted, result, image)

    def distinct(self, found: Seeds) -> list[Seed]:
        """The detections on the first frame, in their order; of several boxes that show one mask the best one.

        Regions of heat maps and points are not shown by their boxes alone, and stay.
        """
        if len(found) < 2 or any(seed.region is not None or not seed.prompts_box for seed in found.objects):
            return found.objects
        masks = self.tracker.masks_for_boxes(found.boxes).logits > 0
        rows = suppress_duplicates(masks, found.boxes, [(seed.score,) for seed in found.objects])
        return [found.objects[row] for row in sorted(rows)]

    def separate(self, image: np.ndarray, confirmed: Collection[int] | None = None) -> None:
        """Where two objects share one mask, empty the wrong one.

        That is the one the mask resembles less, if it is unlike it. After a detection, of which `confirmed` are the
        objects that it confirmed, it is also the one that was not confirmed, or the later one. An object prompted on
        this frame is never emptied; of two look-alikes that meet the rules of identity/ know which is which.
        """
        result = self.tracker.result()
        masks = result.low_res > 0
        pairs = sharing(masks)
        likeness = self._likeness(masks, result.ids, image).diagonal() if pairs else None
        emptied = set()
        for pair in pairs:
            if emptied & set(pair):  # what is left is one mask
                continue
            there = [self.tracker.is_prompted(result.ids[column]) for column in pair]
            meet = self.tracker.meet(*(result.ids[column] for column in pair))
            sure = [result.ids[column] in (confirmed or ()) and not meet for column in pair]
            weaker = min((1, 0), key=lambda i: (there[i], sure[i], float(likeness[pair[i]])))
            other, column = 1 - weaker, pair[weaker]
            unlike = likeness[column] < RETURN_LIKENESS and likeness[column] < likeness[pair[other]]
            if not there[weaker] and (unlike or (confirmed is not None and not meet)):
                self.tracker.lose(result.ids[column])
                emptied.add(column)

    def masks(self) -> dict[int, Tensor]:
        """The objects' masks, bool (s, s), on the frame that the tracker was last shown."""
        result = self.tracker.result()
        return dict(zip(result.ids, result.low_res > 0))

    def refuse_strangers(self, before: dict[int, Tensor], result: FrameResult, image: np.ndarray) -> FrameResult:
        """Empty the masks that have come back, or jumped, to something unlike their object.

        before: masks() of the frame before.
        """
        masks = result.low_res > 0
        shown = are_shown(masks)
        rows = [row for row, number in enumerate(result.ids) if number in before and shown[row]]
        stays = are_shown(masks[rows] & torch.stack([before[result.ids[row]] for row in rows])) if rows else []
        rows = [row for row, stay in zip(rows, stays) if not stay]
        if not rows:
            return result
        alike = self._likeness(masks[rows], [result.ids[row] for row in rows], image).diagonal()
        for row, value in zip(rows, alike):
            if value < DRIFT_LIKENESS:
                self.tracker.lose(result.ids[row])
        return self.tracker.result()

    def prompted(self, ids: Collection[int], image: np.ndarray) -> None:
        """Learn anew how objects look that were prompted on this frame: they may have been taken for others."""
        result = self.tracker.result()
        shown = {number for number, there in zip(result.ids, are_shown(result.low_res > 0)) if there} & {*ids}
        for number in shown:
            self.appearances.pop(number, None)
        self.learn_appearances(shown, result, image)

    def learn_appearances(self, ids: Collection[int], result: FrameResult, image: np.ndarray) -> None:
        """Average the appearances of objects that are there for sure on this frame with those before (weight EMA)."""
        masks = result.low_res > 0
        rows = [row for row, (number, there) in enumerate(zip(result.ids, are_shown(masks))) if number in ids and there]
        for row, appearance in zip(rows, self.tracker.appearances(masks[rows], image)):
            before = self.appearances.get(result.ids[row], appearance)
            self.appearances[result.ids[row]] = EMA * before + (1 - EMA) * appearance

    def _likeness(self, masks: Tensor, ids: Sequence[int], image: np.ndarray) -> Tensor:
        """Likeness (n, objects) of what is in masks, bool (n, s, s), to the objects as they were when last seen for
        sure; 1 for an object of which that is not known. On the CPU: a GPU would be waited for at each entry."""
        seen, known = self.tracker.appearances(masks, image), [self.appearances.get(number) for number in ids]
        columns = [seen.new_ones(len(seen)) if one is None else likeness(seen, one) for one in known]
        return (torch.stack(columns, 1) if columns else seen.new_zeros(len(seen), 0)).cpu()

    def _same_label(self, found: Seeds, result: FrameResult) -> Tensor:
        """Bool (detections, objects)."""
        table = [[seed.label == self.known[number].label for number in result.ids] for seed in found.objects]
        return torch.tensor(table, dtype=torch.bool).view(len(found), len(result.ids))

    def _revive(self, number: int, logits: Tensor, score: float) -> None:
        """Give a lost object the mask, logits (s, s), of the detection that shows it."""
        full = F.interpolate(logits[None, None].float(), self.tracker.size, mode="bilinear", align_corners=False)
        self.tracker.prompt(number, mask=(full[0, 0] > 0).float())
        self.known[number].score = score


def appearances(masks: Tensor, tokens: Tensor, image: Tensor) -> Tensor:
    """Appearances of what is in n masks: the mean image token inside each mask, less that of the frame, as a unit
    vector; and the mean colour with its light (looks.mean_colours). Rows (n, C + 4).

    tokens: (N, C), a square of the frame's tokens. image: the frame, uint8 (H, W, 3).
    """
    inside = mean_tokens(masks, tokens - tokens.mean(0))
    small = pool_to(image.permute(2, 0, 1).to(tokens.dtype) / 255, masks.shape[-1])  # (3, s, s)
    return torch.cat((inside, mean_colours(masks, small)), 1)


def likeness(appearances: Tensor, one: Tensor) -> Tensor:
    """How alike n appearances (n, C + 4) are to one (C + 4,), at most 1: the cosine of the tokens, or 1 less the
    distance of the colours, whichever is less. SAM 2's tokens alone take two things on plain grounds for the same."""
    of_tokens = token_likeness(appearances[:, :-4], F.normalize(one[:-4], dim=0))
    return torch.minimum(of_tokens, 1 - colour_distance(appearances[:, -4:], one[-4:]))


def confirm(detected: Tensor, tracked: Tensor, same_label: Tensor) -> dict[int, int]:
    """Pairs of a detection and the object that it shows again: the greatest sum of IoU, each at least MATCH_IOU.

    same_label: bool (detections, objects); only such pairs can be one.
    """
    iou = mask_iou(detected, tracked).cpu() * same_label
    return assign(torch.where(iou >= MATCH_IOU, iou, 0), MATCH_IOU)


def drifted(detected: Tensor, tracked: Tensor, alike: Tensor, confirmed: dict[int, int], present: Tensor) -> list[int]:
    """Objects whose tracks lie on something else.

    alike: likeness (detections, objects) of detections to the objects as they were. present: (objects,), the same of
    what each track lies on now. An object is there for sure if a detection of its own phrase confirms it.
    """
    overlap, shown = mask_iou(detected, tracked).cpu(), are_shown(tracked)
    lost = []
    for column in set(range(len(tracked))) - set(confirmed.values()):
        others = [row for row in range(len(detected)) if overlap[row, column] >= MATCH_IOU]
        unlike = any(alike[row, column] < RETURN_LIKENESS for row in others) or present[column] < DRIFT_LIKENESS
        if shown[column] and unlike:
            lost.append(column)
    return lost


def unmatched(detected: Tensor, tracked: Tensor, same_label: Tensor, confirmed: dict[int, int]) -> list[int]:
    """Detections to be revived or added: not confirmed, not empty, mostly outside objects of their label, and not the
    mask of any object under another phrase."""
    if not len(detected):
        return []
    owned = torch.stack([tracked[same].any(0) for same in same_label])  # pixels of any object of the same label
    inside = (detected & owned).sum((1, 2)) / detected.sum((1, 2)).clamp(min=1)
    named = (mask_iou(detected, tracked) >= SHARED).any(1)
    free = (inside <= MATCH_IOU) & detected.flatten(1).any(1) & ~named
    return [row for row in free.nonzero().flatten().tolist() if row not in confirmed]


def suppress_duplicates(masks: Tensor, boxes: Sequence[Box], ranks: Sequence[tuple]) -> list[int]:
    """Rows of detections, the highest rank first, without those that have one box and one mask with a higher one.

    masks: (n, h, w). boxes: n, xyxy.
    """
    from torchvision.ops import box_iou  # imported here because it loads slowly and clicks do not need it

    corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    one = (mask_iou(masks, masks).cpu() >= SHARED) & (box_iou(corners, corners) >= SHARED)
    kept = []
    for row in sorted(range(len(masks)), key=ranks.__getitem__, reverse=True):
        if not one[row, kept].any():
            kept.append(row)
    return kept


def revive(alike: Tensor, same_label: Tensor) -> dict[int, int]:
    """Pairs of a detection and the lost object that it shows: as many as may be, and the most alike.

    alike: likeness (detections, lost objects) of detections to the objects as they were.
    """
    # From 2.8 to 3: two pairs are never worse than one.
    gain = torch.where(same_label & (alike >= RETURN_LIKENESS), alike + 2, 0)
    return assign(gain, 0.5)


def hot_pixels(heat: Sequence[HeatMap], size: tuple[int, int]) -> dict[str, Tensor]:
    """Where the heat map of each phrase exceeds its threshold, at the size (h, w) of masks: bool (h, w)."""
    return {one.phrase: torch.from_numpy(one.at(size) > one.threshold) for one in heat}


def is_cold(mask: Tensor, hot: Tensor | None) -> bool:
    """Whether the heat map of an object's phrase, if there is one, covers too little of a mask; both bool (h, w)."""
    return hot is not None and int((hot.to(mask.device) & mask).sum()) < COLD * int(mask.sum())


def are_shown(masks: Tensor) -> list[bool]:
    """Whether each of bool masks (n, h, w) has a pixel: a device is waited for once."""
    return masks.flatten(1).any(1).tolist()


def sharing(masks: Tensor) -> list[tuple[int, int]]:
    """Pairs of objects that have one mask."""
    return (mask_iou(masks, masks).triu(1) >= SHARED).nonzero().tolist() if len(masks) > 1 else []


def assign(gain: Tensor, least: float) -> dict[int, int]:
    """Rows to columns of gain (n, m) so that its sum is greatest; pairs of less than `least` are left out."""
    cost = -gain.cpu().double().numpy()
    if cost.shape[0] > cost.shape[1]:
        pairs = ((row, column) for column, row in enumerate(hungarian(cost.T)))
    else:
        pairs = enumerate(hungarian(cost))
    return {row: column for row, column in pairs if -cost[row, column] >= least}
