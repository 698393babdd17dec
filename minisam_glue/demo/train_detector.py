"""Train the demo detector from nothing on generated scenes (Grounding DINO, arXiv 2303.05499, section 3.5).

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m minisam_glue.demo.train_detector --out runs/demo-detector

Run the same line again to continue. Without torchrun, a run of its own (another --out) has half as many scenes in a
step.

Boxes are learned soon; names are not, if all that a model hears is which of a few phrases fits which object. So first
the backbone and the words learn the names of single figures, cut out (the official detector begins with a Swin that
knows ImageNet and a BERT that knows English). Then the whole model names all objects of mosaics, four scenes each. At
last, mosaics and scenes with captions in turn. The loop, the folder of the run and what is left out: training.py. The
result is detector.pt in that folder.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import xyxy_to_cxcywh
from ..grounding_dino import PRESETS, Detector, GroundingDINO, WordPieceTokenizer
from ..grounding_dino.detector import Caption, pack_captions, preprocess
from ..grounding_dino.geometry import PROPOSAL_SIDE, Shapes, cell_centres
from ..grounding_dino.losses import LOSS_WEIGHTS, Target, detection_loss, focal_loss, token_map
from ..grounding_dino.transformer import contrastive_logits
from . import MAX_SIZE, MIN_SIZE, VOCABULARY, training
from .drawing import COLOURS, SHAPES, Figure
from .evaluate import evaluate_detector
from .scenes import TRAINING_FROM, Scene, random_size, scene

FIGURE_SCENES, FIGURE_SIDE = 20, 48  # scenes that a step's figures are cut from; pixels of a cut-out
NAMES = {"colour": list(COLOURS), "shape": list(SHAPES)}  # what an object is called
NAMING_WEIGHTS = {"colour": 2.0, "shape": 6.0}  # shapes take far longer to learn
EVALUATED = range(900_000, 900_100)  # seeds of the scenes that training watches itself with; not those of the results


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """Settings that the result depends on."""

    steps: int = 19_400
    batch_size: int = 4
    cooldown: float = 0.085
    lr: float = 1e-3
    figure_steps: int = 9_000  # at the beginning, that show single figures
    figure_lr: float = 2e-3
    mosaic_steps: int = 3_000  # after them, that show mosaics; then every other step does
    side: int = 192  # shorter side of what the model sees then, on average, pixels

    def lr_at(self, step: int) -> float:
        """The learning rate: for figures a warm-up, and a slope in the second half; then that of every recipe."""
        if step >= self.figure_steps:
            return min(super().lr_at(step - self.figure_steps), super().lr_at(step))
        left = 2 * (self.figure_steps - step) / self.figure_steps
        return self.figure_lr * min((step + 1) / 100, 1.0, left)


@dataclass
class Figures:
    """Cut-outs with a figure in the middle of each."""

    images: Tensor  # (N, 3, FIGURE_SIDE, FIGURE_SIDE), normalised
    names: Tensor  # (N, 2), as of `names_of`


def names_of(figures: list[Figure]) -> Tensor:
    """(n, 2): the numbers of colour and shape in NAMES."""
    return torch.tensor([[NAMES["colour"].index(f.colour), NAMES["shape"].index(f.shape)] for f in figures])


def cut_out(scenes: list[Scene], widest: float, rng: np.random.Generator) -> Figures:
    """Cut out every figure of the scenes; a cut-out is 1.04 to 2 * `widest` times as long as its figure."""
    images = []
    for s in scenes:
        whole = preprocess(s.image, min(s.image.shape[:2]), max(s.image.shape[:2]))[None]  # of its size
        size = np.array(s.image.shape[1::-1])  # width, height
        for box in s.boxes:
            length = max(box[2:] - box[:2])
            half = max(length * rng.uniform(0.52, widest), 4)
            x, y = ((box[:2] + box[2:]) / 2 + rng.uniform(-0.08, 0.08, 2) * length) / size * 2 - 1
            window = torch.tensor([[[2 * half / size[0], 0, x], [0, 2 * half / size[1], y]]]).float()
            grid = F.affine_grid(window, (1, 3, FIGURE_SIDE, FIGURE_SIDE), align_corners=False)
            images.append(F.grid_sample(whole, grid, align_corners=False, padding_mode="border"))
    return Figures(torch.cat(images), names_of([figure for s in scenes for figure in s.figures]))


@dataclass
class Batch:
    """B pictures of one size with a caption each."""

    images: Tensor  # (B, 3, H, W), normalised
    ids: Tensor  # (B, L)
    valid: Tensor  # (B, L), False at padding
    targets: list[Target]
    # If all objects of the batch are named, by a caption of all names:
    names: Tensor | None = None  # (n, 2), as of `names_of`
    owners: Tensor | None = None  # (B, H, W), the number in `names` of the object seen at each pixel, or -1


def to_target(s: Scene, keep: list[int], tokens: Tensor) -> Target:
    """The objects `keep` of a scene, which tokens (n, L) name."""
    height, width = s.image.shape[:2]
    fractions = torch.from_numpy(s.boxes[keep]) / torch.tensor([width, height, width, height])
    return Target(xyxy_to_cxcywh(fractions), tokens)


def collate(scenes: list[Scene], tokenizer: WordPieceTokenizer, min_size: int) -> Batch:
    """Scenes of one size -> a batch; min_size: shorter side of what the model sees, pixels."""
    captions = [pack_captions([phrase.text for phrase in s.phrases], tokenizer)[0] for s in scenes]
    L = max(len(caption.ids) for caption in captions)
    ids = torch.full((len(scenes), L), tokenizer.ids["[PAD]"])
    for row, caption in zip(ids, captions):
        row[: len(caption.ids)] = torch.tensor(caption.ids)
    targets = []
    for s, caption in zip(scenes, captions):
        named = [i for i, label in enumerate(s.labels) if label >= 0]
        targets.append(to_target(s, named, token_map(caption.spans, [s.labels[i] for i in named], len(caption.ids))))
    images = torch.stack([preprocess(s.image, min_size, 2 * min_size) for s in scenes])
    valid = torch.arange(L) < torch.tensor([len(caption.ids) for caption in captions])[:, None]
    return Batch(images, ids, valid, targets)


def mosaic(scenes: list[Scene]) -> Scene:
    """Four scenes of one size as the quarters of one picture, without a caption."""
    (height, width), parts = scenes[0].image.shape[:2], []
    image = np.zeros((2 * height, 2 * width, 3), np.uint8)
    masks = np.zeros((sum(len(s.masks) for s in scenes), 2 * height, 2 * width), bool)
    for s, (y, x) in zip(scenes, ((0, 0), (0, width), (height, 0), (height, width))):
        first = sum(map(len, parts))
        image[y : y + height, x : x + width] = s.image
        masks[first : first + len(s.masks), y : y + height, x : x + width] = s.masks
        parts.append(s.boxes + np.float32([x, y, x, y]))
    return Scene(image, masks, np.concatenate(parts), [f for s in scenes for f in s.figures], [], [-1] * len(masks))


def name_all(scenes: list[Scene], words: Caption, min_size: int) -> Batch:
    """Scenes of one size, their captions aside -> a batch in which each object is called by colour and shape."""
    ids, names = torch.tensor([words.ids] * len(scenes)), names_of([f for s in scenes for f in s.figures])
    L, colour_words, shape_words = len(words.ids), words.spans, words.spans[len(COLOURS) :]
    targets, owners, first = [], [], 0
    for s in scenes:
        colours, shapes = names[first : first + len(s.boxes)].T.tolist()
        tokens = token_map(colour_words, colours, L) | token_map(shape_words, shapes, L)
        targets.append(to_target(s, list(range(len(s.boxes))), tokens))
        owners.append(torch.from_numpy(np.where(s.masks.any(0), s.masks.argmax(0) + first, -1)))
        first += len(s.boxes)
    images = torch.stack([preprocess(s.image, min_size, 2 * min_size) for s in scenes])
    return Batch(images, ids, torch.ones_like(ids, dtype=torch.bool), targets, names, torch.stack(owners))


def naming_losses(likeness: Tensor, owners: Tensor, names: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of the colour and the shape at the cells of objects, each object counting the same.

    likeness: (B, S, number of NAMES) of the cells and the names; owners: (B, S) and names: as in Batch.
    """
    seen = owners >= 0
    owner = owners[seen]
    weight = 1 / torch.bincount(owner, minlength=len(names))[owner].float()
    parts = likeness[seen].split([len(some) for some in NAMES.values()], 1)
    return {
        kind: (F.cross_entropy(part, truth, reduction="none") * weight).sum() / weight.sum()
        for kind, part, truth in zip(NAMES, parts, names[owner].T)
    }


def figure_losses(model: GroundingDINO, figures: Figures, words: Caption) -> dict[str, Tensor]:
    """The naming losses of backbone and words: those of the mean in the middle of each level, averaged."""
    device = model.transformer.level_embed.device
    ids, truth = torch.tensor([words.ids], device=device), figures.names.to(device)
    features = model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool)).features[0]
    names = features[[start for start, _ in words.spans]]  # (names, C)
    levels, of_levels = model.encode_image(figures.images.to(device)), []
    for level in levels:
        margin = level.shape[-1] // 6
        middle = level[..., margin : level.shape[2] - margin, margin : level.shape[3] - margin].mean((2, 3))
        likeness = (middle @ names.T / math.sqrt(names.shape[1]))[:, None]  # (N, C) -> (N, 1, names)
        of_levels.append(naming_losses(likeness, torch.arange(len(truth), device=device)[:, None], truth))
    losses = {kind: sum(level[kind] for level in of_levels) / len(levels) for kind in NAMES}
    return losses | {"total": sum(losses.values())}


def owners_of_cells(owners: Tensor, shapes: Shapes) -> Tensor:
    """Values of pixels (B, H, W) -> values at the centres of the cells (B, S)."""
    H, W = owners.shape[1:]
    centres = [
        cell_centres(h, w, owners.device) * torch.tensor([W / w, H / h], device=owners.device) for h, w in shapes
    ]
    x, y = torch.cat(centres).long().T
    return owners[:, y, x]


def cells_of_objects(shapes: Shapes, targets: list[Target], length: int, device: torch.device) -> Tensor:
    """The cells that should be similar to a text token: bool (B, S, L).

    Those in the middle of an object, on the level whose proposals have about its size; at least the nearest one.
    """
    centres = torch.cat([cell_centres(h, w, device) / torch.tensor([w, h], device=device) for h, w in shapes])  # (S, 2)
    level = torch.cat([torch.full((h * w,), i, device=device) for i, (h, w) in enumerate(shapes)])
    wanted = torch.zeros(len(targets), len(level), length, dtype=torch.bool, device=device)
    for row, target in zip(wanted, targets):
        middle, size = target.boxes.to(device)[:, None].split(2, -1)  # (n, 1, 2)
        own = (size.prod(2).sqrt() / PROPOSAL_SIDE).log2().round().clamp(0, len(shapes) - 1)  # (n, 1)
        away = ((centres - middle).abs() / size).amax(2).where(level == own, torch.inf)  # (n, S), in object sizes
        near = (away < 0.3) | (away == away.amin(1, keepdim=True))
        row[:, : target.tokens.shape[1]] = (near[:, :, None] & target.tokens.to(device)[:, None]).any(0)
    return wanted


def dense_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss of the similarity of all cells and text tokens, (B, S, L), for each cell of an object."""
    valid = ~logits.isneginf()  # no text padding
    return focal_loss(logits[valid], wanted[valid].float()).sum() / wanted.any(2).sum().clamp(min=1)


def all_losses(model: GroundingDINO, batch: Batch, words: Caption) -> dict[str, Tensor]:
    """detection_loss, but the encoder learns the words at all cells of an object instead of one.

    To name an object once is left to the decoder; words are learned sooner from many places (as with the auxiliary
    heads of Co-DETR, arXiv 2211.12860). Where all objects are named, from those of the backbone too.
    """
    transformer, device = model.transformer, model.transformer.level_embed.device
    raw = model.encode_text(batch.ids.to(device), batch.valid.to(device))
    levels = model.encode_image(batch.images.to(device))
    shapes = tuple(tuple(level.shape[-2:]) for level in levels)
    memory, geometry, text = model.enhance(levels, (shapes,) * len(batch.images), raw)
    candidates, scores = transformer.score_tokens(memory, geometry, text)
    *decoder, encoder = model.refine(memory, candidates, transformer.select_queries(scores, geometry), geometry, text)
    wanted = cells_of_objects(shapes, batch.targets, batch.ids.shape[1], device)
    losses, first = detection_loss(decoder, batch.targets), detection_loss([encoder], batch.targets)
    similarity = contrastive_logits(candidates, text)[:, : wanted.shape[1]]
    losses |= {"first_l1": first["l1"], "first_giou": first["giou"], "dense": dense_loss(similarity, wanted)}
    losses["total"] = losses["total"] + losses["dense"] + sum(LOSS_WEIGHTS[k] * first[k] for k in ("l1", "giou"))
    if batch.names is not None:
        owners, names = owners_of_cells(batch.owners.to(device), shapes), batch.names.to(device)
        columns = [start for start, _ in words.spans]
        cells = torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)  # (B, C, S) -> (B, S, C)
        early = contrastive_logits(cells, raw)[..., columns] / math.sqrt(cells.shape[-1])
        late = naming_losses(similarity[..., columns], owners, names)
        early = naming_losses(early, owners, names)
        losses |= late | {f"first_{kind}": loss for kind, loss in early.items()}
        losses["total"] = losses["total"] + sum(NAMING_WEIGHTS[kind] * late[kind] + early[kind] for kind in NAMES)
    return losses


class DetectorTask:
    """Scenes of one size, which differs from step to step, each with its caption."""

    name = "detector"

    def __init__(self, recipe: Recipe):
        self.recipe, self.tokenizer = recipe, WordPieceTokenizer.load(VOCABULARY)
        (self.words,) = pack_captions(sum(NAMES.values(), []), self.tokenizer)

    def build(self) -> GroundingDINO:
        model = GroundingDINO(PRESETS["demo"])
        transformer = model.transformer
        words, queries = (
            transformer.encoder.text_layers[-1].norm2,
            (transformer.enc_output_norm, transformer.decoder.norm),
        )
        with torch.no_grad():
            # Normed queries times normed words would begin with logits of +-10.
            words.weight.fill_(0.1)
            # One channel begins as a bias: nothing is similar to begin with (RetinaNet, arXiv 1708.02002, 4.1).
            for norm, value in ((words, 1.0), *((norm, -4.0) for norm in queries)):
                norm.weight[0], norm.bias[0] = 0.0, value
        return model

    def batch(self, step: int, draw: int) -> Batch | Figures:
        rng, recipe = np.random.default_rng((self.recipe.seed, step, 3)), self.recipe
        count = 4 * math.ceil(recipe.batch_size / 2)  # scenes of half as many mosaics, none of which lacks a quarter
        first = TRAINING_FROM + (recipe.seed * 1_000_000 + draw) * max(count, FIGURE_SCENES)
        if step < recipe.figure_steps:
            scenes = [scene(first + i, (96, 128)) for i in range(FIGURE_SCENES)]
            return cut_out(scenes, 0.7 + step / recipe.figure_steps, rng)  # large ones first
        size, short = random_size(rng), round(recipe.side * math.exp(rng.uniform(-0.15, 0.15)))
        if step < recipe.figure_steps + recipe.mosaic_steps or step % 2:
            size = tuple(max(72, length // 2) for length in size)
            scenes = [scene(first + i, size) for i in range(count)]
            return name_all([mosaic(scenes[i : i + 4]) for i in range(0, count, 4)], self.words, short)
        return collate([scene(first + i, size) for i in range(recipe.batch_size)], self.tokenizer, short)

    def losses(self, model: GroundingDINO, batch: Batch | Figures) -> dict[str, Tensor]:
        return (figure_losses if isinstance(batch, Figures) else all_losses)(model, batch, self.words)

    def evaluate(self, model: GroundingDINO) -> dict[str, float]:
        return evaluate_detector(Detector(model, self.tokenizer, MIN_SIZE, MAX_SIZE), map(scene, EVALUATED))


if __name__ == "__main__":
    training.command(__doc__, DetectorTask, Recipe(), "runs/demo-detector")
