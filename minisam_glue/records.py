"""Results: one record per object, and the records of a picture or frame together."""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from .heatmap import confidence
from .identity import Notes
from .masks import as_bool, decode_rle, encode_rle, rle_runs
from .render.overlay import overlay
from .support.reading import fields, real, sequence, text, whole

LONGEST_LINE, LARGEST_RESULT = 1 << 26, 1 << 30  # bytes of a line of a result.jsonl, and of a result.json


@dataclass(eq=False)  # arrays have no one answer to ==
class Segment:
    """One object on one picture or frame. Ids count from 1; an object of a video keeps its id, label and colour."""

    id: int
    label: str  # the phrase that found it, verbatim; of a box, points or a mask the user's label, else "object"
    score: float  # 0 to 1: of the detection; from clicks in a picture SAM 2's predicted IoU, in a video 1
    box: tuple[float, float, float, float]  # xyxy in pixels: of the detection; on tracked frames, around the mask
    mask: np.ndarray  # bool (H, W); all False where the object can't be seen
    first: int = 0  # first and last frame on which it was marked, detected or seen so far
    last: int = 0

    def as_json(self) -> dict:
        """The record with its mask as COCO run lengths."""
        return {
            "id": int(self.id),
            "label": self.label,
            "score": round(float(self.score), 4),
            "box": [round(float(side), 2) for side in self.box],
            "area": int(as_bool(self.mask).sum()),
            "first": int(self.first),
            "last": int(self.last),
            "mask": encode_rle(self.mask),
        }

    @classmethod
    def from_json(cls, record: dict) -> "Segment":
        """Read what as_json wrote; score and box are rounded. ValueError if the mask is damaged."""
        return cls(
            record["id"],
            record["label"],
            record["score"],
            tuple(record["box"]),
            decode_rle(record["mask"]),
            record["first"],
            record["last"],
        )


def _run_lengths(value: object, where: str) -> None:
    rle_runs(value)


RECORD = fields(  # what a frame's JSON has at least, see Segmented.as_json
    frame=whole(),
    objects=sequence(
        fields(
            id=whole(1), label=text, score=real, box=sequence(real, 4), first=whole(), last=whole(), mask=_run_lengths
        )
    ),
)


@dataclass(eq=False)
class HeatMap:
    """A heat map of CLIPSeg for one phrase. logits (S, S) cover the whole picture, stretched."""

    phrase: str
    logits: Tensor
    threshold: float  # confidence above which pixels are of the object

    @property
    def best(self) -> float:
        """The highest confidence, 0 to 1."""
        return float(self.logits.max().sigmoid())

    def at(self, size: tuple[int, int]) -> np.ndarray:
        """Confidences 0 to 1, float32, of a picture of size (H, W): enlarged as logits."""
        return confidence(self.logits, size)


@dataclass(eq=False)
class Segmented:
    """A picture, or frame number `frame`, with its objects.

    best: the best phrase and its score, whether or not it passed; None where no detection ran.
    heat: the heat map of each phrase, if the objects were looked for by heat maps here.
    notes: what the rules of identity/ did here; None without them, and for pictures.
    found: of a video, the detection's box, xyxy in pixels, of each object that a sentence found first on this frame.
    """

    image: np.ndarray  # uint8 (H, W, 3), a copy of the picture
    objects: list[Segment] = field(default_factory=list)
    frame: int = 0
    best: tuple[str, float] | None = None
    heat: list[HeatMap] = field(default_factory=list)
    notes: Notes | None = None
    found: dict[int, tuple[float, ...]] = field(default_factory=dict)

    @property
    def masks(self) -> np.ndarray:
        """Masks of all objects, bool (objects, H, W)."""
        return np.array([o.mask for o in self.objects], bool).reshape(-1, *self.image.shape[:2])

    @property
    def boxes(self) -> np.ndarray:
        """Boxes of all objects, float (objects, 4), xyxy in pixels."""
        return np.array([o.box for o in self.objects], np.float32).reshape(-1, 4)

    @property
    def seen(self) -> list[Segment]:
        """Objects whose mask is not empty."""
        return [o for o in self.objects if o.mask.any()]

    def annotated(self) -> np.ndarray:
        """The picture with masks, outlines and labels: uint8 (H, W, 3)."""
        seen = self.seen
        return overlay(
            self.image,
            [o.mask for o in seen],
            labels=[o.label for o in seen],
            scores=[o.score for o in seen],
            ids=[o.id for o in seen],
        )

    def as_json(self) -> dict:
        """Size and visible objects, ready for json.dumps; and what was found first here, if anything was."""
        best = None if self.best is None else {"label": self.best[0], "score": round(self.best[1], 4)}
        record = {
            "frame": self.frame,
            "size": list(self.image.shape[:2]),
            "best": best,
            "objects": [o.as_json() for o in self.seen],
        }
        found = [{"id": number, "box": [round(float(side), 2) for side in box]} for number, box in self.found.items()]
        return record | ({"found": found} if found else {})
