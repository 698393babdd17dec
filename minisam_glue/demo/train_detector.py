"""Train the demo detector from nothing on generated scenes (Grounding DINO, arXiv 2303.05499, section 3.5).

    python -m minisam_glue.demo.train_detector --out runs/demo-detector      # again with the same line: goes on

The loop, the folder of the run and what is left out: training.py. The result is detector.pt in that folder.
"""
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..boxes import xyxy_to_cxcywh
from ..grounding_dino import PRESETS, Detector, GroundingDINO, WordPieceTokenizer
from ..grounding_dino.detector import normalise, pack_captions
from ..grounding_dino.geometry import build_geometry
from ..grounding_dino.losses import Target, detection_loss, token_map
from ..grounding_dino.model import Prediction
from ..grounding_dino.transformer import Text
from . import training
from . import SIDES, VOCABULARY
from .evaluate import judge_detector
from .scenes import TRAINING_FROM, Scene, random_size, scene

JUDGED = range(900_000, 900_100)  # seeds of the scenes that training watches itself with; not those of the results


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """All that the result depends on."""
    steps: int = 24_000
    batch_size: int = 8
    lr: float = 5e-4
    side: int = SIDES[0]  # shorter side of what the model sees, on average, pixels
    groups: int = 4  # of queries for each image


@dataclass
class Batch:
    """B pictures of one size with a caption each."""
    images: Tensor  # (B, 3, H, W), normalised
    ids: Tensor  # (B, L)
    real: Tensor  # (B, L), False at padding
    targets: list[Target]
    seed: int  # of the choice of queries


def collate(scenes: list[Scene], tokenizer: WordPieceTokenizer, sides: tuple[int, int],
            seed: int) -> Batch:
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
    return Batch(images, ids, real, targets, seed)


def grouped(model: GroundingDINO, batch: Batch, groups: int) -> tuple[list[Prediction], list[Target]]:
    """What every head says of each image `groups` times, (B * groups) rows, from as many choices of queries.

    Every choice is matched with the truth on its own, so that an object teaches as many queries. Queries of one
    choice alone meet, as at inference (Chen et al., Group DETR, arXiv 2207.13085; theirs are learned). The first
    choice is that of inference, the others are random among as many times more cells.
    """
    transformer, device = model.transformer, model.transformer.level_embed.device
    text = model.encode_text(batch.ids.to(device), batch.real.to(device))
    levels = model.encode_image(batch.images.to(device))
    shapes, Q = tuple(tuple(level.shape[-2:]) for level in levels), model.config.num_queries
    geometry = build_geometry(shapes, (shapes,) * len(batch.images), model.config.hidden_dim, groups * Q, device)
    memory, words = transformer.encode(levels, geometry, text)
    text = Text(words, text.real, text.positions, text.attention)
    candidates, rating = transformer.rate_cells(memory, geometry, text)
    best = rating.masked_fill(geometry.filler, -torch.inf).topk(groups * Q).indices
    generator = torch.Generator().manual_seed(batch.seed)
    ranks = [torch.arange(Q), *(torch.randperm(groups * Q, generator=generator)[:Q] for _ in range(groups - 1))]
    predictions = model.refine(memory, candidates, best[:, torch.cat(ranks).to(device)], geometry, text)
    # (B, groups * Q, ...) -> (B * groups, Q, ...)
    rows = [Prediction(*(t.unflatten(1, (groups, Q)).flatten(0, 1) for t in (p.logits, p.boxes))) for p in predictions]
    return rows, [target for target in batch.targets for _ in range(groups)]


class DetectorTask:
    """Scenes of one size, which differs from step to step, each with its caption."""
    name = "detector"

    def __init__(self, recipe: Recipe):
        self.recipe, self.tokenizer = recipe, WordPieceTokenizer.load(VOCABULARY)

    def build(self) -> GroundingDINO:
        model = GroundingDINO(PRESETS["demo"])
        # Normed queries times normed words would begin with logits of +-10 and a loss in the thousands.
        torch.nn.init.constant_(model.transformer.encoder.text_layers[-1].norm2.weight, 0.1)
        return model

    def batch(self, step: int) -> Batch:
        rng, recipe = np.random.default_rng((self.recipe.seed, step, 3)), self.recipe
        size, short = random_size(rng), round(recipe.side * math.exp(rng.uniform(-0.15, 0.15)))
        first = TRAINING_FROM + (recipe.seed * 1_000_000 + step) * recipe.batch_size
        return collate([scene(first + i, size) for i in range(recipe.batch_size)], self.tokenizer, (short, 2 * short),
                       first)

    def losses(self, model: GroundingDINO, batch: Batch) -> dict[str, Tensor]:
        return detection_loss(*grouped(model, batch, self.recipe.groups))

    def judge(self, model: GroundingDINO) -> dict[str, float]:
        return judge_detector(Detector(model, self.tokenizer, SIDES), map(scene, JUDGED))


if __name__ == "__main__":
    training.command(__doc__, DetectorTask, Recipe(), "runs/demo-detector")
