"""Train the demo segmenter from nothing on generated scenes and clips (SAM 2, arXiv 2408.00714, appendix D.2).

    OMP_NUM_THREADS=1 python -m minisam_glue.demo.train_segmenter --out runs/demo-segmenter
    OMP_NUM_THREADS=1 python -m minisam_glue.demo.train_segmenter --out runs/demo-segmenter --minutes 90

The same line again goes on; with --minutes a run is trained in pieces. On one core of an AMD EPYC a step takes
0.7 s (images, at first), 1.3 s (images), 2 s (clips) or 3.5 s (episodes), and the whole run 12 hours.

At first every step shows images: a prompt drawn from the truth, then clicks where the mask is wrong. Later most steps
show short clips instead: prompted on the first frame, tracked through memory on the others, with gradients through
the memories. Still later half of these clips are about a meeting of look-alikes or a return: episodes.py says how, and
why. The model is called as image_predictor.py and video_tracker.py call it. The loop and the folder of the run:
training.py. Left out: prompts on several frames of a clip.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..sam2 import PRESETS, SAM2, SAM2Config, build
from ..sam2.layers import Attention, resize_antialiased
from ..sam2.mask_decoder import Decoded
from ..sam2.memory import RotaryAttention
from ..sam2.memory_bank import FrameMemory, MemoryBank
from ..sam2.model import ImageFeatures, ObjectOutput
from ..sam2.preprocess import frame_pixels, image_pixels
from ..sam2.prompt_encoder import BOTTOM_RIGHT, NEGATIVE, NO_POINT, POSITIVE, TOP_LEFT
from . import training
from .clip_metrics import meeting_span
from .episodes import (
    LENGTH,
    Episode,
    backwards,
    comeback,
    contact,
    exclusive,
    hints,
    late_weights,
    longest_absence,
    mosaic,
    with_jump,
    without_recent,
)
from .evaluate import evaluate_clips, evaluate_masks, seeded
from .scenes import ALL_KINDS, KINDS, TRAINING_FROM, Motion, clip, motion, scene

EVALUATED = range(900_000, 900_040)  # seeds that training watches itself with; not those of the results
EVALUATED_CLIPS = 8
MEETINGS = ("crossing", "pass", "bounce", "twins")  # kinds of clips in which look-alikes meet
RETURNS = ("occlusion", "leaving", "return", "scale")  # and in which an object returns
FOCAL = 20.0  # weight of the focal loss; those of the others are one
JITTER = 0.1  # largest deviation of the corners of a prompted box, in sides of the box
CROWDED = 0.25  # share of a mask on other objects from which it counts as a union with them


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """Settings that the result depends on."""

    steps: int = 22_000
    cooldown: float = 0.2
    batch_size: int = 4  # images a step and process
    lr: float = 1e-3
    frames: int = 8  # frames of a clip of neighbouring frames
    side: int = 320  # pixels that images are resized to, fewer than in use (arXiv 1906.06423)
    early_side: int = 224  # in the early steps, which are half as long for it
    early_steps: int = 5_000
    clip_side: int = 256  # and clips
    full_steps: int = 600  # at the end, in which clips get `side` too
    objects: int = 3  # most objects of an image or clip
    corrections: int = 2  # clicks after the first prompt of an image
    image_steps: int = 8_000  # at the beginning, that show images alone
    mixed_steps: int = 500  # after them, in which clips get more and more frequent
    clip_share: float = 0.75  # share of later steps that show clips
    episode_steps: int = 10_000  # before contacts and returns are shown, when tracking of neighbours is learned
    contacts: float = 0.35  # share of clips about a meeting of look-alikes
    returns: float = 0.25  # and about a return
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


# --- Batches ----------------------------------------------------------------------------------------------


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
    samples: list[Sample], numbers: list[int], opening: str, corrections: int, seed: int, late: float = 1.0, **more
) -> Batch:
    """Samples of equally many frames -> a batch, the objects of the first sample first.

    late: weight of the loss after returns, and after `parted` if that is given; what else is given goes to the batch.
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
        late_weights(truth.flatten(2).any(2), more.pop("parted", None), late),
        torch.cat([s.hints for s in samples], 1),
        **more,
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
) -> tuple[str, Motion, Episode]:
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
    if span is None or min(span[0], LENGTH - 1 - span[1]) < 3:
        episode = Episode(*random_frames(rng, recipe.frames))
    else:
        choose = contact if kinds == MEETINGS else comeback
        episode = choose(rng, backwards(span) if backward else span, recipe.warm, recipe.taught)
        if backward:
            episode.chosen = LENGTH - 1 - episode.chosen
    return kind, moved, with_jump(rng, episode) if rng.random() < recipe.jumps else episode


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


# --- Prompts ----------------------------------------------------------------------------------------------


def error_clicks(wrong: Tensor, inside: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random pixel of each region `wrong` and its label, positive in `inside`: both bool (O, h, w).

    Returns (O, 1, 2) xy in those pixels, at centres, and (O, 1). Where nothing is wrong a pixel inside is clicked.
    """
    wrong = torch.where(wrong.flatten(1).any(1)[:, None, None], wrong, inside)
    chance = torch.rand(wrong.shape, generator=generator).to(wrong.device)
    index = (chance * wrong).flatten(1).argmax(1)
    label = torch.where(inside.flatten(1).gather(1, index[:, None]), POSITIVE, NEGATIVE)
    xy = torch.stack((index % wrong.shape[2], index // wrong.shape[2]), -1)
    return xy[:, None] + 0.5, label


def covered(truth: Tensor) -> Tensor:
    """The pixels (O, h, w) that belong to each object: those it half covers, or of a tiny one the most covered."""
    return (truth > 0.5) | (truth == truth.amax((1, 2), keepdim=True)) & (truth > 0)


def coarse(truth: Tensor, side: int) -> Tensor:
    """Truth (O, h, w) -> a rough mask to start from, as logits (O, 1, side, side)."""
    rough = F.adaptive_avg_pool2d(truth[:, None], side // 4)
    return 10 * F.interpolate(rough, size=(side, side), mode="bilinear", align_corners=False) - 5


def prompt(model: SAM2, features: ImageFeatures, batch: Batch, generator: torch.Generator) -> list[Decoded]:
    """Answers of the model to the first prompt of an image's objects, then to each correcting click."""
    truth, side = batch.truth[0].to(model.device), model.config.image_size
    inside, tokens = covered(truth), model.without_memory(features)
    xy, labels = tokens.new_zeros(len(truth), 0, 2), torch.zeros(len(truth), 0, dtype=torch.long, device=model.device)
    mask, outs = None, []
    if batch.opening == "box":
        xy, labels = batch.boxes.to(tokens), torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=model.device)
        labels = labels.expand(len(truth), 2)
    elif batch.opening == "mask":
        mask = coarse(truth, side // 4)
    wrong = inside
    for turn in range(1 + batch.corrections):
        if turn or batch.opening == "click":
            clicks, kinds = error_clicks(wrong, inside, generator)
            clicks = 2 * clicks - 0.5  # truth is at stride 2, and prompts count from the centre of the first pixel
            xy, labels = torch.cat((xy, clicks), 1), torch.cat((labels, kinds), 1)
        # Three masks for a lone click; now and then for others, as an unstable single mask falls back on them.
        three = labels.shape[1] == 1 or torch.rand((), generator=generator) < 0.2
        out = model.decode(tokens, features.high_res, xy, labels, mask, bool(three))
        outs.append(out)
        mask = best_mask(out).detach().clamp(-32, 32)[:, None]
        wrong = (F.interpolate(mask, scale_factor=2, mode="bilinear", align_corners=False)[:, 0] > 0) != inside
    return outs


def best_mask(out: Decoded) -> Tensor:
    """The masks of the highest predicted IoU: (O, h, w)."""
    return out.masks[torch.arange(len(out.ious), device=out.ious.device), out.ious.argmax(1)]


# --- Losses -----------------------------------------------------------------------------------------------


def mask_losses(
    out: Decoded, truth: Tensor, crowd: Tensor | None = None, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Means over objects; truth (O, h, w) at twice the size of the masks, the share of each pixel that is covered.

    Of three masks the best is taught. The focal factor is (truth - p)^2: (1 - p_t)^2 where a pixel is no edge.
    crowd: as truth, of all other objects. weights: (O,).
    """
    there = truth.flatten(1).any(1)
    weights = there.new_ones(len(there), dtype=torch.float32) if weights is None else weights
    logits = F.interpolate(out.masks.float(), size=truth.shape[1:], mode="bilinear", align_corners=False)
    target, p = truth[:, None], logits.sigmoid()
    focal = ((F.softplus(logits) - target * logits) * (p - target) ** 2).mean((2, 3))  # the first factor: cross-entropy
    dice = 1 - (2 * (p * target).sum((2, 3)) + 1) / (p.sum((2, 3)) + target.sum((2, 3)) + 1)
    best = (FOCAL * focal + dice).argmin(1, keepdim=True)
    parts = {
        "focal": focal.gather(1, best)[:, 0],
        "dice": dice.gather(1, best)[:, 0],
        "iou": iou_loss(out.ious, logits > 0, truth > 0.5, None if crowd is None else crowd > 0.5),
    }
    # An absent object teaches its absence alone.
    losses = {name: (value * weights * there).sum() / there.sum().clamp(min=1) for name, value in parts.items()}
    score = F.binary_cross_entropy_with_logits(out.object_score_logits, there.float(), reduction="none")
    return losses | {"object_score": (score * weights).mean()}


def iou_loss(ious: Tensor, found: Tensor, true: Tensor, crowd: Tensor | None) -> Tensor:
    """Error (O,) of predicted IoUs (O, M) for masks found (O, M, h, w); true and crowd (O, h, w), all bool.

    Masks that lie on other objects too count three times: a union of two look-alikes must not be the best rated mask.
    """
    true, area = true[:, None], found.sum((2, 3)).clamp(min=1)
    iou = (found & true).sum((2, 3)) / (found | true).sum((2, 3)).clamp(min=1)
    error = (ious - iou).abs()
    if crowd is None:
        return error.mean(1)
    union = (found & crowd[:, None]).sum((2, 3)) / area >= CROWDED
    return (error * torch.where(union, 3.0, 1.0)).mean(1)


def first_frame(
    model: SAM2, features: ImageFeatures, batch: Batch, generator: torch.Generator
) -> tuple[list[Decoded], ObjectOutput]:
    """The answers to the prompts, and what goes to memory."""
    if batch.opening == "mask" and len(batch.truth) > 1:  # a video takes a given mask as it is
        side = (model.config.image_size,) * 2
        whole = F.interpolate(covered(batch.truth[0]).float()[:, None].to(model.device), size=side)
        out = model.decode_mask(features, whole)
        return [out], model.as_given(whole, out)
    outs = prompt(model, features, batch, generator)
    return outs, model.as_object(outs[-1])


def encode_frames(model: SAM2, batch: Batch) -> list[ImageFeatures]:
    """The features of each frame, with a row for each object; without gradients for frames that only fill the memory.

    So all frames that are learned from are encoded together, and the others, too.
    """
    owner, T = batch.owner.to(model.device), len(batch.truth)
    images = batch.images.to(model.device).unflatten(0, (-1, T))
    taught, features = [0, *range(batch.taught_from, T)], {}
    for frames, learn in ((taught, torch.is_grad_enabled()), (list(range(1, batch.taught_from)), False)):
        if frames:
            with torch.set_grad_enabled(learn):
                pictures = model.encode_image(images[:, frames].flatten(0, 1))
            features |= {t: pictures[owner * len(frames) + i] for i, t in enumerate(frames)}
    return [features[t] for t in range(T)]


def decode_tracked(
    model: SAM2, features: ImageFeatures, tokens: Tensor, hint: Tensor, generator: torch.Generator
) -> Decoded:
    """The answer on a tracked frame; hint: predicted boxes (O, 2, 2) in the model's pixels as prompts, or NaN.

    Without boxes three masks are made, as the tracker does; with boxes one or three.
    """
    known = ~hint.isnan().any((1, 2))
    if not known.any():
        return model.decode(tokens, features.high_res, multimask=True)
    corners = torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=tokens.device)
    labels = torch.where(known[:, None], corners, NO_POINT)
    three = bool(torch.rand((), generator=generator) < 0.5)
    return model.decode(tokens, features.high_res, hint.nan_to_num(0.0), labels, multimask=three)


def follow(model: SAM2, batch: Batch) -> list[tuple[Decoded, int]]:
    """Prompt the first frame, track the objects through the others: the answers to learn from, and their frames."""
    generator = torch.Generator().manual_seed(batch.seed)
    model.resize(batch.images.shape[-1])
    pictures, owner, given = encode_frames(model, batch), batch.owner.to(model.device), batch.hints.to(model.device)
    T, banks, answers, learning = len(pictures), [MemoryBank() for _ in owner], [], torch.is_grad_enabled()
    for t, (number, features) in enumerate(zip(batch.numbers, pictures)):
        taught = t == 0 or t >= batch.taught_from
        with torch.set_grad_enabled(learning and taught):
            if t == 0:
                outs, output = first_frame(model, features, batch, generator)
            else:
                selections = [bank.select_memories(number) for bank in banks]
                selections = without_recent(selections, generator) if batch.forgetful else selections
                tokens = model.condition_on_memory(features, selections)
                outs = [decode_tracked(model, features, tokens, given[t], generator)]
                output = model.as_object(outs[0])
            answers += [(out, t) for out in outs if taught]
            if t < T - 1:
                if batch.exclusive:
                    output = replace(output, logits=exclusive(output.logits, owner))
                memory = model.encode_memory(features, output, prompted=t == 0)
                for bank, *parts in zip(banks, output.pointer, output.object_score_logits, memory):
                    (bank.tracked if t else bank.prompted)[number] = FrameMemory(*parts, logits=None)
    return answers


@torch.no_grad()
def head_start(model: SAM2) -> None:
    """Let attention begin with a look at its own place: by default it begins with the mean of all, and stays long.

    Queries and keys of the mask decoder begin alike, so that equal positions meet. In the memory attention equal
    biases do it, as rotation makes their product fall with the distance; here in the finest quarter of the angles,
    over some two cells, and little enough that far cells and pointers are not shut out.
    """
    for attention in model.modules():
        if isinstance(attention, RotaryAttention):
            for projection in (attention.q_proj, attention.k_proj):
                # Channels: those turned by x, then those turned by y, each with the largest angles first.
                projection.bias.zero_().view(2, -1)[:, : len(projection.bias) // 8] = 1.5
        elif isinstance(attention, Attention):
            torch.nn.init.orthogonal_(attention.q_proj.weight, gain=1.5)
            attention.k_proj.weight.copy_(attention.q_proj.weight)


class SegmenterTask:
    """Images first, then more and more clips among them."""

    name = "segmenter"

    def __init__(self, recipe: Recipe, config: SAM2Config = PRESETS["demo_wide"]):
        self.recipe, self.config = recipe, config

    def build(self) -> SAM2:
        model = build(self.config)
        head_start(model)
        return model

    def batch(self, step: int, draw: int) -> Batch:
        rng, recipe = np.random.default_rng((self.recipe.seed, step, 4)), self.recipe
        first = TRAINING_FROM + (recipe.seed * 1_000_000 + draw) * recipe.batch_size
        opening = str(rng.choice(("box", "click", "mask"), p=(0.5, 0.3, 0.2)))
        if rng.random() < recipe.clips_at(step):
            return self.clip_batch(step, first, opening, rng)
        side = recipe.side_at(step, clips=False)
        samples = [image_sample(first + i, recipe.objects, rng, side) for i in range(recipe.batch_size)]
        return collate(samples, [0], opening, recipe.corrections, first)

    def clip_batch(self, step: int, first: int, opening: str, rng: np.random.Generator) -> Batch:
        """Clips of the kinds that are due at this step; all have the frame numbers of the first."""
        recipe, turn = self.recipe, rng.random()
        kinds = KINDS if step < recipe.episode_steps else ALL_KINDS
        if step >= recipe.episode_steps and turn < recipe.contacts + recipe.returns:
            kinds = MEETINGS if turn < recipe.contacts else RETURNS
        sample, episode = clip_sample(first, kinds, recipe, rng, recipe.side_at(step, clips=True))
        return collate(
            [sample],
            episode.numbers,
            opening,
            0,
            first,
            recipe.late,
            parted=episode.parted,
            taught_from=episode.taught_from,
            exclusive=bool(rng.random() < recipe.exclusive),
            forgetful=bool(rng.random() < recipe.forgetful),
        )

    def losses(self, model: SAM2, batch: Batch) -> dict[str, Tensor]:
        """The mean over all answers; those of images, clips and episodes under names of their own, for the log."""
        truth, crowd, weights = (part.to(model.device) for part in (batch.truth, batch.crowd, batch.weights))
        parts = [mask_losses(out, truth[t], crowd[t], weights[t]) for out, t in follow(model, batch)]
        mean = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        kind = "image" if len(batch.numbers) == 1 else "clip" if batch.taught_from == 1 else "episode"
        total = FOCAL * mean["focal"] + mean["dice"] + mean["iou"] + mean["object_score"]
        return {"total": total} | {f"{kind}_{name}": value for name, value in mean.items()}

    def evaluate(self, model: SAM2) -> dict[str, float]:
        seeds = range(EVALUATED.start, EVALUATED.start + EVALUATED_CLIPS)
        clips = (clip(seed, KINDS[seed % len(KINDS)]) for seed in seeds)
        return evaluate_masks(model, map(scene, EVALUATED)) | evaluate_clips(model, clips)


if __name__ == "__main__":
    training.command(__doc__, SegmenterTask, Recipe(), "runs/demo-segmenter")
