"""Ways in which the figures of a clip move: where each is in every frame.

A path is (T, 4): x, y, radius (pixels) and angle (radians) of a figure. `time` (T,) runs from 0 to 1, sizes are
(height, width). All randomness comes from the generator that is passed in.
"""

import math

import numpy as np

from .drawing import Figure, Rng

Size = tuple[int, int]  # height, width
Path = np.ndarray  # (T, 4): x, y, radius (pixels) and angle (radians) of a figure in each frame


def fold(position: np.ndarray, low: float, high: float) -> np.ndarray:
    """Reflect at both ends, so that the position stays between low and high."""
    span = max(high - low, 1.0)
    return low + span - np.abs((position - low) % (2 * span) - span)


def wander(rng: Rng, figure: Figure, time: np.ndarray, size: Size) -> Path:
    """A way across the frame along a bent line, bouncing off its borders, turning, growing and shrinking."""
    height, width = size
    speed, bend = rng.normal(0, 0.6, 2) * (width, height), rng.uniform(0, 0.1, 2) * (width, height)
    phase, rate = rng.uniform(0, 2 * math.pi, 3), rng.uniform(1, 3, 3) * math.pi
    x, y = (
        start + speed[i] * time + bend[i] * np.sin(rate[i] * time + phase[i])
        for i, start in enumerate((figure.x, figure.y))
    )
    radius = figure.radius * np.exp(rng.uniform(0, 0.35) * np.sin(rate[2] * time + phase[2]))
    x, y = (fold(p, figure.radius, length - figure.radius) for p, length in ((x, width), (y, height)))
    return np.stack((x, y, radius, figure.angle + rng.normal(0, 2) * time), -1)


def traverse(rng: Rng, figure: Figure, time: np.ndarray, size: Size, tilt: float) -> Path:
    """A path from border to border along the longer side, through the middle of the frame at half time."""
    height, width = size
    radius, length, across = figure.radius, max(size), min(size)
    along = radius + (length - 2 * radius) * (time + 0.08 * np.sin(2 * math.pi * time))
    aside = across / 2 + tilt * across * (time - 0.5)
    x, y = (along, aside) if width >= height else (aside, along)
    turn = figure.angle + rng.normal(0, 1.5) * time
    return np.stack((x, y, np.full_like(time, radius), turn), -1)


def there_and_back(path: Path, size: Size, rng: Rng) -> Path:
    """The path, but out through one border (for about the middle third of the time) and in again."""
    axis, far = int(rng.integers(2)), bool(rng.integers(2))
    reach = 1.3 * path[:, 2] + 3
    outside = (size[1 - axis] + reach) if far else -reach
    share = np.clip(1.35 * np.sin(np.linspace(0, math.pi, len(path))) ** 2, 0, 1)
    path = path.copy()
    path[:, axis] += share * (outside - path[:, axis])
    return path


# --- Two look-alikes that meet -----------------------------------------------------------------------------


def encounter(rng: Rng, pair: tuple[Figure, Figure], time: np.ndarray, size: Size, bounce: bool) -> tuple[Path, Path]:
    """Two figures come from both ends of a line, meet near the middle of frame and clip, and pass or bounce back.

    Until they touch both endings look alike, so that only the motion during the meeting tells which one it is.
    """
    height, width = size
    moment, angle = rng.uniform(0.42, 0.58), rng.uniform(-0.35, 0.35)
    radius = pair[0].radius
    speed = (max(size) - 2 * radius) / (2 * max(moment, 1 - moment))  # pixels of each figure from 0 to 1
    nearest = rng.uniform(0.3, 0.9) * radius  # half the distance of the centres when they turn back
    since = (time - moment) * speed
    along = -np.hypot(since, nearest) if bounce else since
    aside = rng.uniform(-0.25, 0.25) * radius
    direction = np.array((math.cos(angle), math.sin(angle)))
    direction = direction if width >= height else direction[::-1]
    normal, centre = direction[::-1] * (-1, 1), np.array((width / 2, height / 2))
    paths = []
    for figure, sign in zip(pair, (1, -1)):
        xy = centre + sign * (along[:, None] * direction + aside * normal)
        turn = figure.angle + rng.normal(0, 1.5) * time
        paths.append(np.column_stack((xy, np.full_like(time, radius), turn)))
    return paths[0], paths[1]


# --- Out of sight and back ---------------------------------------------------------------------------------


def elsewhere(rng: Rng, figure: Figure, time: np.ndarray, size: Size) -> Path:
    """A way out through one border, hidden for a fifth to a third of the time, and in again through another one."""
    out, back = int(rng.integers(4)), int(rng.integers(1, 4))
    leave, hidden = rng.uniform(0.28, 0.36), rng.uniform(0.2, 0.34)
    first, last = beyond(rng, out, figure.radius, size), beyond(rng, (out + back) % 4, figure.radius, size)
    start, end = (rng.uniform(0.3, 0.7, 2) * (size[1], size[0]) for _ in range(2))
    going = np.clip(time / leave, 0, 1)[:, None] ** 1.5
    coming = np.clip((time - leave - hidden) / (1 - leave - hidden), 0, 1)[:, None] ** 0.7
    gone = time[:, None] < leave + hidden / 2
    xy = np.where(gone, start + going * (first - start), last + coming * (end - last))
    return np.column_stack((xy, np.full_like(time, figure.radius), figure.angle + rng.normal(0, 1) * time))


def beyond(rng: Rng, side: int, radius: float, size: Size) -> np.ndarray:
    """A random point (2,), xy, just out of sight of the left, upper, right or lower side (0 to 3) of the frame."""
    height, width = size
    reach, share = 1.3 * radius + 2, rng.uniform(0.2, 0.8)
    return np.array(
        (
            (-reach, share * height),
            (share * width, -reach),
            (width + reach, share * height),
            (share * width, height + reach),
        )[side]
    )


def rescale(path: Path, factor: float) -> Path:
    """The path with a radius that goes from its own to `factor` times it in the middle tenth of the time."""
    share = np.clip((np.linspace(0, 1, len(path)) - 0.45) / 0.1, 0, 1)
    return np.column_stack((path[:, :2], path[:, 2] * (1 + share * (factor - 1)), path[:, 3]))
