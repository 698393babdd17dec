"""The demo segmenter's curriculum: what it is shown, how often, at what size, and how that changes with the steps.

At first every step shows images. Later most steps show short clips of neighbouring frames, and still later half of
these clips are about a meeting of look-alikes or a return: episodes.py says how, and why. A batch depends on the recipe
and its number alone, so a resumed run sees what an uninterrupted one does.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..sam2.layers import resize_antialiased
from ..sam2.preprocess import frame_pixels, image_pixels
from . import training
from .clip_metrics import meeting_span
from .episodes import (
    LENGTH,
    Episode,
    backwards,
    comeback,
    contact,
    first_after,
    hints,
    late_weights,
    longest_absence,
    mosaic,
    with_jump,
)
from .evaluate import seeded
from .scenes import ALL_KINDS, KINDS, TRAINING_FROM, ClipMotion, clip, motion, scene

MEETINGS = ("crossing", "pass", "bounce", "twins")  # kinds of clips in which look-alikes meet
RETURNS = ("occlusion", "leaving", "return", "scale")  # and in which an object returns
JITTER = 0.1  # largest standard deviation of the noise on the corners of a prompted box, in sides of the box


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """Settings that the result depends on."""

    steps: int = 19_000
    cooldown: float = 0.2
    batch_size: int = 4  # images a step and process
    lr: float = 1e-3
    frames: int = 8  # frames of a clip of neighbouring frames
    side: int = 320  # pixels that images are resized to, fewer than in use (arXiv 1906.06423)
    early_side: int = 224  # in the early steps, which take half the time for it
    early_steps: int = 5_000
    clip_side: int = 256  # pixels that frames of clips are resized to
    full_steps: int = 600  # at the end, in which clips get `side` too
    objects: int = 3  # most objects of an image or clip
    corrections: int = 2  # clicks after the first prompt of an image
    image_steps: int = 8_000  # at the beginning, that show images alone
    mixed_steps: int = 500  # after them, in which clips get more and more frequent
    clip_share: float = 0.75  # share of later steps that show clips
    episode_steps: int = 10_000  # before contacts and returns are shown, when tracking of neighbours is learned
    contacts: float = 0.35  # share of clips of MEETINGS; a third of them have none, and show neighbouring frames
    returns: float = 0.25  # and of RETURNS
    warm: int = 12  # most frames that lead up to these and only fill the memory
    taught: int = 7  # frames of these that are learned from
    boxed: float = 0.5  # share of tracked frames with predicted boxes beside the memory
    exclusive: float = 0.7  # share of clips whose masks exclude each other before they become memories
    forgetful: float = 0.25  # share of clips in which recent memories are missing at random
    mosaics: float = 0.12  # share of clips that are shown beside themselves
    jumps: float = 0.2  # share of clips in which frames are missing
    late: float = 3.0  # weight of the loss on frames after a meeting or a return

    def clips_at(self, step: int) -> float:
        """Probability that a step shows clips."""
        return self.clip_share * min(max((step - self.image_steps) / self.mixed_steps, 0.0), 1.0)

    def side_at(self, step: int, clips: bool) -> int:
        """Pixels of the side of images, or of the frames of clips."""
        if not clips:
            return self.early_side if step < self.early_steps else self.side
        return self.side if self.steps - step <= self.full_steps else self.clip_side


@dataclass
class Batch:
    """K clips of T frames (an image is a clip of one) and O of their objects, in the model's pixels."""

    images: Tensor  # (K * T, 3, S, S), the frames of the first clip first
    owner: Tensor  # (O,): the clip of each object
    truth: Tensor  # (T, O, S / 2, S / 2): share of each pixel that the object covers
    boxes: Tensor  # (O, 2, 2): corners on the first frame, jittered
    numbers: list[int]  # frame numbers, counted from the first
    opening: str  # the first prompt: box, click or mask
    corrections: int
    seed: int  # for random choices that depend on the model
    crowd: Tensor  # (T, O, S / 2, S / 2): share of each pixel that other objects of the clip cover
    weights: Tensor  # (T, O), of the loss
    hints: Tensor  # (T, O, 2, 2): corners of predicted boxes, NaN where there are none
    taught_from: int = 1  # the first frame after the prompted one that is learned from
    exclusive: bool = False
    forgetful: bool = False


@dataclass
class Sample:
    """An image or clip as the model sees it."""

    images: Tensor  # (T, 3, S, S)
    truth: Tensor  # (T, n, S / 2, S / 2)
    boxes: Tensor  # (n, 2, 2)
    crowd: Tensor  # (T, n, S / 2, S / 2)
    hints: Tensor  # (T, n, 2, 2)


def prepare(
    frames: np.ndarray,
    masks: np.ndarray,
    boxes: np.ndarray,
    keep: np.ndarray,
    rng: np.random.Generator,
    side: int,
    predicted: np.ndarray | None = None,
) -> Sample:
    """Frames (T, H, W, 3), masks (T, n, H, W), first boxes (n, 4) and predicted ones (T, n, 4) in pixels.

    Of the objects `keep` are shown; predicted boxes may be NaN, and are by default.
    """
    (T, H, W), read = frames.shape[:3], image_pixels if len(frames) == 1 else frame_pixels
    images = torch.cat([read(frame, side, torch.device("cpu")) for frame in frames])
    truth = resize_antialiased(torch.from_numpy(masks[:, keep]).float(), side // 2)
    all_others = masks.any(1, keepdims=True) & ~masks[:, keep]
    crowd = resize_antialiased(torch.from_numpy(all_others).float(), side // 2)
    boxes = boxes[keep].reshape(-1, 2, 2)
    noise = rng.normal(0, JITTER * rng.random((len(keep), 1, 1)), boxes.shape) * (boxes[:, 1:] - boxes[:, :1])
    corners = np.sort(boxes + noise, 1) / (W, H) * side
    predicted = np.full((T, len(keep), 4), np.nan) if predicted is None else predicted[:, keep]
    hinted = predicted.reshape(T, -1, 2, 2) / (W, H) * side
    return Sample(images, truth, torch.from_numpy(corners).float(), crowd, torch.from_numpy(hinted).float())


def collate(
    samples: list[Sample],
    numbers: list[int],
    opening: str,
    corrections: int,
    seed: int,
    late: float = 1.0,
    parted: int | None = None,
) -> Batch:
    """Samples of equally many frames -> a batch, the objects of the first sample first.

    late: weight of the loss on AFTER frames (episodes.py) after a return, and on as many from frame `parted` on if that
    is given.
    """
    owner = torch.arange(len(samples)).repeat_interleave(torch.tensor([len(s.boxes) for s in samples]))
    truth = torch.cat([s.truth for s in samples], 1)
    return Batch(
        torch.cat([s.images for s in samples]),
        owner,
        truth,
        torch.cat([s.boxes for s in samples]),
        numbers,
        opening,
        corrections,
        seed,
        torch.cat([s.crowd for s in samples], 1),
        late_weights(truth.flatten(2).any(2), parted, late),
        torch.cat([s.hints for s in samples], 1),
    )


def image_sample(seed: int, objects: int, rng: np.random.Generator, side: int) -> Sample:
    """The image of this seed, with at most so many of its objects."""
    s = scene(seed)
    keep = rng.permutation(len(s.boxes))[:objects]
    return prepare(s.image[None], s.masks[None], s.boxes, keep, rng, side)


def random_clip_size(rng: np.random.Generator) -> tuple[int, int]:
    """(height, width) of about 120 x 160 pixels."""
    short, aspect = rng.integers(96, 145), math.exp(rng.uniform(0, math.log(1.7)))
    return (int(short), round(short * aspect)) if rng.random() < 0.7 else (round(short * aspect), int(short))


def choose_episode(
    seed: int, kinds: tuple[str, ...], recipe: Recipe, rng: np.random.Generator, size: tuple[int, int]
) -> tuple[str, ClipMotion, Episode]:
    """The kind and motion of the clip of this seed, and the frames to show of it, forwards or backwards.

    kinds: MEETINGS or RETURNS for frames about what these are about; where nothing meets or returns, and for other
    kinds, neighbouring frames.
    """
    kind = str(rng.choice(kinds))
    moved, backward = motion(seed, kind, LENGTH, size), rng.random() < 0.5
    pair, span = [*moved.leads, *moved.twins][:2], None
    if kinds == MEETINGS:
        span = meeting_span(torch.from_numpy(moved.masks[:, pair]))
    elif kinds == RETURNS:
        span = longest_absence(moved.masks[:, moved.leads[0]].any((1, 2)))
    if span is not None and min(span[0], LENGTH - 1 - span[1]) < 3:
        span = None
    if span is None:
        episode = Episode(*random_frames(rng, recipe.frames))
    else:
        span = backwards(span) if backward else span
        episode = (contact if kinds == MEETINGS else comeback)(rng, span, recipe.warm, recipe.taught)
    if rng.random() < recipe.jumps:
        episode = with_jump(rng, episode)
    if span is not None:
        episode.parted = first_after(episode.chosen, span[1]) if kinds == MEETINGS else None
        episode.chosen = LENGTH - 1 - episode.chosen if backward else episode.chosen
    return kind, moved, episode


def clip_sample(
    seed: int, kinds: tuple[str, ...], recipe: Recipe, rng: np.random.Generator, side: int
) -> tuple[Sample, Episode]:
    """Frames of the clip of this seed, of one of the kinds, with the objects that it is about and some others."""
    size = random_clip_size(rng)
    kind, moved, episode = choose_episode(seed, kinds, recipe, rng, size)
    c = clip(seed, kind, LENGTH, size, episode.chosen.tolist())
    shown = seeded(c) or [i for i in range(len(c.figures)) if i not in c.twins]
    others = rng.permutation([i for i in shown if i not in c.leads])
    keep = np.array([*(i for i in c.leads if i in shown), *others], dtype=int)[: recipe.objects]
    frames, masks, wholes = c.frames, c.masks, moved.wholes[episode.chosen]
    first = c.boxes[:1]
    if rng.random() < recipe.mosaics:
        frames, masks, both = mosaic(rng, frames, masks, np.concatenate((first, wholes)))
        first, wholes = both[:1], both[1:]
    predicted = hints(rng, wholes, recipe.boxed)
    return prepare(frames, masks, first[0], keep, rng, side, predicted), episode


def random_frames(rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[int]]:
    """`count` frames of a clip, forwards or backwards, and their numbers as the memory counts them.

    They are evenly spaced, the more often the closer (neighbours are what a tracker sees), and lie about the middle
    of the clip, where objects cross, hide and leave. The first, which is prompted, may lie further back.
    """
    stride = int(((LENGTH - 1) // (count - 1)) ** rng.random())
    spare = LENGTH - 1 - stride * (count - 1)
    start = int(np.clip(rng.normal(spare / 2, 6), 0, spare))
    chosen, gap = start + stride * np.arange(count), 0
    if rng.random() < 0.3:
        chosen[0] = rng.integers(start + 1)
        gap = start - int(chosen[0])
    if rng.random() < 0.5:
        chosen = LENGTH - 1 - chosen
    return chosen, [0, *range(gap + 1, gap + count)]


def draw_batch(recipe: Recipe, step: int, draw: int) -> Batch:
    """The batch of a step: images, or clips as often as the recipe says. draw: numbers batches over all processes."""
    # Drawn by the step alone, so that all processes show images, or clips; 4 tells this stream from others.
    rng = np.random.default_rng((recipe.seed, step, 4))
    first = TRAINING_FROM + (recipe.seed * 1_000_000 + draw) * recipe.batch_size
    opening = str(rng.choice(("box", "click", "mask"), p=(0.5, 0.3, 0.2)))
    if rng.random() < recipe.clips_at(step):
        return draw_clip(recipe, step, first, opening, rng)
    side = recipe.side_at(step, clips=False)
    samples = [image_sample(first + i, recipe.objects, rng, side) for i in range(recipe.batch_size)]
    return collate(samples, [0], opening, recipe.corrections, first)


def draw_clip(recipe: Recipe, step: int, first: int, opening: str, rng: np.random.Generator) -> Batch:
    """The clip of the seed `first`, of the kinds that are due at this step."""
    turn = rng.random()
    kinds = KINDS if step < recipe.episode_steps else ALL_KINDS
    if step >= recipe.episode_steps and turn < recipe.contacts + recipe.returns:
        kinds = MEETINGS if turn < recipe.contacts else RETURNS
    sample, episode = clip_sample(first, kinds, recipe, rng, recipe.side_at(step, clips=True))
    return replace(
        collate([sample], episode.numbers, opening, 0, first, recipe.late, episode.parted),
        taught_from=episode.taught_from,
        exclusive=bool(rng.random() < recipe.exclusive),
        forgetful=bool(rng.random() < recipe.forgetful),
    )
