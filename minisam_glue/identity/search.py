"""Search for lost objects, and for rivals: where image tokens look like an object, SAM 2 is shown a box."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..looks import colour_distance, mean_tokens
from .frame import Frame
from .motion import CentreBox, corners

PEAKS, LIKENESS = 2, 0.6  # places tried; least cosine of their image token
# Limits that an accepted candidate must keep:
FOUND_IOU, FOUND_LIKENESS, FOUND_ON_OTHERS = 0.75, 0.93, 0.3
FOUND_COLOUR = 0.2  # distance of colours: see looks.colour_distance
FOUND_AREA = 0.3, 2.5  # times the median
MasksOf = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # the answers to box prompts: see find_candidates


@dataclass
class Candidate:
    """The answer to a box prompt at a place, and how it compares with the object that is looked for."""

    logits: Tensor  # (s, s)
    pointer: Tensor  # (C,), the decoder's, for memory
    iou: float  # predicted by the decoder
    likeness: float  # cosine of the appearances
    colour: float  # distance of the colours
    area: float  # times the median area
    on_others: float  # share of the mask that lies on objects that are seen

    @property
    def good(self) -> bool:
        """Whether it is alike enough to be taken for the object."""
        return self.is_like(FOUND_LIKENESS)

    def is_like(self, likeness: float) -> bool:
        """Whether it may be the object, or another one like it; likeness: of the appearances, at least."""
        low, high = FOUND_AREA
        alike = self.likeness >= likeness and self.colour < FOUND_COLOUR
        return self.iou >= FOUND_IOU and alike and low <= self.area <= high and self.on_others <= FOUND_ON_OTHERS

    @property
    def rank(self) -> tuple[bool, float]:
        """Order of candidates: the better one has the greater rank."""
        return self.good, self.likeness - self.colour

    def __str__(self) -> str:
        return (
            f"IoU {self.iou:.2f}, likeness {self.likeness:.2f}, colour off by {self.colour:.2f}, area {self.area:.1f}x"
        )


@dataclass
class Looks:
    """Looks of an object, and its size."""

    appearance: Tensor  # (C,), of length 1
    colour: Tensor  # (4,), with its light: see looks.mean_colours
    size: tuple[float, float]  # width and height
    area: float


def find_lost(frame: Frame, looks: Looks, taken: Tensor, masks_of: MasksOf) -> Candidate | None:
    """Find a lost object: the best candidate, which need not be good; None if nothing is like the object.

    taken: bool (s, s), where it cannot be.
    """
    candidates = find_candidates(frame, looks, taken, masks_of)
    return max(candidates, key=lambda c: c.rank) if candidates else None


def find_candidates(
    frame: Frame, looks: Looks, taken: Tensor, masks_of: MasksOf, most: int = PEAKS, least: float = LIKENESS
) -> list[Candidate]:
    """Answers to box prompts without memory at the places, up to `most`, whose image tokens resemble an object.

    taken: bool (s, s), where other objects are. least: cosine of the image token of a place that is tried. masks_of:
    boxes (n, 4), xyxy in pixels of the low-resolution mask -> logits (n, s, s), predicted IoUs (n,), pointers (n, C).
    """
    places = likely_places(frame.tokens, looks.appearance, taken, most, least)
    if not places:
        return []
    logits, ious, pointers = masks_of(box_prompts([(*place, *looks.size) for place in places], taken.shape[-1]))
    masks = logits > 0
    areas = masks.flatten(1).sum(1)
    on_others = (masks & taken).flatten(1).sum(1) / areas.clamp(min=1)
    table = torch.stack(
        (
            ious,
            mean_tokens(masks, frame.tokens) @ looks.appearance,
            colour_distance(frame.colours_in(masks), looks.colour),
            areas / looks.area,
            on_others,
        ),
        1,
    )
    return [Candidate(*parts, *values) for *parts, values in zip(logits, pointers, table.tolist())]


def box_prompts(boxes: list[CentreBox], side: int) -> Tensor:
    """Boxes as box prompts (n, 4), xyxy, cut off at the edges of a frame of side x side pixels."""
    return torch.tensor([corners(box) for box in boxes], dtype=torch.float32).clamp(0, side)


def likely_places(
    tokens: Tensor, appearance: Tensor, taken: Tensor, most: int = PEAKS, least: float = LIKENESS
) -> list[tuple[float, float]]:
    """Centres (x, y), up to `most`, of the likest tokens, of a cosine above `least`, outside masks (s, s) taken."""
    grid, side = round(len(tokens) ** 0.5), taken.shape[-1]
    likeness = (F.normalize(tokens, dim=1) @ appearance).view(1, 1, grid, grid)
    smooth = F.avg_pool2d(likeness, 3, stride=1, padding=1, count_include_pad=False)
    free = F.adaptive_avg_pool2d(taken.to(tokens.dtype)[None, None], grid) < 0.5
    smooth = torch.where(free, smooth, -2.0)
    peak = (smooth == F.max_pool2d(smooth, 3, stride=1, padding=1)) & (smooth > least)
    score, index = torch.where(peak, smooth, -2.0).flatten().topk(min(most, grid * grid))
    scale = side / grid
    return [
        ((i % grid + 0.5) * scale, (i // grid + 0.5) * scale)
        for s, i in zip(score.tolist(), index.tolist())
        if s > least
    ]
