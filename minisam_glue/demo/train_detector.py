"""Train the demo detector from nothing on generated scenes (Grounding DINO, arXiv 2303.05499, section 3.5).

    python -m minisam_glue.demo.train_detector --out runs/demo-detector      # again with the same line: goes on

First the backbone and the text encoder learn the names of single figures, cut out: there a step teaches ten times as
many of them as in whole scenes. (The official detector begins with a Swin that knows ImageNet and a BERT that knows
English.) The loop, the folder of the run and what is left out: training.py. The result is detector.pt in that folder.
"""
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import xyxy_to_cxcywh
from ..grounding_dino import PRESETS, Detector, GroundingDINO, WordPieceTokenizer
from ..grounding_dino.detector import Caption, normalise, pack_captions
from ..grounding_dino.geometry import Shapes, build_geometry, cell_centres
from ..grounding_dino.losses import LOSS_WEIGHTS, Target, detection_loss, focal_loss, token_map
from ..grounding_dino.transformer import Text, contrastive_logits
from . import training
from . import SIDES, VOCABULARY
from .drawing import COLOURS, SHAPES
from .evaluate import judge_detector
from .scenes import TRAINING_FROM, Scene, random_size, scene

FIGURE_SCENES, FIGURE_SIDE = 20, 48  # scenes that a step's figures are cut from; pixels of a cut-out
COARSE = 0.7  # of the recipe's side
PROPOSAL = 0.05  # side of the proposals of the finest level, as a fraction of the image
JUDGED = range(900_000, 900_100)  # seeds of the scenes that training watches itself with; not those of the results


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """All that the result depends on."""
    steps: int = 30_000
    batch_size: int = 8
    lr: float = 5e-4
    figure_steps: int = 9_000  # at the beginning, that show single figures
    figure_lr: float = 2e-3
    coarse_steps: int = 4_000  # after them: the shorter side is COARSE times as long, and steps take half the time
    side: int = SIDES[0]  # shorter side of what the model sees later, on average, pixels

    def lr_at(self, step: int) -> float:
        """For figures a warm-up, and a slope in the second half; then that of every recipe, from its start."""
        if step >= self.figure_steps:
            return min(super().lr_at(step - self.figure_steps), super().lr_at(step))
        left = 2 * (self.figure_steps - step) / self.figure_steps
        return self.figure_lr * min((step + 1) / 100, 1.0, left)


@dataclass
class Figures:
    """Cut-outs with a figure in the middle of each."""
    images: Tensor  # (N, 3, FIGURE_SIDE, FIGURE_SIDE), normalised
    colours: Tensor  # (N,), in the order of COLOURS
    shapes: Tensor  # (N,), in the order of SHAPES


def cut_out(scenes: list[Scene], widest: float, rng: np.random.Generator) -> Figures:
    """All figures of the scenes; a cut-out is 1.04 to 2 * `widest` times as long as its figure."""
    images, colours, shapes = [], [], []
    for s in scenes:
        whole = normalise(s.image, (min(s.image.shape[:2]), max(s.image.shape[:2])))[None]  # of its size
        size = np.array(s.image.shape[1::-1])  # width, height
        for box, figure in zip(s.boxes, s.figures):
            length = max(box[2:] - box[:2])
            half = max(length * rng.uniform(0.52, widest), 4)
            x, y = ((box[:2] + box[2:]) / 2 + rng.uniform(-0.08, 0.08, 2) * length) / size * 2 - 1
            window = torch.tensor([[[2 * half / size[0], 0, x], [0, 2 * half / size[1], y]]]).float()
            grid = F.affine_grid(window, (1, 3, FIGURE_SIDE, FIGURE_SIDE), align_corners=False)
            images.append(F.grid_sample(whole, grid, align_corners=False, padding_mode="border"))
            colours.append(list(COLOURS).index(figure.colour))
            shapes.append(list(SHAPES).index(figure.shape))
    return Figures(torch.cat(images), torch.tensor(colours), torch.tensor(shapes))


@dataclass
class Batch:
    """B pictures of one size with a caption each."""
    images: Tensor  # (B, 3, H, W), normalised
    ids: Tensor  # (B, L)
    real: Tensor  # (B, L), False at padding
    targets: list[Target]


def collate(scenes: list[Scene], tokenizer: WordPieceTokenizer, sides: tuple[int, int]) -> Batch:
    """Scenes of one size -> a batch; sides: shorter and longest side of what the model sees."""
    height, width = scenes[0].image.shape[:2]
    captions = [pack_captions([phrase.text for phrase in s.phrases], tokenizer)[0] for s in scenes]
    L = max(len(caption.ids) for caption in captions)
    ids = torch.full((len(scenes), L), tokenizer.ids["[PAD]"])
    for row, caption in zip(ids, captions):
        row[:len(caption.ids)] = torch.tensor(caption.ids)
    targets = []
    for s, caption in zip(scenes, captions):
        named = [i for i, label in enumerate(s.labels) if label >= 0]
        boxes = torch.from_numpy(s.boxes[named]) / torch.tensor([width, height, width, height])
        tokens = token_map(caption.spans, [s.labels[i] for i in named], len(caption.ids))
        targets.append(Target(xyxy_to_cxcywh(boxes), tokens))
    images = torch.stack([normalise(s.image, sides) for s in scenes])
    real = torch.arange(L) < torch.tensor([len(caption.ids) for caption in captions])[:, None]
    return Batch(images, ids, real, targets)


def naming_losses(model: GroundingDINO, figures: Figures, words: Caption) -> dict[str, Tensor]:
    """Cross-entropy of colour and shape, chosen by the likeness of each level's mean to the words; means of levels."""
    device = model.transformer.level_embed.device
    ids = torch.tensor([words.ids], device=device)
    features = model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool)).features[0]
    names = features[[start for start, _ in words.spans]]  # (colours and shapes, C)
    losses = {"colour": 0.0, "shape": 0.0}
    levels = model.encode_image(figures.images.to(device))
    for level in levels:
        margin = level.shape[-1] // 6
        middle = level[..., margin:level.shape[2] - margin, margin:level.shape[3] - margin].mean((2, 3))
        likeness = middle @ names.T / math.sqrt(names.shape[1])
        for name, some, truth in zip(losses, likeness.split((len(COLOURS), len(SHAPES)), 1),
                                     (figures.colours, figures.shapes)):
            losses[name] = losses[name] + F.cross_entropy(some, truth.to(device)) / len(levels)
    return losses | {"total": losses["colour"] + losses["shape"]}


def cells_of_objects(shapes: Shapes, targets: list[Target], length: int, device: torch.device) -> Tensor:
    """Which cells should be similar to which text tokens: bool (B, S, L).

    Those in the middle of an object, on the level whose proposals have about its size; at least the nearest one.
    """
    centres = torch.cat([cell_centres(h, w, device) / torch.tensor([w, h], device=device) for h, w in shapes])  # (S, 2)
    level = torch.cat([torch.full((h * w,), i, device=device) for i, (h, w) in enumerate(shapes)])
    wanted = torch.zeros(len(targets), len(level), length, dtype=torch.bool, device=device)
    for row, target in zip(wanted, targets):
        middle, sides = target.boxes.to(device)[:, None].split(2, -1)  # (n, 1, 2)
        own = (sides.prod(2).sqrt() / PROPOSAL).log2().round().clamp(0, len(shapes) - 1)  # (n, 1)
        away = ((centres - middle).abs() / sides).amax(2).where(level == own, torch.inf)  # (n, S), in sides
        near = (away < 0.3) | (away == away.amin(1, keepdim=True))
        row[:, :target.tokens.shape[1]] = (near[:, :, None] & target.tokens.to(device)[:, None]).any(0)
    return wanted


def dense_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss of the similarity of all cells and text tokens, (B, S, L), for each cell of an object."""
    real = ~logits.isneginf()  # no text padding
    return focal_loss(logits[real], wanted[real].float()).sum() / wanted.any(2).sum().clamp(min=1)


def all_losses(model: GroundingDINO, batch: Batch) -> dict[str, Tensor]:
    """detection_loss, but the encoder learns the words at all cells of an object instead of one.

    To name an object once is left to the decoder; words are learned sooner from many places (as with the auxiliary
    heads of Co-DETR, arXiv 2211.12860).
    """
    transformer, device = model.transformer, model.transformer.level_embed.device
    text = model.encode_text(batch.ids.to(device), batch.real.to(device))
    levels = model.encode_image(batch.images.to(device))
    shapes = tuple(tuple(level.shape[-2:]) for level in levels)
    geometry = build_geometry(shapes, (shapes,) * len(batch.images), model.config.hidden_dim,
                              model.config.num_queries, device)
    memory, words = transformer.encode(levels, geometry, text)
    text = Text(words, text.real, text.positions, text.attention)
    candidates, rating = transformer.rate_cells(memory, geometry, text)
    *decoder, encoder = model.refine(memory, candidates, transformer.choose(rating, geometry), geometry, text)
    wanted = cells_of_objects(shapes, batch.targets, batch.ids.shape[1], device)
    losses, first = detection_loss(decoder, batch.targets), detection_loss([encoder], batch.targets)
    losses |= {"first_l1": first["l1"], "first_giou": first["giou"],
               "dense": dense_loss(contrastive_logits(candidates, text)[:, :wanted.shape[1]], wanted)}
    losses["total"] = losses["total"] + sum(LOSS_WEIGHTS[name] * first[name] for name in ("l1", "giou"))
    return losses | {"total": losses["total"] + losses["dense"]}


class DetectorTask:
    """Scenes of one size, which differs from step to step, each with its caption."""
    name = "detector"

    def __init__(self, recipe: Recipe):
        self.recipe, self.tokenizer = recipe, WordPieceTokenizer.load(VOCABULARY)
        (self.words,) = pack_captions([*COLOURS, *SHAPES], self.tokenizer)

    def build(self) -> GroundingDINO:
        model = GroundingDINO(PRESETS["demo"])
        transformer = model.transformer
        words, queries = transformer.encoder.text_layers[-1].norm2, (transformer.enc_output_norm,
                                                                     transformer.decoder.norm)
        with torch.no_grad():
            # Normed queries times normed words would begin with logits of +-10.
            words.weight.fill_(0.1)
            # One channel begins as a bias: nothing is similar to begin with (RetinaNet, arXiv 1708.02002, 4.1).
            for norm, value in ((words, 1.0), *((norm, -4.0) for norm in queries)):
                norm.weight[0], norm.bias[0] = 0.0, value
        return model

    def batch(self, step: int) -> Batch | Figures:
        rng, recipe = np.random.default_rng((self.recipe.seed, step, 3)), self.recipe
        first = TRAINING_FROM + (recipe.seed * 1_000_000 + step) * max(recipe.batch_size, FIGURE_SCENES)
        if step < recipe.figure_steps:
            scenes = [scene(first + i, (96, 128)) for i in range(FIGURE_SCENES)]
            return cut_out(scenes, 0.7 + step / recipe.figure_steps, rng)  # large ones first
        side = recipe.side * (COARSE if step < recipe.figure_steps + recipe.coarse_steps else 1)
        size, short = random_size(rng), round(side * math.exp(rng.uniform(-0.15, 0.15)))
        return collate([scene(first + i, size) for i in range(recipe.batch_size)], self.tokenizer, (short, 2 * short))

    def losses(self, model: GroundingDINO, batch: Batch | Figures) -> dict[str, Tensor]:
        return naming_losses(model, batch, self.words) if isinstance(batch, Figures) else all_losses(model, batch)

    def judge(self, model: GroundingDINO) -> dict[str, float]:
        return judge_detector(Detector(model, self.tokenizer, SIDES), map(scene, JUDGED))


if __name__ == "__main__":
    training.command(__doc__, DetectorTask, Recipe(), "runs/demo-detector")
