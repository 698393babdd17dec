"""Train the demo segmenter from nothing on generated scenes and clips (SAM 2, arXiv 2408.00714).

    OMP_NUM_THREADS=1 python -m minisam_glue.demo.train_segmenter --out runs/demo-segmenter
    OMP_NUM_THREADS=1 python -m minisam_glue.demo.train_segmenter --out runs/demo-segmenter --minutes 90

The same line again goes on; with --minutes a run is trained in pieces. On one core of an AMD EPYC a step takes
0.7 s (images, at first), 1.3 s (images), 2 s (clips) or 3.5 s (episodes); the whole run took 8 hours of one of a Xeon.

Images get a prompt drawn from the truth, then clicks where the mask is wrong. Clips are prompted on the first frame and
tracked through memory on the others, with gradients through the memories. The model is called as image_predictor.py
and video_tracker.py call it. What it is shown, and when: curriculum.py. The loop and the folder of the run:
training.py. Left out: prompts on several frames of a clip.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sam2 import PRESETS, SAM2, SAM2Config, build
from ..sam2.layers import Attention
from ..sam2.mask_decoder import Decoded
from ..sam2.memory import RotaryAttention
from ..sam2.memory_bank import FrameMemory, MemoryBank
from ..sam2.model import ImageFeatures, ObjectOutput
from ..sam2.prompt_encoder import BOTTOM_RIGHT, NEGATIVE, NO_POINT, POSITIVE, TOP_LEFT
from . import training
from .curriculum import Batch, Recipe, draw_batch
from .episodes import exclusive, without_recent
from .evaluate import evaluate_clips, evaluate_masks
from .scenes import KINDS, clip, scene

EVALUATED = range(900_000, 900_040)  # seeds that training watches itself with; not those of the results
EVALUATED_CLIPS = 8
FOCAL = 20.0  # weight of the focal loss; those of the others are one, as in the paper
UNION = 3.0  # weight of the error of a predicted IoU where the mask is a union
PEAK, ALIKE = 1.5, 1.5  # bias of queries and keys in the memory attention; gain of their weights in the decoder's
CROWDED = 0.25  # share of a mask on other objects from which it counts as a union with them


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
    Foreground and background count alike: SAM 2's alpha of 0.25 is left out.
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

    Masks that lie on other objects too count UNION times: a union of two look-alikes must not be the best rated mask.
    """
    true, area = true[:, None], found.sum((2, 3)).clamp(min=1)
    iou = (found & true).sum((2, 3)) / (found | true).sum((2, 3)).clamp(min=1)
    error = (ious - iou).abs()
    if crowd is None:
        return error.mean(1)
    union = (found & crowd[:, None]).sum((2, 3)) / area >= CROWDED
    return (error * torch.where(union, UNION, 1.0)).mean(1)


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


def unroll(model: SAM2, batch: Batch) -> list[tuple[Decoded, int]]:
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
    """Start attention at each token's own place.

    By default it starts as a mean over all tokens and leaves that slowly.
    Queries and keys of the mask decoder begin alike, so that equal positions meet. In the memory attention equal
    biases do it, as rotation makes their product fall with the distance; here in the finest quarter of the angles,
    over some two cells, and little enough that far cells and pointers are not shut out.
    """
    for attention in model.modules():
        if isinstance(attention, RotaryAttention):
            for projection in (attention.q_proj, attention.k_proj):
                # Channels: those turned by x, then those turned by y, each with the largest angles first.
                projection.bias.zero_().view(2, -1)[:, : len(projection.bias) // 8] = PEAK
        elif isinstance(attention, Attention):
            torch.nn.init.orthogonal_(attention.q_proj.weight, gain=ALIKE)
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
        return draw_batch(self.recipe, step, draw)

    def losses(self, model: SAM2, batch: Batch) -> dict[str, Tensor]:
        """The mean over all answers; those of images, clips and episodes under names of their own, for the log."""
        truth, crowd, weights = (part.to(model.device) for part in (batch.truth, batch.crowd, batch.weights))
        parts = [mask_losses(out, truth[t], crowd[t], weights[t]) for out, t in unroll(model, batch)]
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
