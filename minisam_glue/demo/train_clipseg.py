"""Train the demo CLIPSeg from nothing on generated scenes (CLIPSeg, arXiv 2112.10003; CLIP, arXiv 2103.00020).

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m minisam_glue.demo.train_clipseg --out runs/demo-clipseg

Run the same line again to continue. One process without torchrun does it too, with half as much in a step.

The official model puts a decoder on a CLIP that knows names already. So does this recipe: first CLIP's two encoders
learn the names of single figures, cut out, by CLIP's own loss. Then the whole model learns heat maps of many phrases
for each scene, while the names of all objects go on to be asked of the image tokens that lie on them. The loop, the
folder of the run and what is left out: training.py. The result is clipseg.pt in that folder.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clipseg import PRESETS, CLIPSeg, HeatMapper
from ..clipseg.heat_mapper import pad_ids, preprocess
from . import HEAT_SIZE, clip_tokenizer, training
from .evaluate_clipseg import evaluate_heat_maps
from .scenes import TRAINING_FROM, Phrase, Scene, random_wish, scene, wording
from .train_detector import FIGURE_SCENES, NAMES, Figures, cut_out, names_of, naming_losses

EVALUATED = range(900_000, 900_050)  # seeds of the scenes that training watches itself with; not those of the results
UNLIKELY = -3.0  # logit of a pixel before anything is learned: most belong to no object of a phrase


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """Everything that the result depends on."""

    steps: int = 24_000
    batch_size: int = 8
    cooldown: float = 0.2
    lr: float = 1e-3
    figure_steps: int = 8_000  # at the beginning, that show single figures
    phrases: int = 8  # of each scene after that
    side: int = 160  # of the square that the model sees then, on average, pixels


@dataclass
class Batch:
    """B scenes of one size S x S, P phrases for each."""

    images: Tensor  # (B, 3, S, S), normalised
    ids: Tensor  # (B, P, L)
    targets: Tensor  # (B, P, S, S): share of a pixel that belongs to objects of the phrase, 0 to 1
    names: Tensor  # (n, 2), of all objects, as of `names_of`
    owners: Tensor  # (B, S, S): the number in `names` of the object seen at each pixel, or -1


def random_phrases(rng: np.random.Generator, s: Scene, count: int) -> list[Phrase]:
    """Phrases for objects of a scene, mixtures of two, colours or shapes alone, and what is not there."""
    wishes = [random_wish(rng, s.figures) for _ in range(count)]
    matches = [sum(Phrase("", *wish).matches(figure) for figure in s.figures) for wish in wishes]
    return [wording(rng, *wish, number) for wish, number in zip(wishes, matches)]


def target_of(s: Scene, phrase: Phrase, side: int) -> Tensor:
    """(side, side): where the objects are that a phrase names, the scene stretched to a square."""
    rows = [i for i, figure in enumerate(s.figures) if phrase.matches(figure)]
    mask = torch.from_numpy(s.masks[rows].any(0)).float()
    return F.interpolate(mask[None, None], (side, side), mode="bilinear", antialias=True)[0, 0]


def collate(scenes: list[Scene], phrases: list[list[Phrase]], tokens: list[list[list[int]]], side: int) -> Batch:
    """Scenes, as many phrases for each and their ids -> a batch."""
    L = max(len(ids) for row in tokens for ids in row)
    owners, first = [], 0
    for s in scenes:
        owner = torch.from_numpy(np.where(s.masks.any(0), s.masks.argmax(0) + first, -1)).float()
        owners.append(F.interpolate(owner[None, None], (side, side), mode="nearest-exact")[0, 0].long())
        first += len(s.masks)
    return Batch(
        torch.stack([preprocess(s.image, side) for s in scenes]),
        torch.stack([pad_ids(row, L) for row in tokens]),
        torch.stack([torch.stack([target_of(s, p, side) for p in row]) for s, row in zip(scenes, phrases)]),
        names_of([figure for s in scenes for figure in s.figures]),
        torch.stack(owners),
    )


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - Dice of confidences and targets (..., S, S), over the maps that have something to show."""
    shown = targets.flatten(-2).amax(-1) > 0.5
    if not shown.any():
        return logits.sum() * 0
    confidence, target = logits[shown].sigmoid().flatten(1), targets[shown].flatten(1)
    return (1 - (2 * (confidence * target).sum(1) + 1) / ((confidence + target).sum(1) + 1)).mean()


def figure_losses(model: CLIPSeg, figures: Figures, words: Tensor) -> dict[str, Tensor]:
    """CLIP's loss, from images to texts, for colour and shape each. words: ids (NAMES, L)."""
    likeness = model.clip(figures.images.to(words.device), words)[:, None]  # (N, NAMES) -> (N, 1, NAMES)
    row = torch.arange(len(likeness), device=words.device)[:, None]
    losses = naming_losses(likeness, row, figures.names.to(words.device))
    return losses | {"total": sum(losses.values())}


def scene_losses(model: CLIPSeg, batch: Batch, words: Tensor) -> dict[str, Tensor]:
    """Binary cross-entropy and Dice of the heat maps, and the names of the objects at the tokens that lie on them."""
    clip, device = model.clip, words.device
    images, targets = batch.images.to(device), batch.targets.to(device)
    B, P, L = batch.ids.shape
    states = clip.vision_model.hidden_states(images)
    activations = [states[1 + layer] for layer in model.config.extract_layers]
    conditions = clip.encode_text(batch.ids.to(device).flatten(0, 1)).unflatten(0, (B, P))
    logits = model.decode(activations, conditions, images.shape[-2:])
    losses = {"bce": F.binary_cross_entropy_with_logits(logits, targets), "dice": dice_loss(logits, targets)}
    tokens = clip.visual_projection(clip.vision_model.post_layernorm(states[-1][:, 1:]))  # (B, N, D)
    likeness = F.normalize(tokens, dim=-1) @ F.normalize(clip.encode_text(words), dim=-1).T * clip.logit_scale.exp()
    patch = model.config.clip.vision.patch_size
    owners = batch.owners[:, patch // 2 :: patch, patch // 2 :: patch].flatten(1).to(device)  # at the patches' centres
    losses |= naming_losses(likeness, owners, batch.names.to(device)) if (owners >= 0).any() else {}
    weights = {"bce": 5.0, "dice": 1.0, "colour": 0.2, "shape": 0.6}
    return losses | {"total": sum(weights[name] * loss for name, loss in losses.items())}


class CLIPSegTask:
    """Figures, then scenes of a size that differs from step to step, each with phrases drawn for it."""

    name = "clipseg"

    def __init__(self, recipe: Recipe):
        self.recipe, self.tokenizer = recipe, clip_tokenizer()
        ids = [self.tokenizer.encode(name) for name in sum(NAMES.values(), [])]
        self.words = pad_ids(ids, max(map(len, ids)))

    def build(self) -> CLIPSeg:
        model = CLIPSeg(PRESETS["demo"])
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.constant_(model.decoder.transposed_convolution[-1].bias, UNLIKELY)
        return model

    def batch(self, step: int, draw: int) -> Batch | Figures:
        rng, recipe = np.random.default_rng((self.recipe.seed, draw, 4)), self.recipe
        first = TRAINING_FROM + (recipe.seed * 1_000_000 + draw) * max(recipe.batch_size, FIGURE_SCENES)
        if step < recipe.figure_steps:
            scenes = [scene(first + i, (96, 128)) for i in range(FIGURE_SCENES)]
            return cut_out(scenes, 0.7 + step / recipe.figure_steps, rng)  # large ones first
        patch = PRESETS["demo"].clip.vision.patch_size
        side = patch * round(recipe.side * math.exp(rng.uniform(-0.25, 0.25)) / patch)
        scenes = [scene(first + i) for i in range(recipe.batch_size)]
        phrases = [random_phrases(rng, s, recipe.phrases) for s in scenes]
        tokens = [[self.tokenizer.encode(phrase.text) for phrase in row] for row in phrases]
        return collate(scenes, phrases, tokens, side)

    def losses(self, model: CLIPSeg, batch: Batch | Figures) -> dict[str, Tensor]:
        words = self.words.to(model.clip.logit_scale.device)
        return (figure_losses if isinstance(batch, Figures) else scene_losses)(model, batch, words)

    def evaluate(self, model: CLIPSeg) -> dict[str, float]:
        return evaluate_heat_maps(HeatMapper(model, self.tokenizer, HEAT_SIZE), map(scene, EVALUATED))


if __name__ == "__main__":
    training.command(__doc__, CLIPSegTask, Recipe(), "runs/demo-clipseg")
