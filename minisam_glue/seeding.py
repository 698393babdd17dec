"""A sentence, or an object's prompts, to seeds: where each object of a picture is.

A sentence goes through a detector (Grounding DINO), which answers with boxes, or through heat maps (CLIPSeg), which
become boxes, points and regions (heatmap.py). Both fill the same record, so that what follows, masks and tracks, does
not ask where seeds came from. Coordinates are pixels, boxes xyxy.
"""

from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
from torch import Tensor

from .grounding_dino.detector import Detector, pack_captions
from .heatmap import REFERENCE_SIDE, HeatInstance, HeatSettings, choose_threshold, confidence, find_instances, otsu
from .models import Models
from .prompts import AUTO, CLICKED, ObjectPrompt, Seeding, Sentence, Size, Thresholds, check_mask, split_phrases
from .records import HeatMap

Box = tuple[float, float, float, float]
Point = tuple[float, float]
MOST_AUTO = 0.5  # threshold of a detection's score that "auto" gives at most


@dataclass
class Seed:
    """Place of one object: a box, points, a mask of it, or several of them. score: 0 to 1; None if the user marked it.

    prompts_box: whether SAM 2 gets the box; else it only says where the object was found.
    proposed: whether several masks are proposed and one is chosen, see mask_proposals.py.
    region: where a heat map shows the object, or SAM 2 one of several in a region; bool (S, S), stretched over the
    whole picture. least_part: least area, as a share of the picture, of an object of a region that holds several; None
    for a region that stays one object. evidence: see HeatSettings.
    """

    label: str = CLICKED
    score: float | None = None
    box: Box | None = None
    points: list[Point] = field(default_factory=list)
    point_labels: list[int] = field(default_factory=list)  # of each point: 1 on the object, 0 on the background
    mask: np.ndarray | None = None  # bool (H, W)
    prompts_box: bool = True
    proposed: bool = False
    region: np.ndarray | None = None
    least_part: float | None = None
    evidence: float = 0.0

    def as_prompt(self) -> dict:
        """The arguments of VideoTracker.prompt for a seed that is not `proposed`."""
        if self.mask is not None:
            return {"mask": self.mask}
        prompt = {} if self.box is None else {"box": list(self.box)}
        return prompt | ({"points": self.points, "labels": self.point_labels} if self.points else {})


@dataclass
class Seeds:
    """The objects of one picture, best first. best: the best phrase and its score, whether or not it passed.

    heat: the heat map of each phrase, if they were found by heat maps.
    """

    objects: list[Seed]
    best: tuple[str, float] | None = None
    heat: list[HeatMap] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def boxes(self) -> list[Box]:
        """The boxes of seeds that all have one: (n, 4)."""
        return [seed.box for seed in self.objects]


# --- From sentences and prompts to seeds --------------------------------------------------------------------


def check_settings(models: Models, thresholds: Thresholds, seeding: Seeding) -> None:
    """TypeError unless models, thresholds and seeding are of their own classes."""
    given = {"models": (models, Models), "thresholds": (thresholds, Thresholds), "seeding": (seeding, Seeding)}
    for name, (value, kind) in given.items():
        if not isinstance(value, kind):
            makes = "minisam_glue.load_models()" if kind is Models else f"minisam_glue.{kind.__name__}(...)"
            raise TypeError(f"{name} is a {type(value).__name__}: {makes} makes them")


def find_seeds(
    models: Models,
    images: list[np.ndarray],
    sentence: Sentence,
    thresholds: Thresholds = Thresholds(),
    seeding: Seeding = Seeding(),
) -> list[Seeds]:
    """The seeds of each image, uint8 (H, W, 3), by the heat maps or the detector, whichever the models have.

    ValueError if they have neither, or for an empty or too long sentence.
    """
    find = _by_detector if models.heat_mapper is None else _by_heat_maps
    return find(models, images, sentence, thresholds, seeding)


def _detector_of(models: Models) -> Detector:
    """The detector. ValueError if the models have none."""
    if models.detector is None:
        raise ValueError("a sentence needs a detector: load the models with one")
    return models.detector


def _by_detector(
    models: Models, images: list[np.ndarray], sentence: Sentence, thresholds: Thresholds, seeding: Seeding
) -> list[Seeds]:
    """Detect the phrases, drop the boxes under the threshold, and give each the prompts that are asked for."""
    detector, auto = _detector_of(models), thresholds.box == AUTO
    least = (0.0, 0.0) if auto else (thresholds.box, thresholds.text)  # for "auto" all scores count
    with models.stage("detect"):
        found = detector.detect(
            images,
            [sentence] * len(images),
            *least,
            thresholds.nms,
            max_area=thresholds.max_area,
            batch_size=len(images),
        )
    results = []
    for image, one in zip(images, found):
        limit = auto_threshold(one.scores, thresholds.text) if auto else 0.0
        rows = zip(one.labels, one.scores.tolist(), map(tuple, one.boxes.tolist()))
        seeds = [Seed(label, score, box) for label, score, box in rows if score > limit]
        if seeding.prompts not in (None, ("box",)):
            seeds = [with_prompts(seed, image.shape[:2], seeding) for seed in seeds]
        results.append(Seeds(seeds, one.best))
    return results


def auto_threshold(scores: Tensor, least: float) -> float:
    """Otsu's threshold over the scores (n,) of boxes, at most one half, and at least `least`.

    scores: of the boxes of a detector that are left after suppression and the area limit.
    """
    return max(least, min(otsu(scores.numpy()), MOST_AUTO)) if len(scores) else least


def with_prompts(seed: Seed, size: Size, seeding: Seeding) -> Seed:
    """A detection with the prompts by which `seeding` shows it to SAM 2: its box, points of it, the filled box as a
    mask. The seed itself is changed."""
    seed.prompts_box, seed.proposed = "box" in seeding.prompts, True
    if "points" in seeding.prompts:
        seed.points, seed.point_labels = points_of_box(seed.box, size, seeding.heat)
    if "mask" in seeding.prompts:
        seed.mask = np.zeros(size, bool)
        left, top, right, bottom = (round(side) for side in seed.box)
        left, top = min(left, size[1] - 1), min(top, size[0] - 1)  # of a thin box at the edge a pixel stays
        seed.mask[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return seed


def points_of_box(box: Box, size: Size, settings: HeatSettings) -> tuple[list[Point], list[int]]:
    """Points for a box: its middle, on the object, and up to eight around the box, `border` outside it, on others."""
    left, top, right, bottom = box
    height, width = size
    away = settings.scaled_border(max(size))
    xs, ys = (left - away, (left + right) / 2, right + away), (top - away, (top + bottom) / 2, bottom + away)
    around = [
        (x, y) for i, j in product(range(3), repeat=2) if (i, j) != (1, 1)
        for x, y in [(xs[i], ys[j])] if 0 <= x < width and 0 <= y < height
    ]  # fmt: skip
    inside, outside = [(xs[1], ys[1])][: settings.positives], around[: settings.negatives]
    return inside + outside, [1] * len(inside) + [0] * len(outside)


def _by_heat_maps(
    models: Models, images: list[np.ndarray], sentence: Sentence, thresholds: Thresholds, seeding: Seeding
) -> list[Seeds]:
    """The instances of each phrase's heat map."""
    phrases = split_phrases(sentence)
    seeding = replace(seeding, heat=models.heat_settings(seeding.heat))
    with models.stage("detect"):
        logits = models.heat_mapper.heat_maps(images, phrases)  # (B, P, S, S)
    results = []
    for image, maps in zip(images, logits):
        seeds, heat = [], []
        for phrase, one in zip(phrases, maps):
            values = confidence(one)
            heat.append(HeatMap(phrase, one, choose_threshold(values, seeding.heat)))
            found = find_instances(values, heat[-1].threshold, image.shape[:2], seeding.heat)
            seeds += [seed_of_instance(phrase, instance, image.shape[:2], seeding) for instance in found]
        seeds = [seed for seed in seeds if box_share(seed.box, image.shape[:2]) <= thresholds.max_area]
        best = max(((one.phrase, one.best) for one in heat), key=lambda pair: pair[1])
        results.append(Seeds(sorted(seeds, key=lambda seed: -seed.score), best, heat))
    return results


def box_share(box: Box, size: Size) -> float:
    """The area of a box, as a share of the picture."""
    return (box[2] - box[0]) * (box[3] - box[1]) / (size[0] * size[1])


def seed_of_instance(phrase: str, instance: HeatInstance, size: Size, seeding: Seeding) -> Seed:
    """A region of a heat map as a seed, with the prompts that `seeding` names; by default box and points."""
    prompts = seeding.prompts or ("box", "points")
    seed = Seed(phrase, instance.score, instance.box, region=instance.region, proposed=True)
    seed.prompts_box = "box" in prompts
    seed.least_part = seeding.heat.min_area / REFERENCE_SIDE**2 if seeding.heat.split else None
    seed.evidence = seeding.heat.evidence or 0.0
    if "points" in prompts:
        seed.points, seed.point_labels = list(map(tuple, instance.points.tolist())), instance.labels.tolist()
    if "mask" in prompts:
        seed.mask = _enlarged(instance.region, size)
    return seed


def _enlarged(region: np.ndarray, size: Size) -> np.ndarray:
    """Bool (S, S) -> bool (H, W), by the nearest pixel; at least one pixel is True."""
    rows, columns = (np.arange(side) * len(region) // side for side in size)
    mask = region[rows[:, None], columns]
    if not mask.any():  # a region between the pixels of a smaller picture
        y, x = np.argwhere(region)[0] * size // len(region)
        mask[y, x] = True
    return mask


def check_sentence(models: Models, sentence: Sentence) -> None:
    """ValueError for a sentence that the models can't read: empty, too long, or of words that they do not know."""
    if models.heat_mapper is not None:
        models.heat_mapper.check_phrases(split_phrases(sentence))
        return
    detector = _detector_of(models)
    pack_captions(split_phrases(sentence), detector.tokenizer)


def seed_of_prompt(prompt: ObjectPrompt, size: Size) -> Seed:
    """A seed from an object's prompts. ValueError for what does not belong to a picture of (height, width)."""
    prompt.check_inside(size)
    return Seed(
        prompt.label or CLICKED,
        box=None if prompt.box is None else tuple(map(float, prompt.box)),
        points=[tuple(map(float, point[:2])) for point in prompt.points],
        point_labels=[int(point[2]) for point in prompt.points],
        mask=None if prompt.mask is None else check_mask(prompt.mask, size),
    )
