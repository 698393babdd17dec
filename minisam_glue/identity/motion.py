"""Where an object will be: a line through its last centres.

SAMURAI (arXiv 2411.11922) predicts boxes with a Kalman filter. Here a line through the centres on clean frames does it,
and between look-alikes that meet, where no frame is clean, an alpha-beta filter.
"""

from dataclasses import dataclass, field
from statistics import median

import torch

from .. import boxes

PLACES, SIZES, AREAS = 6, 8, 10  # clean frames whose centres, sizes and areas are kept
AREA_RANGE = 0.4, 2.5  # of a clean mask, times the median
NEAR_PREDICTION = 0.3  # IoU of a clean mask's box with the predicted one
GROWTH, SLOW = 1.5, 0.99  # most of width and height, times the usual ones; weight of these on each clean frame
# Alpha and beta of the filter: for a drift, and for a turn. Meeting.correct says which part of an error is which.
DRIFT, TURN = (0.3, 0.03), (0.7, 0.15)
MOST_STEP = 0.3  # the largest error that counts, in sizes

CentreBox = tuple[float, float, float, float]  # (x, y, width, height), the centre at (x, y)


@dataclass
class Motion:
    """The motion of an object: a line through its centres on the last clean frames; its median size and area.

    In a meeting, where no frame is clean, place and velocity are corrected little by little (an alpha-beta filter).
    """

    places: list[tuple[int, float, float]] = field(default_factory=list)  # (t, x, y)
    sizes: list[tuple[float, float]] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    usual: tuple[float, float] | None = None  # slow mean of width and height, on frames that show the whole object
    at: int = 0  # the frame of the place
    place: tuple[float, float] = (0.0, 0.0)
    velocity: tuple[float, float] = (0.0, 0.0)  # pixels per frame

    def observe(self, t: int, box: CentreBox, area: float, whole: bool = True) -> None:
        """Learn from the box and area of a clean mask. whole: the frame's edge cuts nothing off."""
        self.places = [*self.places, (t, box[0], box[1])][-PLACES:]
        self.sizes, self.areas = [*self.sizes, box[2:]][-SIZES:], [*self.areas, area][-AREAS:]
        if whole:
            before = self.usual or box[2:]
            self.usual = tuple(SLOW * side + (1 - SLOW) * now for side, now in zip(before, box[2:]))
        self.at, self.place = t, box[:2]
        if len(self.places) >= 3:
            fits = [line([p[0] for p in self.places], [p[axis] for p in self.places], t) for axis in (1, 2)]
            self.place, self.velocity = tuple(fit[0] for fit in fits), tuple(fit[1] for fit in fits)

    def restart(self, t: int, box: CentreBox) -> None:
        """Begin anew from a place: how the object came there is not known."""
        self.places, self.velocity, self.at, self.place = [], (0.0, 0.0), t, box[:2]

    def exchange(self, other: "Motion") -> None:
        """Take the other's place and path, and give it one's own."""
        for name in ("places", "at", "place", "velocity"):
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, theirs), setattr(other, name, mine)

    def predict(self, t: int) -> CentreBox:
        """The box on frame t."""
        (x, y), (u, v), dt = self.place, self.velocity, t - self.at
        return x + u * dt, y + v * dt, *self.size

    def correct(self, t: int, drift: tuple[float, float], turn: tuple[float, float] = (0.0, 0.0)) -> None:
        """Move place and velocity towards what frame t shows: the error (x, y) of the prediction is drift + turn.

        place += alpha error, velocity += beta error, each part with its alpha and beta; backwards in time velocity
        loses as much.
        """
        x, y, *size = self.predict(t)
        place, velocity, sign = [x, y], list(self.velocity), 1 if t >= self.at else -1
        for (alpha, beta), error in ((DRIFT, drift), (TURN, turn)):
            for axis, side in enumerate(size):
                step = max(-MOST_STEP * side, min(MOST_STEP * side, error[axis]))
                place[axis] += alpha * step
                velocity[axis] += sign * beta * step
        self.at, self.places, self.place, self.velocity = t, [], tuple(place), tuple(velocity)

    @property
    def size(self) -> tuple[float, float]:
        """Median width and height, within a factor GROWTH of their slow mean: masks leak, and objects grow slowly."""
        now = tuple(median(side) for side in zip(*self.sizes))
        if self.usual is None:
            return now
        return tuple(min(max(side, usual / GROWTH), usual * GROWTH) for side, usual in zip(now, self.usual))

    @property
    def area(self) -> float:
        """The median area."""
        return median(self.areas)

    def is_likely(self, t: int, box: CentreBox, area: float) -> bool:
        """Whether a mask is of the likely size, and where it should be."""
        return not self.areas or (self.fits(area) and box_iou(box, self.predict(t)) >= NEAR_PREDICTION)

    def fits(self, area: float) -> bool:
        """Whether an area is near the median."""
        low, high = AREA_RANGE
        return low * self.area <= area <= high * self.area


def line(t: list[float], x: list[float], at: float) -> tuple[float, float]:
    """The value at a time, and the slope, of the line of least squares through (t, x)."""
    t_mean, x_mean = sum(t) / len(t), sum(x) / len(x)
    spread = sum((a - t_mean) ** 2 for a in t)
    slope = sum((a - t_mean) * (b - x_mean) for a, b in zip(t, x)) / spread if spread else 0.0
    return x_mean + slope * (at - t_mean), slope


def corners(box: CentreBox) -> tuple[float, float, float, float]:
    """The corners (x, y, x, y) of a box."""
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def box_iou(one: CentreBox, other: CentreBox) -> float:
    """Intersection over union of two boxes."""
    return boxes.box_iou(corners(one), corners(other))


def touching_pairs(placed: dict[int, CentreBox], margin: float = 1.0) -> list[tuple[int, int]]:
    """The pairs of ids whose boxes, enlarged by a margin, overlap; the smaller id first."""
    if len(placed) < 2:
        return []
    numbers = sorted(placed)
    table = torch.tensor([placed[number] for number in numbers], dtype=torch.float64)
    gap = (table[:, None, :2] - table[:, :2]).abs() * 2 - margin * (table[:, None, 2:] + table[:, 2:])
    return [(numbers[i], numbers[j]) for i, j in (gap < 0).all(-1).triu(1).nonzero().tolist()]
