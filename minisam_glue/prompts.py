"""Prompts: a sentence, or boxes, points and masks; and the limits that detections must keep.

Coordinates are pixels of the picture as given, boxes xyxy. Each check names the argument first, so that a command line
can put its flag there.
"""

import math
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from itertools import count

import numpy as np
from torch import Tensor

from .heatmap import HeatSettings
from .masks import decode_rle, encode_rle, rle_size
from .pixels import Picture
from .sam2.preprocess import above_zero, is_relative
from .support.reading import anything, fields, flag, optional, real, sequence, text, whole

SEED_PROMPTS = ("box", "points", "mask")
AUTO = "auto"
CLICKED = "object"  # the label of what a box, points or a mask show, if it has none of its own
LARGEST_NUMBER = 10**9  # of ids and frames
Sentence = str | list[str]  # "car. dog." or ["car", "dog"]
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Thresholds:
    """Limits that a detection must keep. ValueError for a number out of its range.

    box, text: scores from 0 to 1; a detection must exceed both, so that the larger one decides. box may be "auto":
    Otsu's threshold over the scores of a picture, at most one half, and at least `text`. nms: IoU above which
    overlapping boxes of one phrase are suppressed, 0 to 1. max_area: largest box, as a share of the picture, above 0
    and up to 1; by heat maps the box of a region, before it may become several objects. The other three are for a
    detector alone: heat maps have HeatSettings.
    """

    box: float | str = 0.35
    text: float = 0.25
    nms: float = 0.7
    max_area: float = 1.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if name == "box" and value == AUTO:
                continue
            if (
                isinstance(value, str)
                or not as_numbers([value])
                or not 0 <= value <= 1
                or (name == "max_area" and value == 0)
            ):
                least = "above 0 and at most 1" if name == "max_area" else "from 0 to 1"
                raise ValueError(f"{name} is {value!r}: give a number {least}")


@dataclass(frozen=True)
class Seeding:
    """The prompts that SAM 2 gets for the objects of a sentence. ValueError for an unknown prompt, or none.

    prompts: what shows it an object, some of box, points and mask; None for the box, and for heat maps also the points.
    One of several objects in a region of a heat map is shown by a point alone.
    heat: how instances are made of heat maps; without heat maps its numbers of points and its border count.
    """

    prompts: tuple[str, ...] | None = None
    heat: HeatSettings = HeatSettings()

    def __post_init__(self):
        if self.prompts is not None and (not self.prompts or not set(self.prompts) <= set(SEED_PROMPTS)):
            raise ValueError(f"seed_prompt {self.prompts!r}: give some of {', '.join(SEED_PROMPTS)}")
        if self.prompts is not None and set(self.prompts) == {"points"} and not self.heat.positives:
            raise ValueError("seed_prompt points: they show nothing without one on the object, give positives above 0")


@dataclass(frozen=True, eq=False)  # compared by identity: masks have no single truth value
class ObjectPrompt:
    """One object by what shows it on one frame. ValueError or TypeError for a malformed one.

    box: xyxy. points: (x, y, 1 on the object or 0 on the background); with a box they correct it. mask: bool (H, W) of
    the whole object, without box and points.
    at: number of the frame; None for the seed frame, in a picture the only one. id: a number from 1; None for the next
    free one. label: what records and pictures call it; None for "object". remove: end a known object before this frame.
    """

    box: Sequence[float] | None = None
    points: Sequence[Sequence[float]] = ()
    mask: np.ndarray | None = None
    label: str | None = None
    id: int | None = None
    at: int | None = None
    remove: bool = False

    def __post_init__(self):
        if isinstance(self.points, (str, bytes)) or not hasattr(self.points, "__len__"):
            raise TypeError(f"points is a {type(self.points).__name__}: give a list")
        for name, least in (("id", 1), ("at", 0)):
            value = getattr(self, name)
            if value is not None and not (is_whole(value) and least <= value <= LARGEST_NUMBER):
                raise ValueError(f"{name} is {value!r:.80}: give a whole number from {least}")
        if self.label is not None and not (isinstance(self.label, str) and self.label.strip()):
            raise ValueError(f"label is {self.label!r:.80}: give a word or more")
        check_letters(self.label or "", "the label")
        if self.label is not None:  # "a  dog" and " a dog" are one name, as phrases are
            object.__setattr__(self, "label", " ".join(self.label.split()))
        if self.box is not None:
            check_box(self.box)
        for point in self.points:
            check_point(point)
        if self.mask is not None and (self.box is not None or len(self.points)):
            raise ValueError("mask: it shows the whole object; leave out box and points")
        if self.remove and self.shows:
            raise ValueError("remove: leave out box, points and mask")

    @property
    def shows(self) -> bool:
        """Whether there is a box, a point or a mask."""
        return self.box is not None or len(self.points) > 0 or self.mask is not None

    def as_json(self) -> dict:
        """All that is asked, ready for json.dumps; the mask as COCO run lengths."""
        return {
            "id": self.id,
            "label": self.label,
            "at": None if self.at is None else int(self.at),
            "box": None if self.box is None else list(map(float, self.box)),
            "points": [list(map(float, point)) for point in self.points],
            "mask": None if self.mask is None else encode_rle(as_mask(self.mask)),
            "remove": self.remove,
        }

    @classmethod
    def from_json(cls, record: dict, size: Size) -> "ObjectPrompt":
        """Read what as_json wrote for a picture of (height, width). ValueError if it is damaged, or of another size."""
        PROMPT_RECORD(record, "the prompt")
        mask = record["mask"]
        if mask is not None and rle_size(mask) != tuple(size):
            raise ValueError(f"a mask of {rle_size(mask)} pixels (height, width) does not fit a video of {tuple(size)}")
        return cls(
            **{name: record[name] for name in PROMPT_KEYS} | {"mask": None if mask is None else decode_rle(mask)}
        )

    def check_known(self) -> None:
        """ValueError unless it shows an object, or ends it."""
        if not (self.shows or self.remove):
            raise ValueError("no prompt: give a box, a point or a mask")

    def check_new(self) -> None:
        """ValueError unless it shows an object that is not known yet."""
        if self.remove:
            raise ValueError("remove: it ends an object that is known; there is none here")
        self.check_known()
        if self.box is None and self.mask is None and not any(point[2] for point in self.points):
            raise ValueError(f"point {shown(self.points[0])}: give at least one point on the object, too, or its box")

    def check_inside(self, size: Size) -> None:
        """ValueError for a box, point or mask that does not belong to a picture of (height, width)."""
        if self.box is not None:
            check_box_inside(self.box, size)
        for point in self.points:
            check_point_inside(point, size)
        if self.mask is not None:
            check_mask(self.mask, size)


PROMPT_KEYS = tuple(field.name for field in fields_of(ObjectPrompt))
PROMPT_RECORD = fields(
    id=optional(whole(1)),
    label=optional(text),
    at=optional(whole()),
    box=optional(sequence(real, 4)),
    points=sequence(sequence(real, 3)),
    mask=anything,  # decode_rle checks it
    remove=flag,
)


@dataclass(frozen=True, eq=False)  # as ObjectPrompt
class Clicks:
    """Objects by boxes, points and masks in place of a sentence. ValueError or TypeError for malformed ones.

    The short form is for the seed frame: each of `boxes`, xyxy, and each of `masks`, bool (H, W), is an object; all
    `points`, (x, y, 1 on the object or 0 on the background), together are one object, or correct the one box.
    objects: instead of these, records of objects, each with its label, id and frame. Several of one id, on frames of
    their own, prompt the object again: all but the first one correct it, or end it.
    """

    boxes: Sequence[Sequence[float]] = ()
    points: Sequence[Sequence[float]] = ()
    masks: Sequence[np.ndarray] = ()
    objects: Sequence[ObjectPrompt] = ()

    def __post_init__(self):
        for name in ("boxes", "points", "masks", "objects"):
            given = getattr(self, name)
            if isinstance(given, (str, bytes)) or not hasattr(given, "__len__"):
                raise TypeError(f"{name} is a {type(given).__name__}: give a list")
            if name != "objects" and is_single(given, 2 if name == "masks" else 1):
                raise ValueError(f"{name} is a single one: give a list of them, {name}=[...]")
        if len(self.objects):
            self._check_objects()
            return
        if not (len(self.boxes) or len(self.points) or len(self.masks)):
            raise ValueError("no prompt: give a sentence, boxes, points or masks")
        for box in self.boxes:
            check_box(box)
        if len(self.points) and len(self.boxes) > 1:
            raise ValueError(f"points with {len(self.boxes)} boxes: points correct one box, or are given without one")
        for prompt in self._short():
            prompt.check_new()

    def _check_objects(self) -> None:
        if len(self.boxes) or len(self.points) or len(self.masks):
            raise ValueError("objects: give each box, point and mask to one of them, none beside them")
        for prompt in self.objects:
            if not isinstance(prompt, ObjectPrompt):
                raise TypeError(f"objects holds a {type(prompt).__name__}: give ObjectPrompt records")
        by_id: dict[int, list[ObjectPrompt]] = {}
        for prompt in self.prompts():
            by_id.setdefault(prompt.id, []).append(prompt)
        for number, prompts in by_id.items():
            frames = {prompt.at for prompt in prompts}
            if len(prompts) > 1 and (None in frames or len(frames) < len(prompts)):
                raise ValueError(
                    f"object {number} is shown more than once: give two objects an id each, or one object another at= "
                    "each time, the first one too"
                )
            try:
                for prompt in prompts:
                    prompt.check_known() if len(prompts) > 1 else prompt.check_new()
            except ValueError as error:
                raise ValueError(f"object {number}: {error}") from error

    def _short(self) -> list[ObjectPrompt]:
        """The short form as objects: boxes with their points, then masks."""
        boxed = [ObjectPrompt(box=box, points=self.points) for box in self.boxes]
        if len(self.points) and not boxed:
            boxed = [ObjectPrompt(points=self.points)]
        return boxed + [ObjectPrompt(mask=mask) for mask in self.masks]

    def prompts(self) -> list[ObjectPrompt]:
        """All objects, each with a label and an id: the ones without take the numbers that are free, in order."""
        objects = list(self.objects) or self._short()
        taken = {prompt.id for prompt in objects}
        free = (number for number in count(1) if number not in taken)
        labels = {p.id: p.label for p in reversed(objects) if p.label and p.id is not None}  # the first one of each
        return [
            replace(p, label=p.label or labels.get(p.id, CLICKED), id=next(free) if p.id is None else int(p.id))
            for p in objects
        ]

    def check_inside(self, size: Size) -> None:
        """ValueError for a box, point or mask that does not belong to a picture of (height, width)."""
        for prompt in self.prompts():
            try:
                prompt.check_inside(size)
            except ValueError as error:
                raise ValueError(f"object {prompt.id}: {error}" if len(self.objects) else str(error)) from error


Prompt = Sentence | Clicks


def own_prompt(prompt: Prompt) -> Prompt:
    """The same in lists and arrays of its own: a program may use its own again before the last frame is read."""
    if not isinstance(prompt, Clicks):
        return prompt if isinstance(prompt, str) else list(prompt)
    boxes, points, masks = ([own(item) for item in items] for items in (prompt.boxes, prompt.points, prompt.masks))
    return Clicks(boxes, points, masks, [own_object(shown) for shown in prompt.objects])


def own_object(prompt: ObjectPrompt) -> ObjectPrompt:
    """An object's prompt in lists and arrays of its own."""
    return replace(prompt, box=own(prompt.box), points=[own(point) for point in prompt.points], mask=own(prompt.mask))


def own(value: object) -> object:
    """A copy of a tensor, an array or a list of numbers."""
    return value.detach().clone() if isinstance(value, Tensor) else deepcopy(value)


def split_phrases(sentence: Sentence) -> list[str]:
    """Phrases, verbatim and each once, if some differ in case or blanks alone, too.

    They are the parts of a string between commas, semicolons, question marks and full stops (the last two end a phrase
    in Grounding DINO, too), or the items of a list. A full stop or comma between two digits is part of a number:
    "1.5 l bottle" is one phrase. ValueError if there is no phrase, or an empty item; TypeError for anything but a
    string or a list of strings.
    """
    if isinstance(sentence, (bytes, Clicks)) or not isinstance(sentence, (str, list, tuple)):
        kinds = 'a sentence such as "car. dog.", a list of phrases, or Clicks'
        raise TypeError(f"a prompt is {kinds}, not a {kind_of(sentence)}")
    parts = re.split(r"[;?]|(?<!\d)[.,]|[.,](?!\d)", sentence) if isinstance(sentence, str) else sentence
    for part in parts:
        if not isinstance(part, str):
            raise TypeError(f"a list of phrases holds strings, not a {kind_of(part)}")
        check_letters(part, "the phrase")
    phrases = [part.strip() for part in parts]
    if isinstance(sentence, str):
        phrases = [phrase for phrase in phrases if phrase]
    if not phrases or not all(phrases):
        kind = "an empty" if phrases else "no"
        raise ValueError(f'the prompt {sentence!r:.80} has {kind} phrase: write it as "car. dog." or ["car", "dog"]')
    distinct: dict[str, str] = {}
    for phrase in phrases:
        distinct.setdefault(" ".join(phrase.split()).casefold(), phrase)
    return list(distinct.values())


def check_letters(text: str, what: str) -> None:
    """ValueError for a text that no file can hold: with a byte from a command line or file that is no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} {text!r:.80} holds a byte that is no text: write it in UTF-8") from None


def kind_of(prompt: object) -> str:
    """The type of what is no sentence; of a picture also where it can be a prompt."""
    hint = "; HeatMapper.heat_maps takes pictures" if isinstance(prompt, Picture) else ""
    return type(prompt).__name__ + hint


# --- Checks ------------------------------------------------------------------------------------------------


def is_single(entries: Sequence, axes: int) -> bool:
    """Whether numbers or rows of numbers stand where entries of so many axes are wanted: one entry in place of a list.

    axes: 1 of boxes and points, 2 of masks.
    """
    return any(hasattr(entry, "__float__") and np.ndim(entry) < axes for entry in entries)


def as_numbers(values: Sequence[float]) -> tuple[float, ...]:
    """Finite floats of any sequence, array or tensor of numbers; an empty tuple for anything else."""
    try:
        numbers = () if isinstance(values, (str, bytes)) else tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        return ()
    return numbers if all(map(math.isfinite, numbers)) else ()


def is_whole(value: object) -> bool:
    """Whether it is a whole number, also one of NumPy's."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def shown(values: Sequence[float]) -> str:
    """ "5,10,15,22", as on a command line."""
    return ",".join(f"{float(value):g}" for value in values)


def check_box(box: Sequence[float]) -> None:
    """ValueError unless it is x1, y1, x2, y2 with x1 < x2 and y1 < y2."""
    numbers = as_numbers(box)
    if len(numbers) != 4:
        raise ValueError(f"box {box!r:.80}: give the four numbers x1, y1, x2, y2 in pixels")
    x1, y1, x2, y2 = numbers
    if x1 == x2 or y1 == y2:
        raise ValueError(f"box {shown(box)}: it has no area: x2 must be larger than x1, and y2 larger than y1")
    if x1 > x2 or y1 > y2:
        raise ValueError(f"box {shown(box)}: it is x1,y1,x2,y2 with x1 < x2 and y1 < y2, not x,y,width,height")


def check_point(point: Sequence[float]) -> None:
    """ValueError unless it is x, y, and 1 or 0."""
    numbers = as_numbers(point)
    if len(numbers) != 3 or numbers[2] not in (0, 1):
        raise ValueError(f"point {point!r:.80}: give (x, y, 1) on the object or (x, y, 0) on the background")


def check_box_inside(box: Sequence[float], size: Size) -> None:
    """ValueError for relative coordinates, and for a box that lies outside a picture of (height, width)."""
    height, width = size
    if is_relative(box) and max(box) <= 1 < min(size):
        pixels = shown(round(value * side) for value, side in zip(box, (width, height) * 2))
        raise ValueError(f"box {shown(box)}: coordinates are pixels, not shares of the picture: give {pixels}")
    x1, y1, x2, y2 = box
    if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
        raise ValueError(f"box {shown(box)}: it lies outside the picture of {width} x {height} pixels")


def check_point_inside(point: Sequence[float], size: Size) -> None:
    """ValueError for relative coordinates, and for a point outside a picture of (height, width)."""
    (x, y, _), (height, width) = point, size
    if is_relative((x, y)) and max(x, y) < 1 < min(size):
        pixels = shown((round(x * width), round(y * height)))
        raise ValueError(f"point {shown(point[:2])}: coordinates are pixels, not shares of the picture: give {pixels}")
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"point {shown(point[:2])}: it lies outside the picture of {width} x {height} pixels")


def as_mask(mask: np.ndarray) -> np.ndarray:
    """A mask as a bool array of its own, True where it is above 0. ValueError for what are no finite numbers, and for
    probabilities, whose threshold is not 0."""
    return above_zero(mask if isinstance(mask, Tensor) else np.asarray(mask), "mask").numpy()


def check_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """A mask as bool (H, W), as as_mask makes it. ValueError if it is empty or not of the picture's (height, width)."""
    mask = as_mask(mask)
    if mask.shape != tuple(size):
        raise ValueError(f"mask of {mask.shape} pixels (height, width) does not fit a picture of {tuple(size)}")
    if not mask.any():
        raise ValueError("mask is empty: it must show the object")
    return mask
