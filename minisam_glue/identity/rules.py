"""The rules in order, and what they know of the objects of one video."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..support.reading import LARGEST, Kind, fields, flag, optional, real, sequence, tensor, whole
from .frame import Frame, main_parts, mask_boxes
from .meeting import Meeting
from .motion import NEAR_PREDICTION, Box, Motion, box_iou
from .search import Search

CLEAN = 4  # clean frames after which an object is known well enough for the rules
SURE = 0.5  # predicted IoU of a clean mask, at least
EMA = 0.9  # of the appearance
ALIKE = 0.9  # cosine of two objects' appearances from which they are look-alikes
OVERLAP = 0.15  # share of the smaller of two masks that the other covers when a meeting begins
APART = 4  # frames without contact that end it
COINCIDE = 0.7  # IoU of two masks that are one
UNLIKE = 0.65  # cosine to the object's appearance below which a mask that is not clean lies on something else
STALE = 8  # frames without a clean mask after which a prediction counts no more
PATIENCE = 2  # absent frames before a search


@dataclass
class Track:
    """What the rules know of one object."""

    motion: Motion = field(default_factory=Motion)
    appearance: Tensor | None = None  # (C,), of length 1
    clean: int = 0  # frames
    absent: int = 0  # frames in a row, until now

    @property
    def known(self) -> bool:
        return self.clean >= CLEAN

    def see(self, frame: int, box: Box, area: float, appearance: Tensor) -> None:
        """A clean mask."""
        self.motion.observe(frame, box, area)
        mixed = appearance if self.appearance is None else EMA * self.appearance + (1 - EMA) * appearance
        self.appearance = F.normalize(mixed, dim=0)
        self.clean += 1


@dataclass
class Contact:
    """Two objects whose boxes touch, or did so less than APART frames ago."""

    known: bool  # both were known well enough before
    meeting: bool = False  # they are look-alikes whose masks overlap
    apart: int = 0  # frames since they touched


class Identity:
    """The rules, and what they know of the objects of one video."""

    def __init__(self):
        self.tracks: dict[int, Track] = {}
        self.contacts: dict[tuple[int, int], Contact] = {}
        self.meeting: set[int] = set()  # ids

    def restart(self, number: int) -> None:
        """Forget what is known of an object: it was prompted anew, or removed."""
        self.tracks.pop(number, None)
        self.contacts = {pair: contact for pair, contact in self.contacts.items() if number not in pair}

    def settle(self, frame: Frame, look: Callable[[Tensor], tuple[Tensor, Tensor]]) -> dict[int, Tensor]:
        """Apply the rules to the masks of a frame. Returns the logits (s, s) of lost objects that were found."""
        frame.measure()
        self.find_meeting()
        for number in frame.ids:
            self.tracks.setdefault(number, Track())
        self.touch(frame)
        self.meet(frame)
        self.coincide(frame)
        self.stray(frame)
        found = self.search(frame, Search(look))
        self.learn(frame, found)
        return found

    # --- Contacts and meetings ---

    def touch(self, frame: Frame) -> None:
        """Begin and end contacts."""
        boxes = {number: self.box(frame, number) for number in frame.ids}
        boxes = {number: box for number, box in boxes.items() if box is not None}
        near = set(touching_pairs(boxes))
        for pair in near - self.contacts.keys():
            self.contacts[pair] = Contact(all(self.tracks[number].known for number in pair))
        for pair, contact in list(self.contacts.items()):
            contact.apart = 0 if pair in near else contact.apart + 1
            if contact.apart >= APART or not set(pair) <= frame.row.keys():
                del self.contacts[pair]

    def box(self, frame: Frame, number: int) -> Box | None:
        """Where an object is: in a meeting by its prediction, else by its mask; None if that is empty."""
        if number in self.meeting:
            return self.tracks[number].motion.predict(frame.number)
        return frame.boxes[frame.row[number]] if frame.shows(number) else None

    def meet(self, frame: Frame) -> None:
        """Begin meetings, settle those that go on, and end them."""
        for pair, contact in self.contacts.items():
            if contact.known and not contact.meeting:
                contact.meeting = contact.apart == 0 and self.begins(frame, *pair)
        for members in groups(pair for pair, contact in self.contacts.items() if contact.meeting):
            meeting = Meeting({number: self.tracks[number].motion for number in members})
            if meeting.over(frame.number):
                for pair in [pair for pair in self.contacts if set(pair) <= set(members)]:
                    self.contacts[pair].meeting = False
            else:
                meeting.settle(frame)
        self.find_meeting()

    def find_meeting(self) -> None:
        """Note which objects are in a meeting."""
        self.meeting = {number for pair, contact in self.contacts.items() if contact.meeting for number in pair}

    def begins(self, frame: Frame, one: int, other: int) -> bool:
        """Whether two objects in contact are look-alikes whose masks overlap."""
        if not (frame.shows(one) and frame.shows(other)):
            return False
        if float(self.tracks[one].appearance @ self.tracks[other].appearance) < ALIKE:
            return False
        area, other_area, shared = frame.overlap(one, other)
        return shared >= OVERLAP * min(area, other_area)

    # --- Masks that coincide, and what is lost ---

    def coincide(self, frame: Frame) -> None:
        """Of two masks on one object the one that should be elsewhere is taken away."""
        for one, other in self.contacts:
            told = all(self.tracks[number].known and frame.shows(number) for number in (one, other))
            if not told or {one, other} & self.meeting:
                continue
            low, high = sorted(frame.areas[frame.row[number]] for number in (one, other))
            if low < COINCIDE * high:  # their IoU is less
                continue
            area, other_area, shared = frame.overlap(one, other)
            if shared < COINCIDE * (area + other_area - shared):
                continue
            claims = [self.claim(frame, number) for number in (one, other)]
            for number, mine, theirs in ((one, *claims), (other, *claims[::-1])):
                if number not in frame.fixed and mine < 0.1 and theirs >= NEAR_PREDICTION:
                    frame.hide(number)

    def stray(self, frame: Frame) -> None:
        """Take away the mask of an object that is hidden, and whose mask lies on something else instead: it has not the
        size or place of the object, and is not like it."""
        for row, number in enumerate(frame.ids):
            track = self.tracks[number]
            if not (track.known and frame.shows(number)) or number in self.meeting | frame.fixed:
                continue
            clean = track.motion.is_clean(frame.number, frame.boxes[row], frame.areas[row])
            if not clean and float(frame.appearances[row] @ track.appearance) < UNLIKE:
                frame.hide(number)

    def claim(self, frame: Frame, number: int) -> float:
        """IoU of an object's box with its prediction; 0 for one that was absent on the frame before."""
        track = self.tracks[number]
        if track.absent:
            return 0.0
        return box_iou(frame.boxes[frame.row[number]], track.motion.predict(frame.number))

    def search(self, frame: Frame, search: Search) -> dict[int, Tensor]:
        """Look for objects that are lost."""
        found = {}
        for number in frame.ids:
            track = self.tracks[number]
            if frame.shows(number) or track.absent < PATIENCE or not track.known or number in self.meeting:
                continue
            logits = search.find(frame, track.motion, track.appearance)
            if logits is not None:
                found[number] = frame.logits[frame.row[number]] = logits
                frame.absent.discard(number)
                frame.changed.add(number)
                frame.masks[frame.row[number]] = logits > 0
                frame.areas[frame.row[number]] = int((logits > 0).sum())
        return found

    def learn(self, frame: Frame, found: dict[int, Tensor]) -> None:
        """Keep what clean masks show."""
        for row, number in enumerate(frame.ids):
            track = self.tracks[number]
            if not frame.shows(number):
                track.absent += 1
                continue
            if number in found:
                box = mask_boxes(main_parts(frame.masks[row][None]))[0]
                track.motion.restart(frame.number, box)
                track.motion.observe(frame.number, box, frame.areas[row])
            elif number not in self.meeting:
                box, area = frame.boxes[row], frame.areas[row]
                if track.absent or abs(frame.number - track.motion.at) > STALE:
                    track.motion.restart(frame.number, box)
                if frame.ious[row] > SURE and track.motion.is_clean(frame.number, box, area):
                    track.see(frame.number, box, area, frame.appearances[row])
            track.absent = 0

    # --- State ---

    def state(self) -> dict:
        """Give what is known as numbers and tensors that torch.save takes."""
        tracks = [
            {"id": number, "appearance": t.appearance, "clean": t.clean, "absent": t.absent} | vars(t.motion)
            for number, t in self.tracks.items()
        ]
        contacts = [{"pair": list(pair)} | vars(contact) for pair, contact in self.contacts.items()]
        return {"tracks": tracks, "contacts": contacts}

    @classmethod
    def from_state(cls, state: dict, device: torch.device) -> "Identity":
        """Make the rules whose state() this is, on a device. state: checked by state_kind."""
        identity = cls()
        for kept in state["tracks"]:
            motion = Motion(
                *([tuple(item) for item in kept[name]] for name in ("places", "sizes")),
                list(kept["areas"]),
                kept["first"] and tuple(kept["first"]),
                kept["at"],
                tuple(kept["place"]),
                tuple(kept["velocity"]),
            )
            appearance = kept["appearance"] if kept["appearance"] is None else kept["appearance"].to(device)
            identity.tracks[kept["id"]] = Track(motion, appearance, kept["clean"], kept["absent"])
        for kept in state["contacts"]:
            identity.contacts[tuple(kept["pair"])] = Contact(kept["known"], kept["meeting"], kept["apart"])
        return identity


def state_kind(dim: int) -> Kind:
    """What Identity.state() gives for a model with image tokens of so many channels."""
    number, point = whole(-LARGEST), sequence(real, 2)
    track = fields(
        id=number,
        appearance=optional(tensor(dim)),
        clean=whole(),
        absent=whole(),
        places=sequence(sequence(real, 3)),
        sizes=sequence(point),
        areas=sequence(real),
        first=optional(point),
        at=whole(),
        place=point,
        velocity=point,
    )
    contact = fields(pair=sequence(number, 2), known=flag, meeting=flag, apart=whole())
    shape = fields(tracks=sequence(track), contacts=sequence(contact))

    def check(value: object, where: str) -> None:
        shape(value, where)
        numbers = {kept["id"] for kept in value["tracks"]}
        known = set()
        for kept in value["tracks"]:
            if kept["clean"]:
                known.add(kept["id"])
                if kept["appearance"] is None or not (kept["sizes"] and kept["areas"] and kept["first"]):
                    raise ValueError(f"{where} has an object of which it does not know how it looks")
            if any(side <= 0 for size in (*kept["sizes"], kept["first"] or (1,)) for side in size):
                raise ValueError(f"{where} has an object without a size")
        for kept in value["contacts"]:
            needed = known if kept["known"] or kept["meeting"] else numbers
            if len(set(kept["pair"])) < 2 or not set(kept["pair"]) <= needed:
                raise ValueError(f"{where} has a contact of an object that it does not know")

    return check


# --- Pairs ------------------------------------------------------------------------------------------------


def touching_pairs(boxes: dict[int, Box]) -> list[tuple[int, int]]:
    """The pairs of ids whose boxes overlap."""
    if len(boxes) < 2:
        return []
    numbers, table = list(boxes), torch.tensor(list(boxes.values()))
    gap = (table[:, None, :2] - table[:, :2]).abs() * 2 - (table[:, None, 2:] + table[:, 2:])
    return [(numbers[i], numbers[j]) for i, j in (gap < 0).all(-1).triu(1).nonzero().tolist()]


def groups(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The ids of pairs, those together that are joined by them."""
    found: list[list[int]] = []
    for pair in pairs:
        joined = [group for group in found if set(group) & set(pair)]
        found = [group for group in found if group not in joined] + [sorted({*pair, *(n for g in joined for n in g)})]
    return found
