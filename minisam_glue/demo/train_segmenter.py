"""Train the demo segmenter from nothing on generated scenes and clips (SAM 2, arXiv 2408.00714, appendix D.2).

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m minisam_glue.demo.train_segmenter --out runs/demo-segmenter

The same line again goes on. A process without torchrun does it too, with half as much in a step.

At first every step shows images: a prompt drawn from the truth, then clicks where the mask is wrong. Later more
and more steps show short clips instead: prompted on the first frame, tracked through memory on the others, with
gradients through the memories. The model is called as image_predictor.py and video_tracker.py call it. The loop
and the folder of the run: training.py. Left out: prompts on several frames of a clip.
"""

import math
from dataclasses import dataclass

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
from ..sam2.prompt_encoder import BOTTOM_RIGHT, NEGATIVE, POSITIVE, TOP_LEFT
from . import training
from .evaluate import evaluate_clips, evaluate_masks, seeded
from .scenes import KINDS, TRAINING_FROM, clip, scene

EVALUATED = range(900_000, 900_040)  # seeds that training watches itself with; not those of the results
EVALUATED_CLIPS = 8
CLIP_LENGTH = 60  # frames of the clips from which a few are taken
FOCAL = 20.0  # weight of the focal loss; those of the others are one
JITTER = 0.1  # largest deviation of the corners of a prompted box, in sides of the box


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """Settings that the result depends on."""

    steps: int = 17_200
    cooldown: float = 0.144
    batch_size: int = 4  # images a step and process
    lr: float = 1e-3
    clips: int = 1  # clips a step and process
    frames: int = 8  # frames of a clip
    side: int = 320  # pixels that images are resized to, fewer than in use (arXiv 1906.06423)
    clip_side: int = 256  # and clips
    full_steps: int = 600  # at the end, in which clips get `side` too
    objects: int = 3  # most objects of an image or clip
    corrections: int = 2  # clicks after the first prompt of an image
    image_steps: int = 10_000  # at the beginning, that show images alone
    mixed_steps: int = 500  # after them, in which clips get more and more frequent
    clip_share: float = 0.7  # share of later steps that show clips

    def clips_at(self, step: int) -> float:
        """Probability that a step shows clips."""
        return self.clip_share * min(max((step - self.image_steps) / self.mixed_steps, 0.0), 1.0)


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


# --- Batches ----------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """An image or clip as the model sees it."""

    images: Tensor  # (T, 3, S, S)
    truth: Tensor  # (T, n, S / 2, S / 2)
    boxes: Tensor  # (n, 2, 2)


def prepare(
    frames: np.ndarray, masks: np.ndarray, boxes: np.ndarray, keep: np.ndarray, rng: np.random.Generator, side: int
) -> Sample:
    """Frames (T, H, W, 3), masks (T, n, H, W) and first boxes (n, 4) in pixels, of which `keep` are shown."""
    (_, H, W), read = frames.shape[:3], image_pixels if len(frames) == 1 else frame_pixels
    images = torch.cat([read(frame, side, torch.device("cpu")) for frame in frames])
    truth = resize_antialiased(torch.from_numpy(masks[:, keep]).float(), side // 2)
    boxes = boxes[keep].reshape(-1, 2, 2)
    noise = rng.normal(0, JITTER * rng.random((len(keep), 1, 1)), boxes.shape) * (boxes[:, 1:] - boxes[:, :1])
    corners = np.sort(boxes + noise, 1) / (W, H) * side
    return Sample(images, truth, torch.from_numpy(corners).float())


def collate(samples: list[Sample], numbers: list[int], opening: str, corrections: int, seed: int) -> Batch:
    """Samples of equally many frames -> a batch, the objects of the first sample first."""
    owner = torch.arange(len(samples)).repeat_interleave(torch.tensor([len(s.boxes) for s in samples]))
    return Batch(
        torch.cat([s.images for s in samples]),
        owner,
        torch.cat([s.truth for s in samples], 1),
        torch.cat([s.boxes for s in samples]),
        numbers,
        opening,
        corrections,
        seed,
    )


def image_sample(seed: int, objects: int, rng: np.random.Generator, side: int) -> Sample:
    """The image of this seed, with at most so many of its objects."""
    s = scene(seed)
    keep = rng.permutation(len(s.boxes))[:objects]
    return prepare(s.image[None], s.masks[None], s.boxes, keep, rng, side)


def clip_sample(seed: int, chosen: np.ndarray, objects: int, rng: np.random.Generator, side: int) -> Sample:
    """The chosen frames of a clip of any kind and of about 120 x 160 pixels."""
    short, aspect = rng.integers(96, 145), math.exp(rng.uniform(0, math.log(1.7)))
    size = (int(short), round(short * aspect)) if rng.random() < 0.7 else (round(short * aspect), int(short))
    c = clip(seed, str(rng.choice(KINDS)), CLIP_LENGTH, size, chosen.tolist())
    shown = seeded(c) or list(c.leads)
    others = rng.permutation([i for i in shown if i not in c.leads])
    keep = np.array([*(i for i in c.leads if i in shown), *others], dtype=int)[:objects]
    return prepare(c.frames, c.masks, c.boxes[0], keep, rng, side)


def random_frames(rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[int]]:
    """`count` frames of a clip, forwards or backwards, and their numbers as the memory counts them.

    They are evenly spaced, the more often the closer (neighbours are what a tracker sees), and lie about the middle
    of the clip, where objects cross, hide and leave. The first, which is prompted, may lie further back.
    """
    stride = int(((CLIP_LENGTH - 1) // (count - 1)) ** rng.random())
    spare = CLIP_LENGTH - 1 - stride * (count - 1)
    start = int(np.clip(rng.normal(spare / 2, 6), 0, spare))
    chosen, gap = start + stride * np.arange(count), 0
    if rng.random() < 0.3:
        chosen[0] = rng.integers(start + 1)
        gap = start - int(chosen[0])
    if rng.random() < 0.5:
        chosen = CLIP_LENGTH - 1 - chosen
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


def mask_losses(out: Decoded, truth: Tensor) -> dict[str, Tensor]:
    """Means over objects; truth (O, h, w) at twice the size of the masks, the share of each pixel that is covered.

    Of three masks the best is taught. The focal factor is (truth - p)^2: (1 - p_t)^2 where a pixel is no edge.
    """
    there = truth.flatten(1).any(1)
    logits = F.interpolate(out.masks.float(), size=truth.shape[1:], mode="bilinear", align_corners=False)
    target, p = truth[:, None], logits.sigmoid()
    focal = ((F.softplus(logits) - target * logits) * (p - target) ** 2).mean((2, 3))  # the first factor: cross-entropy
    dice = 1 - (2 * (p * target).sum((2, 3)) + 1) / (p.sum((2, 3)) + target.sum((2, 3)) + 1)
    found, true = logits > 0, target > 0.5
    iou = (found & true).sum((2, 3)) / (found | true).sum((2, 3)).clamp(min=1)
    best = (FOCAL * focal + dice).argmin(1, keepdim=True)
    parts = {
        "focal": focal.gather(1, best)[:, 0],
        "dice": dice.gather(1, best)[:, 0],
        "iou": (out.ious - iou).abs().mean(1),
    }
    # An absent object teaches its absence alone.
    losses = {name: (value * there).sum() / there.sum().clamp(min=1) for name, value in parts.items()}
    return losses | {"object_score": F.binary_cross_entropy_with_logits(out.object_score_logits, there.float())}


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


def follow(model: SAM2, batch: Batch) -> list[tuple[Decoded, Tensor]]:
    """Prompt the first frame, track the objects through the others: every answer with the truth of its frame."""
    generator = torch.Generator().manual_seed(batch.seed)
    model.resize(batch.images.shape[-1])
    pictures, truth = model.encode_image(batch.images.to(model.device)), batch.truth.to(model.device)
    T, banks, answers = len(truth), [MemoryBank() for _ in batch.owner], []
    for t, number in enumerate(batch.numbers):
        features = pictures[batch.owner.to(model.device) * T + t]  # one row for each object
        if t == 0:
            outs, output = first_frame(model, features, batch, generator)
        else:
            tokens = model.condition_on_memory(features, [bank.select_memories(number) for bank in banks])
            outs = [model.decode(tokens, features.high_res, multimask=True)]
            output = model.as_object(outs[0])
        answers += [(out, truth[t]) for out in outs]
        if t < T - 1:
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

    def __init__(self, recipe: Recipe, config: SAM2Config = PRESETS["demo"]):
        self.recipe, self.config = recipe, config

    def build(self) -> SAM2:
        model = build(self.config)
        head_start(model)
        return model

    def batch(self, step: int, draw: int) -> Batch:
        rng, recipe = np.random.default_rng((self.recipe.seed, step, 4)), self.recipe
        first = TRAINING_FROM + (recipe.seed * 1_000_000 + draw) * max(recipe.batch_size, recipe.clips)
        opening = str(rng.choice(("box", "click", "mask"), p=(0.5, 0.3, 0.2)))
        if rng.random() < recipe.clips_at(step):
            chosen, numbers = random_frames(rng, recipe.frames)
            side = recipe.side if recipe.steps - step <= recipe.full_steps else recipe.clip_side
            samples = [clip_sample(first + i, chosen, recipe.objects, rng, side) for i in range(recipe.clips)]
            return collate(samples, numbers, opening, 0, first)
        samples = [image_sample(first + i, recipe.objects, rng, recipe.side) for i in range(recipe.batch_size)]
        return collate(samples, [0], opening, recipe.corrections, first)

    def losses(self, model: SAM2, batch: Batch) -> dict[str, Tensor]:
        """The mean over all answers; those of images and of clips under names of their own, for the log."""
        parts = [mask_losses(out, truth) for out, truth in follow(model, batch)]
        mean = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        kind = "image" if len(batch.numbers) == 1 else "clip"
        total = FOCAL * mean["focal"] + mean["dice"] + mean["iou"] + mean["object_score"]
        return {"total": total} | {f"{kind}_{name}": value for name, value in mean.items()}

    def evaluate(self, model: SAM2) -> dict[str, float]:
        seeds = range(EVALUATED.start, EVALUATED.start + EVALUATED_CLIPS)
        clips = (clip(seed, KINDS[seed % len(KINDS)]) for seed in seeds)
        return evaluate_masks(model, map(scene, EVALUATED)) | evaluate_clips(model, clips)


if __name__ == "__main__":
    training.command(__doc__, SegmenterTask, Recipe(), "runs/demo-segmenter")
