"""A lost object is looked for by its appearance, with box prompts and without memory."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .frame import Frame, appearances
from .motion import Motion

PEAKS, LIKENESS = 2, 0.6  # places that a search tries; cosine of their image token, at least
FOUND_IOU, FOUND_LIKENESS, FOUND_ON_OTHERS = 0.75, 0.93, 0.3  # what a search accepts
FOUND_AREA = 0.6, 1.7  # times the median


class Search:
    """A lost object is where image tokens look like it; SAM 2 says by box prompts without memory whether that is one.

    look: boxes (n, 4), xyxy in pixels of the low-resolution mask -> logits (n, s, s) and predicted IoUs (n,).
    """

    def __init__(self, look: Callable[[Tensor], tuple[Tensor, Tensor]]):
        self.look = look

    def find(self, frame: Frame, motion: Motion, appearance: Tensor) -> Tensor | None:
        """The row (s, s) of logits that shows the object; None if none does."""
        side = frame.logits.shape[-1]
        shown = [frame.row[number] for number in frame.ids if frame.shows(number)]
        taken = frame.masks[shown].any(0) if shown else torch.zeros_like(frame.masks[0])
        places = self.places(frame.tokens, appearance, taken)
        if not places:
            return None
        w, h = motion.size
        boxes = torch.tensor([(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y in places]).clamp(0, side)
        logits, ious = self.look(boxes)
        masks = logits > 0
        area = masks.flatten(1).sum(1)
        likeness = appearances(masks, frame.tokens) @ appearance
        low, high = (share * motion.area for share in FOUND_AREA)
        good = (ious >= FOUND_IOU) & (likeness >= FOUND_LIKENESS) & (area >= max(low, 1)) & (area <= high)
        good &= (masks & taken).flatten(1).sum(1) <= FOUND_ON_OTHERS * area
        best = int(torch.where(good, likeness, -2.0).argmax())
        return logits[best] if bool(good[best]) else None

    def places(self, tokens: Tensor, appearance: Tensor, taken: Tensor) -> list[tuple[float, float]]:
        """Up to PEAKS centres (x, y) of the likest tokens outside masks that are taken, (s, s)."""
        grid, side = round(len(tokens) ** 0.5), taken.shape[-1]
        likeness = (F.normalize(tokens, dim=1) @ appearance).view(1, 1, grid, grid)
        smooth = F.avg_pool2d(likeness, 3, stride=1, padding=1, count_include_pad=False)
        free = F.adaptive_avg_pool2d(taken.to(tokens.dtype)[None, None], grid) < 0.5
        smooth = torch.where(free, smooth, -2.0)
        peak = (smooth == F.max_pool2d(smooth, 3, stride=1, padding=1)) & (smooth > LIKENESS)
        score, index = torch.where(peak, smooth, -2.0).flatten().topk(min(PEAKS, grid * grid))
        scale = side / grid
        return [
            ((i % grid + 0.5) * scale, (i // grid + 0.5) * scale)
            for s, i in zip(score.tolist(), index.tolist())
            if s > LIKENESS
        ]
