"""Propagators, which carry masks from one frame to the next: SAM 2's memory, or optical flow.

Both take prompts on a frame and give the masks of all objects on the next one:

    propagator = PROPAGATORS["flow"](sam)
    propagator.seek(0, first_frame)
    propagator.prompt(1, box=[28, 38, 80, 90])
    propagator.seek(1, next_frame)
    masks = propagator.track().masks()      # bool (objects, H, W)

Memory: the frame attends to earlier frames and their masks (SAM 2, arXiv 2408.00714). Flow: the last mask is warped
along Farneback's flow, and SAM 2 refines it, with the warped mask and its box as prompts. Where flow can't be trusted
the object is looked for afresh: the frame attends to the masks of the frames on which the object was prompted, and to
the object pointers of recent frames, as SAM 2 does, and is empty if that does not show it.
"""

import copy
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from . import redetection
from .flow import farneback, grey, inconsistency, warp
from .identity import Frame, Identity, Notes
from .identity import state_kind as identity_kind
from .identity.frame import is_rival
from .identity.motion import corners
from .identity.notes import RivalBox
from .masks import boxes_of
from .sam2 import SAM2, FrameResult, VideoTracker
from .sam2.layers import pool_to, resize_antialiased
from .sam2.mask_decoder import Decoded
from .sam2.memory_bank import FrameMemory, held_bytes
from .sam2.model import ABSENT, ImageFeatures, ObjectOutput
from .sam2.preprocess import Array
from .sam2.prompt_encoder import BOTTOM_RIGHT, TOP_LEFT
from .sam2.video_tracker import TrackedObject
from .sam2.video_tracker import state_kind as tracker_kind
from .support.reading import LARGEST as LARGEST_ID
from .support.reading import Kind, fields, mapping, optional, refuse, whole

MEMORY, FLOW = "memory", "flow"
HOLE = 8  # pixels of a 256 x 256 mask up to which holes are filled, as officially; less in smaller masks
MOST_PROMPTED = 4  # frames of an object on which it was prompted that SAM 2 goes on to look at
FLOW_SIDE = 512  # pixels of the longer side of the pictures between which flow is computed
MOST = 10.0  # carried logits are clamped to -MOST..MOST
CONSISTENT = 0.5  # share of the warped mask's pixels whose flow leads back, to pixels of like brightness, at least
BRIGHTNESS = 32.0  # grey levels of 255 by which a pixel may change
SAME_PLACE = 0.4  # least IoU of refined and warped mask; below it the mask has jumped
CHANGE = 2.0  # largest factor by which an area may change in one frame
SMALLEST, LARGEST = 1 / 8, 8  # least and largest area, relative to when it was last prompted or found
DETECT_EVERY = 10  # frames between two detections with the sentence, for objects that flow has lost


class MemoryPropagator(VideoTracker):
    """SAM 2's memory: VideoTracker with the settings of the pipeline.

    identity: apply the rules of identity/ to the masks before they go to memory.
    """

    def __init__(self, model: SAM2, identity: bool = True):
        holes = HOLE * (model.config.image_size // 4) ** 2 // 256**2
        self.identity: Identity | None = Identity() if identity else None
        super().__init__(model, max_hole=holes, max_prompted=MOST_PROMPTED, forget=True)

    def reset(self) -> None:
        super().reset()
        self.identity = None if self.identity is None else Identity()
        self.small: Tensor | None = None  # (3, s, s), 0 to 1: the current frame, for the rules
        self.without_rivals: set[int] = set()  # objects prompted on this frame whose rivals are still to be looked for

    def encode(self, frame: int, image: np.ndarray) -> ImageFeatures | None:
        """Encode as VideoTracker does; the rules get the frame at the size of the low-resolution masks.

        The rivals of what was prompted on the frame that is left are looked for first.
        """
        if self.identity is not None:
            self.find_rivals()
            picture = torch.tensor(image, device=self.model.device).permute(2, 0, 1).float() / 255
            self.small = pool_to(picture, self.model.config.image_size // 4)
        return super().encode(frame, image)

    def remember_prompt(self, obj: TrackedObject, out: ObjectOutput) -> None:
        had = obj.bank.get(self.frame)  # nothing where the answer contradicted it
        agrees = had is not None and had.logits is not None and not self.contradicts(obj, out)
        super().remember_prompt(obj, out)
        if self.identity is not None:
            clicks = obj.clicks.get(self.frame)
            placed = clicks is None or bool((clicks[1] == TOP_LEFT).any())  # by a mask or a box
            self.identity.prompt(obj.id, self.frame, out.logits[0] > 0 if placed else None, agrees)
            self.without_rivals.add(obj.id)

    @torch.inference_mode()
    def find_rivals(self) -> None:
        """Look for rivals of the objects that were prompted on the current frame: see identity/rivals.py."""
        new, self.without_rivals = self.without_rivals & self.objects.keys(), set()
        memories = {number: obj.bank.get(self.frame) for number, obj in self.objects.items()} if new else {}
        masks = {number: (m.logits, 1.0) for number, m in memories.items() if m is not None and shows(m)}
        if masks:
            self.identity.find_rivals(self.as_frame(masks, new), self.masks_without_memory)

    def remove(self, object_id: int) -> None:
        super().remove(object_id)
        if self.identity is not None:
            self.identity.forget(object_id)

    def settle(self, found: list[tuple[Sequence[TrackedObject], Decoded]]) -> list:
        """Settle as VideoTracker does, then apply the rules: only the masks that they change differ."""
        outs = super().settle(found)
        if self.identity is None or not self.objects:
            return outs
        prompted = {number for number, obj in self.objects.items() if self.frame in obj.bank.prompted}
        masks = {number: (self.objects[number].bank.prompted[self.frame].logits, 1.0) for number in prompted}
        for (objects, out), (_, decoded) in zip(outs, found):
            masks |= zip([obj.id for obj in objects], zip(out.logits, decoded.ious.amax(1).tolist()))
        # In the order of the objects, not of their groups: a prompt on one changes nothing for the others.
        frame = self.as_frame({number: masks[number] for number in self.objects}, prompted)
        again = self.identity.settle(frame, self.masks_without_memory)
        for number in again:  # memories of frames without it would lose it again
            self.objects[number].bank.tracked.clear()
        self.unwritten = (frame.unwritten & self.objects.keys()) - frame.absent
        pointers = {number: candidate.pointer for number, candidate in again.items()}
        return [
            (objects, self.changed(objects, out, decoded, frame, pointers))
            for (objects, out), (_, decoded) in zip(outs, found)
        ]

    def as_frame(self, masks: dict[int, tuple[Tensor, float]], fixed: set[int]) -> Frame:
        """The current frame as the rules see it. masks: logits (s, s) and predicted IoU, by id."""
        logits, ious = zip(*masks.values())
        tokens = self.current().tokens[0].float()
        tokens = tokens - tokens.mean(0)
        return Frame(self.frame, list(masks), torch.stack(logits), list(ious), tokens, fixed, self.small)

    def changed(
        self,
        objects: Sequence[TrackedObject],
        out: ObjectOutput,
        decoded: Decoded,
        frame: Frame,
        pointers: dict[int, Tensor],
    ) -> ObjectOutput:
        """The masks of a group as the rules leave them. pointers: (C,), of the objects that they found, by id."""
        if not any(obj.id in frame.changed for obj in objects):
            return out
        parts = [out.logits.clone(), out.pointer.clone(), out.object_score_logits.clone()]
        there = self.as_present(decoded)
        for row, obj in enumerate(objects):
            if obj.id in frame.absent:
                parts[0][row], parts[1][row] = ABSENT, self.model.no_obj_ptr[0]
                parts[2][row] = parts[2][row].clamp(max=-1)
            elif obj.id in frame.changed:
                parts[0][row] = frame.logits[frame.row[obj.id]]
                parts[1][row] = pointers.get(obj.id, there.pointer[row])
                parts[2][row] = parts[2][row].clamp(min=1)
        return ObjectOutput(*parts)

    def as_present(self, decoded: Decoded) -> ObjectOutput:
        """Choose masks as SAM2.as_object does, for objects that are there by the rules, whatever the decoder says: with
        the pointer of absence in memory they would be lost again."""
        return self.model.as_object(decoded._replace(object_score_logits=decoded.object_score_logits.clamp(min=1)))

    @torch.inference_mode()
    def track(self, reverse: bool = False) -> FrameResult:
        """Track as VideoTracker does; masks that can't be told apart are shown, but not kept in memory."""
        self.unwritten: set[int] = set()
        result = super().track(reverse)
        for number in self.unwritten:
            self.objects[number].bank.tracked[self.frame].tokens = None
        return result

    def masks_without_memory(self, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Box prompts (n, 4), in pixels of the low-resolution mask, on the frame: logits (n, s, s), predicted IoUs (n,)
        and pointers (n, C)."""
        tokens, high_res = self.model.without_memory(self.features), self.features.high_res
        xy, labels = self.box_corners(boxes)
        parts = [
            self.model.decode(tokens, high_res, a, b) for a, b in zip(xy.split(self.chunk), labels.split(self.chunk))
        ]
        outs = [self.as_present(decoded) for decoded in parts]
        return (
            torch.cat([out.logits for out in outs]),
            torch.cat([decoded.ious[:, 0].float() for decoded in parts]),
            torch.cat([out.pointer for out in outs]),
        )

    def box_corners(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (n, 4) in pixels of the low-resolution mask as prompts: corners (n, 2, 2) and their labels (n, 2)."""
        xy = (boxes * 4).view(-1, 2, 2).to(self.model.device)  # pixels of the model's image
        return xy, torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=self.model.device).expand(len(xy), 2)

    def notes(self, result: FrameResult) -> Notes:
        """Notes of what the rules saw and did on the current frame, of which `result` is; nothing without rules."""
        if self.identity is None:
            return Notes()
        scores, side = result.object_score_logits.sigmoid().tolist(), self.model.config.image_size // 4
        (height, width), predicted, rivals = result.size, {}, []
        for number in sorted(self.identity.in_meeting):
            box = corners(self.identity.tracks[number].motion.predict(result.frame))
            box = tuple(a * b / side for a, b in zip(box, (width, height) * 2))
            if is_rival(number):
                rivals.append(RivalBox(sorted(self.identity.tracks[number].rival_of), box))
            elif number in result.ids:
                predicted[number] = box
        return Notes(dict(zip(result.ids, scores)), predicted, self.identity.done(), rivals)

    @torch.inference_mode()
    def appearances(self, masks: Tensor, image: np.ndarray) -> Tensor:
        """Appearances of what masks, bool (n, s, s), show of the current frame, uint8 (H, W, 3): see redetection.py."""
        return redetection.appearances(
            masks, self.current().tokens[0].float(), torch.tensor(image, device=masks.device)
        )

    def masks_for_boxes(self, boxes: Array) -> ObjectOutput:
        """Masks as VideoTracker has them; without boxes the decoder does not run."""
        if len(boxes):
            return super().masks_for_boxes(boxes)
        empty, side = self.current().tokens.new_zeros(0), self.model.config.image_size // 4
        return ObjectOutput(empty.view(0, side, side), empty.view(0, self.model.config.dim), empty)

    def is_prompted(self, number: int) -> bool:
        """Whether an object was prompted on the current frame."""
        return self.frame in self.objects[number].bank.prompted

    def meet(self, one: int, other: int) -> bool:
        """Whether the rules know two objects as look-alikes that meet on the current frame."""
        return self.identity is not None and self.identity.meet_now(one, other)

    def lose(self, number: int) -> None:
        """Drop all frames on which an object was tracked, this one among them: its mask lies on something else. Frames
        on which it was prompted stay, and so does their mask."""
        self.objects[number].bank.tracked.clear()
        if self.identity is not None:
            self.identity.lose(number)

    def state(self) -> dict:
        """The state of VideoTracker, with what the rules know: rivals, too, that are still to be looked for here."""
        known, waiting = self.identity, set(self.without_rivals)
        if waiting:
            self.identity = copy.deepcopy(known)  # more prompts may come on this frame
        self.find_rivals()
        rules = None if self.identity is None else self.identity.state()
        self.identity, self.without_rivals = known, waiting
        return super().state() | {"identity": rules}

    def restore(self, state: dict) -> None:
        self.state_kind()(state, "the tracker")
        super().restore(state)
        if self.identity is not None and state["identity"] is not None:
            self.identity = Identity.from_state(state["identity"], self.model.device)

    def state_kind(self) -> Kind:
        """The kind of state()."""
        tracker = tracker_kind(self.model.config)
        rules = fields(identity=optional(identity_kind(self.model.config.dim)))

        def check(value: object, where: str) -> None:
            tracker(value, where)
            rules(value, where)

        return check

    def state_of(self, ids: Collection[int]) -> dict:
        """The state of these objects alone. Of what the rules know, that of their rivals."""
        state = self.state()
        if state["identity"] is not None:
            rivals = [track for track in state["identity"]["tracks"] if set(track["rival_of"]) & set(ids)]
            state["identity"] = {"tracks": rivals, "contacts": []}
        return state | {"objects": [held for held in state["objects"] if held["id"] in ids]}

    def adopt(self, state: dict) -> None:
        """Take the objects of a state_of, from another frame, to those that are tracked now; their rivals, if there are
        none yet. Of the objects the rules know nothing then."""
        now = self.state()
        if self.identity is not None and not self.identity.rivals and state["identity"] is not None:
            now["identity"]["tracks"] += state["identity"]["tracks"]
        self.restore(now | {"objects": now["objects"] + state["objects"]})

    def held_bytes(self) -> int:
        rules = None if self.identity is None else self.identity.tracks
        return held_bytes(self.features, self.objects, self.small, rules)

    def wants_detection(self, frame: int) -> bool:
        """Whether a detection with the sentence would help on this frame. Memory finds lost objects by itself."""
        return False

    def detection_done(self) -> None:
        """Note that the detections of this frame have been handled."""

    def mistrust(self, number: int) -> None:
        """Note that a heat map shows nothing where this object's mask is. Memory decides for itself."""


class FlowPropagator(MemoryPropagator):
    """Optical flow, and SAM 2 as an image model; of masks only those of prompted frames are in memory.

    A mask that flow carries is doubted if too few of its pixels are found again and lead back, or if SAM 2 makes
    something else of it: another place (IoU), another size (area). Then, and as long as an object is absent, the frame
    attends to the masks of the object's prompted frames and to recent object pointers, and SAM 2's object score says
    whether it is there.
    The rules of identity/ are for memory: with flow there are none.

    refine_every: SAM 2 refines masks on each k-th frame of the video alone; on the others the warped mask is kept, and
    the frame is encoded only if an object has to be looked for. ValueError below 1.
    """

    def __init__(self, model: SAM2, refine_every: int = 1):
        if isinstance(refine_every, bool) or not isinstance(refine_every, int) or refine_every < 1:
            raise ValueError(f"refine_every is {refine_every!r}: give a whole number from 1")
        self.refine_every = refine_every
        super().__init__(model, identity=False)

    def reset(self) -> None:
        super().reset()
        self.picture: np.ndarray | None = None  # the current frame, until it is encoded
        self.now: Tensor | None = None  # uint8 (h, w): brightness of the current frame, at most FLOW_SIDE long
        self.before: Tensor | None = None  # of the frame before
        self.carried: dict[int, FrameMemory] = {}  # of the objects that were seen on the frame before
        self.areas: dict[int, int] = {}  # pixels of the low-resolution mask when an object was last found
        self.last_detection: int | None = None

    def seek(self, frame: int, image: np.ndarray | Image.Image) -> None:
        """Seek as VideoTracker does; the masks of the frame before are kept to be carried on."""
        if frame == self.frame and (self.features is not None or self.picture is not None):
            return
        array = self.as_rgb(image)
        memories = {number: obj.bank.get(self.frame) for number, obj in self.objects.items()}
        # Copies, as the bank forgets the masks of frames that are past.
        carried = {number: replace(m, tokens=None) for number, m in memories.items() if m is not None and shows(m)}
        super().seek(frame, array)
        self.carried = carried
        self.before, self.now = self.now, brightness(array, self.model.device)

    def encode(self, frame: int, image: np.ndarray) -> ImageFeatures | None:
        """The features of a frame on which masks are refined; another one is kept until its features are needed."""
        self.picture = image.copy() if frame % self.refine_every else None
        return super().encode(frame, image) if self.picture is None else None

    @torch.inference_mode()
    def current(self) -> ImageFeatures:
        """The features of the current frame, which is encoded now if that was put off."""
        if self.picture is not None:
            self.features, self.picture = super().encode(self.frame, self.picture), None
        return super().current()

    def remember_prompt(self, obj: TrackedObject, out: ObjectOutput) -> None:
        super().remember_prompt(obj, out)
        self.areas[obj.id] = int((out.logits > 0).sum())

    @torch.inference_mode()
    def track(self, reverse: bool = False) -> FrameResult:
        """Track as VideoTracker does. reverse: time runs backwards, which flow does not need to know."""
        if self.picture is None:
            self.current()
        waiting = [number for number, obj in self.objects.items() if self.frame not in obj.bank.prompted]
        found = self.refine([number for number in waiting if number in self.carried])
        for number in waiting:
            obj = self.objects[number]
            memory = found.get(number) or self.decode_from_prompted(obj, reverse)
            obj.bank.tracked[self.frame] = memory
            obj.visited[self.frame], obj.settled = reverse, None
        self.passes += 1
        return self.result()

    def refine(self, ids: list[int]) -> dict[int, FrameMemory]:
        """The masks of the frame before, warped and refined on this one; doubtful ones are left out."""
        if not ids or self.before is None:
            return {}
        warped, consistent = self.warp_masks(torch.stack([self.carried[number].logits for number in ids]))
        there = (warped > 0).flatten(1).any(1)
        kept = ((consistent >= CONSISTENT) & there).nonzero().flatten().tolist()
        found = {}
        for i in range(0, len(kept), self.chunk):
            rows = kept[i : i + self.chunk]
            skip = self.frame % self.refine_every
            out = self.keep([ids[row] for row in rows], warped[rows]) if skip else self.refine_masks(warped[rows])
            trusted = self.trusted(out.logits > 0, warped[rows] > 0, [self.areas[ids[row]] for row in rows])
            for row, good, pointer, score, logits in zip(
                rows, trusted.tolist(), out.pointer, out.object_score_logits, self.clean(out.logits)
            ):
                if good:
                    found[ids[row]] = FrameMemory(pointer.clone(), score.clone(), None, logits.clone())
        return found

    def warp_masks(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, s, s) of the frame before -> the same on this frame, and the share (n,) of good flow."""
        pairs = torch.stack((self.before, self.now)), torch.stack((self.now, self.before))
        there, back = farneback(*pairs).split(1)  # from the frame before to this one, and from this one to it
        size = self.now.shape[-2:]
        full = F.interpolate(logits.float().clamp(-MOST, MOST)[None], size, mode="bilinear", align_corners=False)
        moved = warp(full + MOST, back)[0] - MOST  # beyond the edge: no object
        # |there + back|^2 < 0.01 (|there|^2 + |back|^2) + 0.5: Sundaram, Brox and Keutzer, "Dense Point Trajectories by
        # GPU-accelerated Large Displacement Optical Flow" (ECCV 2010).
        lengths = (back**2).sum(1) + (warp(there, back) ** 2).sum(1)
        good = inconsistency(there, back) ** 2 < 0.01 * lengths + 0.5
        change = warp(self.before[None, None], back)[:, 0] - self.now.float()
        good &= change.abs() < BRIGHTNESS
        inside = moved > 0
        share = (inside & good).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
        return resize_antialiased(moved[:, None], logits.shape[-1])[:, 0], share

    def refine_masks(self, warped: Tensor) -> ObjectOutput:
        """SAM 2's masks for mask prompts, logits (n, s, s), and the boxes around them."""
        xy, labels = self.box_corners(boxes_of(warped > 0))
        features, tokens = self.current(), self.model.without_memory(self.current())
        return self.model.as_object(
            self.model.decode(tokens, features.high_res, xy, labels, warped[:, None].to(tokens.dtype))
        )

    def keep(self, ids: list[int], warped: Tensor) -> ObjectOutput:
        """Warped masks, logits (n, s, s), as they are, with the pointers and scores of the frame before."""
        before = [self.carried[number] for number in ids]
        scores = torch.stack([memory.object_score_logits for memory in before])
        return ObjectOutput(warped, torch.stack([memory.pointer for memory in before]), scores)

    def trusted(self, refined: Tensor, warped: Tensor, areas: list[int]) -> Tensor:
        """Bool (n,): whether refined masks, bool (n, s, s), are where the warped ones are, and of a likely size."""
        area, before = refined.flatten(1).sum(1), warped.flatten(1).sum(1)
        both, known = (refined & warped).flatten(1).sum(1), torch.tensor(areas, device=area.device)
        return (
            (both >= SAME_PLACE * (area + before - both).clamp(min=1))
            & (area <= CHANGE * before)
            & (before <= CHANGE * area)
            & (area >= SMALLEST * known)
            & (area <= LARGEST * known)
        )

    def decode_from_prompted(self, obj: TrackedObject, reverse: bool) -> FrameMemory:
        """An object by the memory of the frames on which it was prompted; empty if it is not there."""
        selection, features = self.select_memories(obj.bank, reverse), self.current()
        tokens = self.model.condition_on_memory(features, [selection], self.pointer_count)
        out = self.model.as_object(self.model.decode(tokens, features.high_res, multimask=True))
        logits = self.clean(out.logits)[0]
        if (logits > 0).any():
            self.areas[obj.id] = int((logits > 0).sum())
        return FrameMemory(out.pointer[0], out.object_score_logits[0], None, logits)

    def wants_detection(self, frame: int) -> bool:
        """Whether an object was lost, and the sentence was not asked for DETECT_EVERY frames."""
        absent = any(not shows(m) for m in self.latest() if m is not None and m.logits is not None)
        return absent and (self.last_detection is None or abs(frame - self.last_detection) >= DETECT_EVERY)

    def latest(self) -> list[FrameMemory | None]:
        """The objects' masks on the current frame."""
        return [obj.bank.get(self.frame) for obj in self.objects.values()]

    def detection_done(self) -> None:
        """Note that the detections of this frame have been handled."""
        self.last_detection = self.frame

    def mistrust(self, number: int) -> None:
        """Take an object for absent on the current frame, where a heat map shows nothing of it."""
        memory = self.objects[number].bank.tracked.get(self.frame)
        if memory is not None:
            memory.logits = torch.full_like(memory.logits, ABSENT)
            memory.pointer = self.model.no_obj_ptr[0].detach().clone()
            memory.object_score_logits = memory.object_score_logits.clamp(max=-1)

    def held_bytes(self) -> int:
        return super().held_bytes() + held_bytes(self.carried, self.now, self.before)

    def state(self) -> dict:
        """The state of VideoTracker, with what flow needs of the current frame."""
        return super().state() | {"now": self.now, "areas": dict(self.areas), "last_detection": self.last_detection}

    def state_of(self, ids: Collection[int]) -> dict:
        state = super().state_of(ids)
        return state | {"areas": {number: area for number, area in state["areas"].items() if number in ids}}

    def adopt(self, state: dict) -> None:
        now = self.state()
        areas = now["areas"] | state["areas"]
        self.restore(now | {"objects": now["objects"] + state["objects"], "areas": areas})

    def restore(self, state: dict) -> None:
        self.state_kind()(state, "the tracker")
        super().restore(state)
        self.now = None if state["now"] is None else state["now"].to(self.model.device)
        self.areas, self.last_detection = dict(state["areas"]), state["last_detection"]

    def state_kind(self) -> Kind:
        """The kind of state()."""
        tracker = super().state_kind()
        areas = mapping(whole(-LARGEST_ID), whole())
        more = fields(now=optional(_brightness_kind), areas=areas, last_detection=optional(whole()))

        def check(value: object, where: str) -> None:
            tracker(value, where)
            more(value, where)
            now, size = value["now"], value["size"]
            if now is not None and (size is None or now.shape != brightness_size(size)):
                refuse(now, f"{where}['now']", "a frame of the video")
            if {o["id"] for o in value["objects"]} - set(value["areas"]):
                raise ValueError(f"{where} has no area of an object")

        return check


def shows(memory: FrameMemory) -> bool:
    """Whether an object has a mask on the frame of this memory, and it is not empty."""
    return memory.logits is not None and bool((memory.logits > 0).any())


def _brightness_kind(value: object, where: str) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.uint8 or value.ndim != 2 or not value.numel():
        refuse(value, where, "a picture of bytes")


def brightness(image: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (H, W, 3) -> uint8 (h, w), at most FLOW_SIDE pixels long, in the proportions of the picture."""
    picture = grey(torch.tensor(image, device=device)[None])
    size = brightness_size(picture.shape[-2:])
    if size != picture.shape[-2:]:
        picture = resize_antialiased(picture[None], size)[0]
    return picture[0].round().clamp(0, 255).to(torch.uint8)


def brightness_size(size: Sequence[int]) -> tuple[int, int]:
    """(height, width) of the brightness of a frame of (height, width)."""
    scale = min(1.0, FLOW_SIDE / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


PROPAGATORS = {MEMORY: MemoryPropagator, FLOW: FlowPropagator}
