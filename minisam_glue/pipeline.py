"""The glue: a sentence to boxes (Grounding DINO), boxes to masks, masks to tracks (SAM 2).

    models = load_models()                                     # minisam_glue.models
    found = segment_image(models, image, "car. person.")       # found.objects, found.masks, found.annotated()
    for frame in segment_video(models, frames("clip.mp4"), "car."):
        print(frame.frame, [(o.id, o.label) for o in frame.seen])

Coordinates are pixels of the picture as given, boxes xyxy. Left out: files and command lines (segment.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .assignment import hungarian
from .grounding_dino import Detections
from .masks import box_around, mask_iou
from .models import Models
from .pixels import Picture, to_rgb
from .records import Segment, Segmented
from .sam2 import FrameResult, VideoTracker
from .sam2.layers import resize_antialiased
from .sam2.video_tracker import indexable

FORWARD, REVERSE, BOTH = DIRECTIONS = ("forward", "reverse", "both")
SAME = 0.5  # mask IoU from which a detection is of a track; and share of it inside tracks that makes it old
HOLE = 8  # pixels of a 256 x 256 mask up to which holes are filled, as officially; less in smaller masks
MOST_PROMPTED = 4  # frames of an object on which detection confirmed it that SAM 2 goes on to look at


@dataclass(frozen=True)
class Thresholds:
    """What counts as a detection: scores above both thresholds, overlap within a phrase at most `nms` (IoU), and an
    area of at most `max_area`, as a share of the picture."""

    box: float = 0.35
    text: float = 0.25
    nms: float = 0.7
    max_area: float = 1.0


@dataclass(frozen=True)
class Clicks:
    """Prompts in place of a text. Each box and each mask is an object; all points together are one, or correct the
    one box. points: (x, y, 1 for inside or 0 for outside); masks: bool (H, W)."""

    boxes: Sequence[Sequence[float]] = ()
    points: Sequence[Sequence[float]] = ()
    masks: Sequence[np.ndarray] = ()

    def __post_init__(self):
        if not (len(self.boxes) or len(self.points) or len(self.masks)):
            raise ValueError("no prompt: give a text, boxes, points or masks")
        if len(self.points) and len(self.boxes) > 1:
            raise ValueError(f"points with {len(self.boxes)} boxes: points correct one box, or are given without one")

    def prompts(self) -> list[dict]:
        """For each object the arguments of VideoTracker.prompt."""
        clicks = (
            {}
            if not len(self.points)
            else {"points": [p[:2] for p in self.points], "labels": [p[2] for p in self.points]}
        )
        boxed = [{"box": list(box)} | clicks for box in self.boxes] or ([clicks] if clicks else [])
        return boxed + [{"mask": mask} for mask in self.masks]


Prompt = str | list[str] | Clicks  # a text is one string, "car. dog.", or a list of phrases


def detect(models: Models, images: list[np.ndarray], text: str | list[str], thresholds: Thresholds) -> list[Detections]:
    """Boxes of the phrases on each image. ValueError if there is no detector, or for an empty or too long text."""
    if models.detector is None:
        raise ValueError("a text needs a detector: load the models with one")
    with models.stage("detect"):
        return models.detector.detect(
            images,
            [text] * len(images),
            thresholds.box,
            thresholds.text,
            thresholds.nms,
            max_area=thresholds.max_area,
            batch_size=len(images),
        )


# --- Pictures ----------------------------------------------------------------------------------------------


def segment_image(models: Models, image: Picture, prompt: Prompt, thresholds: Thresholds = Thresholds()) -> Segmented:
    """The objects of one picture, best first; of none, empty lists and arrays. ValueError for malformed prompts."""
    return segment_images(models, [image], prompt, thresholds)[0]


def segment_images(
    models: Models, images: list[Picture], prompt: Prompt, thresholds: Thresholds = Thresholds()
) -> list[Segmented]:
    """As segment_image for several pictures, of any sizes, that go through the models together."""
    arrays = [to_rgb(image) for image in images]
    if isinstance(prompt, Clicks):
        return [_from_clicks(models, image, prompt) for image in arrays]
    found = detect(models, arrays, prompt, thresholds)
    hits = [i for i, detections in enumerate(found) if len(detections)]
    if hits:  # a picture without a detection needs no masks
        with models.stage("encode"):
            models.predictor.set_images([arrays[i] for i in hits])
    results = []
    for i, (image, detections) in enumerate(zip(arrays, found)):
        objects = []
        if i in hits:
            with models.stage("masks"):
                masks = models.predictor.predict(boxes=detections.boxes, image=hits.index(i)).masks[:, 0].cpu().numpy()
            objects = [
                Segment(number, label, float(score), tuple(box), mask)
                for number, (label, score, box, mask) in enumerate(
                    zip(detections.labels, detections.scores, detections.boxes.tolist(), masks), 1
                )
            ]
        results.append(Segmented(image, objects, best=detections.best))
    return results


def _from_clicks(models: Models, image: np.ndarray, clicks: Clicks) -> Segmented:
    """Objects of boxes, points and masks. A mask is refined: it goes in as SAM 2's mask prompt with its box."""
    with models.stage("encode"):
        models.predictor.set_image(image)
    objects = []
    for number, prompt in enumerate(clicks.prompts(), 1):
        with models.stage("masks"):
            if "mask" in prompt:
                mask = _checked_mask(prompt["mask"], image)
                found = models.predictor.predict(boxes=[box_around(mask)], mask=_mask_logits(mask, models))
            else:
                found = models.predictor.predict(
                    boxes=prompt.get("box"),
                    points=prompt.get("points"),
                    labels=prompt.get("labels"),
                    multimask=_ambiguous(prompt),
                )
            best = int(found.scores[0].argmax())
            mask = found.masks[0, best].cpu().numpy()
        box = prompt.get("box") or box_around(mask)
        objects.append(Segment(number, "object", float(found.scores[0, best]), tuple(map(float, box)), mask))
    return Segmented(image, objects)


def _ambiguous(prompt: dict) -> bool:
    """One click may mean a part or the whole: SAM 2 then proposes three masks."""
    return "box" not in prompt and len(prompt["points"]) == 1


def _checked_mask(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask, bool)
    if mask.shape != image.shape[:2]:
        raise ValueError(f"the mask is {mask.shape} but the picture {image.shape[:2]} (height, width)")
    if not mask.any():
        raise ValueError("the mask is empty: it must show the object")
    return mask


def _mask_logits(mask: np.ndarray, models: Models) -> Tensor:
    share = resize_antialiased(torch.from_numpy(mask)[None, None].float(), models.sam.config.image_size // 4)
    return 20 * share[0] - 10


# --- Videos ------------------------------------------------------------------------------------------------


def segment_video(
    models: Models,
    frames: Iterable[Picture],
    prompt: Prompt,
    thresholds: Thresholds = Thresholds(),
    seed_frame: int | None = None,
    redetect: int = 0,
    direction: str = FORWARD,
) -> Iterator[Segmented]:
    """Each frame with the objects on it, as it is read: stop whenever you like. See Tracking."""
    return Tracking(models, prompt, thresholds, seed_frame, redetect, direction).run(frames)


class Tracking:
    """Objects through one video: seeded on a frame, tracked from there, detected again from time to time.

    prompt: a text, or Clicks for the seed frame. seed_frame: where objects are marked; by default the first frame in
    the direction of time, for a text the first on which it finds anything. redetect: look for the text again every so
    many frames (0: never); what is new becomes an object, what was lost gets its id back. direction: forward, reverse
    (needs frames that can be read backward), or both: forward, then from the seed frame back to the first, so that the
    frames before it come twice, at first without objects.
    What is held does not grow with the number of frames; state() and restore() let another process go on.
    """

    def __init__(
        self,
        models: Models,
        prompt: Prompt,
        thresholds: Thresholds = Thresholds(),
        seed_frame: int | None = None,
        redetect: int = 0,
        direction: str = FORWARD,
    ):
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r}: choose one of {', '.join(DIRECTIONS)}")
        if redetect and isinstance(prompt, Clicks):
            raise ValueError("redetect looks for a text again: boxes, points and masks say where, not what")
        if redetect < 0 or (seed_frame or 0) < 0:
            raise ValueError(f"redetect {redetect} and seed_frame {seed_frame} must not be negative")
        self.models, self.prompt, self.thresholds = models, prompt, thresholds
        self.seed_frame, self.redetect, self.direction = seed_frame, redetect, direction
        holes = HOLE * (models.sam.config.image_size // 4) ** 2 // 256**2
        self.tracker = VideoTracker(models.sam, max_hole=holes, max_prompted=MOST_PROMPTED)
        self.known: dict[int, Segment] = {}  # the latest record of each object, without its mask
        self.reverse = direction == REVERSE
        self.next: int | None = None if self.reverse else 0  # the frame to come; None: the last one of the video
        self.seeded: dict | None = None  # the tracker right after seeding, from where the way back begins
        self.seeded_at: int | None = None

    def run(self, frames: Iterable[Picture]) -> Iterator[Segmented]:
        """Go on to the end. frames: media.frames(...), a list or array, or any iterator if time only runs forward.

        ValueError if the frames can't be read backward where that is needed, or end before the seed frame.
        """
        if self.direction != FORWARD and not getattr(frames, "seekable", indexable(frames)):
            raise ValueError(
                f"direction {self.direction} needs frames that can be read backward: a list, an array or "
                "a file, no camera or pipe"
            )
        yield from self._pass(frames)
        if self.seed_frame is not None and self.seeded is None:
            raise ValueError(f"seed frame {self.seed_frame}: the video has no such frame, it ends before")
        if self.direction == BOTH and not self.reverse and self.seeded_at:
            self.reverse, self.next = True, self.seeded_at - 1
            self.tracker.restore(self.seeded)
            yield from self._pass(frames)

    def _pass(self, frames: Iterable[Picture]) -> Iterator[Segmented]:
        with self.models.stage("read"):
            pairs = iter(numbered(frames, self.next, self.reverse))
        while True:
            with self.models.stage("read"):
                index, image = next(pairs, (None, None))
            if index is None:
                return
            result = self._look(index, to_rgb(image))
            self.next = index - 1 if self.reverse else index + 1
            yield result
            if self.next < 0:
                return

    def _look(self, index: int, image: np.ndarray) -> Segmented:
        """One frame: seed, or track and from time to time detect."""
        if self.seeded is None:
            return self._try_to_seed(index, image)
        with self.models.stage("encode"):
            self.tracker.seek(index, image)
        found = None
        if self.redetect and (index - self.seeded_at) % self.redetect == 0:
            found = detect(self.models, [image], self.prompt, self.thresholds)[0]
        with self.models.stage("track"):
            result = self.tracker.track(self.reverse)
            if found is not None:
                result = self._reconcile(found, result)
            return self._record(index, image, result, None if found is None else found.best)

    def _try_to_seed(self, index: int, image: np.ndarray) -> Segmented:
        if self.seed_frame not in (None, index):
            return Segmented(image, frame=index)
        found = None
        if isinstance(self.prompt, Clicks):
            prompts = [("object", 1.0, prompt) for prompt in self.prompt.prompts()]
        else:
            found = detect(self.models, [image], self.prompt, self.thresholds)[0]
            prompts = [
                (label, float(score), {"box": box})
                for label, score, box in zip(found.labels, found.scores, found.boxes.tolist())
            ]
            if not len(found) and self.seed_frame is None:
                return Segmented(image, frame=index, best=found.best)
        with self.models.stage("encode"):
            self.tracker.seek(index, image)
        with self.models.stage("track"):
            for label, score, prompt in prompts:
                if "mask" in prompt:
                    _checked_mask(prompt["mask"], image)
                self._add(index, label, score, prompt)
            result = self.tracker.track(self.reverse)
            self.seeded, self.seeded_at = self.tracker.state(), index
            return self._record(index, image, result, None if found is None else found.best)

    def _add(self, index: int, label: str, score: float, prompt: dict) -> None:
        """A new object; its number is the next one that was never used."""
        number = 1 + max(self.known, default=0)
        self.tracker.prompt(number, **prompt)
        self.known[number] = Segment(number, label, score, tuple(prompt.get("box", ())), None, index, index)

    def _reconcile(self, found: Detections, result: FrameResult) -> FrameResult:
        """Detections and tracks on one frame: confirm, bring back, add. The frame is not encoded again."""
        looked = self.tracker.look_at_boxes(found.boxes)
        seen, tracked = looked.logits > 0, result.low_res > 0
        alike = self._same_label(found, result)
        of_track = assign(mask_iou(seen, tracked) * alike, SAME)
        for row, column in of_track.items():
            self.known[result.ids[column]].score = float(found.scores[row])
        owned = torch.stack([tracked[alike[row]].any(0) for row in range(len(seen))]) if len(seen) else seen
        inside = (seen & owned).sum((1, 2)) / seen.sum((1, 2)).clamp(min=1)
        new = [row for row in range(len(seen)) if row not in of_track and inside[row] <= SAME and seen[row].any()]
        lost = [column for column in range(len(result.ids)) if not tracked[column].any()]
        likeness = (self._likeness(looked.pointer, new, result.ids, lost) + 2) * alike[new][:, lost]
        returns = assign(likeness, 0.5)  # cosines + 2, at least 1; 0 where the label is another
        for i, row in enumerate(new):
            label, score, box = found.labels[row], float(found.scores[row]), found.boxes[row].tolist()
            if i in returns:
                number = result.ids[lost[returns[i]]]
                self.tracker.prompt(number, mask=_enlarged(looked.logits[row], self.tracker.size))
                self.known[number].score = score
            else:
                self._add(result.frame, label, score, {"box": box})
        return self.tracker.result()

    def _same_label(self, found: Detections, result: FrameResult) -> Tensor:
        """Bool (detections, objects) on the tracker's device."""
        table = [[label == self.known[number].label for number in result.ids] for label in found.labels]
        return torch.tensor(table, dtype=torch.bool, device=self.tracker.model.device).view(len(found), len(result.ids))

    def _likeness(self, pointers: Tensor, new: list[int], ids: list[int], lost: list[int]) -> Tensor:
        """Cosine between the object pointers of detections and those that lost objects had when they were prompted."""
        banks = [self.tracker.objects[ids[column]].bank.prompted for column in lost]
        old = [bank[max(bank)].pointer for bank in banks]
        if not new or not old:
            return pointers.new_zeros(len(new), len(old))
        return F.normalize(pointers[new].float(), dim=1) @ F.normalize(torch.stack(old).float(), dim=1).T

    def _record(self, index: int, image: np.ndarray, result: FrameResult, best: tuple[str, float] | None) -> Segmented:
        objects = []
        for number, mask in zip(result.ids, result.masks().cpu().numpy()):
            known = self.known[number]
            if mask.any():
                known.first, known.last = min(known.first, index), max(known.last, index)
            objects.append(Segment(number, known.label, known.score, box_around(mask), mask, known.first, known.last))
        return Segmented(image, objects, index, best)

    def state(self) -> dict:
        """All that the frames to come depend on; torch.save takes it, and torch.load with weights_only reads it."""
        known = [
            {"id": o.id, "label": o.label, "score": o.score, "first": o.first, "last": o.last}
            for o in self.known.values()
        ]
        return {
            "tracker": self.tracker.state(),
            "known": known,
            "reverse": self.reverse,
            "next": self.next,
            "seeded": self.seeded,
            "seeded_at": self.seeded_at,
        }

    def restore(self, state: dict) -> None:
        """Go on from a state: the masks are those that an uninterrupted run gives."""
        self.tracker.restore(state["tracker"])
        self.known = {
            o["id"]: Segment(o["id"], o["label"], o["score"], (), None, o["first"], o["last"]) for o in state["known"]
        }
        self.reverse, self.next = state["reverse"], state["next"]
        self.seeded, self.seeded_at = state["seeded"], state["seeded_at"]


def numbered(frames: Iterable[Picture], start: int | None, reverse: bool) -> Iterator[tuple[int, Picture]]:
    """(index, frame) from `start`, or in reverse from it (None: the last) to frame 0."""
    if reverse and hasattr(frames, "numbered_backward"):  # media.Frames
        return frames.numbered_backward(start)
    if reverse:
        last = len(frames) - 1 if start is None else start
        return ((index, frames[index]) for index in range(last, -1, -1))
    if hasattr(frames, "forward"):
        return enumerate(frames.forward(start), start)
    return islice(enumerate(frames), start, None)


def assign(gain: Tensor, least: float) -> dict[int, int]:
    """Rows to columns of gain (n, m) so that its sum is greatest; pairs of less than `least` are left out."""
    cost = -gain.double().cpu().numpy()
    if cost.shape[0] > cost.shape[1]:
        pairs = ((row, column) for column, row in enumerate(hungarian(cost.T)))
    else:
        pairs = enumerate(hungarian(cost))
    return {row: column for row, column in pairs if -cost[row, column] >= least}


def _enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (s, s) -> mask (H, W) of zeros and ones."""
    full = F.interpolate(logits[None, None].float(), size, mode="bilinear", align_corners=False)
    return (full[0, 0] > 0).float()
