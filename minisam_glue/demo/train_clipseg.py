"""Train the demo CLIPSeg from nothing on generated scenes (CLIPSeg, arXiv 2112.10003; CLIP, arXiv 2103.00020).

    OMP_NUM_THREADS=1 python -m minisam_glue.demo.train_clipseg --out runs/demo-clipseg

Run the same line again to continue; torchrun with two processes does twice as much in a step.

The official model puts a decoder on a CLIP that knows names already; here all of it learns at once: heat maps of a few
phrases for each picture, and the names of all objects at the image tokens that lie on them. Shapes are learned from
many small pictures rather than from a few large ones: first single figures, large and upright before plain
backgrounds, then ever smaller, turned and before anything; then windows of scenes; whole scenes at last. A small
picture takes the place of a random window of the large one, with the window's positions, so that all that it teaches
holds everywhere. Attention begins local (position_waves, attend_nearby). The loop, the folder of the run and what is
left out: training.py. The result is clipseg.pt in that folder.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..clipseg import PRESETS, CLIPSeg, HeatMapper
from ..clipseg.clip import Attention, VisionTransformer
from ..clipseg.heat_mapper import pad_ids
from ..pixels import normalise
from . import HEAT_SIZE, clip_tokenizer, training
from .drawing import COLOURS, SHAPES, Figure, degrade, draw, draw_background, footprint, random_degradation, stamp
from .evaluate_clipseg import evaluate_heat_maps
from .scenes import FOREIGN, TRAINING_FROM, Phrase, random_figure, random_wish, scene, shows, wording
from .train_detector import NAMES, names_of, naming_losses

EVALUATED = range(900_000, 900_050)  # seeds of the scenes that training watches itself with; not those of the results
SIDE, WINDOW, FIGURE = HEAT_SIZE, 96, 48  # pixels: sides of a whole scene, a window of one, and a single figure
TILE = 56  # pixels: side of the picture of a single figure that FIGURE pixels are cut from
NOBODY = 255  # owner of a pixel of the background
TILES, SCENES = 8_000, 5_000  # pictures that are drawn; each is seen several times, cut and turned otherwise
UNLIKELY = -3.0  # logit of a pixel before anything is learned: most belong to no object of a phrase
NEARBY = (((0, 1), (0, -1), (1, 0), (-1, 0)), ((1, 1), (1, -1), (-1, 1), (-1, -1)), ((0, 2), (0, -2), (2, 0), (-2, 0)))


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """Settings that the result depends on. batch_size: whole scenes; of smaller pictures there are more."""

    steps: int = 5_000
    batch_size: int = 4
    cooldown: float = 0.3
    lr: float = 2e-3
    warmup_steps: int = 100
    figure_steps: int = 1_000  # at the beginning, that show single figures, easy ones first
    whole_from: int = 3_500  # step from which whole scenes are shown; windows of them between
    phrases: int = 4  # for each picture; half as many for a single figure


@dataclass
class Picture:
    """A generated picture with what is on it."""

    image: np.ndarray  # uint8 (H, W, 3)
    owners: np.ndarray  # uint8 (H, W): the number of the figure seen at each pixel, or NOBODY
    figures: list[Figure]


@dataclass
class Batch:
    """B pictures of one size S x S, P phrases for each, with N patches at places of the whole grid."""

    images: Tensor  # (B, 3, S, S), normalised
    places: Tensor  # (B, N): the rows of the position table, without the class token's
    ids: Tensor  # (B, P, L)
    targets: Tensor  # (B, P, S, S): 1 where objects of the phrase are seen, else 0
    names: Tensor  # (n, 2), of all objects, as of `names_of`
    owners: Tensor  # (B, S, S): the number in `names` of the object seen at each pixel, or -1


# --- The model as training begins --------------------------------------------------------------------------


class FloatAttention(Attention):
    """The same with the attention itself in float32: in bfloat16 its gradients take five times as long on a CPU."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        B, N, C = x.shape
        q, k, v = (
            proj(x).view(B, N, self.num_heads, -1).transpose(1, 2).float()
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        with torch.autocast(x.device.type, enabled=False):
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(x.transpose(1, 2).reshape(B, N, C))


def wave_rates(side: int, dim: int) -> Tensor:
    """Radians per cell of the waves along each axis of a grid, from half a turn over all of it on, (dim / 4,)."""
    return torch.logspace(math.log10(math.pi / side), math.log10(math.pi / 2), dim // 4)


def position_waves(side: int, dim: int) -> Tensor:
    """Sines and cosines of the row and of the column of a grid, (side * side, dim) (arXiv 1706.03762, section 3.5)."""
    angles = torch.arange(side)[:, None] * wave_rates(side, dim)
    waves = torch.cat((angles.sin(), angles.cos()), 1)  # (side, dim / 2)
    return torch.cat((waves[:, None].expand(side, side, -1), waves.expand(side, side, -1)), 2).flatten(0, 1)


def attend_nearby(vision: VisionTransformer, strength: float = 2.5) -> None:
    """Let each head of the first layers begin with attention to the patch at its own offset, as a convolution looks.

    With positions as of position_waves, turning the query's waves by an offset makes the product with a key greatest
    where the key lies at that offset (arXiv 2401.12511 begins so too, by other means). Heads share out the rates.
    """
    dim, heads = vision.embeddings.class_embedding.numel(), vision.encoder["layers"][0].self_attn.num_heads
    rates = wave_rates(vision.embeddings.grid_size, dim)
    R = len(rates)
    for layer, offsets in zip(vision.encoder["layers"], NEARBY):
        q, k = layer.self_attn.q_proj.weight.data, layer.self_attn.k_proj.weight.data
        for head, offset in enumerate(offsets[:heads]):
            row = head * (dim // heads)
            for axis, distance in enumerate(offset):
                for r in range(head, R, heads):
                    sine, cosine, turn = axis * 2 * R + r, axis * 2 * R + R + r, float(rates[r]) * distance
                    q[row, sine] += strength * math.cos(turn)
                    q[row, cosine] += strength * math.sin(turn)
                    q[row + 1, cosine] += strength * math.cos(turn)
                    q[row + 1, sine] -= strength * math.sin(turn)
                    k[row, sine] += strength
                    k[row + 1, cosine] += strength
                    row += 2


# --- Pictures ----------------------------------------------------------------------------------------------


def tile(rng: np.random.Generator, difficulty: float) -> Picture:
    """One figure in the middle of a small picture.

    difficulty: from 0, large, upright and on a plain background, to 1, of any size and angle before anything.
    """
    S = TILE
    canvas = draw_background(rng, S, S)
    canvas = (1 - difficulty) * canvas.mean((0, 1)) + difficulty * canvas
    colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(list(SHAPES)))
    for _ in range(8):
        figure = random_figure(rng, colour, shape, (S, S), S * rng.uniform(0.4 - 0.25 * difficulty, 0.4))
        x, y = S / 2 + difficulty * rng.uniform(-0.1, 0.1, 2) * S
        figure = replace(figure, x=x, y=y, angle=difficulty * rng.uniform(-math.pi, math.pi))
        at = footprint(figure, S, S)
        if shows(canvas, figure, at):
            break
    draw(canvas, figure, at)
    owners = np.where(stamp(at, S, S), 0, NOBODY).astype(np.uint8)
    return Picture(degrade(canvas, random_degradation(rng), rng), owners, [figure])


@lru_cache(TILES // 2)
def numbered_tile(seed: int, number: int) -> Picture:
    """The tile of this number, the more difficult the higher it is."""
    return tile(np.random.default_rng((seed, number, 5)), min(number / TILES, 1.0))


@lru_cache(SCENES)
def numbered_scene(seed: int) -> Picture:
    """The scene of this seed."""
    s = scene(seed)
    owners = np.where(s.masks.any(0), s.masks.argmax(0), NOBODY).astype(np.uint8)
    return Picture(s.image, owners, s.figures)


def cut(picture: Picture, rng: np.random.Generator, side: int, least: float, turn: bool = True) -> Picture:
    """A window of at least this share of each side, stretched to a square of `side` pixels; turned at will."""
    H, W = picture.owners.shape
    w, h = (length * rng.uniform(least, 1) for length in (W, H))
    x, y = rng.uniform(0, W - w), rng.uniform(0, H - h)
    box, size = (x, y, x + w, y + h), (side, side)
    image = np.asarray(Image.fromarray(picture.image).resize(size, Image.Resampling.BILINEAR, box))
    owners = np.asarray(Image.fromarray(picture.owners).resize(size, Image.Resampling.NEAREST, box))
    if turn:
        turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
        image, owners = (np.rot90(part[:, ::-1] if mirrored else part, turns) for part in (image, owners))
    return Picture(image, owners, picture.figures)


# --- Phrases -----------------------------------------------------------------------------------------------


def absent_wish(rng: np.random.Generator, figure: Figure) -> tuple[str | None, str | None]:
    """Colour and shape that are not the figure's: mostly one of them is."""
    kind = rng.choice(4, p=(0.45, 0.25, 0.2, 0.1))
    if kind == 3:
        return (figure.colour if rng.random() < 0.5 else None), str(rng.choice(FOREIGN))
    colour = figure.colour if kind == 0 else str(rng.choice(list(COLOURS)))
    return colour, figure.shape if kind == 1 else str(rng.choice(list(SHAPES)))


def random_phrases(rng: np.random.Generator, picture: Picture, count: int) -> list[Phrase]:
    """Phrases for a picture, in turn one as captions have them, mostly there, and one that is not there."""
    shown = [picture.figures[i] for i in np.unique(picture.owners) if i != NOBODY]
    phrases = []
    for number in range(count):
        colour, shape = random_wish(rng, shown or picture.figures)
        for _ in range(8 if number % 2 else 0):
            colour, shape = absent_wish(rng, (shown or picture.figures)[rng.integers(len(shown or picture.figures))])
            if not any(Phrase("", colour, shape).matches(figure) for figure in shown):
                break
        matches = sum(Phrase("", colour, shape).matches(figure) for figure in shown)
        phrases.append(wording(rng, colour, shape, matches))
    return phrases


def target_of(picture: Picture, phrase: Phrase) -> Tensor:
    """(H, W): 1 where the objects are that a phrase names, else 0."""
    rows = [i for i, figure in enumerate(picture.figures) if phrase.matches(figure)]
    return torch.from_numpy(np.isin(picture.owners, rows)).float()


def collate(
    pictures: list[Picture], phrases: list[list[Phrase]], tokens: list[list[list[int]]], places: Tensor
) -> Batch:
    """Pictures of one size, as many phrases for each, their ids and the places of their patches -> a batch."""
    L = max(len(ids) for row in tokens for ids in row)
    owners, first = [], 0
    for picture in pictures:
        owner = picture.owners.astype(np.int64)
        owners.append(torch.from_numpy(np.where(owner == NOBODY, -1, owner + first)))
        first += len(picture.figures)
    images = torch.from_numpy(np.stack([picture.image for picture in pictures])).permute(0, 3, 1, 2)
    return Batch(
        normalise(images.float() / 255),
        places,
        torch.stack([pad_ids(row, L) for row in tokens]),
        torch.stack([torch.stack([target_of(s, p) for p in row]) for s, row in zip(pictures, phrases)]),
        names_of([figure for picture in pictures for figure in picture.figures]),
        torch.stack(owners),
    )


def random_places(rng: np.random.Generator, count: int, window: int, grid: int) -> Tensor:
    """(count, window^2): the cells of square windows anywhere on a square grid, row by row."""
    corners = torch.from_numpy(rng.integers(grid - window + 1, size=(count, 2)))
    cells = torch.arange(window)
    return ((corners[:, :1, None] + cells[:, None]) * grid + corners[:, 1:, None] + cells).flatten(1)


# --- Losses ------------------------------------------------------------------------------------------------


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - Dice of confidences and targets (..., S, S); a map with nothing to show loses by what it shows.

    Both sizes are counted from 0.5 % of a map on, so that a little in an empty map costs as much as a small object.
    """
    confidence, target = logits.sigmoid().flatten(-2), targets.flatten(-2)
    least = 0.005 * target.shape[-1]
    shared, total = (confidence * target).sum(-1), (confidence + target).sum(-1)
    return (1 - (2 * shared + least) / (total + least)).mean()


def window_states(vision: VisionTransformer, images: Tensor, places: Tensor) -> list[Tensor]:
    """The output of vision.hidden_states, for images (B, 3, S, S) whose patches lie at `places` (B, N) of the grid."""
    embeddings = vision.embeddings
    table = embeddings.position_embedding.weight
    patches = embeddings.patch_embedding(images).flatten(2).mT + table[1:][places]
    states = [torch.cat(((embeddings.class_embedding + table[0]).expand(len(images), 1, -1), patches), 1)]
    states = [vision.pre_layrnorm(states[0])]
    for layer in vision.encoder["layers"]:
        states.append(layer(states[-1]))
    return states


def scene_losses(model: CLIPSeg, batch: Batch, words: Tensor) -> dict[str, Tensor]:
    """Binary cross-entropy and Dice of the heat maps, and the names of the objects at the tokens that lie on them."""
    clip, device = model.clip, words.device
    images, targets = batch.images.to(device), batch.targets.to(device)
    B, P, L = batch.ids.shape
    with torch.autocast(device.type, torch.bfloat16):
        states = window_states(clip.vision_model, images, batch.places.to(device))
        activations = [states[1 + layer] for layer in model.config.extract_layers]
        conditions = clip.encode_text(batch.ids.to(device).flatten(0, 1)).unflatten(0, (B, P))
        logits = model.decode(activations, conditions, images.shape[-2:]).float()
        tokens = clip.visual_projection(clip.vision_model.post_layernorm(states[-1][:, 1:])).float()  # (B, N, D)
        names = clip.encode_text(words).float()
    losses = {"bce": F.binary_cross_entropy_with_logits(logits, targets), "dice": dice_loss(logits, targets)}
    likeness = F.normalize(tokens, dim=-1) @ F.normalize(names, dim=-1).T * clip.logit_scale.exp()
    patch = model.config.clip.vision.patch_size
    owners = batch.owners[:, patch // 2 :: patch, patch // 2 :: patch].flatten(1).to(device)  # at the patches' centres
    losses |= naming_losses(likeness, owners, batch.names.to(device)) if (owners >= 0).any() else {}
    weights = {"bce": 5.0, "dice": 1.0, "colour": 0.3, "shape": 1.0}
    return losses | {"total": sum(weights[name] * loss for name, loss in losses.items())}


class CLIPSegTask:
    """Pictures of one size in each step, with phrases drawn for each: single figures, windows, whole scenes."""

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
            if isinstance(module, Attention):
                module.__class__ = FloatAttention
        embeddings = model.clip.vision_model.embeddings
        with torch.no_grad():
            width = embeddings.position_embedding.weight.shape[1]
            embeddings.position_embedding.weight[1:] = 0.3 * position_waves(embeddings.grid_size, width)
        attend_nearby(model.clip.vision_model)
        nn.init.constant_(model.decoder.transposed_convolution[-1].bias, UNLIKELY)
        return model

    def batch(self, step: int, draw: int) -> Batch:
        rng, vision = np.random.default_rng((self.recipe.seed, draw, 4)), PRESETS["demo"].clip.vision
        pictures = self.pictures(step, rng)
        side = len(pictures[0].image)
        count = self.recipe.phrases // (2 if side == FIGURE else 1)
        phrases = [random_phrases(rng, picture, count) for picture in pictures]
        tokens = [[self.tokenizer.encode(phrase.text) for phrase in row] for row in phrases]
        grid = vision.image_size // vision.patch_size
        places = random_places(rng, len(pictures), side // vision.patch_size, grid)
        return collate(pictures, phrases, tokens, places)

    def pictures(self, step: int, rng: np.random.Generator) -> list[Picture]:
        """Single figures, easy ones first; then windows of scenes; then whole ones."""
        recipe = self.recipe
        if step < recipe.figure_steps:
            last = TILES * (0.1 + 0.9 * step / recipe.figure_steps)
            numbers = rng.uniform(max(0, last - 0.3 * TILES), last, 8 * recipe.batch_size).astype(int)
            tiles = [numbered_tile(recipe.seed, int(number)) for number in numbers]
            return [cut(t, rng, FIGURE, FIGURE / TILE, turn=step > recipe.figure_steps // 3) for t in tiles]
        whole = step >= recipe.whole_from
        first = TRAINING_FROM + recipe.seed * 1_000_000
        numbers = first + rng.integers(SCENES, size=recipe.batch_size * (1 if whole else 2))
        scenes = [numbered_scene(int(number)) for number in numbers]
        return [cut(s, rng, SIDE if whole else WINDOW, 1.0 if whole else WINDOW / SIDE) for s in scenes]

    def losses(self, model: CLIPSeg, batch: Batch) -> dict[str, Tensor]:
        return scene_losses(model, batch, self.words.to(model.clip.logit_scale.device))

    def evaluate(self, model: CLIPSeg) -> dict[str, float]:
        return evaluate_heat_maps(HeatMapper(model, self.tokenizer, HEAT_SIZE), map(scene, EVALUATED))


if __name__ == "__main__":
    training.command(__doc__, CLIPSegTask, Recipe(), "runs/demo-clipseg")
