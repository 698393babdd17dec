"""Masks in videos: show frames one after the other, prompt objects on any of them.

    tracker = VideoTracker(load("sam2.1_hiera_tiny.pt"))
    tracker.step(first_frame)
    tracker.prompt(1, box=[28, 38, 80, 90])
    for frame in frames:
        masks = tracker.step(frame).masks()  # bool (objects, H, W)

SAM 2, arXiv 2408.00714, sections 3 (the task) and 4 (the model). What is kept does not grow with the number of frames:
see memory_bank.py. Left out: reading and writing of video.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..pixels import Levels, join_levels, levels_of, to_rgb
from ..support.reading import LARGEST, Kind, fields, optional, real, sequence, whole
from . import memory_bank
from .components import clean
from .layers import resize_antialiased
from .mask_decoder import Decoded
from .memory_bank import POINTERS, FrameMemory, MemoryBank, MemorySelection, held_bytes
from .model import ABSENT, SAM2, ImageFeatures, ObjectOutput, SAM2Config
from .preprocess import Array, above_zero, frame_pixels, prompt_points

AGREEMENT = 0.75  # IoU with the mask of an object, at least, of the answer to a prompt that only corrects it


@dataclass
class FrameResult:
    """The masks of O objects on one frame, in the order in which the objects were first prompted."""

    frame: int
    ids: list[int]
    low_res: Tensor  # (O, S / 4, S / 4): logits
    object_score_logits: Tensor  # (O,): positive where the object is in the frame; else its mask is empty
    size: tuple[int, int] | None  # (height, width) of the video; None before the first frame
    non_overlap: bool

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Mask logits (O, H, W) at the size of the video. ValueError before the first frame."""
        if self.size is None:
            raise ValueError("no frame yet: call step or seek first")
        if not self.ids:
            return self.low_res.new_zeros(0, *self.size)
        full = self.enlarged(self.low_res)
        if self.non_overlap and len(full) > 1:
            winner = torch.arange(len(full), device=full.device)[:, None, None] == full.argmax(0)
            full = torch.where(winner, full, full.clamp(max=-10))
        return full

    @torch.no_grad()
    def masks(self) -> Tensor:
        """Masks, bool (O, H, W), at the size of the video. ValueError before the first frame."""
        if self.size is None or self.non_overlap:
            return self.logits() > 0
        masks = torch.empty(len(self.ids), *self.size, dtype=torch.bool, device=self.low_res.device)
        for mask, logits in zip(masks, self.low_res):  # one by one: the logits of all take four times the room of masks
            mask[:] = self.enlarged(logits[None])[0] > 0
        return masks

    def enlarged(self, low_res: Tensor) -> Tensor:
        """Logits (n, S / 4, S / 4) at the size of the video."""
        return F.interpolate(low_res[:, None], size=self.size, mode="bilinear", align_corners=False)[:, 0]


@dataclass
class TrackedObject:
    """An object's memories; by frame, the direction in which it was tracked and the clicks it got."""

    id: int
    added_at: int  # how many times frames had been tracked before it came
    bank: MemoryBank = field(default_factory=MemoryBank)
    settled: MemoryBank | None = None  # the bank without the answers to prompts since a frame was last tracked
    visited: dict[int, bool] = field(default_factory=dict)  # True: tracked in reverse
    clicks: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class VideoTracker:
    """Tracks any number of objects through frames that are shown one at a time.

    frame_count: of the video, if it is known. Pointers of up to n = min(frame_count, 16) - 1 frames before are read,
    and their distances in time are divided by n (SAM 2.1): a video of under 16 frames must say its number to get the
    official masks. Of one frame alone the official quotient is 0 / 0.
    chunk: objects computed at once; it changes the speed, not the masks. By default 1 on a CPU, where objects of
    one frame then do not change each other by one bit, and 8 elsewhere.
    keep_all: keep every frame's memories, so that earlier frames can be corrected, and that a second pass, back or
    forward again, gives the official numbers; memory then grows.
    sticky: a correction makes its frame a prompted one. Without it a later pass forgets the correction of a frame that
    was only tracked, as the official tracker does; that of a prompted frame stays (officially it is lost, too).
    max_hole, max_sprinkle: components of at most that many pixels of the low-resolution mask are filled, removed; 8
    is what build_sam2_video_predictor sets (fill_hole_area), which removes nothing.
    non_overlap: each pixel of the output belongs to at most one object.
    max_prompted: of more prompted frames only the nearest are attended to, and kept.
    stride: memories of every stride-th frame, instead of the last six.
    forget: a prompt on a known object that contradicts the mask it has there (IoU below AGREEMENT; a tracked object
    without one counts as elsewhere) drops what was tracked; its answer is that of a new object. Clicks that only cut
    away, or correct an earlier prompt of the frame, forget nothing. Without it the memories of a wrong mask soon win,
    as officially.
    Raises ValueError for numbers that are too small.
    """

    def __init__(
        self,
        model: SAM2,
        frame_count: int | None = None,
        chunk: int | None = None,
        keep_all: bool = False,
        sticky: bool = True,
        max_hole: int = 8,
        max_sprinkle: int = 0,
        non_overlap: bool = False,
        max_prompted: int | None = None,
        stride: int = 1,
        forget: bool = False,
    ):
        for name, value, least in (
            ("frame_count", frame_count, 1),
            ("chunk", chunk, 1),
            ("stride", stride, 1),
            ("max_prompted", max_prompted, 2),
            ("max_hole", max_hole, 0),
            ("max_sprinkle", max_sprinkle, 0),
        ):
            if value is not None and checked_whole(value, name) < least:
                raise ValueError(f"{name} {value}: give at least {least}")
        self.model, self.keep_all, self.sticky = model, keep_all, sticky
        self.chunk = chunk or (1 if model.device.type == "cpu" else 8)
        self.max_hole, self.max_sprinkle, self.non_overlap = max_hole, max_sprinkle, non_overlap
        self.max_prompted, self.stride, self.forget = max_prompted, stride, forget
        self.pointer_count = min(frame_count or POINTERS, POINTERS)
        self.reset()

    def reset(self) -> None:
        """Forget objects and frames, and free what is held."""
        self.objects: dict[int, TrackedObject] = {}
        self.features: ImageFeatures | None = None
        self.frame = -1
        self.size: tuple[int, int] | None = None
        self.levels: Levels | None = None  # of the frames so far
        self.passes = 0

    # --- Frames -----------------------------------------------------------------------------------------------

    def step(self, image: np.ndarray | Image.Image) -> FrameResult:
        """Show the next frame, uint8 (H, W, 3) or Pillow, and track all objects on it."""
        self.seek(self.frame + 1, image)
        return self.track()

    @torch.inference_mode()
    def seek(self, frame: int, image: np.ndarray | Image.Image) -> None:
        """Make `image`, which is frame number `frame`, the current one, without tracking.

        A frame that is current already stays: its image is not looked at again.
        Raises ValueError for a negative number, and for an image of another size than the frames before: reset() comes
        before another video.
        """
        frame = checked_whole(frame, "frame")
        if frame == self.frame and self.features is not None:
            return
        if frame < 0:
            raise ValueError(f"frame {frame}: frames count from 0")
        array = self.as_rgb(image)
        if self.size not in (None, array.shape[:2]):
            raise ValueError(
                f"frame {frame} has (height, width) {array.shape[:2]}, those before had {self.size}: "
                "all frames of a video have one size"
            )
        self.features, self.size, self.frame = self.encode(frame, array), array.shape[:2], frame
        if not self.keep_all:
            for obj in self.objects.values():
                obj.bank.forget(frame, self.stride, self.max_prompted)
                obj.visited.clear()
                obj.clicks.clear()

    def as_rgb(self, image: np.ndarray | Image.Image) -> np.ndarray:
        """A frame as uint8 RGB; frames of 16 bits by the levels of all so far, so that they do not flicker."""
        self.levels = join_levels([self.levels, levels_of(image)])
        return to_rgb(image, self.levels)

    def encode(self, frame: int, image: np.ndarray) -> ImageFeatures | None:
        """The features of frame number `frame`, uint8 (H, W, 3); None if they are to be computed later."""
        return self.model.encode_image(frame_pixels(image, self.model.config.image_size, self.model.device))

    def current(self) -> ImageFeatures:
        """The features of the current frame. Raises ValueError before the first one."""
        if self.features is None:
            raise ValueError("no frame yet: call step or seek first")
        return self.features

    def propagate(
        self,
        frames: Iterable[np.ndarray | Image.Image],
        start: int | None = None,
        reverse: bool = False,
        count: int | None = None,
    ) -> Iterator[FrameResult]:
        """Track through a video: from frame `start`, by default the earliest prompted one, to its end or beginning.

        frames: the whole video from frame 0 on; an iterator, or for reverse a sequence. Each frame is read when it
        is due, and then let go. count: how many frames at most. In reverse from frame 0 there is none, as officially.
        A prompt between two frames counts from the next one on (officially from the next call). ValueError, when the
        first frame is asked for, without a prompted object, for reverse without a sequence, for a negative start or
        count, and for a start beyond the end.
        """
        prompted = [t for obj in self.objects.values() for t in obj.bank.prompted]
        if not prompted:
            raise ValueError("nothing to track: prompt an object first")
        start = min(prompted) if start is None else checked_whole(start, "start")
        if start < 0 or count is not None and checked_whole(count, "count") < 0:
            raise ValueError(f"start {start}, count {count}: give numbers from 0")
        if reverse and not hasattr(frames, "__getitem__"):
            raise ValueError("reverse needs frames that can be indexed: give a sequence or an array (T, H, W, 3)")
        if reverse and start == 0:
            return
        for index, image in islice(walk(frames, start, reverse), count):
            self.seek(index, image)
            yield self.track(reverse)

    # --- Prompts ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def prompt(
        self,
        object_id: int,
        box: Array | None = None,
        points: Array | None = None,
        labels: Array | None = None,
        mask: Array | None = None,
        keep_clicks: bool = False,
    ) -> FrameResult:
        """Mark an object, new or known, on the current frame, and get all objects' masks there.

        object_id: any whole number of yours. box: (4,) xyxy, points: (P, 2) xy with labels (P,), 1 positive and 0
        negative, in pixels of the video; or a mask (H, W), above 0 on the whole object. Clicks on a known object
        correct the mask it has on this frame; keep_clicks adds them to earlier clicks here. Raises ValueError for
        malformed prompts, and then changes nothing.
        """
        features, object_id = self.current(), checked_whole(object_id, "object_id")
        obj = self.objects.get(object_id) or TrackedObject(object_id, self.passes)
        answered = self.frame in obj.bank.prompted
        forget = self.forget and (box is not None or mask is not None or not answered)  # clicks correct an answer
        if mask is not None:
            if box is not None or points is not None:
                raise ValueError("a mask is a whole prompt: give it without box and points")
            clicks, given = None, self.mask_prompt(mask)
            out = self.model.as_given(given, self.model.decode_mask(features, given))
        else:
            clicks = self.clicks_prompt(obj, box, points, labels, keep_clicks)
            forget = forget and bool((clicks[1] > 0).any())  # what is only cut away says nothing of another object
            out = self.answer_clicks(obj, *clicks, forget)
        if forget and self.contradicts(obj, out):
            obj.bank.tracked.clear()
            obj.settled = None
            obj.visited.pop(self.frame, None)  # more clicks here go on from this answer, without memories
        self.objects[object_id] = obj
        obj.clicks.pop(self.frame, None)
        if clicks:
            obj.clicks[self.frame] = clicks
        self.remember_prompt(obj, out)
        return self.result()

    def clicks_prompt(
        self, obj: TrackedObject, box: Array | None, points: Array | None, labels: Array | None, keep_clicks: bool
    ) -> tuple[Tensor, Tensor]:
        """Checked clicks as points (1, P, 2) in the model's pixels and labels (1, P)."""
        found = prompt_points(box, points, labels, self.size, self.model.config.image_size)
        if found is None or not found[0].numel():
            raise ValueError(f"no prompt for object {obj.id}: give a box, points with labels, or a mask")
        if len(found[0]) != 1:
            raise ValueError(f"{len(found[0])} prompts for object {obj.id}: give one box, points (P, 2), or a mask")
        xy, labels = (t.to(self.model.device) for t in found)
        if keep_clicks and self.frame in obj.clicks:
            if box is not None:
                raise ValueError("a box comes before clicks: give it with keep_clicks=False")
            before = obj.clicks[self.frame]
            xy, labels = torch.cat((before[0], xy), 1), torch.cat((before[1], labels), 1)
        return xy, labels

    def mask_prompt(self, mask: Array) -> Tensor:
        """(H, W) -> (1, 1, S, S) of zeros and ones."""
        mask = above_zero(mask, "mask").to(self.model.device)
        if mask.shape != self.size:
            raise ValueError(f"mask has shape {tuple(mask.shape)}: give (height, width) = {self.size} of the frame")
        side = self.model.config.image_size
        mask = mask.float()[None, None]
        return mask if mask.shape[2:] == (side, side) else (resize_antialiased(mask, side) >= 0.5).float()

    def answer_clicks(self, obj: TrackedObject, xy: Tensor, labels: Tensor, forget: bool) -> ObjectOutput:
        """Answer clicks on the current frame. With `forget` they are answered as for a new object first; that answer
        counts if it contradicts the mask that the object has."""
        if forget and (obj.bank.tracked or self.frame in obj.bank.prompted):
            fresh = self.decode_clicks(TrackedObject(obj.id, self.passes), xy, labels)
            if self.contradicts(obj, fresh):
                return fresh
        return self.decode_clicks(obj, xy, labels)

    def contradicts(self, obj: TrackedObject, out: ObjectOutput) -> bool:
        """Whether the answer to a prompt is another mask than the one that a known object has on this frame.

        One that was tracked, and has none here, is taken to be elsewhere.
        """
        memory = obj.bank.get(self.frame)
        if memory is None or memory.logits is None:
            return bool(obj.bank.tracked)
        mask, before = out.logits[0] > 0, memory.logits > 0
        return int((mask & before).sum()) < AGREEMENT * int((mask | before).sum())

    def decode_clicks(self, obj: TrackedObject, xy: Tensor, labels: Tensor) -> ObjectOutput:
        """Decode clicks: as in an image at first; on a frame that was tracked with the object's memories and mask.

        Answers are among these memories once tracking goes on: clicks in a row attend to the same ones.
        """
        previous = obj.bank.get(self.frame)
        mask = previous.logits.clamp(-32, 32)[None, None] if previous and previous.logits is not None else None
        bank = obj.settled or obj.bank
        if self.frame in obj.visited and bank.prompted:
            selection = self.select_memories(bank, obj.visited[self.frame])
            tokens = self.model.condition_on_memory(self.features, [selection], self.pointer_count)
        else:
            tokens = self.model.without_memory(self.features)
        multimask = xy.shape[1] <= 1  # one click may mean a part or the whole
        return self.model.as_object(self.model.decode(tokens, self.features.high_res, xy, labels, mask, multimask))

    def remember_prompt(self, obj: TrackedObject, out: ObjectOutput) -> None:
        """Keep the answer to a prompt as the memory of the current frame."""
        out = replace(out, logits=self.clean(out.logits))
        tokens = self.model.encode_memory(self.features, out, prompted=True)
        memory = FrameMemory(out.pointer[0], out.object_score_logits[0], tokens[0], out.logits[0])
        obj.settled = obj.settled or obj.bank.copy()
        if self.sticky or self.frame not in obj.visited or self.frame in obj.bank.prompted:
            obj.bank.prompted[self.frame] = memory
            obj.bank.tracked.pop(self.frame, None)
        else:
            obj.bank.tracked[self.frame] = memory

    @torch.no_grad()
    def masks_for_boxes(self, boxes: Array) -> ObjectOutput:
        """Masks for boxes (B, 4), xyxy in pixels of the video, on the current frame. They become no objects.

        The frame is not encoded again. Raises ValueError before the first frame and for malformed boxes.
        """
        tokens, high_res = self.model.without_memory(self.current()), self.current().high_res
        prompts = prompt_points(boxes, None, None, self.size, self.model.config.image_size)
        xy, labels = (t.to(self.model.device) for t in prompts)
        chunks = zip(xy.split(self.chunk), labels.split(self.chunk))
        with torch.inference_mode():  # what is joined outside of it is as any other tensor
            parts = [self.model.as_object(self.model.decode(tokens, high_res, *chunk)) for chunk in chunks]
        return ObjectOutput(*(torch.cat(t) for t in zip(*(vars(part).values() for part in parts))))

    # --- Tracking ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def track(self, reverse: bool = False) -> FrameResult:
        """Track all objects on the current frame; where an object was prompted it keeps that answer.

        reverse: the time of the video runs backwards. Raises ValueError before the first frame.
        """
        self.current()
        groups: dict[tuple, list[tuple[TrackedObject, MemorySelection]]] = {}
        for obj in self.objects.values():
            if self.frame not in obj.bank.prompted:
                selection = self.select_memories(obj.bank, reverse)
                # Objects that came at different times stay apart, so that a new one changes no bit of the others.
                groups.setdefault((obj.added_at, selection.layout), []).append((obj, selection))
            obj.visited[self.frame], obj.settled = reverse, None
        found = [
            (objects, self.decode_group(selections))
            for group in groups.values()
            for objects, selections in (zip(*group[i : i + self.chunk]) for i in range(0, len(group), self.chunk))
        ]
        for objects, out in self.settle(found):
            self.remember(objects, out)
        self.passes += 1
        return self.result()

    def decode_group(self, selections: Sequence[MemorySelection]) -> Decoded:
        """The answers for objects of equal memory layout on the current frame, as one batch."""
        tokens = self.model.condition_on_memory(self.features, list(selections), self.pointer_count)
        # No click says which mask is meant: three are made, as officially.
        return self.model.decode(tokens, self.features.high_res, multimask=True)

    def settle(self, found: list[tuple[Sequence[TrackedObject], Decoded]]) -> list:
        """Choose the masks (objects, ObjectOutput) of the frame: for each object by itself the best of its three."""
        return [(objects, self.model.as_object(decoded)) for objects, decoded in found]

    def remember(self, objects: Sequence[TrackedObject], out: ObjectOutput) -> None:
        """Keep tracked masks as the objects' memories of the current frame."""
        maps = self.model.encode_memory(self.features, out, prompted=False)
        logits = self.clean(out.logits)  # after the memory: it is made of the mask as decoded
        for obj, *parts in zip(objects, out.pointer, out.object_score_logits, maps, logits):
            # Copies, so that no object keeps the memory of its whole group alive.
            obj.bank.tracked[self.frame] = FrameMemory(*(t.clone() for t in parts))

    def select_memories(self, bank: MemoryBank, reverse: bool) -> MemorySelection:
        """Select what the current frame attends to of an object's memories."""
        return bank.select_memories(self.frame, reverse, self.stride, self.max_prompted, self.pointer_count)

    def clean(self, logits: Tensor) -> Tensor:
        """Fill small holes and remove small components of masks, logits (n, s, s)."""
        return clean(logits, self.max_hole, self.max_sprinkle, 0.1, -0.1)  # 0.1: fill_holes_in_mask_scores

    @torch.inference_mode(False)  # tensors that may be learned from and written to, whoever calls
    @torch.no_grad()
    def result(self) -> FrameResult:
        """The objects' masks on the current frame, as far as they are known."""
        side = self.model.config.image_size // 4
        absent = torch.full((side, side), ABSENT, dtype=torch.float32, device=self.model.device)
        memories = [obj.bank.get(self.frame) for obj in self.objects.values()]
        logits = [absent if m is None or m.logits is None else m.logits for m in memories]
        scores = [absent[0, 0] if m is None else m.object_score_logits.float() for m in memories]
        low_res = torch.stack(logits) if logits else absent.new_zeros(0, side, side)
        scores = torch.stack(scores) if scores else absent.new_zeros(0)
        return FrameResult(self.frame, list(self.objects), low_res, scores, self.size, self.non_overlap)

    # --- State ------------------------------------------------------------------------------------------------

    def state(self) -> dict:
        """Give all that later frames depend on, as numbers and tensors that torch.save takes: see restore."""
        objects = [{"id": o.id, "added_at": o.added_at, "bank": o.bank.state()} for o in self.objects.values()]
        levels = self.levels and list(self.levels)
        return {"frame": self.frame, "size": self.size, "levels": levels, "passes": self.passes, "objects": objects}

    def restore(self, state: dict) -> None:
        """Go back to where state() was taken: on all other frames the masks are then the same, bit by bit.

        A prompt on the frame of the state itself is answered as if that had not been tracked yet. Clicks and frames
        kept by keep_all for going back are not part of it. ValueError if it is none of state()'s, or of another model;
        then nothing changes.
        """
        state_kind(self.model.config)(state, "the tracker")
        self.reset()
        self.frame, self.passes = state["frame"], state["passes"]
        self.size = state["size"] and tuple(state["size"])
        self.levels = state["levels"] and Levels(*state["levels"])
        for kept in state["objects"]:
            bank = MemoryBank.from_state(kept["bank"], self.model.device)
            self.objects[kept["id"]] = TrackedObject(kept["id"], kept["added_at"], bank)

    def remove(self, object_id: int) -> None:
        """Forget one object. Raises ValueError if there is none of that id."""
        if object_id not in self.objects:
            raise ValueError(f"no object {object_id}: there are {list(self.objects)}")
        del self.objects[object_id]

    def held_bytes(self) -> int:
        """Count the bytes of the current frame's features and of all tensors that are kept for later frames."""
        return held_bytes(self.features, self.objects)


def state_kind(config: SAM2Config) -> Kind:
    """The kind of VideoTracker.state() for a model of this configuration."""
    bank = memory_bank.state_kind(config.dim, config.mem_dim, config.image_size)
    return fields(
        frame=whole(-1),
        size=optional(sequence(whole(1), 2)),
        levels=optional(sequence(real, 2)),
        passes=whole(),
        objects=sequence(fields(id=whole(-LARGEST), added_at=whole(), bank=bank)),
    )


def checked_whole(number: int, name: str) -> int:
    """A number as Python's own, as state() keeps it. ValueError, with its name, for anything but a whole number."""
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or abs(int(number)) > LARGEST:
        raise ValueError(f"{name} is {number!r:.80}: give a whole number")
    return int(number)


def indexable(frames: Iterable) -> bool:
    """Whether frames[i] and len(frames) work, as for a list, an array, or a reader that decodes frame i when asked."""
    return hasattr(frames, "__getitem__") and hasattr(frames, "__len__")


def walk(frames: Iterable, start: int, reverse: bool) -> Iterator[tuple[int, object]]:
    """(index, frame) from `start` to the end, or in reverse to frame 0. ValueError for a start beyond the end."""
    if reverse and not hasattr(frames, "__len__"):  # as of a video file, whose length is not known
        for index in range(start, -1, -1):
            yield index, frames[index]
        return
    if not indexable(frames):
        index = -1
        for index, frame in enumerate(frames):
            if index >= start:
                yield index, frame
        if index < start:
            raise ValueError(f"start {start}: the video has {index + 1} frames, counted from 0")
        return
    if not 0 <= start < len(frames):
        raise ValueError(f"start {start}: the video has {len(frames)} frames, counted from 0")
    for index in range(start, -1, -1) if reverse else range(start, len(frames)):
        yield index, frames[index]
