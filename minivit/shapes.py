"""Ten classes of drawn shapes, five outlines in two textures: a data set that needs no download.

Outlines are signed distance functions (their level sets, with an anti-aliased edge), textures are sine
gratings. Place, size, tilt, colours and clutter are random, so no pixel tells the class on its own.
"""

import math
from collections.abc import Callable
from functools import partial

import torch

SHAPES = ("disc", "dumbbell", "triangle", "cross", "ring")
TEXTURES = ("striped", "checked")
CLASSES = [f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES]


def draw_shapes(labels: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw one image per label: uint8 (B, 3, size, size)."""
    B = len(labels)
    uniform = partial(_uniform, generator=generator)
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")  # pixel centres in [-1, 1]
    background, first, second = _three_colours(B, uniform)
    canvas = _background(background, x, y, uniform)

    radius = uniform(0.65, 0.95, B, 1, 1)
    centre = uniform(-1, 1, 2, B, 1, 1) * (1 - radius)
    u, v = _rotate((x - centre[0]) / radius, (y - centre[1]) / radius, uniform(-0.5, 0.5, B, 1, 1))
    inside = _coverage(_distance(u, v, labels // len(TEXTURES)), radius, size)

    wave = uniform(0.36, 0.48, B, 1, 1) / radius  # length of one light and one dark band, in radii
    a, b = _rotate(u, v, uniform(0, 2 * math.pi, B, 1, 1))
    a = (2 * math.pi / wave * a + uniform(0, 2 * math.pi, B, 1, 1)).sin()
    b = (2 * math.pi / wave * b + uniform(0, 2 * math.pi, B, 1, 1)).sin()
    checked = (labels % len(TEXTURES) == 1)[:, None, None]
    blend = (0.5 + 1.5 * torch.where(checked, a * b, a)).clamp(0, 1)[:, None]  # (B, 1, S, S), soft at the borders

    shape = first * blend + second * (1 - blend)
    canvas = canvas + inside[:, None] * (shape - canvas)
    strength, noise = uniform(0, 0.04, B, 1, 1, 1), torch.randn(B, 3, 32, 32, generator=generator)
    if canvas.shape != noise.shape:  # of its own stream, so that the pictures to come are the same at every size
        seed = int(noise.view(torch.int32)[0, 0, 0, 0])
        noise = torch.randn(canvas.shape, generator=torch.Generator().manual_seed(seed))
    noise = strength * noise
    return ((canvas + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def _uniform(low: float, high: float, *shape: int, generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _rotate(x: torch.Tensor, y: torch.Tensor, angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def _three_colours(B: int, uniform: Callable) -> list[torch.Tensor]:
    """Colours (B, 3, 1, 1) of background and shape, each channel at least 0.1 apart.

    In each channel both colours of the shape lie on one side of the background, so that the outline shows at any scale.
    Which side is drawn for each channel and image, so that brightness says nothing about the class.
    """
    flip = uniform(0, 1, B, 3, 1, 1) < 0.5
    levels = [uniform(low, high, B, 3, 1, 1) for low, high in ((0, 0.25), (0.4, 0.65), (0.75, 1))]
    return [torch.where(flip, 1 - level, level) for level in levels]


def _background(colour: torch.Tensor, x: torch.Tensor, y: torch.Tensor, uniform: Callable) -> torch.Tensor:
    """Background (B, 3, S, S): a colour with a slope, and six small discs and bars of other shades."""
    B, size = len(colour), len(x)
    slope = uniform(-0.1, 0.1, 2, B, 3, 1, 1)
    canvas = colour + slope[0] * x + slope[1] * y
    for i in range(6):
        radius = uniform(0.06, 0.2, B, 1, 1)
        centre = uniform(-1, 1, 2, B, 1, 1)
        u, v = _rotate((x - centre[0]) / radius, (y - centre[1]) / radius, uniform(0, 2 * math.pi, B, 1, 1))
        distance = torch.hypot(u, v) - 1 if i % 2 else _box(u, v, 2.5, 0.5)
        shade = uniform(-0.2, 0.2, B, 3, 1, 1)
        canvas = canvas + _coverage(distance, radius, size)[:, None] * shade
    return canvas


def _coverage(distance: torch.Tensor, radius: torch.Tensor, size: int) -> torch.Tensor:
    """Share of each pixel that lies inside, from its signed distance in radii: the border is one pixel wide."""
    return (0.5 - distance * radius * (size / 2)).clamp(0, 1)


def _box(u: torch.Tensor, v: torch.Tensor, half_width: float, half_height: float) -> torch.Tensor:
    return torch.maximum(u.abs() - half_width, v.abs() - half_height)


def _distance(u: torch.Tensor, v: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """Signed distance (B, S, S) to the outline of SHAPES[shape], negative inside; all fit in the unit disc."""
    length = torch.hypot(u, v)
    side = math.sqrt(3) / 2
    every = torch.stack(
        [
            length - 0.9,
            torch.minimum(torch.hypot(u.abs() - 0.55, v) - 0.4, _box(u, v, 0.5, 0.15)),
            torch.stack([v, side * u - v / 2, -side * u - v / 2]).amax(0) - 0.5,  # a triangle is three half-planes
            torch.minimum(_box(u, v, 0.95, 0.3), _box(u, v, 0.3, 0.95)),
            (length - 0.7).abs() - 0.25,
        ]
    )  # (5, B, S, S)
    return every[shape, torch.arange(len(shape))]
