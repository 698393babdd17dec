"""The rules in order, and what they know of the objects of one video."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..looks import colour_distance, token_likeness
from ..support.reading import LARGEST, Kind, fields, flag, optional, real, refuse, sequence, tensor, whole
from .frame import Frame, is_rival, main_parts, mask_boxes
from .meeting import OFF, Meeting
from .motion import NEAR_PREDICTION, CentreBox, Motion, box_iou, touching_pairs
from .rivals import LAST_RIVAL, MOST_RIVALS, RIVAL_LIKENESS, at_one_place, find_rivals, free_id
from .search import LIKENESS, Candidate, Looks, MasksOf, box_prompts, find_lost

# These limits, and those of the other files here, were chosen with the demo weights on clips that RESULTS.md names.
CLEAN = 4  # clean frames after which an object is known well enough for the rules
CLEAN_IOU = 0.5  # predicted IoU of a clean mask, at least
EMA = 0.9  # of appearance and colour
ALIKE = 0.9  # cosine of two appearances from which they are alike
OVERLAP = 0.15  # share of the smaller of two masks that the other covers when a meeting begins
WHOLE_AREA = 0.85, 1.2  # times the median: of a mask that has no part of a rival, and lacks none
APART = 4  # frames without contact that end it, unless the masks are still merged
COINCIDE = 0.7  # IoU of two masks that are one
UNLIKE = 0.65  # cosine to the object's appearance below which a mask that is not clean lies on something else
STRANGE = 0.8  # cosine to a rival's appearance below which what is seen in its place is something else
OTHER_COLOUR = 0.3  # distance of colours (looks.colour_distance) from which a mask lies on something else
# The same for an object that has just returned: its first visible pixels are blended with the background.
EDGE_COLOUR = 0.45
# A returning mask that overlaps other objects by this share must pass the stricter limits BACK_ALIKE and BACK_COLOUR.
ON_OTHERS = 0.5
BACK_ALIKE, BACK_COLOUR = 0.75, 0.2
PLACED = 0.5  # IoU of the box of a prompt with a prediction from which it is of that object
STALE = 8  # frames without a clean mask after which a prediction counts no more
LOOK_EVERY = 8  # frames after which rivals of what is seen clearly are looked for again
LATER = 0.8  # cosine of the image tokens where they are looked for then: more places would cost more time
FARTHEST = 1_000_000_000  # pixels or frames in a state from elsewhere
PATIENCE = 2  # absent frames before a search begins; a meeting whose members are all absent for so long is over
LONG, SELDOM = 60, 4  # absent frames from which an object is looked for on each fourth alone
MISSED = 8  # absent frames after which an object has no contacts, and a rival is followed no longer
ELSEWHERE = 0.1  # IoU of an object's box with its prediction below which a mask is not where the object should be


@dataclass
class Track:
    """The knowledge of the rules about one object."""

    motion: Motion = field(default_factory=Motion)
    appearance: Tensor | None = None  # (C,), of length 1
    colour: Tensor | None = None  # (4,), with its light: see looks.mean_colours
    clean: int = 0  # frames
    absent: int = 0  # frames in a row, until now
    rival_of: set[int] = field(default_factory=set)  # ids of the objects that a rival was found for

    @property
    def known(self) -> bool:
        """Whether there were CLEAN clean frames: the rules know where the object moves, and how it looks."""
        return self.clean >= CLEAN

    @property
    def looks(self) -> Looks:
        """Looks of a known object."""
        return Looks(self.appearance, self.colour, self.motion.size, self.motion.area)

    def see(self, frame: Frame, number: int) -> None:
        """Learn from a clean mask, that of object `number` on a frame."""
        row = frame.row[number]
        self.motion.observe(frame.t, frame.boxes[row], frame.areas[row], frame.holds(frame.boxes[row]))
        self.appearance = F.normalize(moving_average(self.appearance, frame.appearances[row]), dim=0)
        self.colour = moving_average(self.colour, frame.colours[row])
        self.clean += 1

    def likeness(self, appearance: Tensor) -> float:
        """The cosine of an appearance (C,) and the object's; 1 as long as one of them is not known."""
        return 1.0 if self.appearance is None else float(token_likeness(appearance[None], self.appearance))

    def off_colour(self, colour: Tensor) -> float:
        """The distance of a colour (4,) from the object's; 0 as long as that is not known."""
        return 0.0 if self.colour is None else float(colour_distance(colour[None], self.colour))


def moving_average(before: Tensor | None, now: Tensor) -> Tensor:
    """The exponential moving average of what is seen on clean frames."""
    return now if before is None else EMA * before + (1 - EMA) * now


@dataclass
class Contact:
    """Two objects whose boxes touch, or did so less than APART frames ago, or whose masks are merged in a meeting."""

    known: bool  # both were known well enough before
    meeting: bool = False  # they are look-alikes whose masks overlap
    apart: int = 0  # frames since they touched


class Identity:
    """The rules, and what they know of the objects of one video."""

    def __init__(self):
        self.tracks: dict[int, Track] = {}
        self.contacts: dict[tuple[int, int], Contact] = {}
        self.in_meeting: set[int] = set()  # ids
        self.words: list[str] = []  # what was done on the last frame

    def prompt(self, number: int, t: int, mask: Tensor | None, agrees: bool) -> None:
        """Learn that an object was prompted on frame t.

        mask: the answer, bool (s, s); None for clicks alone, whose masks are often the wrong size. agrees: whether the
        answer is the mask it had. What is known of the object is kept if the answer agrees. In a meeting it is also
        kept if the mask lies where this object, or a partner, is predicted; if the partner's place fits better, the two
        exchange places. Otherwise the object starts anew.
        """
        if not agrees and (mask is None or not self.claim_place(number, t, mask)):
            self.forget(number)

    def claim_place(self, number: int, t: int, mask: Tensor) -> bool:
        """Give object `number` of a meeting the place of a mask on frame t, and tell whether that is possible.

        The mask must be where the object, or a direct partner of it, is predicted. If a partner's place fits better,
        the two exchange their places.
        """
        if number not in self.in_meeting or not mask.any():
            return False
        met = {other for pair, contact in self.contacts.items() if contact.meeting and number in pair for other in pair}
        motions = {other: self.tracks[other].motion for other in (number, *sorted(met - {number}))}
        box = mask_boxes(main_parts(mask[None]))[0]
        near = {other: box_iou(box, motion.predict(t)) for other, motion in motions.items()}
        nearest = max(near, key=near.__getitem__)  # of equal ones the object itself, which is the first
        if near[nearest] < PLACED or not motions[number].fits(int(mask.sum())):
            return False
        motions[number].exchange(motions[nearest])
        self.tracks[number].absent = 0
        return True

    def forget(self, number: int) -> None:
        """Forget what is known of an object: it was prompted elsewhere, or removed. So are rivals of it alone."""
        self.drop(number)
        for rival in self.rivals:
            self.tracks[rival].rival_of.discard(number)
            if not self.tracks[rival].rival_of:
                self.drop(rival)

    def drop(self, number: int) -> None:
        """Forget a track, and end its contacts."""
        self.tracks.pop(number, None)
        self.part(number)

    def lose(self, number: int) -> None:
        """Take an object for absent from this frame, as its mask lies elsewhere, and end its contacts."""
        if number in self.tracks:  # else it joined on this frame, and nothing is known of it
            self.tracks[number].absent = max(1, self.tracks[number].absent)
        self.part(number)

    def part(self, number: int) -> None:
        """End the contacts of an object, and with them its meetings."""
        self.contacts = {pair: contact for pair, contact in self.contacts.items() if number not in pair}
        self.find_meeting()

    def settle(self, frame: Frame, masks_of: MasksOf) -> dict[int, Candidate]:
        """Apply the rules to the masks of a frame. Returns the lost objects that it found.

        masks_of: see find_candidates.
        """
        self.follow(frame, masks_of)
        frame.measure()
        self.words = []
        for number in frame.ids:
            self.tracks.setdefault(number, Track())
        self.hide_strangers(frame)
        self.touch(frame)
        self.meet(frame)
        self.coincide(frame)
        self.stray(frame)
        found = self.search(frame, masks_of)
        self.learn(frame, found)
        self.give_up(frame)
        if frame.t % LOOK_EVERY == 0:
            self.add_rivals(frame, [number for number in frame.ids if self.is_clear(frame, number)], masks_of, LATER)
        return found

    # --- Rivals ---

    @property
    def rivals(self) -> list[int]:
        """The ids of the rivals that are followed."""
        return [number for number in self.tracks if is_rival(number)]

    def find_rivals(self, frame: Frame, masks_of: MasksOf) -> None:
        """Begin to follow the rivals of the objects that were prompted on a frame, which has all masks that are shown.

        A rival at the place of a prompted object is one no more, nor is one that was last seen long before or after.
        masks_of: see find_candidates.
        """
        frame.measure()
        new = [number for number in frame.ids if number in frame.fixed]
        boxes = [frame.boxes[frame.row[number]] for number in new]
        for number in self.rivals:
            motion = self.tracks[number].motion
            if abs(frame.t - motion.at) > STALE or at_one_place(motion.predict(frame.t), boxes):
                self.drop(number)
        if self.rivals:
            self.follow(frame, masks_of)
            frame.measure()
        self.add_rivals(frame, new, masks_of, LIKENESS)

    def is_clear(self, frame: Frame, number: int) -> bool:
        """Whether an object is seen as it is known, so that what else looks like it now is a rival."""
        if is_rival(number) or number in self.in_meeting or not frame.shows(number):
            return False
        return self.tracks[number].known and self.is_clean(frame, number)

    def add_rivals(self, frame: Frame, numbers: Sequence[int], masks_of: MasksOf, least: float) -> None:
        """Begin to follow the rivals of these objects that are not followed yet.

        What is found for one of them may be a rival of another one, too, if it is like it. What is like an object that
        is lost may be this object, and no rival. least: see find_candidates.
        """
        tracks = [(number, track) for number, track in self.tracks.items() if track.known and not is_rival(number)]
        lost = [track.appearance for number, track in tracks if not (number in frame.row and frame.shows(number))]
        new = []
        for number, candidate in find_rivals(frame, numbers, masks_of, MOST_RIVALS - len(self.rivals), lost, least):
            new.append(free_id(self.tracks))
            self.tracks[new[-1]] = Track(rival_of={number})
            frame.add(new[-1], candidate.logits, candidate.iou)
        if new:
            frame.measure()
        for rival in new:
            track = self.tracks[rival]
            track.see(frame, rival)
            alike = frame.appearances @ track.appearance >= RIVAL_LIKENESS
            track.rival_of |= {number for number in numbers if alike[frame.row[number]]}

    def follow(self, frame: Frame, masks_of: MasksOf) -> None:
        """Add the rivals to a frame that is not measured yet: a box prompt where each should be."""
        boxes = {number: self.tracks[number].motion.predict(frame.t) for number in self.rivals}
        side = frame.logits.shape[-1]
        inside = [number for number, (x, y, *_) in boxes.items() if 0 < x < side and 0 < y < side]
        answers = {}
        if inside:
            logits, ious, _ = masks_of(box_prompts([boxes[number] for number in inside], side))
            answers = dict(zip(inside, zip(logits, ious.tolist())))
        for number in boxes:
            frame.add(number, *answers.get(number, (torch.full_like(frame.logits[0], OFF), 0.0)))

    def hide_strangers(self, frame: Frame) -> None:
        """Take for absent the rivals at whose places something else is seen. In a meeting their masks are unions."""
        for number in self.rivals:
            row, track = frame.row[number], self.tracks[number]
            if number in self.in_meeting or not frame.shows(number):
                continue
            alike = track.likeness(frame.appearances[row]) >= STRANGE and self.looks_alike(frame, number)
            if frame.ious[row] < CLEAN_IOU or not alike or not track.motion.fits(frame.areas[row]):
                frame.hide(number)

    def give_up(self, frame: Frame) -> None:
        """Follow no longer the rivals that have been absent for too long; of two with one mask, the later one."""
        kept: list[int] = []
        for number in self.rivals:
            repeats = any(frame.iou(number, other) >= COINCIDE for other in kept)
            if repeats or self.tracks[number].absent > MISSED:
                self.drop(number)
            elif frame.shows(number):
                kept.append(number)

    # --- Contacts and meetings ---

    def touch(self, frame: Frame) -> None:
        """Begin and end contacts."""
        boxes = {number: self.box(frame, number) for number in frame.ids}
        boxes = {number: box for number, box in boxes.items() if box is not None}
        near = dict.fromkeys(pair for pair in touching_pairs(boxes) if self.may_meet(*pair))  # in order
        for pair in near:
            if pair not in self.contacts:
                self.contacts[pair] = Contact(all(self.tracks[number].known for number in pair))
        for pair, contact in list(self.contacts.items()):
            contact.apart = 0 if pair in near else contact.apart + 1
            gone = not set(pair) <= frame.row.keys() or any(self.tracks[n].absent > MISSED for n in pair)
            if gone or (contact.apart >= APART and not (contact.meeting and self.overlaps(frame, *pair))):
                del self.contacts[pair]

    def may_meet(self, one: int, other: int) -> bool:
        """Whether two objects, the smaller id first, can have a contact: a rival only with what it is a rival of."""
        return not is_rival(one) or other in self.tracks[one].rival_of

    def box(self, frame: Frame, number: int) -> CentreBox | None:
        """The box of an object: in a meeting by its prediction, else by its mask; None if that is empty."""
        if number in self.in_meeting:
            return self.tracks[number].motion.predict(frame.t)
        return frame.boxes[frame.row[number]] if frame.shows(number) else None

    def meet(self, frame: Frame) -> None:
        """Begin meetings, settle those that go on, and end them."""
        for pair, contact in self.contacts.items():
            if contact.known and not contact.meeting:
                contact.meeting = contact.apart == 0 and self.begins(frame, *pair)
        for members in self.meetings():
            meeting = Meeting({number: self.tracks[number].motion for number in members})
            apart = meeting.over(frame.t) and not (self.merged(frame, members) and meeting.explains(frame))
            if apart or all(self.tracks[number].absent >= PATIENCE for number in members):
                for pair in [pair for pair in self.contacts if set(pair) <= set(members)]:
                    self.contacts[pair].meeting = False
            else:
                meeting.settle(frame)
        self.find_meeting()

    def find_meeting(self) -> None:
        """Note which objects are in a meeting."""
        self.in_meeting = {number for pair, contact in self.contacts.items() if contact.meeting for number in pair}

    def meetings(self) -> list[list[int]]:
        """The ids of the objects of each meeting: of pairs that meet, or of more with others between them."""
        return groups(pair for pair, contact in self.contacts.items() if contact.meeting)

    def meet_now(self, one: int, other: int) -> bool:
        """Whether two objects are in one meeting."""
        return any({one, other} <= set(members) for members in self.meetings())

    def begins(self, frame: Frame, one: int, other: int) -> bool:
        """Whether two objects in contact are look-alikes whose masks overlap."""
        alike = float(self.tracks[one].appearance @ self.tracks[other].appearance) >= ALIKE
        return alike and self.overlaps(frame, one, other) and self.is_at_stake(frame, one, other)

    def is_at_stake(self, frame: Frame, one: int, other: int) -> bool:
        """Whether two masks that overlap, the smaller id first, have to be parted: a rival's and an object's if the
        object's area is unusual. Else the rival's mask, which a box made, is the wrong one.
        """
        low, high = WHOLE_AREA
        return not is_rival(one) or not low < frame.areas[frame.row[other]] / self.tracks[other].motion.area < high

    def overlaps(self, frame: Frame, one: int, other: int) -> bool:
        """Whether two masks overlap enough for a meeting."""
        if not (frame.shows(one) and frame.shows(other)):
            return False
        area, other_area, shared = frame.overlap_areas(one, other)
        return shared >= OVERLAP * min(area, other_area)

    def merged(self, frame: Frame, members: Collection[int]) -> bool:
        """Whether masks of two of these objects overlap."""
        return any(self.overlaps(frame, *pair) for pair in combinations(members, 2))

    # --- Masks that coincide, and what is lost ---

    def coincide(self, frame: Frame) -> None:
        """Hide the one of two coinciding masks that is predicted elsewhere, if the other is that of a known object."""
        for one, other in self.contacts:
            told = all(self.tracks[number].clean and frame.shows(number) for number in (one, other))
            if not told or {one, other} & self.in_meeting:
                continue
            low, high = sorted(frame.areas[frame.row[number]] for number in (one, other))
            if low < COINCIDE * high:  # their IoU is less
                continue
            if frame.iou(one, other) < COINCIDE:
                continue
            claims = [self.claim(frame, number) for number in (one, other)]
            pair = (one, other, *claims), (other, one, *claims[::-1])
            for number, owner, mine, theirs in pair:
                if number in frame.fixed or not self.tracks[owner].known:
                    continue
                if mine < ELSEWHERE and theirs >= NEAR_PREDICTION:
                    frame.hide(number)
                    self.say(number, f"hidden: its mask is {named(owner)}'s")

    def stray(self, frame: Frame) -> None:
        """Hide a mask that lies on something else: unlike the object, and of another size or in another place.

        An object that returns may be anywhere: likeness alone decides.
        """
        for row, number in enumerate(frame.ids):
            track = self.tracks[number]
            if not (track.known and frame.shows(number)) or number in self.in_meeting | frame.fixed:
                continue
            likeness, off = track.likeness(frame.appearances[row]), track.off_colour(frame.colours[row])
            if track.absent:
                on_others = frame.on_others(number) >= ON_OTHERS
                least, most = (BACK_ALIKE, BACK_COLOUR) if on_others else (UNLIKE, EDGE_COLOUR)
            else:
                least, most = UNLIKE, OTHER_COLOUR
            if (likeness < least or off >= most) and (track.absent or not self.in_place(frame, number)):
                frame.hide(number)
                self.say(number, f"hidden: likeness {likeness:.2f}, colour off by {off:.2f}")

    def looks_alike(self, frame: Frame, number: int) -> bool:
        """Whether a mask has the colour of its object, as far as that is known; or its appearance, in another light."""
        track, row = self.tracks[number], frame.row[number]
        if track.appearance is None or track.off_colour(frame.colours[row]) < OTHER_COLOUR:
            return True
        return track.likeness(frame.appearances[row]) >= ALIKE

    def is_clean(self, frame: Frame, number: int) -> bool:
        """Whether a mask is one to learn from: the decoder is sure of it, and it has the likely size and place."""
        return frame.ious[frame.row[number]] > CLEAN_IOU and self.in_place(frame, number)

    def in_place(self, frame: Frame, number: int) -> bool:
        """Whether a mask has the likely size and place of its object."""
        row = frame.row[number]
        return self.tracks[number].motion.is_likely(frame.t, frame.boxes[row], frame.areas[row])

    def claim(self, frame: Frame, number: int) -> float:
        """IoU of an object's box with its prediction; 0 for one that was absent on the frame before, and for a mask
        that is too small or too large to be the object's."""
        track, row = self.tracks[number], frame.row[number]
        if track.absent or not track.motion.fits(frame.areas[row]):
            return 0.0
        return box_iou(frame.boxes[row], track.motion.predict(frame.t))

    def search(self, frame: Frame, masks_of: MasksOf) -> dict[int, Candidate]:
        """Look for lost objects. A place that fits several goes to the one it resembles most."""
        lost, found = [number for number in frame.ids if self.is_lost(frame, number)], {}
        candidates = {number: self.look_for(frame, number, masks_of) for number in lost}
        while lost:
            number = max(lost, key=lambda n: candidates[n].rank if candidates[n] else (False, -1.0))
            best = candidates[number]
            if best is None or not best.good:
                self.words += [f"#{n} not found: {candidates[n]}" for n in lost if candidates[n] is not None]
                break
            lost.remove(number)
            self.words.append(f"#{number} found: {best}")
            found[number], frame.logits[frame.row[number]] = best, best.logits
            frame.absent.discard(number)
            frame.changed.add(number)
            mask = frame.masks[frame.row[number]] = best.logits > 0
            frame.areas[frame.row[number]] = int(mask.sum())
            for n in lost:  # who would have been found at the same place has to look for another one
                if candidates[n] is not None and ((candidates[n].logits > 0) & mask).any():
                    candidates[n] = self.look_for(frame, n, masks_of)
        return found

    def look_for(self, frame: Frame, number: int, masks_of: MasksOf) -> Candidate | None:
        """The likest candidate for a lost object: see find_lost."""
        return find_lost(frame, self.tracks[number].looks, self.taken(frame, number), masks_of)

    def taken(self, frame: Frame, number: int) -> Tensor:
        """Where an object cannot be, bool (s, s): where other objects and its own rivals are shown."""
        return frame.taken(n for n in frame.ids if not is_rival(n) or number in self.tracks[n].rival_of)

    def is_lost(self, frame: Frame, number: int) -> bool:
        """Whether an object is to be looked for."""
        track = self.tracks[number]
        gone = track.known and track.absent >= PATIENCE and not frame.shows(number)
        due = track.absent < LONG or (track.absent - LONG) % SELDOM == 0
        return gone and due and number not in self.in_meeting | frame.fixed and not is_rival(number)

    def learn(self, frame: Frame, found: Collection[int]) -> None:
        """Count absent frames, restart the motion of what comes back, and keep what clean masks show."""
        for row, number in enumerate(frame.ids):
            track = self.tracks[number]
            if not frame.shows(number):
                track.absent += 1
                continue
            if number in found:
                box = mask_boxes(main_parts(frame.masks[row][None]))[0]
                track.motion.restart(frame.t, box)
                track.motion.observe(frame.t, box, frame.areas[row], frame.holds(box))
            elif is_rival(number) and frame.on_others(number) >= OVERLAP:
                pass  # what is seen there may be another object: not even its place is known
            elif number not in self.in_meeting:
                if track.absent or abs(frame.t - track.motion.at) > STALE:
                    track.motion.restart(frame.t, frame.boxes[row])
                if self.is_clean(frame, number) and self.looks_alike(frame, number):
                    track.see(frame, number)
            track.absent = 0

    # --- What was done, and the state ---

    def done(self) -> list[str]:
        """The actions of the rules on the last frame, in words."""
        meet = [f"{' and '.join(map(named, sorted(members, key=is_rival)))} meet" for members in self.meetings()]
        return meet + self.words

    def say(self, number: int, words: str) -> None:
        """Note what was done with the mask of an object; of rivals nothing is told."""
        if not is_rival(number):
            self.words.append(f"{named(number)} {words}")

    def state(self) -> dict:
        """Give what is known as numbers and tensors that torch.save takes."""
        tracks = [
            {"id": number}
            | {name: value for name, value in vars(t).items() if name != "motion"}
            | vars(t.motion)
            | {"rival_of": sorted(t.rival_of)}
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
                kept["usual"] and tuple(kept["usual"]),
                kept["at"],
                tuple(kept["place"]),
                tuple(kept["velocity"]),
            )
            looks = (kept[name] for name in ("appearance", "colour"))
            looks = (None if known is None else known.to(device, torch.float32) for known in looks)
            identity.tracks[kept["id"]] = Track(motion, *looks, kept["clean"], kept["absent"], set(kept["rival_of"]))
        for kept in state["contacts"]:
            identity.contacts[tuple(sorted(kept["pair"]))] = Contact(kept["known"], kept["meeting"], kept["apart"])
        identity.find_meeting()
        return identity


def state_kind(dim: int) -> Kind:
    """The kind of Identity.state() for a model with image tokens of so many channels."""
    number, point = whole(LAST_RIVAL), sequence(pixels, 2)
    track = fields(
        id=number,
        appearance=optional(tensor(dim)),
        colour=optional(tensor(4)),
        clean=whole(),
        absent=whole(),
        rival_of=sequence(whole(-LARGEST)),
        places=sequence(sequence(pixels, 3)),
        sizes=sequence(point),
        areas=sequence(pixels),
        usual=optional(point),
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
            if kept["clean"] or is_rival(kept["id"]):
                known.add(kept["id"])
                known_as = (kept[name] for name in ("appearance", "colour"))
                if any(each is None for each in known_as) or not (kept["sizes"] and kept["areas"]):
                    raise ValueError(f"{where} has an object of which it does not know how it looks")
            sizes = (*kept["sizes"], kept["areas"], kept["usual"] or (1,))
            if any(side <= 0 for size in sizes for side in size):
                raise ValueError(f"{where} has an object without a size")
        for kept in value["contacts"]:
            needed = known if kept["known"] or kept["meeting"] else numbers
            if len(set(kept["pair"])) < 2 or not set(kept["pair"]) <= needed:
                raise ValueError(f"{where} has a contact of an object that it does not know")

    return check


def pixels(value: object, where: str) -> None:
    """A number of pixels or of frames with which a motion can be computed."""
    real(value, where)
    if abs(value) > FARTHEST:
        refuse(value, where, f"a number up to {FARTHEST:,}")


def named(number: int) -> str:
    """An object in the words of the notes."""
    return "a look-alike" if is_rival(number) else f"#{number}"


# --- Pairs ------------------------------------------------------------------------------------------------


def groups(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The ids of pairs, those together that are joined by them."""
    found: list[list[int]] = []
    for pair in pairs:
        joined = [group for group in found if set(group) & set(pair)]
        found = [group for group in found if group not in joined] + [sorted({*pair, *(n for g in joined for n in g)})]
    return found
