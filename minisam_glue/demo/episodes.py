"""Training clips for the segmenter, and prompts and masks that teach it to keep ids.

Each function is an idea of a published tracker's training, or acts against a fault that was seen here:

- contact, comeback: the frames about a meeting of look-alikes, or a return after a long absence. What leads up to them
  only fills the memory, without gradients, so that the steps that matter are as many as fit.
- with_jump: a few frames are missing now and then, as in real recordings.
- mosaic: the same clip beside itself, of which one part alone is labelled (SAM 2.1's training, 2 x 2 with p = 0.15).
- hints: a predicted box as a prompt beside the memory: twins differ by their way alone, and a motion model knows it.
- exclusive: a pixel belongs to one object before masks become memories; else memories of two objects become the same.
- without_recent: recent memories are missing at random, as they are after an absence.

Frame numbers are those of a clip of LENGTH frames. All randomness comes from the generator that is passed in.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..sam2.memory_bank import MemorySelection
from .drawing import Rng

LENGTH = 60  # frames of the clips from which a few are taken
STRIDES = (1, 2, 3)  # frames from one to the next that is shown, of contacts and comebacks
AFTER = 4  # frames that are shown after a meeting or a return on which the loss is larger
TAIL = 4  # frames of the clip after a meeting at which the middle of its frames may lie
NOISE = 0.5  # of its size: largest offset of the predicted boxes of an object
SHAKE, RESIZED = 0.2, 0.12  # deviation of their centres from frame to frame, in offsets; of the logarithm of their size
OUTSIDE = -10.0  # logit, at most, of a pixel that belongs to another object


@dataclass
class Episode:
    """Frames to show, in this order; the first is prompted."""

    chosen: np.ndarray  # (T,), their numbers in the clip
    numbers: list[int]  # as the memory counts them, from 0
    taught_from: int = 1  # the place, in 1 .. T - 1, of the first one that is learned from after the prompted one
    parted: int | None = None  # the place of the first frame after a meeting, if there is one


def contact(rng: Rng, span: tuple[int, int], warm: int, taught: int) -> Episode:
    """`taught` frames about a meeting that lasts from span[0] to span[1], after at most `warm` that begin before it.

    They begin before it because afterwards nothing could tell which of two look-alikes was which.
    """
    stride, start = int(rng.choice(STRIDES)), max(span[0] - 2, 1)
    middle = rng.uniform(span[0], span[1] + TAIL)
    first = round(middle - stride * (taught - 1) / 2)
    first = int(np.clip(first, start, min(start + warm * stride, LENGTH - 1 - stride * (taught - 1))))
    before = np.arange(first - stride, start - 1, -stride)[:warm][::-1]
    chosen = np.array([*before, *(first + stride * np.arange(taught))])
    return prompted_before(rng, chosen, len(before))


def comeback(rng: Rng, span: tuple[int, int], warm: int, taught: int) -> Episode:
    """`taught` frames from about the end of an absence on, which lasts from span[0] to span[1].

    At most `warm` frames lead up to them, and may begin before the absence. The prompted one lies before it.
    """
    stride = int(rng.choice(STRIDES))
    first = span[1] + 1 - stride * int(rng.integers(0, 3))
    first = int(np.clip(first, 2, max(LENGTH - 1 - stride * (taught - 1), 2)))
    before = np.arange(first - stride, 0, -stride)[:warm][::-1]
    chosen = np.array([*before, *(first + stride * np.arange(taught))])
    chosen = chosen[chosen < LENGTH]
    return prompted_before(rng, chosen, len(before), span[0] - 1)


def prompted_before(rng: Rng, chosen: np.ndarray, warm: int, latest: int = LENGTH) -> Episode:
    """The episode that shows these frames after a prompted one that lies before them, and not after frame `latest`."""
    latest = max(min(int(chosen[0]) - 1, latest), 0)
    near = max(latest - 2, 0)
    prompted = int(rng.integers(latest + 1)) if rng.random() < 0.3 else int(rng.integers(near, latest + 1))
    gap = max(int(chosen[0]) - prompted - 1, 0)
    return Episode(np.array([prompted, *chosen]), [0, *range(gap + 1, gap + 1 + len(chosen))], 1 + warm)


def backwards(span: tuple[int, int]) -> tuple[int, int]:
    """The same frames of the clip that runs backwards."""
    return LENGTH - 1 - span[1], LENGTH - 1 - span[0]


def with_jump(rng: Rng, episode: Episode) -> Episode:
    """The episode with up to 10 frames of the clip skipped somewhere, which the memory does not count; 2 at least where
    the clip has room for them.

    Leaves `parted` None: which frame is the first after a meeting changes, see first_after.
    """
    chosen, sign = episode.chosen.copy(), int(np.sign(episode.chosen[-1] - episode.chosen[-2]))
    at = int(rng.integers(1, len(chosen)))
    room = LENGTH - 1 - chosen[-1] if sign > 0 else chosen[-1]
    chosen[at:] += sign * min(int(rng.integers(2, 11)), int(room))
    return Episode(chosen, episode.numbers, episode.taught_from)


def first_after(chosen: np.ndarray, end: int) -> int | None:
    """The place of the first of these frames (T,), in ascending order, that comes after frame `end`; None without."""
    place = int(np.searchsorted(chosen, end, side="right"))
    return place if place < len(chosen) else None


def longest_absence(seen: np.ndarray) -> tuple[int, int] | None:
    """First and last frame of the longest run without an object that is seen before and after it; seen: bool (T,)."""
    edges = np.flatnonzero(seen)
    if not len(edges):
        return None
    gaps = np.diff(edges)
    if not len(gaps) or gaps.max() < 2:
        return None
    at = int(gaps.argmax())
    return int(edges[at]) + 1, int(edges[at + 1]) - 1


# --- Pictures and prompts ----------------------------------------------------------------------------------


def mosaic(
    rng: Rng, frames: np.ndarray, masks: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames (T, H, W, 3) four times in one picture, the masks (T, n, H, W) and boxes (T, n, 4) in one of its quarters.

    The three other quarters are mirrored at random, and nothing in them is labelled.
    """
    (T, H, W), n, own = frames.shape[:3], masks.shape[1], int(rng.integers(4))
    wide, labelled = np.empty((T, 2 * H, 2 * W, 3), frames.dtype), np.zeros((T, n, 2 * H, 2 * W), bool)
    for quarter in range(4):
        top, left = quarter // 2 * H, quarter % 2 * W
        axes = () if quarter == own else tuple(np.flatnonzero(rng.random(2) < 0.5) + 1)
        wide[:, top : top + H, left : left + W] = np.flip(frames, axes)
        if quarter == own:
            labelled[..., top : top + H, left : left + W] = masks
            moved = np.where(boxes[..., 2:3] > boxes[..., :1], boxes + np.float32((left, top, left, top)), boxes)
    return wide, labelled, moved


def hints(rng: Rng, boxes: np.ndarray, share: float) -> np.ndarray:
    """Whole boxes (T, n, 4) -> predicted ones, on a share of the frames; NaN elsewhere and where a box is empty.

    How much they err is drawn once for each object, as a motion model errs for a while: an offset up to NOISE of its
    size, and a factor of the size (RESIZED). The centre of each frame is shaken by SHAKE times that level, too.
    """
    T, n = boxes.shape[:2]
    size = boxes[..., 2:] - boxes[..., :2]
    centre = (boxes[..., 2:] + boxes[..., :2]) / 2
    level, way = rng.random((1, n, 1)) * NOISE, rng.uniform(-1, 1, (1, n, 2))
    centre = centre + size * level * (way + rng.normal(0, SHAKE, (T, n, 2)))
    size = size * np.exp(rng.normal(0, RESIZED, (1, n, 2)))
    given = (rng.random((T, 1)) < share) & (boxes[..., 2] > boxes[..., 0])
    return np.where(given[..., None], np.concatenate((centre - size / 2, centre + size / 2), -1), np.nan)


# --- Memories ----------------------------------------------------------------------------------------------


def exclusive(logits: Tensor, owner: Tensor) -> Tensor:
    """Mask logits (O, h, w) in which each pixel is one object's alone: of those of its clip (O,) the largest one's."""
    rival = (owner[:, None] == owner) & ~torch.eye(len(owner), dtype=torch.bool, device=owner.device)
    others = logits[None].where(rival[..., None, None], -torch.inf).amax(1)  # (O, O, h, w) -> (O, h, w)
    return torch.where(logits >= others, logits, logits.clamp(max=OUTSIDE))


def without_recent(selections: list[MemorySelection], generator: torch.Generator) -> list[MemorySelection]:
    """Selections of one layout without about half of the maps of tracked frames; the same slots for all objects."""
    kept = {slot for slot, _ in selections[0].maps if slot == 0 or torch.rand((), generator=generator) < 0.5}
    return [MemorySelection([m for m in s.maps if m[0] in kept], s.pointers) for s in selections]


def late_weights(there: Tensor, parted: int | None, weight: float) -> Tensor:
    """Weights (T, O) of the loss: `weight` on AFTER frames after a return or a meeting, else 1; there: bool (T, O)."""
    out = torch.ones(there.shape)
    for t in range(1, len(there)):
        back = there[t] & ~there[max(t - AFTER, 0) : t].all(0)
        out[t, back] = weight
    if parted is not None:
        out[parted : parted + AFTER] = weight
    return out
