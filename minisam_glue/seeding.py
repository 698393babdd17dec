"""A sentence -> seeds: for each object of a picture a box, points or a mask to segment it by.

Text goes through a detector (Grounding DINO), which answers with boxes. Whatever finds objects fills the same record,
so that what follows, masks and tracks, does not ask where seeds came from. Coordinates are pixels, boxes xyxy.
"""

from dataclasses import dataclass, field

import numpy as np

from .grounding_dino.detector import pack_captions
from .models import Models
from .prompts import Clicks, Prompt, Sentence, Size, Thresholds, check_mask, split_phrases

Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclass
class Seed:
    """Where one object is: a box, points, both, or a mask of it. score: 0 to 1; None if the user marked it."""

    label: str = "object"
    score: float | None = None
    box: Box | None = None
    points: list[Point] = field(default_factory=list)
    point_labels: list[int] = field(default_factory=list)  # of each point: 1 on the object, 0 on the background
    mask: np.ndarray | None = None  # bool (H, W)

    def as_prompt(self) -> dict:
        """The arguments of VideoTracker.prompt."""
        if self.mask is not None:
            return {"mask": self.mask}
        prompt = {} if self.box is None else {"box": list(self.box)}
        return prompt | ({"points": self.points, "labels": self.point_labels} if self.points else {})


@dataclass
class Seeds:
    """The objects of one picture, best first. best: the best phrase and its score, whether or not it passed."""

    objects: list[Seed]
    best: tuple[str, float] | None = None

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def boxes(self) -> list[Box]:
        """The boxes of seeds that all have one: (n, 4)."""
        return [seed.box for seed in self.objects]


def find_seeds(models: Models, images: list[np.ndarray], sentence: Sentence, thresholds: Thresholds) -> list[Seeds]:
    """The seeds of each image, uint8 (H, W, 3), by the detector.

    ValueError if there is no detector, or for an empty or too long sentence.
    """
    if models.detector is None:
        raise ValueError("a sentence needs a detector: load the models with one")
    with models.stage("detect"):
        found = models.detector.detect(
            images,
            [sentence] * len(images),
            thresholds.box,
            thresholds.text,
            thresholds.nms,
            max_area=thresholds.max_area,
            batch_size=len(images),
        )
    return [
        Seeds([Seed(*seed) for seed in zip(one.labels, one.scores.tolist(), map(tuple, one.boxes.tolist()))], one.best)
        for one in found
    ]


def check_sentence(models: Models, sentence: Sentence) -> None:
    """ValueError for a sentence that the detector can't read: empty, too long, or of words that it does not know."""
    if models.detector is None:
        raise ValueError("a sentence needs a detector: load the models with one")
    pack_captions(split_phrases(sentence), models.detector.tokenizer)


def seeds_of_clicks(clicks: Clicks, size: Size) -> Seeds:
    """Boxes, points and masks as seeds. ValueError for what does not belong to a picture of (height, width)."""
    clicks.check_inside(size)
    points = [tuple(map(float, point[:2])) for point in clicks.points]
    labels = [int(point[2]) for point in clicks.points]
    boxed = [Seed(box=tuple(map(float, box)), points=points, point_labels=labels) for box in clicks.boxes]
    if points and not boxed:
        boxed = [Seed(points=points, point_labels=labels)]
    return Seeds(boxed + [Seed(mask=check_mask(mask, size)) for mask in clicks.masks])


def seeds_of(models: Models, image: np.ndarray, prompt: Prompt, thresholds: Thresholds) -> Seeds:
    """The seeds of one image, uint8 (H, W, 3), for any prompt. ValueError for a malformed one."""
    if isinstance(prompt, Clicks):
        return seeds_of_clicks(prompt, image.shape[:2])
    return find_seeds(models, [image], prompt, thresholds)[0]
