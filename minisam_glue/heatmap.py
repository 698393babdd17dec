"""Heat maps to instances: a threshold, connected components, boxes, and points to seed a segmenter with.

Otsu, "A Threshold Selection Method from Gray-Level Histograms", IEEE Trans. SMC 9(1), 1979, chooses the threshold.
Confidences are used as the model gives them. They are not stretched to 0..1: an absent object lights up nothing.
Left out: how the heat maps are made (clipseg/heat_mapper.py), and connected components (masks.py).
"""

import math
from dataclasses import dataclass, replace
from numbers import Integral, Real

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .masks import erode, label_components, measure_components

REFERENCE_SIDE = 352  # pixels of the square that min_area and border are stated for
FLOOR, MIN_AREA = 0.1, 300.0  # for weights about which nothing else is known, the published ones among them
SURE = 0.5  # confidence from which the model itself says yes
MOST_CANDIDATES = 4096  # pixels among which points are spread


@dataclass(frozen=True)
class HeatSettings:
    """The settings that make instances of a heat map.

    threshold: confidence that the pixels of an instance exceed; None for Otsu's.
    percentile: despite its name from 0 to 1: the quantile of the confidences that takes Otsu's place where Otsu's
        method finds no object before a background.
    floor: confidence that the best pixel of an instance must have. Up to one half it is also the least threshold that
        Otsu's method or the quantile may give. It does not count where `threshold` is given.
    min_area: least area of an instance, in pixels of a heat map of 352 x 352, scaled for others.
    border: distance of negative points from an instance, in such pixels.
    positives, negatives: numbers of points inside an instance and outside of its border.
    split: whether a region may become several objects that touch, see mask_proposals.py; it takes points, two of them
        on the object. None: True with the demo weights and False with others, which know parts of things and might
        take a head for an object of its own.
    evidence: least sum, 0 to 2, of SAM 2's own score of a mask and its IoU with the region: below it both models
        contradict each other, and there is no object.

    floor, min_area and evidence: None takes the values that suit the loaded weights: HEAT_FLOOR, HEAT_MIN_AREA and
    HEAT_EVIDENCE of the demo; FLOOR, MIN_AREA and 0 of all others, which are not measured. ValueError for a value out
    of range.
    """

    threshold: float | None = None
    percentile: float = 0.97
    floor: float | None = None
    min_area: float | None = None
    positives: int = 8
    negatives: int = 8
    border: float = 5
    split: bool | None = None
    evidence: float | None = None

    def scaled_border(self, side: int) -> int:
        """The border in pixels of a picture or heat map whose longer side has so many."""
        return round(self.border * side / REFERENCE_SIDE)

    def filled(self, floor: float, min_area: float, split: bool = False, evidence: float = 0.0) -> "HeatSettings":
        """The same, with these values where it has None."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{"floor": floor, "min_area": min_area, "split": split, "evidence": evidence} | given)

    def __post_init__(self):
        if self.split is not None and not isinstance(self.split, (bool, np.bool_)):
            raise ValueError(f"split {self.split!r:.80}: give True, False or None")
        values = {  # of each setting, and the largest that it may have
            "heat threshold": (self.threshold, 1),
            "heat percentile": (self.percentile, 1),
            "heat floor": (self.floor, 1),
            "evidence": (self.evidence, 2),
            "min area": (self.min_area, math.inf),
            "border": (self.border, math.inf),
        }
        for name, (value, most) in values.items():
            if value is None and name not in ("heat percentile", "border"):
                continue
            if not (isinstance(value, Real) and 0 <= value <= most and value < math.inf):
                raise ValueError(f"{name} {value}: give a number from 0 {'on' if most == math.inf else f'to {most}'}")
        for name, value in {"positives": self.positives, "negatives": self.negatives}.items():
            if not (isinstance(value, Integral) and value >= 0):
                raise ValueError(f"{name} {value}: give a whole number from 0 on")


@dataclass
class HeatInstance:
    """One connected region of a heat map, as a seed: box and points in pixels of the image."""

    box: tuple[float, float, float, float]  # xyxy
    score: float  # highest confidence inside
    points: np.ndarray  # (n, 2) xy
    labels: np.ndarray  # (n,): 1 inside, 0 outside
    region: np.ndarray  # bool (S, S), the instance on the heat map's own grid


# --- Threshold ---------------------------------------------------------------------------------------------


def otsu(values: np.ndarray, bins: int = 256) -> float:
    """The threshold that splits values of any shape into two classes of greatest variance between them.

    Floats are counted in `bins` bins from their least to their greatest; integers, and floats that lie too close
    together for so many bins, each in a bin of its own. Returns the centre of the last bin of the lower class, or the
    value itself if all are the same, as scikit-image's threshold_otsu does. The upper class lies strictly above the
    threshold. ValueError if there are no values, some are not finite, or bins are fewer than two.
    """
    if bins < 2:
        raise ValueError(f"bins is {bins}: give at least 2")
    values = np.asarray(values).ravel()
    values = values.astype(int) if values.dtype == bool else values
    if not values.size or not np.isfinite(values).all():
        raise ValueError("Otsu's threshold needs finite values, at least one")
    if values.min() == values.max():
        return float(values[0])
    if np.issubdtype(values.dtype, np.integer):
        values = values.astype(int)
        centres = np.arange(values.min(), values.max() + 1)
        counts = np.bincount(values - values.min())
    else:
        # The edges in the values' own precision, as NumPy 2 has them: older versions round them differently.
        least, greatest = values.min(), values.max()
        edges = least + np.arange(bins + 1, dtype=values.dtype) * ((greatest - least) / values.dtype.type(bins))
        edges[-1] = greatest
        if (edges[:-1] < edges[1:]).all():
            counts, centres = np.histogram(values, bins)[0], (edges[:-1] + edges[1:]) / 2
        else:
            centres, counts = np.unique(values, return_counts=True)
    moments = counts * centres.astype(float)
    below, above = np.cumsum(counts)[:-1], np.cumsum(counts[::-1])[::-1][1:]  # pixels of each class, for each split
    mean_below, mean_above = np.cumsum(moments)[:-1] / below, np.cumsum(moments[::-1])[::-1][1:] / above
    between = below * above * (mean_below - mean_above) ** 2.0  # Otsu's between-class variance, times all^2
    return float(centres[between.argmax()])


def choose_threshold(heat: np.ndarray, settings: HeatSettings) -> float:
    """The threshold for confidences (S, S) above which pixels are of the object: the one that is set, else Otsu's or a
    percentile's, raised to the floor.

    Otsu's method always splits. If its upper class covers more than half of the map at a threshold below one half, it
    has split the background: the percentile is used instead. A threshold that is not set never exceeds one half, so a
    confident pixel always belongs to the object.
    """
    if settings.threshold is not None:
        return settings.threshold
    threshold = min(otsu(heat), SURE)
    if threshold < SURE and (heat > threshold).mean() > 0.5:
        threshold = min(float(np.quantile(heat, settings.percentile)), SURE)
    return max(threshold, min(FLOOR if settings.floor is None else settings.floor, SURE))


# --- Instances ---------------------------------------------------------------------------------------------


def confidence(logits: Tensor, size: tuple[int, int] | None = None) -> np.ndarray:
    """Logits (S, S) -> confidences 0..1, float32, on the same grid or enlarged, as logits, to an image of (H, W)."""
    if size is not None:
        logits = F.interpolate(logits[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0]
    return logits.float().sigmoid().cpu().numpy()


def find_instances(
    heat: np.ndarray, threshold: float, size: tuple[int, int], settings: HeatSettings
) -> list[HeatInstance]:
    """The regions of confidences (S, S) above a threshold, see choose_threshold. Best first.

    The heat map covers an image of size (H, W), stretched.
    """
    if heat.ndim != 2 or heat.shape[0] != heat.shape[1]:
        raise ValueError(f"a heat map is square, not {heat.shape}: it covers the image stretched")
    S, settings = len(heat), settings.filled(FLOOR, MIN_AREA)
    labels = label_components(heat > threshold)
    found, scale = measure_components(labels), S / REFERENCE_SIDE
    sides = np.array([size[1], size[0]])  # multiplied before they are divided: S of S pixels are the whole side exactly
    instances = []
    for number in 1 + np.flatnonzero(found.areas >= max(1, settings.min_area * scale**2)):
        region = labels == number
        score = float(heat[region].max())
        if settings.threshold is None and score < settings.floor:
            continue
        points, signs = seed_points(heat, region, labels > 0, settings, settings.scaled_border(S))
        box = found.boxes[number - 1] * np.tile(sides, 2) / S
        instances.append(HeatInstance(tuple(map(float, box)), score, (points + 0.5) * sides / S, signs, region))
    return sorted(instances, key=lambda instance: -instance.score)


def seed_points(
    heat: np.ndarray, region: np.ndarray, foreground: np.ndarray, settings: HeatSettings, border: int
) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) xy, as indices of pixels, and their labels (n,) for one region of a heat map (S, S).

    Positives are spread over the more confident half of the region, inside its border where there is an inside.
    Negatives are spread around it, at least the border's width away from any foreground and from the map's edge.
    """
    sure = region & (heat >= np.median(heat[region]))
    core = sure & erode(region, border)
    positives = spread(core if core.any() else sure, heat, settings.positives)
    ys, xs = np.nonzero(region)
    margin = 2 * border + max(np.ptp(xs), np.ptp(ys)) // 2 + 1
    around = np.zeros_like(region)
    around[max(0, ys.min() - margin) : ys.max() + margin + 1, max(0, xs.min() - margin) : xs.max() + margin + 1] = True
    negatives = spread(around & erode(~foreground, border), -heat, settings.negatives)
    points = np.concatenate((positives, negatives))
    return points, np.repeat([1, 0], [len(positives), len(negatives)])


def spread(candidates: np.ndarray, value: np.ndarray, count: int) -> np.ndarray:
    """Choose up to `count` pixels of bool (H, W), (n, 2) xy: that of highest value, then each time the one that is
    farthest from those chosen (farthest-point sampling)."""
    y, x = np.nonzero(candidates)
    step = -(-len(y) // MOST_CANDIDATES) or 1
    places, worth = np.stack((x, y), 1)[::step], value[y, x][::step]
    chosen, distance = [], np.full(len(places), np.inf)
    for _ in range(min(count, len(places))):
        chosen.append(int(distance.argmax() if chosen else worth.argmax()))
        distance = np.minimum(distance, ((places - places[chosen[-1]]) ** 2).sum(1))
    return places[chosen]
