"""What may be asked for: a sentence, or boxes, points and masks; and which detections count.

Coordinates are pixels of the picture as given, boxes xyxy.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Sentence = str | list[str]  # "car. dog." or ["car", "dog"]


@dataclass(frozen=True)
class Thresholds:
    """Limits that a detection must keep.

    box, text: scores that it must exceed, 0 to 1. nms: IoU above which overlapping boxes of one phrase are suppressed.
    max_area: largest box, as a share of the picture.
    """

    box: float = 0.35
    text: float = 0.25
    nms: float = 0.7
    max_area: float = 1.0


@dataclass(frozen=True)
class Clicks:
    """Boxes, points and masks in place of a sentence.

    Each box and each mask is an object. All points together are one object, or correct the one box.
    boxes: xyxy. points: (x, y, 1 on the object or 0 on the background). masks: bool (H, W).
    """

    boxes: Sequence[Sequence[float]] = ()
    points: Sequence[Sequence[float]] = ()
    masks: Sequence[np.ndarray] = ()

    def __post_init__(self):
        if not (len(self.boxes) or len(self.points) or len(self.masks)):
            raise ValueError("no prompt: give a text, boxes, points or masks")
        if len(self.points) and len(self.boxes) > 1:
            raise ValueError(f"points with {len(self.boxes)} boxes: points correct one box, or are given without one")


Prompt = Sentence | Clicks


def split_phrases(sentence: Sentence) -> list[str]:
    """Phrases, verbatim: the parts of a string between commas, semicolons and full stops; the items of a list.

    ValueError if there is none, or an empty item.
    """
    parts = re.split(r"[.,;]", sentence) if isinstance(sentence, str) else sentence
    phrases = [part.strip() for part in parts]
    if isinstance(sentence, str):
        phrases = [phrase for phrase in phrases if phrase]
    if not phrases or not all(phrases):
        kind = "an empty" if phrases else "no"
        raise ValueError(f'the prompt {sentence!r} has {kind} phrase: write it as "car. dog." or ["car", "dog"]')
    return phrases


def check_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask as bool (H, W). ValueError if it is empty or not of the picture's size (height, width)."""
    mask = np.asarray(mask, bool)
    if mask.shape != tuple(size):
        raise ValueError(f"the mask is {mask.shape} but the picture {tuple(size)} (height, width)")
    if not mask.any():
        raise ValueError("the mask is empty: it must show the object")
    return mask
