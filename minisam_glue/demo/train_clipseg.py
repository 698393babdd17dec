"""Train the demo CLIPSeg from nothing on generated scenes (CLIPSeg, arXiv 2112.10003; CLIP, arXiv 2103.00020).

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m minisam_glue.demo.train_clipseg --out runs/demo-clipseg

Run the same line again to continue. One process without torchrun does it too, with half as much in a step.

The official model puts a decoder on a CLIP that knows names already; here all of it learns at once: heat maps of a few
phrases for each picture, and the names of all objects at the image tokens that lie on them. A transformer learns
colours in a hundred steps, but shapes only from easy pictures. So it sees single figures first, large and upright
before plain backgrounds, then ever smaller, turned and before anything; then scenes. The loop, the folder of the run
and what is left out: training.py. The result is clipseg.pt in that folder.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clipseg import PRESETS, CLIPSeg, HeatMapper
from ..clipseg.heat_mapper import pad_ids, preprocess
from . import HEAT_SIZE, clip_tokenizer, training
from .drawing import COLOURS, SHAPES, Figure, degrade, draw, draw_background, footprint, random_degradation, stamp
from .evaluate_clipseg import evaluate_heat_maps
from .scenes import TRAINING_FROM, Phrase, Scene, extents, random_figure, random_wish, scene, shows, wording
from .train_detector import NAMES, names_of, naming_losses

EVALUATED = range(900_000, 900_050)  # seeds of the scenes that training watches itself with; not those of the results
SIDE, FIGURE_SIDE = 144, 48  # pixels: of the square that the model sees, and of the tile around a single figure
UNLIKELY = -3.0  # logit of a pixel before anything is learned: most belong to no object of a phrase


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """Settings that the result depends on."""

    steps: int = 2_800
    batch_size: int = 4  # pictures
    cooldown: float = 0.375
    lr: float = 3e-3
    warmup_steps: int = 100
    figure_steps: int = 1_200  # at the beginning, that show single figures, easy ones first
    phrases: int = 4  # for each picture


@dataclass
class Batch:
    """B scenes of one size S x S, P phrases for each."""

    images: Tensor  # (B, 3, S, S), normalised
    ids: Tensor  # (B, P, L)
    targets: Tensor  # (B, P, S, S): share of a pixel that belongs to objects of the phrase, 0 to 1
    names: Tensor  # (n, 2), of all objects, as of `names_of`
    owners: Tensor  # (B, S, S): the number in `names` of the object seen at each pixel, or -1


def position_waves(side: int, dim: int) -> Tensor:
    """Sines and cosines of the row and of the column of a grid, (side * side, dim) (arXiv 1706.03762, section 3.5)."""
    rates = torch.logspace(math.log10(math.pi / side), math.log10(math.pi / 2), dim // 4)  # radians per cell
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat((angles.sin(), angles.cos()), 1)  # (side, dim / 2)
    return torch.cat((waves[:, None].expand(side, side, -1), waves.expand(side, side, -1)), 2).flatten(0, 1)


def tile(rng: np.random.Generator, difficulty: float) -> tuple[np.ndarray, np.ndarray, Figure]:
    """One figure in the middle of a small picture: image, uint8 (S, S, 3), mask (S, S), and what it is.

    difficulty: from 0, large, upright and on a plain background, to 1, of any size and angle before anything.
    """
    S = FIGURE_SIDE
    canvas = draw_background(rng, S, S)
    canvas = (1 - difficulty) * canvas.mean((0, 1)) + difficulty * canvas
    colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(list(SHAPES)))
    for _ in range(8):
        figure = random_figure(rng, colour, shape, (S, S), S * rng.uniform(0.46 - 0.3 * difficulty, 0.46))
        x, y = S / 2 + difficulty * rng.uniform(-0.1, 0.1, 2) * S
        figure = replace(figure, x=x, y=y, angle=difficulty * rng.uniform(-math.pi, math.pi))
        at = footprint(figure, S, S)
        if shows(canvas, figure, at):
            break
    draw(canvas, figure, at)
    return degrade(canvas, random_degradation(rng), rng), stamp(at, S, S), figure


def figure_grid(rng: np.random.Generator, difficulty: float) -> Scene:
    """Tiles side by side as one square picture, without a caption."""
    rows = SIDE // FIGURE_SIDE
    image, masks = np.zeros((SIDE, SIDE, 3), np.uint8), np.zeros((rows**2, SIDE, SIDE), bool)
    figures = []
    for number in range(rows**2):
        y, x = (FIGURE_SIDE * place for place in divmod(number, rows))
        window = slice(y, y + FIGURE_SIDE), slice(x, x + FIGURE_SIDE)
        image[window], masks[number][window], figure = tile(rng, difficulty)
        figures.append(figure)
    return Scene(image, masks, extents(masks), figures, [], [-1] * len(masks))


def shifted(s: Scene, down: int, right: int) -> Scene:
    """A scene moved by so many pixels; what leaves it on one side comes in again on the other."""
    masks = np.roll(s.masks, (down, right), (1, 2))
    return replace(s, image=np.roll(s.image, (down, right), (0, 1)), masks=masks, boxes=extents(masks))


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
    weights = {"bce": 5.0, "dice": 1.0, "colour": 0.3, "shape": 1.0}
    return losses | {"total": sum(weights[name] * loss for name, loss in losses.items())}


class CLIPSegTask:
    """Pictures of one size, with phrases drawn for each: tiles of single figures, then scenes as well."""

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
        embeddings = model.clip.vision_model.embeddings
        with torch.no_grad():
            width = embeddings.position_embedding.weight.shape[1]
            embeddings.position_embedding.weight[1:] = 0.3 * position_waves(embeddings.grid_size, width)
        nn.init.constant_(model.decoder.transposed_convolution[-1].bias, UNLIKELY)
        return model

    def batch(self, step: int, draw: int) -> Batch:
        rng = np.random.default_rng((self.recipe.seed, draw, 4))
        first = TRAINING_FROM + (self.recipe.seed * 1_000_000 + draw) * self.recipe.batch_size
        pictures = [self.picture(step, first + i, rng) for i in range(self.recipe.batch_size)]
        phrases = [random_phrases(rng, s, self.recipe.phrases) for s in pictures]
        tokens = [[self.tokenizer.encode(phrase.text) for phrase in row] for row in phrases]
        return collate(pictures, phrases, tokens, SIDE)

    def picture(self, step: int, number: int, rng: np.random.Generator) -> Scene:
        """Single figures, easy ones first; then scenes, or figures anywhere."""
        if step < self.recipe.figure_steps:
            return figure_grid(rng, step / self.recipe.figure_steps)
        if rng.random() < 0.5:
            return shifted(figure_grid(rng, 1.0), *rng.integers(SIDE, size=2))
        return scene(number)

    def losses(self, model: CLIPSeg, batch: Batch) -> dict[str, Tensor]:
        return scene_losses(model, batch, self.words.to(model.clip.logit_scale.device))

    def evaluate(self, model: CLIPSeg) -> dict[str, float]:
        return evaluate_heat_maps(HeatMapper(model, self.tokenizer, HEAT_SIZE), map(scene, EVALUATED))


if __name__ == "__main__":
    training.command(__doc__, CLIPSegTask, Recipe(), "runs/demo-clipseg")
