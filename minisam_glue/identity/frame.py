"""A frame as the rules see it: masks, the boxes of their main parts, and what is inside them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..looks import mean_colours, mean_tokens
from ..masks import boxes_of, large_parts
from ..support.reading import LARGEST
from .motion import CentreBox, corners

FIRST_RIVAL = -LARGEST - 1  # ids of rivals count down from here; a user's object can't have such a number
MAIN = 0.6  # parts smaller than this share of a mask's largest part do not count


def is_rival(number: int) -> bool:
    """Whether an id is that of a rival: see rivals.py."""
    return number <= FIRST_RIVAL


@dataclass
class Frame:
    """The masks of n objects on one frame. Rules change logits, and say which objects are absent or not written."""

    t: int  # the number of the frame
    ids: list[int]
    logits: Tensor  # (n, s, s), those of an object in `absent` no longer count
    ious: list[float]  # predicted by the decoder
    tokens: Tensor  # (N, C): image tokens, less their mean
    fixed: set[int] = field(default_factory=set)  # ids that were prompted here
    image: Tensor | None = None  # (3, s, s), 0 to 1; without it colours count as the same
    changed: set[int] = field(default_factory=set)
    absent: set[int] = field(default_factory=set)
    unwritten: set[int] = field(default_factory=set)

    def __post_init__(self):
        self.row = {number: row for row, number in enumerate(self.ids)}

    def add(self, number: int, logits: Tensor, iou: float) -> None:
        """Add a mask, logits (s, s), of an object that the tracker does not have; then `measure` anew."""
        self.row[number] = len(self.ids)
        self.ids, self.ious = [*self.ids, number], [*self.ious, iou]
        self.logits = torch.cat((self.logits, logits[None].to(self.logits)))

    def measure(self) -> None:
        """Find masks, boxes, areas, appearances and colours."""
        self.masks = self.logits > 0
        self.areas = self.masks.flatten(1).sum(1).tolist()
        self.boxes = mask_boxes(main_parts(self.masks))
        self.appearances = mean_tokens(self.masks, self.tokens)
        self.colours = self.colours_in(self.masks)

    def holds(self, box: CentreBox) -> bool:
        """Whether a box lies inside the frame and touches no edge of it: it may be that of a whole object."""
        return min(corners(box)) > 0 and max(corners(box)) < self.logits.shape[-1]

    def shows(self, number: int) -> bool:
        """Whether an object has a mask that is not empty, and was not hidden."""
        return self.areas[self.row[number]] > 0 and number not in self.absent

    def overlap_areas(self, one: int, other: int) -> tuple[int, int, int]:
        """Areas of two masks, and of what they share."""
        i, j = self.row[one], self.row[other]
        return self.areas[i], self.areas[j], int((self.masks[i] & self.masks[j]).sum())

    def iou(self, one: int, other: int) -> float:
        """The intersection over union of two masks; 0 for empty ones."""
        area, other_area, shared = self.overlap_areas(one, other)
        return shared / max(1, area + other_area - shared)

    def on_others(self, number: int) -> float:
        """The share of an object's mask that lies on masks of other objects, rivals apart."""
        taken = self.taken(other for other in self.ids if other != number and not is_rival(other))
        mask = self.masks[self.row[number]]
        return float((mask & taken).sum() / mask.sum().clamp(min=1))

    def taken(self, numbers: Iterable[int]) -> Tensor:
        """Where objects of these ids are shown: bool (s, s)."""
        shown = [self.row[number] for number in numbers if self.shows(number)]
        return self.masks[shown].any(0) if shown else torch.zeros_like(self.masks[0])

    def colours_in(self, masks: Tensor) -> Tensor:
        """The mean colours inside bool masks (n, s, s), and their light: (n, 4), see looks.mean_colours."""
        return self.tokens.new_zeros(len(masks), 4) if self.image is None else mean_colours(masks, self.image)

    def hide(self, number: int) -> None:
        """Mark an object as absent: its mask no longer counts."""
        self.absent.add(number)
        self.changed.add(number)


def main_parts(masks: Tensor, least: float | None = None) -> Tensor:
    """Bool masks (n, s, s) without connected parts of fewer than `least` pixels; by default, than MAIN of the largest
    part."""
    limits = {"share": MAIN} if least is None else {"least": least}
    kept = [large_parts(mask, **limits) for mask in masks.cpu().numpy()]
    return torch.from_numpy(np.stack(kept)).to(masks.device)


def mask_boxes(masks: Tensor) -> list[CentreBox]:
    """The boxes of bool masks (n, s, s); of the whole picture for an empty one."""
    low, high = boxes_of(masks).split(2, 1)
    return list(map(tuple, torch.cat(((low + high) / 2, high - low), 1).tolist()))
