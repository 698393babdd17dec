"""Outlines of masks, with holes: traced along the edges of pixels, and joined to one ring where a format has no holes.

    for shape in trace(mask):      # one Polygon per connected piece
        shape.outline, shape.holes # (n, 2) corners x, y in pixels; pixel (0, 0) covers 0 to 1
        shape.ring()               # outline and holes as one ring

Readers fill polygons in different ways, so that the corners can be moved towards the middle of their pixels: `inset` 0
is the edge of the pixels (pycocotools, which fills what lies between the edges), a little more keeps each corner inside
its own pixel (OpenCV, which cuts coordinates off and fills their pixels too), and 1 is the middle. Pieces that touch at
corners alone are one piece, their holes are not. Left out: curves, and polygons with fewer corners than the pixels ask.
"""

from dataclasses import dataclass, field

import numpy as np

from ..masks import as_bool, mask_box

STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # right, down, left, up: the object is on the right hand
LEFT_FIRST = (3, 0, 1)  # turns in the order in which they are tried: what touches at a corner is one piece


@dataclass
class Polygon:
    """One piece of a mask: the ring around it, and one for each hole; float (n, 2), x and y in pixels."""

    outline: np.ndarray
    holes: list[np.ndarray] = field(default_factory=list)

    def ring(self) -> np.ndarray:
        """One ring (n, 2), which enters each hole and leaves it along the same line, inside the object."""
        return join([self.outline, *self.holes])[0]


def trace(mask: np.ndarray, inset: float = 0.0) -> list[Polygon]:
    """The pieces of a bool mask (H, W), from the top down. inset: 0 corners of pixels to 1 their middles."""
    mask = as_bool(mask)
    box = mask_box(mask)
    if box is None:
        return []
    left, top, right, bottom = box
    loops = _loops(mask[top:bottom, left:right])
    areas = [_area(*loop) for loop in loops]
    pieces = {i: Polygon(_corners(*loops[i], inset) + (left, top)) for i, area in enumerate(areas) if area > 0}
    for i, (start, direction) in enumerate(loops):
        if areas[i] < 0:  # a hole of the smallest piece around a pixel beside it
            beside = start[0] + (STEPS[direction[0]] + STEPS[(direction[0] + 1) % 4]) / 2
            around = [j for j in pieces if contains(loops[j][0], beside)]
            pieces[min(around, key=lambda j: areas[j])].holes.append(_corners(start, direction, inset) + (left, top))
    return list(pieces.values())


def contains(ring: np.ndarray, point: np.ndarray) -> bool:
    """Whether a point (2,) is inside a ring (n, 2): a line from it to the right crosses the ring an odd time."""
    (x, y), (xs, ys), (next_x, next_y) = point, ring.T, np.roll(ring, -1, 0).T
    crosses = (ys > y) != (next_y > y)
    at = xs[crosses] + (y - ys[crosses]) * (next_x - xs)[crosses] / (next_y - ys)[crosses]
    return bool((at > x).sum() % 2)


def join(rings: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """Rings (n, 2) as one: to and fro along the shortest lines between them. Also the length of these lines.

    The rings are joined in the order of Prim's minimum spanning tree, so that a line to a hole crosses no other hole.
    """
    joined, owner, length = rings[0], np.stack((np.zeros(len(rings[0]), int), np.arange(len(rings[0]))), 1), 0.0
    closest = {i: (*nearest(rings[0], rings[i]), 0) for i in range(1, len(rings))}
    while closest:
        new = min(closest, key=lambda i: closest[i][2])
        here, there, distance, ring = closest.pop(new)
        at = int(np.flatnonzero((owner == (ring, here)).all(1))[0])
        order = np.roll(np.arange(len(rings[new])), -there)
        order = np.append(order, order[0])
        joined = np.concatenate((joined[: at + 1], rings[new][order], joined[at:]))
        inside = np.stack((np.full(len(order), new), order), 1)
        owner = np.concatenate((owner[: at + 1], inside, owner[at:]))
        for i in closest:
            closest[i] = min(closest[i], (*nearest(rings[new], rings[i]), new), key=lambda found: found[2])
        length += distance
    return joined, length


def nearest(one: np.ndarray, other: np.ndarray) -> tuple[int, int, float]:
    """The corners of two rings (n, 2), (m, 2) that are the closest, by number, and their distance in pixels."""
    best = (0, 0, np.inf)
    for start in range(0, len(one), 256):  # a few rows at a time: rings can have 100,000 corners
        squares = ((one[start : start + 256, None] - other) ** 2).sum(2)
        here, there = np.unravel_index(squares.argmin(), squares.shape)
        if squares[here, there] < best[2]:
            best = (start + int(here), int(there), float(squares[here, there]))
    return best[0], best[1], best[2] ** 0.5


def _edges(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges of pixels between object and background: where each starts (n, 2), x and y, and its direction (n,)."""
    padded = np.pad(mask, 1).astype(np.int8)
    across, down = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    found = []
    for change, value, direction in ((across, 1, 0), (down, -1, 1), (across, -1, 2), (down, 1, 3)):
        y, x = np.nonzero(change == value)
        start = np.stack((x, y), 1) + {0: (0, 0), 1: (0, 0), 2: (1, 0), 3: (0, 1)}[direction]
        found.append((start, np.full(len(start), direction)))
    return tuple(np.concatenate(parts) for parts in zip(*found))


def _loops(mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The closed ways along `_edges`: of each the start (n, 2) and direction (n,) of its edges in order."""
    start, direction = _edges(mask)
    width = mask.shape[1] + 1
    code = (start @ (1, width)) * 4 + direction
    order = np.argsort(code)
    start, direction, code = start[order], direction[order], code[order]
    place = (start + STEPS[direction]) @ (1, width) * 4
    following = np.full(len(code), -1)
    for turn in LEFT_FIRST:
        wanted = place + (direction + turn) % 4
        at = np.searchsorted(code, wanted).clip(max=len(code) - 1)
        following = np.where((following < 0) & (code[at] == wanted), at, following)
    following, seen, loops = following.tolist(), bytearray(len(code)), []
    for first in range(len(code)):
        loop = []
        while not seen[first]:
            seen[first] = 1
            loop.append(first)
            first = following[first]
        if loop:
            loops.append((start[loop], direction[loop]))
    return loops


def _area(start: np.ndarray, direction: np.ndarray) -> float:
    """The pixels that a loop goes around; negative for a hole."""
    (x, y), (dx, dy) = start.T, STEPS[direction].T
    return float((x * dy - y * dx).sum()) / 2


def _corners(start: np.ndarray, direction: np.ndarray, inset: float) -> np.ndarray:
    """A ring (n, 2) of both ends of the straight lines of a loop, drawn towards the middles of their pixels."""
    ahead, aside = STEPS[direction], STEPS[(direction + 1) % 4]
    middle, end = start + (ahead + aside) / 2, start + ahead  # middle: of the pixel at the right hand
    turns = direction != np.roll(direction, 1)
    ends = np.stack((start + inset * (middle - start), end + inset * (middle - end)), 1)
    ring = ends[np.stack((turns, np.roll(turns, -1)), 1)]
    different = (ring != np.roll(ring, 1, 0)).any(1)
    return ring[different] if different.any() else ring[:1]
