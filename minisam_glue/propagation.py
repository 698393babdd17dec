"""Masks from frame to frame: objects are seeded on one frame, tracked from there, and detected again now and then.

SAM 2's memory or optical flow carries the masks (propagators.py); which detection is which object is decided in
redetection.py.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from .mask_proposals import choose_masks, first_of_repeats, segment_seed, split_seeds
from .masks import box_around, large_parts, mask_box
from .models import Models
from .pixels import Levels, Picture, is_picture, join_levels, levels_of, own_rgb
from .prompts import Clicks, ObjectPrompt, Prompt, Seeding, Thresholds, own_object, own_prompt, split_phrases
from .propagators import FLOW, MEMORY, PROPAGATORS
from .records import Segment, Segmented
from .redetection import Redetection
from .sam2 import EncodedImages, FrameResult
from .sam2.video_tracker import indexable
from .seeding import Seed, Seeds, check_settings, find_seeds, seed_of_prompt
from .support.devices import with_cpu_as_default
from .support.reading import fields, flag, optional, real, sequence, tensor, text, whole

FORWARD, REVERSE, BOTH = DIRECTIONS = ("forward", "reverse", "both")
SPECK = 0.01  # share of a mask's largest part below which another part is none of the object's


class Tracking:
    """Objects through one video.

    prompt: a sentence; or Clicks, whose objects join on their frames, and are corrected on others that they name.
    seed_frame: frame on which objects are marked that name none. Default: the first frame in the direction of time;
    for a sentence the first on which anything is found.
    redetect: detect again every so many frames, 0 for never. New objects join, lost ones get their id back.
    direction: forward; reverse (needs frames that can be read backward); or both: forward first, then from the last
    frame on which objects were marked back to frame 0. Frames before it are yielded twice, the second time with the
    objects that were marked later.
    propagate: memory, SAM 2's, or flow, optical flow that SAM 2 refines: see propagators.py. With flow and a sentence
    lost objects are looked for again now and then, also without redetect.
    refine_every: with flow SAM 2 refines masks on each k-th frame alone; more is faster and less exact.
    identity: keep look-alikes apart where they meet, and look for lost objects: see identity/. Flow ignores it.
    Memory and time do not grow with the number of frames, but with that of the objects: each that was ever seen is
    kept, so with redetect they grow as new ones come. state() and restore() let another process go on. One Tracking
    belongs to one thread; the models may serve several.
    ValueError for arguments that make no sense together.
    """

    def __init__(
        self,
        models: Models,
        prompt: Prompt,
        thresholds: Thresholds = Thresholds(),
        seed_frame: int | None = None,
        redetect: int = 0,
        direction: str = FORWARD,
        seeding: Seeding = Seeding(),
        propagate: str = MEMORY,
        refine_every: int = 1,
        identity: bool = True,
    ):
        check_settings(models, thresholds, seeding)
        if not isinstance(identity, bool):
            raise ValueError(f"identity is {identity!r}: give True or False")
        if propagate not in PROPAGATORS:
            raise ValueError(f"propagate {propagate!r}: choose one of {', '.join(PROPAGATORS)}")
        if refine_every != 1 and propagate != FLOW:
            raise ValueError(f"refine_every {refine_every!r} is for propagate flow: SAM 2's memory needs every frame")
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r}: choose one of {', '.join(DIRECTIONS)}")
        if redetect and isinstance(prompt, Clicks):
            raise ValueError(
                "redetect needs a sentence: boxes, points and masks say where an object is, not what it is"
            )
        check_count("redetect", redetect)
        check_count("seed_frame", 0 if seed_frame is None else seed_frame)
        if not isinstance(prompt, Clicks):
            split_phrases(prompt)
        prompt = own_prompt(prompt)
        self.models, self.prompt, self.thresholds, self.seeding = models, prompt, thresholds, seeding
        self.seed_frame, self.redetect, self.direction = seed_frame, redetect, direction
        settings = {"refine_every": refine_every} if propagate == FLOW else {"identity": identity}
        self.tracker = PROPAGATORS[propagate](models.sam, **settings)
        self.known: dict[int, Segment] = {}  # the latest record of each object, without its mask
        self.detections = Redetection(self.tracker, self.known)
        self.levels: Levels | None = None  # of the frames so far
        self.reverse = direction == REVERSE
        self.next: int | None = None if self.reverse else 0  # the frame to come; None: the last one of the video
        self.seeded_at: int | None = None  # the frame of the first objects
        self.marks = prompt.prompts() if isinstance(prompt, Clicks) else []
        last_first = sorted(self.marks, key=self._frame_of, reverse=not self.reverse)
        for first in {mark.id: mark for mark in last_first}.values():
            try:
                first.check_new()
            except ValueError as error:
                raise ValueError(f"object {first.id}, on the first of its frames: {error}") from error
        self.number_of: Callable[[int, Seed], int] = self.next_number  # of an object that the sentence finds
        self.corrections: list[ObjectPrompt] = []  # of this run, and of earlier ones that it repeats
        self.repeated: list[ObjectPrompt] = []
        self.held: list[dict] = []  # objects as they joined, with the frame: for the way back
        self.found: dict[int, tuple[float, ...]] = {}  # boxes of the detections that joined on the present frame
        self.shown: list[tuple[str, np.ndarray]] = []  # labels and masks of what heat maps have shown on it

    # --- Frames in order ---

    def run(self, frames: Iterable[Picture]) -> Iterator[Segmented]:
        """Go on to the end. frames: media.frames(...), a list or array, or any iterator if time only runs forward.

        ValueError if the frames can't be read backward where that is needed, or end before the seed frame.
        """
        check_frames(frames)
        if self.direction != FORWARD and not getattr(frames, "seekable", indexable(frames)):
            raise ValueError(
                f"direction {self.direction} needs frames that can be read backward: a list, an array or "
                "a file, no camera or pipe"
            )
        self._check_known(frames)
        yield from self._pass(frames)
        self._check_reached()
        if self.direction == BOTH and not self.reverse and self.turn:
            self.reverse, self.next = True, self.turn - 1
            self.tracker.reset()
            yield from self._pass(frames)

    def correct(
        self,
        corrections: Sequence[ObjectPrompt],
        repeated: Sequence[ObjectPrompt] = (),
        direction: str = FORWARD,
        number_of: Callable[[int, Seed], int] | None = None,
    ) -> None:
        """Prompt, add or remove objects on their frames in the run to come, from the start or from a restored state.

        corrections: each with its id and frame. An object that is tracked gets its prompt as a correction of the mask
        that it has there; `remove` ends it; any other joins. repeated: corrections of earlier runs, which are made
        again. direction: forward; or both: the corrected objects are then tracked back from there to the first frame,
        and these frames come a second time with them alone. number_of: the number of an object that the sentence finds,
        from the frame and its seed; by default the next one that neither an object nor a correction has.
        ValueError for a direction that does not exist, or of the tracking or the corrections that runs backward at
        first, and for a correction without id or frame.
        """
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r}: choose {FORWARD} or {BOTH}")
        if REVERSE in (direction, self.direction) or self.reverse:
            raise ValueError(f"direction {REVERSE}: corrections need a tracking that runs forward")
        corrections, repeated = ([with_place(prompt) for prompt in given] for given in (corrections, repeated))
        self.corrections, self.repeated, self.direction, self.held = corrections, repeated, direction, []
        self.number_of = number_of or self.next_number

    def _check_known(self, frames: Iterable[Picture]) -> None:
        """ValueError, before the first frame, for one that the video is known to lack."""
        if self.seed_frame is not None and self.seeded_at is None and lacks(frames, self.seed_frame):
            raise no_frame(f"seed_frame {self.seed_frame}")
        for mark in [*self._missed(), *self.corrections]:
            if mark.at is not None and lacks(frames, mark.at):
                raise no_frame(f"object {mark.id}: at={mark.at}")

    def _check_reached(self) -> None:
        """ValueError, after the first pass, for a frame that did not come."""
        if self.next == 0:
            raise ValueError("frames is empty: give at least one")
        if self.seed_frame is not None and self.seeded_at is None:
            raise no_frame(f"seed_frame {self.seed_frame}")
        missed = self._missed()
        if self.next is not None and not self.reverse:
            later = [mark for mark in self.marks if mark.at is not None]
            missed += [mark for mark in (*later, *self.corrections) if mark.at >= self.next]
        if missed:
            raise no_frame(f"object {missed[0].id}: at={missed[0].at}")

    def _missed(self) -> list[ObjectPrompt]:
        """The marked objects that have not come so far, without those that are removed."""
        removed = {prompt.id for prompt in self.prompts if prompt.remove}
        return [mark for mark in self.marks if mark.id not in self.known.keys() | removed]

    @property
    def turn(self) -> int:
        """The frame from which the way back begins; 0 if there is none, or as long as no object is known."""
        given = self.corrections or self.marks
        if not given:
            return self.seeded_at or 0
        latest_first = sorted(given, key=self._frame_of, reverse=True)
        joins = {prompt.id: self._frame_of(prompt) for prompt in latest_first if not prompt.remove}  # its first frame
        return max(joins.values(), default=0)

    def _frame_of(self, mark: ObjectPrompt) -> int:
        """The frame that an object is marked on; without one the seed frame, or the first one of the video."""
        return next((int(at) for at in (mark.at, self.seed_frame) if at is not None), 0)

    def _pass(self, frames: Iterable[Picture]) -> Iterator[Segmented]:
        """Yield all frames that are left in the present direction."""
        with self.models.stage("read"):
            pairs = iter(numbered(frames, self.next, self.reverse))
        while True:
            with self.models.stage("read"):
                index, image = next(pairs, (None, None))
            if index is None:
                return
            if self.next is None and self.seed_frame is None:  # in reverse: the number of the last frame is known now
                self.marks = [replace(mark, at=index if mark.at is None else mark.at) for mark in self.marks]
            self.levels = join_levels([self.levels, levels_of(image)])  # so that frames of 16 bits do not flicker
            result = self._step(index, own_rgb(image, self.levels))
            self.next = index - 1 if self.reverse else index + 1
            yield result
            if self.next < 0:
                return

    @with_cpu_as_default
    def _step(self, index: int, image: np.ndarray) -> Segmented:
        """One frame: objects are tracked; detections and marks of this frame join them, or correct them."""
        if self.reverse:
            self._take_up(index)
        marks, found, self.found, self.shown = self._marks_at(index), self._detect(index, image), {}, []
        if not self.tracker.objects and not marks and not found:
            return self._without_objects(index, image, found)
        if marks and isinstance(self.prompt, Clicks):
            self.prompt.check_inside(image.shape[:2])
        before, masks = set(self.tracker.objects), self.detections.masks() if self.redetect else {}
        with self.models.stage("encode"):
            self.tracker.seek(index, image)
        with self.models.stage("track"):
            result = self.tracker.track(self.reverse) if before else self.tracker.result()
            result = self.detections.refuse_strangers(masks, result, image)
            if found is not None and found.heat:
                found = self._with_masks(found)
            if found is not None and (self.seeded_at is not None or before):  # before: by corrections alone
                joins = self.redetect or self.seeded_at is None
                self.detections.reconcile(found, result, image, self._add if joins else None)
            elif found is not None:
                for seed in self.detections.distinct(found):
                    self._add(index, seed)
            elif self.redetect and before:
                self.detections.separate(image)
            for mark in marks:
                self._mark(index, mark)
            if marks and not isinstance(self.prompt, Clicks):
                self.detections.prompted([m.id for m in marks if m.id in self.tracker.objects], image)
            result = self.tracker.result() if before else self.tracker.track(self.reverse)
            if found is not None and self.seeded_at is None:
                self.detections.learn_appearances(self.tracker.objects.keys(), result, image)
            self._joined(index, self.tracker.objects.keys() - before, found)
            return self._record(index, image, result, found)

    def _detect(self, index: int, image: np.ndarray) -> Seeds | None:
        """The objects that the sentence finds on this frame, if it is asked here."""
        if isinstance(self.prompt, Clicks) or (self.corrections and self.reverse):
            return None
        if self.seeded_at is None:
            asked = self.seed_frame in (None, index)
        else:  # it is time, or the propagator has lost an object
            due = self.redetect and (index - self.seeded_at) % self.redetect == 0
            asked = due or self.tracker.wants_detection(index)
        if not asked:
            return None
        return find_seeds(self.models, [image], self.prompt, self.thresholds, self.seeding)[0]

    def _marks_at(self, index: int) -> list[ObjectPrompt]:
        """The objects that are marked or corrected on this frame.

        One that was removed before it came does not come, and none is marked again on the way back.
        """
        gone = {prompt.id for prompt in self.prompts if prompt.remove and prompt.at <= index}
        gone |= self.known.keys() if self.reverse and self.direction == BOTH else set()
        if self.direction == REVERSE and self.seed_frame is None:  # those without a frame were on the last one
            gone |= {mark.id for mark in self.marks if mark.at is None}
        marks = [mark for mark in self.marks if self._frame_of(mark) == index and mark.id not in gone]
        return marks + [prompt for prompt in self.prompts if prompt.at == index and not self.reverse]

    @property
    def prompts(self) -> list[ObjectPrompt]:
        """All corrections, of this run and of earlier ones."""
        return [*self.repeated, *self.corrections]

    def _without_objects(self, index: int, image: np.ndarray, found: Seeds | None) -> Segmented:
        """A frame before the first objects. A seed frame on which nothing is found counts as seeded."""
        if found is None:
            return Segmented(image, frame=index)
        if self.seed_frame is not None and self.seeded_at is None:
            self.seeded_at = index
        return Segmented(image, frame=index, best=found.best, heat=found.heat)

    def _joined(self, index: int, new: Collection[int], found: Seeds | None) -> None:
        """Note who joined on this frame: the first ones are the seeds; all are met again on the way back."""
        if self.seeded_at is None and (isinstance(self.prompt, Clicks) or found or self.seed_frame == index):
            self.seeded_at = index
        if self.corrections:
            held = {number for held in self.held for number in (o["id"] for o in held["tracker"]["objects"])}
            new = {c.id for c in self.corrections if c.at == index and not c.remove} - held
        if new and self.direction == BOTH and not self.reverse:
            self.held.append({"at": index, "tracker": self.tracker.state_of(new)})

    def _take_up(self, index: int) -> None:
        """On the way back, start tracking the objects that joined on frame index + 1.

        With a sentence, objects found later join at once, as lost ones that may return.
        """
        in_turn = bool(self.marks or self.corrections)
        due = [held for held in self.held if not in_turn or held["at"] == index + 1]
        self.held = [held for held in self.held if in_turn and held["at"] != index + 1]
        if due and not self.tracker.objects and due[0]["at"] == index + 1:
            self.tracker.restore(due.pop(0)["tracker"])
        for held in due:
            self.tracker.adopt(held["tracker"])

    def counted(self, total: int | None) -> tuple[int, int | None]:
        """Frames that are done, and in all, of a video of `total` frames (None: unknown).

        Frames that come twice count twice.
        """
        if self.direction == FORWARD or total is None:
            return self.next or 0, total
        if self.direction == REVERSE:
            return (0 if self.next is None else total - 1 - self.next), total
        done = total + self.turn - 1 - self.next if self.reverse else self.next
        return done, total + self.turn

    def _add(self, index: int, seed: Seed) -> None:
        """Start a new object from a seed, unless a heat map has shown it on this frame."""
        shown = self._shown(seed)
        if seed.region is not None and self._repeats(seed.label, shown["mask"]):
            return
        number = self.number_of(index, seed)
        self.tracker.prompt(number, **shown)
        self.found |= {number: seed.box} if seed.box else {}
        self.known[number] = Segment(number, seed.label, seed.score, seed.box or (), None, index, index)

    def _repeats(self, label: str, mask: np.ndarray) -> bool:
        """Whether a heat map has shown this object on this frame before. If not, it is noted."""
        labels, masks = zip(*self.shown, (label, mask))
        if len(first_of_repeats(labels, masks)) <= len(self.shown):
            return True
        self.shown.append((label, mask))
        return False

    def next_number(self, index: int, seed: Seed) -> int:
        """The number after all that objects and corrections have."""
        return 1 + max((*self.known, *(prompt.id for prompt in self.prompts)), default=0)

    def _mark(self, index: int, prompt: ObjectPrompt) -> None:
        """Show the tracker a new or known object by its box, points or mask, or let it go."""
        if prompt.remove:
            if prompt.id in self.tracker.objects:
                self.tracker.remove(prompt.id)
            return
        if prompt.id not in self.tracker.objects:
            try:
                prompt.check_new()
            except ValueError as error:
                raise ValueError(f"object {prompt.id} is not tracked on frame {index}: {error}") from error
        seed = seed_of_prompt(prompt, self.tracker.size)
        self.tracker.prompt(prompt.id, **seed.as_prompt())
        if prompt.id not in self.known:
            self.known[prompt.id] = Segment(prompt.id, seed.label, 1.0, seed.box or (), None, index, index)

    def _shown(self, seed: Seed) -> dict:
        """A seed as the arguments of VideoTracker.prompt; of masks that are proposed the one that is chosen."""
        if not seed.proposed:
            return seed.as_prompt()
        return {"mask": segment_seed(self.models, seed, self._encoded())[0]}

    def _with_masks(self, found: Seeds) -> Seeds:
        """Seeds of heat maps on the current frame, one for each object of a region, and none without evidence."""
        found = split_seeds(self.models, found, self._encoded())
        if not any(seed.evidence for seed in found.objects):
            return found  # masks are made for new objects alone
        chosen = choose_masks(self.models, found, self._encoded())
        return replace(found, objects=[replace(seed, mask=mask, proposed=False) for seed, mask in chosen])

    def _encoded(self) -> EncodedImages:
        """The current frame, as SAM 2 has it."""
        return EncodedImages(self.tracker.current(), [self.tracker.size])

    # --- Records ---

    def _record(self, index: int, image: np.ndarray, result: FrameResult, found: Seeds | None) -> Segmented:
        """The frame with the objects on it; their first and last frames are brought up to date."""
        objects = []
        for number, mask in zip(result.ids, result.masks().cpu().numpy()):
            mask, known = without_specks(mask), self.known[number]
            if mask.any():
                known.first, known.last = min(known.first, index), max(known.last, index)
            objects.append(Segment(number, known.label, known.score, box_around(mask), mask, known.first, known.last))
        best, heat = (None, []) if found is None else (found.best, found.heat)
        notes = self.tracker.notes(result) if self.tracker.identity is not None else None
        return Segmented(image, objects, index, best, heat, notes, self.found)

    def state(self) -> dict:
        """Everything that the frames to come depend on. torch.save takes it; torch.load with weights_only reads it."""
        known = [
            {name: getattr(o, name) for name in ("id", "label", "score", "first", "last")}
            | {"appearance": self.detections.appearances.get(o.id)}
            for o in self.known.values()
        ]
        return {
            "tracker": self.tracker.state(),
            "known": known,
            "reverse": self.reverse,
            "next": self.next,
            "levels": self.levels and list(self.levels),
            "seeded_at": self.seeded_at,
            "held": list(self.held),
        }

    @with_cpu_as_default
    def restore(self, state: dict) -> None:
        """Go on from a state: the masks are those that an uninterrupted run gives.

        ValueError if it is none of state()'s, or of another model; then nothing changes.
        """
        self._check(state)
        self.tracker.restore(state["tracker"])
        self.known.clear()
        self.detections.appearances.clear()
        for o in state["known"]:
            self.known[o["id"]] = Segment(o["id"], o["label"], o["score"], (), None, o["first"], o["last"])
            if o["appearance"] is not None:
                self.detections.appearances[o["id"]] = o["appearance"].to(self.models.sam.device)
        self.reverse, self.next = state["reverse"], state["next"]
        self.levels = state["levels"] and Levels(*state["levels"])
        self.seeded_at, self.held = state["seeded_at"], list(state["held"])

    def _check(self, state: object) -> None:
        """ValueError unless restore can take it."""
        tracker = self.tracker.state_kind()
        appearance = optional(tensor(self.models.sam.config.dim + 4))
        known = fields(id=whole(1), label=text, score=real, first=whole(), last=whole(), appearance=appearance)
        fields(
            tracker=tracker,
            known=sequence(known),
            reverse=flag,
            next=optional(whole(-1)),
            levels=optional(sequence(real, 2)),
            seeded_at=optional(whole()),
            held=sequence(fields(at=whole(), tracker=tracker)),
        )(state, "the tracking")
        numbers = {record["id"] for record in state["known"]}
        tracked = {o["id"] for held in (state, *state["held"]) for o in held["tracker"]["objects"]}
        if not tracked <= numbers:
            raise ValueError("the tracking has no record of an object that it tracks")
        if state["seeded_at"] is None and state["tracker"]["objects"] and isinstance(self.prompt, Clicks):
            raise ValueError("the tracking does not say when its objects were marked")
        if self.direction != BOTH and state["reverse"] != (self.direction == REVERSE):
            raise ValueError("the tracking runs in the other direction")
        if self.direction != REVERSE:
            whole(-1 if state["reverse"] else 0)(state["next"], "the next frame of the tracking")


def numbered(frames: Iterable[Picture], start: int | None, reverse: bool) -> Iterator[tuple[int, Picture]]:
    """(index, frame) from `start` on, or in reverse from it (None: from the last) to frame 0."""
    if reverse and hasattr(frames, "numbered_backward"):  # media.Frames
        return frames.numbered_backward(start)
    if reverse:
        last = len(frames) - 1 if start is None else start
        return ((index, frames[index]) for index in range(last, -1, -1))
    if hasattr(frames, "forward"):
        return enumerate(frames.forward(start), start)
    return islice(enumerate(frames), start, None)


def lacks(frames: Iterable[Picture], index: int) -> bool:
    """Whether it is known, before they are read, that there is no frame `index`."""
    if hasattr(frames, "lacks"):  # media.Frames
        return frames.lacks(int(index))
    return hasattr(frames, "__len__") and index >= len(frames)


def no_frame(words: str) -> ValueError:
    """The error for a frame, named by `words`, beyond the end."""
    return ValueError(f"{words}: the video has no such frame, it ends before")


def without_specks(mask: np.ndarray) -> np.ndarray:
    """Bool (H, W) without the connected parts of less than SPECK of the largest one: stray pixels far from the object.

    Larger parts stay, as an object that is half hidden has several. Returns an array of its own, also if nothing goes:
    a view of one mask would keep those of all objects in memory.
    """
    box = mask_box(mask)
    if box is None:
        return mask.copy()
    left, top, right, bottom = box
    kept = np.zeros_like(mask)
    kept[top:bottom, left:right] = large_parts(mask[top:bottom, left:right], SPECK)
    return kept


# --- Checks ------------------------------------------------------------------------------------------------


def check_frames(frames: object) -> None:
    """TypeError or ValueError for what holds no frames: a path, None, one picture, an empty list."""
    if isinstance(frames, (str, bytes, Path)):
        raise TypeError(f"frames is the path {str(frames)!r}: open it with minisam_glue.frames(path)")
    if is_picture(frames):
        raise TypeError("frames is one picture: give a list, or an array (T, H, W, 3); segment_image takes one picture")
    if not isinstance(frames, Iterable):
        raise TypeError(f"frames is a {type(frames).__name__}: give a list, an iterator or minisam_glue.frames(path)")
    if hasattr(frames, "__len__") and not len(frames):
        raise ValueError("frames is empty: give at least one")


def with_place(correction: ObjectPrompt) -> ObjectPrompt:
    """A copy of a correction, its id and frame as Python's own numbers, for records. ValueError if one lacks."""
    for name in ("id", "at"):
        if getattr(correction, name) is None:
            raise ValueError(f"{name} is None: a correction needs the id of its object and its frame")
    return replace(own_object(correction), id=int(correction.id), at=int(correction.at))


def check_count(name: str, value: int) -> None:
    """ValueError unless it is a whole number from 0."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} is {value!r}: give a whole number from 0")
