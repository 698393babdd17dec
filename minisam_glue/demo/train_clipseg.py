"""Train the demo CLIPSeg from nothing on generated scenes (CLIPSeg, arXiv 2112.10003; CLIP, arXiv 2103.00020).

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m minisam_glue.demo.train_clipseg --out runs/demo-clipseg --workers 0

Run the same line again to continue. Each of the two processes takes a batch of its own; without torchrun there is one.

The official model puts a decoder on a CLIP that knows names already. Here names come first, by steps of the recipe:

- 0 to 1,800: names alone, at the class token and at the image tokens of a figure, of hundreds of thousands of
  views of single figures. They get harder: large and upright on plain backgrounds, then small, turned, on any
  background, and cut from scenes.
- to 3,600: names alone, of figures as hard as they get.
- to 9,500: heat maps of windows of scenes, and in every other step of single figures, or names are soon forgotten.
- to 10,800: heat maps of whole scenes.

A small picture takes the place of a random window of the large one, with the window's positions, so that all that it
teaches holds everywhere. Attention begins local (position_waves, attend_nearby). The loop, the folder of the run and
what is left out: training.py. The result is clipseg.pt in that folder.
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
SIDE, WINDOW, FIGURE = HEAT_SIZE, 128, 48  # pixels: sides of a whole scene, a window of one, and a single figure
TILE = 56  # pixels: side of the picture of a single figure that FIGURE pixels are cut from
NOBODY = 255  # owner of a pixel of the background
TILES, SCENES = 16_000, 8_000  # pictures that are drawn; each is seen several times, cut and turned otherwise
WINDOWS_AGAIN = 1_200  # steps of a run that begins with weights, before whole scenes are shown
UNLIKELY = -3.0  # logit of a pixel before anything is learned: most belong to no object of a phrase
STRENGTH = 2.5  # of the attention that the first layers begin with
NEARBY = (((0, 1), (0, -1), (1, 0), (-1, 0)), ((1, 1), (1, -1), (-1, 1), (-1, -1)), ((0, 2), (0, -2), (2, 0), (-2, 0)))


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """Settings that the result depends on. batch_size: whole scenes; of smaller pictures there are more."""

    steps: int = 10_800
    batch_size: int = 3
    cooldown: float = 0.75
    lr: float = 2e-3
    warmup_steps: int = 100
    naming_steps: int = 3_600  # at the beginning, that name single figures; in the first half ever harder ones
    whole_from: int = 9_500  # step from which whole scenes are shown; windows of them between
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
    ids: Tensor  # (B, P, L); P is 0 where only names are learned
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


def attend_nearby(vision: VisionTransformer) -> None:
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
                    q[row, sine] += STRENGTH * math.cos(turn)
                    q[row, cosine] += STRENGTH * math.sin(turn)
                    q[row + 1, cosine] += STRENGTH * math.cos(turn)
                    q[row + 1, sine] -= STRENGTH * math.sin(turn)
                    k[row, sine] += STRENGTH
                    k[row + 1, cosine] += STRENGTH
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


def cut_figure(picture: Picture, number: int, rng: np.random.Generator, side: int) -> Picture:
    """A window around one figure of a scene, a little to twice as wide, as a turned square; others are nobody."""
    rows, columns = np.nonzero(picture.owners == number)
    longer = max(np.ptp(rows), np.ptp(columns)) + 1
    w, h = (longer * rng.uniform(1.1, 2.2) * stretch for stretch in np.exp(rng.uniform(-0.2, 0.2, 2)))
    H, W = picture.owners.shape
    x, y = ((ends.min() + ends.max() + 1 - size) / 2 for ends, size in ((columns, w), (rows, h)))
    left, top = (int(np.clip(low + rng.uniform(-0.1, 0.1) * longer, 0, most)) for low, most in ((x, W), (y, H)))
    window = slice(top, max(top + 2, math.ceil(y + h))), slice(left, max(left + 2, math.ceil(x + w)))
    owners = np.where(picture.owners[window] == number, 0, NOBODY).astype(np.uint8)
    return cut(Picture(picture.image[window], owners, [picture.figures[number]]), rng, side, 1.0)


# --- Phrases -----------------------------------------------------------------------------------------------


def absent_wish(rng: np.random.Generator, figure: Figure) -> tuple[str | None, str | None]:
    """Colour and shape, mostly one of them the figure's. Both may come out as its own: the caller draws again."""
    kind = rng.choice(4, p=(0.45, 0.25, 0.2, 0.1))
    if kind == 3:
        return (figure.colour if rng.random() < 0.5 else None), str(rng.choice(FOREIGN))
    colour = figure.colour if kind == 0 else str(rng.choice(list(COLOURS)))
    return colour, figure.shape if kind == 1 else str(rng.choice(list(SHAPES)))


def random_phrases(rng: np.random.Generator, picture: Picture, count: int) -> list[Phrase]:
    """Phrases for a picture, in turn one as captions have them, mostly there, and one that is not there."""
    shown = [picture.figures[i] for i in np.unique(picture.owners) if i != NOBODY]
    figures, phrases = shown or picture.figures, []
    for number in range(count):
        colour, shape = random_wish(rng, figures)
        for _ in range(8 if number % 2 else 0):
            colour, shape = absent_wish(rng, figures[rng.integers(len(figures))])
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
    L = max((len(ids) for row in tokens for ids in row), default=0)
    owners, first = [], 0
    for picture in pictures:
        owner = picture.owners.astype(np.int64)
        owners.append(torch.from_numpy(np.where(owner == NOBODY, -1, owner + first)))
        first += len(picture.figures)
    images = torch.from_numpy(np.stack([picture.image for picture in pictures])).permute(0, 3, 1, 2)
    B, P, sides = len(pictures), len(phrases[0]), pictures[0].owners.shape
    targets = [target_of(picture, phrase) for picture, row in zip(pictures, phrases) for phrase in row]
    return Batch(
        normalise(images.float() / 255),
        places,
        torch.stack([pad_ids(row, L) for row in tokens]) if P else torch.zeros(B, 0, 0, dtype=torch.long),
        torch.stack(targets).view(B, P, *sides) if P else torch.zeros(B, 0, *sides),
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


def owners_of_tokens(batch: Batch, patch: int) -> Tensor:
    """(B, 1 + N): the object at the centre of each patch, or -1; the class token is of the figure of its picture where
    only names are learned, else of nobody."""
    owners = batch.owners[:, patch // 2 :: patch, patch // 2 :: patch].flatten(1)
    names_alone = batch.ids.shape[1] == 0
    first = torch.arange(len(owners))[:, None] if names_alone else torch.full((len(owners), 1), -1)
    return torch.cat((first, owners), 1)


def heat_losses(model: CLIPSeg, batch: Batch, states: list[Tensor]) -> dict[str, Tensor]:
    """Binary cross-entropy and Dice of the heat maps."""
    B, P, _ = batch.ids.shape
    targets = batch.targets.to(states[0].device)
    activations = [states[1 + layer] for layer in model.config.extract_layers]
    conditions = model.clip.encode_text(batch.ids.to(states[0].device).flatten(0, 1)).unflatten(0, (B, P))
    logits = model.decode(activations, conditions, batch.images.shape[-2:]).float()
    return {"bce": F.binary_cross_entropy_with_logits(logits, targets), "dice": dice_loss(logits, targets)}


def scene_losses(model: CLIPSeg, batch: Batch, words: Tensor) -> dict[str, Tensor]:
    """The losses of the heat maps, if there are phrases, and the names of the objects at the tokens of theirs."""
    clip, device = model.clip, words.device
    with torch.autocast(device.type, torch.bfloat16):
        states = window_states(clip.vision_model, batch.images.to(device), batch.places.to(device))
        losses = heat_losses(model, batch, states) if batch.ids.shape[1] else {}
        tokens = clip.visual_projection(clip.vision_model.post_layernorm(states[-1])).float()  # (B, 1 + N, D)
        names = clip.encode_text(words).float()
    likeness = F.normalize(tokens, dim=-1) @ F.normalize(names, dim=-1).T * clip.logit_scale.exp()
    owners = owners_of_tokens(batch, model.config.clip.vision.patch_size).to(device)
    losses |= naming_losses(likeness, owners, batch.names.to(device)) if (owners >= 0).any() else {}
    weights = {"bce": 5.0, "dice": 1.0, "colour": 0.3, "shape": 1.0}
    return losses | {"total": sum(weights[name] * loss for name, loss in losses.items())}


class CLIPSegTask:
    """Pictures of one size in each step, with phrases drawn for each: single figures, windows, whole scenes."""

    name = "clipseg"

    def __init__(self, recipe: Recipe):
        if recipe.start:  # those weights know names
            recipe = replace(recipe, naming_steps=0, whole_from=WINDOWS_AGAIN)
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
        count = 0 if step < self.recipe.naming_steps else self.recipe.phrases // (2 if side == FIGURE else 1)
        phrases = [random_phrases(rng, picture, count) for picture in pictures]
        tokens = [[self.tokenizer.encode(phrase.text) for phrase in row] for row in phrases]
        grid = vision.image_size // vision.patch_size
        places = random_places(rng, len(pictures), side // vision.patch_size, grid)
        return collate(pictures, phrases, tokens, places)

    def pictures(self, step: int, rng: np.random.Generator) -> list[Picture]:
        """Single figures; then windows of scenes, later whole ones, and single figures in every other step."""
        recipe = self.recipe
        naming, whole = step < recipe.naming_steps, step >= recipe.whole_from
        if naming or step % 2 and not whole:
            difficulty = min(2 * step / recipe.naming_steps, 1.0) if recipe.naming_steps else 1.0
            return [self.figure(difficulty, rng) for _ in range((32 if naming else 8) * recipe.batch_size)]
        scenes = [self.scene(rng) for _ in range(recipe.batch_size * (1 if whole else 2))]
        return [cut(s, rng, SIDE if whole else WINDOW, 1.0 if whole else WINDOW / SIDE) for s in scenes]

    def figure(self, difficulty: float, rng: np.random.Generator) -> Picture:
        """A tile no harder than this, or a figure cut from a scene, which are as many once all tiles are shown."""
        if rng.random() < difficulty / 2:
            picture = self.scene(rng)
            shown = [i for i in np.unique(picture.owners) if i != NOBODY]
            return cut_figure(picture, int(rng.choice(shown)), rng, FIGURE)
        last = TILES * (0.1 + 0.9 * difficulty)
        number = int(rng.uniform(max(0, last - 0.5 * TILES), last))
        return cut(numbered_tile(self.recipe.seed, number), rng, FIGURE, FIGURE / TILE, turn=difficulty > 0.3)

    def scene(self, rng: np.random.Generator) -> Picture:
        """One of the scenes that the run draws."""
        return numbered_scene(TRAINING_FROM + self.recipe.seed * 1_000_000 + int(rng.integers(SCENES)))

    def losses(self, model: CLIPSeg, batch: Batch) -> dict[str, Tensor]:
        return scene_losses(model, batch, self.words.to(model.clip.logit_scale.device))

    def evaluate(self, model: CLIPSeg) -> dict[str, float]:
        return evaluate_heat_maps(HeatMapper(model, self.tokenizer, HEAT_SIZE), map(scene, EVALUATED))


if __name__ == "__main__":
    training.command(__doc__, CLIPSegTask, Recipe(), "runs/demo-clipseg")
