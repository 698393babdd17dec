"""Drawing for the demo scenes: eight shapes in eight colours, backgrounds that look a little like photographs,
and what a camera and a file do to a picture.

A shape is a signed distance function, so that its edge is anti-aliased, its outline has any width and its
mask is exact. Pixel (row i, column j) has its centre at (j + 0.5, i + 0.5). All randomness comes from the
generator that is passed in. Left out: perspective, and shapes made of several parts.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Rng = np.random.Generator
Rgb = tuple[float, float, float]  # from 0 to 1

# Name -> ranges of hue (degrees), saturation and value. The gaps between neighbours are never drawn, so that
# shading and noise leave the name unambiguous.
COLOURS = {
    "red": ((-9, 7), (0.78, 1.0), (0.6, 1.0)),
    "green": ((92, 148), (0.55, 1.0), (0.38, 0.9)),
    "blue": ((206, 243), (0.65, 1.0), (0.5, 1.0)),
    "yellow": ((50, 61), (0.7, 1.0), (0.86, 1.0)),
    "orange": ((23, 35), (0.82, 1.0), (0.86, 1.0)),
    "purple": ((268, 292), (0.45, 0.95), (0.42, 0.85)),
    "white": ((0, 360), (0.0, 0.04), (0.94, 1.0)),
    "black": ((0, 360), (0.0, 0.3), (0.0, 0.12)),
}
SMALL = 7.0  # pixels of radius below which a figure is drawn plain: no outline, no opacity


# --- Shapes: signed distances, negative inside, of outlines that fit into the unit disc ---------------------


def box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    """A rectangle: exact along the sides; beyond the corners too small."""
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def triangle(x: np.ndarray, y: np.ndarray, proportion: float) -> np.ndarray:
    """An equilateral triangle, a corner at the top, whatever the proportion."""
    slant = math.sqrt(3) / 2 * np.abs(x) - y / 2  # one of the upper sides, by symmetry
    return np.maximum(y, slant) - 0.5


def star(x: np.ndarray, y: np.ndarray, proportion: float) -> np.ndarray:
    """A star of five points: all is folded into half a point, whose edge runs from (1, 0) to `inner` at 36 degrees."""
    inner, sector = 0.38 + 0.12 * proportion, 2 * math.pi / 5
    angle = np.abs((np.arctan2(x, -y) + sector / 2) % sector - sector / 2)
    radius, normal = np.hypot(x, y), (inner * math.sin(sector / 2), 1 - inner * math.cos(sector / 2))
    return ((radius * np.cos(angle) - 1) * normal[0] + radius * np.sin(angle) * normal[1]) / math.hypot(*normal)


def cross(x: np.ndarray, y: np.ndarray, proportion: float) -> np.ndarray:
    """An upright cross, its arms the wider the larger the proportion."""
    arm = 0.22 + 0.13 * proportion
    return np.minimum(box(x, y, 0.94, arm), box(x, y, arm, 0.94))


def ring(x: np.ndarray, y: np.ndarray, proportion: float) -> np.ndarray:
    """A ring, whose hole grows with the proportion."""
    hole = 0.42 + 0.28 * proportion
    return np.abs(np.hypot(x, y) - (1 + hole) / 2) - (1 - hole) / 2


def heart(x: np.ndarray, y: np.ndarray, proportion: float) -> np.ndarray:
    """A square on its corner, with a half disc on each of its upper sides."""
    half, y = 0.8, y - 0.08
    discs = np.hypot(np.abs(x) - half / 2, y + half / 2) - half / math.sqrt(2)
    return np.minimum((np.abs(x) + np.abs(y) - half) / math.sqrt(2), discs)


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "circle": lambda x, y, proportion: np.hypot(x, y) - 1,
    "square": lambda x, y, proportion: box(x, y, 0.72, 0.72),
    "triangle": triangle,
    "star": star,
    "cross": cross,
    "ring": ring,
    "heart": heart,
    "hexagon": lambda x, y, proportion: np.maximum(np.abs(x), np.abs(x) / 2 + 0.866 * np.abs(y)) - 0.866,
}


# --- Figures -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One shape with its place (pixels) and its style. An outlined shape covers all that its outline encloses."""

    shape: str
    colour: str
    rgb: Rgb
    x: float
    y: float
    radius: float
    angle: float  # radians
    squash: float  # width / height before it is turned
    proportion: float  # 0 to 1: point of a star, arm of a cross, hole of a ring
    softness: float  # width of the edge, pixels
    shading: tuple[float, float]  # change of brightness along x and y, per radius
    opacity: float  # opacity inside the outline; 1 = filled
    stroke: float  # width of the outline, in radii; 0 = none
    stroke_rgb: Rgb


@dataclass(frozen=True)
class Footprint:
    """A figure in its window of the frame: coordinates in radii, not turned, and distances in pixels."""

    window: tuple[slice, slice]
    x: np.ndarray
    y: np.ndarray
    distance: np.ndarray


def footprint(figure: Figure, height: int, width: int, margin: float = 2.0) -> Footprint:
    """The window in which the figure lies, with so many pixels around it; empty when it is out of the frame."""
    reach = figure.radius * max(1.0, figure.squash, 1 / figure.squash) + margin
    top, bottom = (int(np.clip(round(figure.y + s * reach), 0, height)) for s in (-1, 1))
    left, right = (int(np.clip(round(figure.x + s * reach), 0, width)) for s in (-1, 1))
    x = (np.arange(left, right, dtype=np.float32) + 0.5 - figure.x)[None] / figure.radius
    y = (np.arange(top, bottom, dtype=np.float32) + 0.5 - figure.y)[:, None] / figure.radius
    cos, sin, stretch = math.cos(figure.angle), math.sin(figure.angle), math.sqrt(figure.squash)
    distance = SHAPES[figure.shape]((x * cos + y * sin) / stretch, (y * cos - x * sin) * stretch, figure.proportion)
    return Footprint((slice(top, bottom), slice(left, right)), x, y, distance * figure.radius)


def stamp(at: Footprint, height: int, width: int) -> np.ndarray:
    """The mask of a footprint, bool (height, width)."""
    mask = np.zeros((height, width), dtype=bool)
    mask[at.window] = at.distance < 0
    return mask


def draw(canvas: np.ndarray, figure: Figure, at: Footprint) -> None:
    """Paint the figure onto a float (H, W, 3) canvas from 0 to 1, in place."""
    coverage = np.clip(0.5 - at.distance / figure.softness, 0, 1)
    light = 1 + figure.shading[0] * at.x + figure.shading[1] * at.y
    paint = np.minimum(light[..., None] * np.float32(figure.rgb), 1)
    if figure.stroke:
        line = np.clip(0.5 + (at.distance + figure.stroke * figure.radius) / figure.softness, 0, 1)[..., None]
        paint = paint + line * (np.float32(figure.stroke_rgb) - paint)
        coverage = coverage * (figure.opacity + (1 - figure.opacity) * line[..., 0])
    region = canvas[at.window]
    region += coverage[..., None] * (paint - region)


def cast_shadow(canvas: np.ndarray, figure: Figure, offset: tuple[float, float], strength: float) -> None:
    """Darken the canvas beside the figure, by at most `strength`; the offset is in pixels."""
    blur = 2 + 0.25 * figure.radius
    shifted = replace(figure, x=figure.x + offset[0], y=figure.y + offset[1])
    at = footprint(shifted, *canvas.shape[:2], margin=blur)
    canvas[at.window] *= 1 - strength * np.clip(0.5 - at.distance / blur, 0, 1)[..., None]


def hsv(hue: float, saturation: float, value: float) -> Rgb:
    """Hue in degrees, the rest from 0 to 1."""

    def channel(n: int) -> float:
        k = (n + hue / 60) % 6
        return value - value * saturation * max(0.0, min(k, 4 - k, 1.0))

    return channel(5), channel(3), channel(1)


def paint_of(colour: str, rng: Rng) -> Rgb:
    """A shade that anyone calls by this name."""
    return hsv(*(rng.uniform(*limits) for limits in COLOURS[colour]))


# --- Backgrounds -------------------------------------------------------------------------------------------


def muted(rng: Rng, low: float = 0.15, high: float = 0.85) -> np.ndarray:
    """A dull colour (3,), which none of the eight names would be used for."""
    return np.float32(hsv(rng.uniform(0, 360), rng.uniform(0, 0.38), rng.uniform(low, high)))


def clouds(rng: Rng, height: int, width: int, cells: float, channels: int = 3) -> np.ndarray:
    """Smooth noise (H, W, channels) of mean 0 and about -1 to 1, with `cells` bumps along the shorter side."""
    side = min(height, width) / cells
    size = (max(2, round(height / side)), max(2, round(width / side)))
    coarse = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(fine, dtype=np.float32)[..., :channels] / 127.5 - 1


def slope(rng: Rng, height: int, width: int) -> np.ndarray:
    """(H, W, 1) from 0 to 1 along a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    along = x * math.cos(angle) + y * math.sin(angle)
    return ((along - along.min()) / np.ptp(along))[..., None]


def plain(rng: Rng, height: int, width: int) -> np.ndarray:
    """One colour, now and then paper white or night black, or a slope between two."""
    first = np.full(3, rng.choice((rng.uniform(0.9, 1), rng.uniform(0, 0.1)))) if rng.random() < 0.35 else muted(rng)
    second = first if rng.random() < 0.5 else muted(rng)
    return np.float32(first + slope(rng, height, width) * (second - first))


def texture(rng: Rng, height: int, width: int) -> np.ndarray:
    """Stripes, checks or cloth: the product or sum of two waves between two dull colours."""
    wave = 2 * math.pi / rng.uniform(5, 30)
    across, down = (np.sin(wave * max(height, width) * slope(rng, height, width)) for _ in range(2))
    pattern = (across, across * down, np.sign(across * down), (across + down) / 2)[rng.integers(4)]
    first, second = muted(rng), muted(rng)
    return np.float32(first + (0.5 + 0.5 * pattern) * (second - first) * rng.uniform(0.3, 1))


def natural(rng: Rng, height: int, width: int) -> np.ndarray:
    """Noise of falling strength at ever finer scales, as in photographs, mostly the same in all channels."""
    base, out = muted(rng, 0.25, 0.75), np.zeros((height, width, 3), dtype=np.float32)
    roughness, contrast = rng.uniform(0.4, 0.75), rng.uniform(0.06, 0.3)
    for octave in range(rng.integers(2, 6)):
        layer = clouds(rng, height, width, 2.0 * 2**octave)
        out += contrast * roughness**octave * (0.85 * layer[..., :1] + 0.15 * layer)
    return base + out


def landscape(rng: Rng, height: int, width: int) -> np.ndarray:
    """A light half and a rougher dark half with an uneven border, in any order."""
    above, below = plain(rng, height, width), natural(rng, height, width)
    border = rng.uniform(0.3, 0.7) + 0.08 * clouds(rng, height, width, 4, 1)
    share = np.clip((np.linspace(0, 1, height, dtype=np.float32)[:, None, None] - border) * rng.uniform(8, 80), 0, 1)
    return above + share * (below - above)


def clutter(rng: Rng, background: np.ndarray) -> np.ndarray:
    """The background with dull lines, curves and ragged patches on it, which are none of the eight shapes."""
    height, width = background.shape[:2]
    image = Image.fromarray((background.clip(0, 1) * 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 14)):
        centre, reach = rng.uniform((0, 0), (width, height)), rng.uniform(0.05, 0.5) * min(height, width)
        ink = tuple(int(255 * c) for c in muted(rng))
        points = [tuple(point) for point in centre + rng.normal(0, reach, (rng.integers(2, 9), 2))]
        if len(points) > 5:
            pen.polygon(points, fill=ink)
        else:
            pen.line(points, fill=ink, width=int(rng.integers(1, 7)))
    if rng.random() < 0.6:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 4)))
    return np.asarray(image, dtype=np.float32) / 255


def draw_background(rng: Rng, height: int, width: int) -> np.ndarray:
    """A background without objects, float (H, W, 3) from 0 to 1."""
    kind = (plain, texture, natural, natural, landscape)[rng.integers(5)]
    background = kind(rng, height, width)
    if rng.random() < 0.5:
        background = clutter(rng, background)
    return background.clip(0, 1)


# --- Degradation -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Degradation:
    """Changes that a camera and a file make to a picture; the same for all frames of a clip."""

    exposure: float
    cast: Rgb  # gain of each channel
    blur: float  # pixels
    noise: float
    quality: int  # JPEG quality; 0: no JPEG


def random_degradation(rng: Rng) -> Degradation:
    """Exposure, blur, noise and JPEG, each on every other picture; a slight cast on all."""
    often = rng.random(4) < 0.5
    return Degradation(
        rng.uniform(0.88, 1.06) if often[0] else 1.0,
        tuple(rng.uniform(0.96, 1.0, 3)),
        rng.uniform(0.3, 1.0) if often[1] else 0.0,
        rng.uniform(0.005, 0.05) if often[2] else 0.0,
        int(rng.integers(55, 96)) if often[3] else 0,
    )


def degrade(canvas: np.ndarray, degradation: Degradation, rng: Rng) -> np.ndarray:
    """Canvas float (H, W, 3) from 0 to 1 -> picture uint8 (H, W, 3), as a camera and a file would give it."""
    canvas = canvas * np.float32(degradation.exposure) * np.float32(degradation.cast)
    if degradation.noise:
        canvas = canvas + np.float32(degradation.noise) * rng.standard_normal(canvas.shape, dtype=np.float32)
    image = Image.fromarray((canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8))
    if degradation.blur:
        image = image.filter(ImageFilter.GaussianBlur(degradation.blur))
    if degradation.quality:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=degradation.quality)
        image = Image.open(file)
    return np.array(image)
