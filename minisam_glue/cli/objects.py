"""Objects by their boxes, points and masks, as the words of a command or a JSON file give them.

    --object "box=10,20,80,90 point=30,40 point=50,60,0 label='big dog' id=2 at=40"
    --prompts FILE    {"objects": [{"box": [10, 20, 80, 90], "points": [[30, 40], [50, 60, 0]], "label": "big dog"}]}

Several of one id, each with another `at`, prompt the object again. Both know the same names; `mask` is the name of a
file, in a JSON file beside that. All errors are ValueErrors that name the flag.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import media
from ..media.images import LEAST_LIGHT
from ..prompts import Clicks, ObjectPrompt, as_numbers
from ..support.reading import check_regular, flag, mapping, real, sequence, text, whole

LARGEST_FILE = 1 << 26  # bytes of a file of prompts
WORD = re.compile(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""")  # a quoted part may hold spaces
KEYS = {  # of an object in a JSON file
    "box": sequence(real, 4),
    "points": sequence(sequence(real, least=2)),
    "mask": text,
    "label": text,
    "id": whole(1),
    "at": whole(),
    "remove": flag,
}


def objects_of(words: Sequence[str], path: Path | None) -> Clicks:
    """The objects of all --object and of the file of --prompts, which come after these, in place of a sentence."""
    objects = read_objects(words, path)
    try:
        return Clicks(objects=objects)
    except ValueError as error:
        raise ValueError(f"{'--object' if words else '--prompts'}: {error}") from error


def read_objects(words: Sequence[str], path: Path | None) -> list[ObjectPrompt]:
    """The objects of all --object, then those of the file of --prompts."""
    return [parse_object(word) for word in words] + (read_prompts(path) if path else [])


def parse_object(words: str) -> ObjectPrompt:
    """The words of one --object."""
    where, given = f"--object {words!r:.200}", {}
    if WORD.sub("", words).strip():
        raise ValueError(f"{where}: a quotation mark has no partner: write label='big dog', or label=\"dog's\"")
    for word in WORD.findall(words):
        name, equals, value = word.partition("=")
        value = re.sub(r"""(["'])(.*?)\1""", r"\2", value)
        if name in given and name != "point":
            raise ValueError(f"{where}: {name} is there twice")
        if name == "point" and equals:
            given.setdefault(name, []).append(parse_point(value, f"{where}: point"))
        elif name == "box" and equals:
            given[name] = parse_numbers(value, f"{where}: box", 4)
        elif name in ("id", "at") and equals:
            given[name] = parse_whole(value, f"{where}: {name}")
        elif name in ("label", "mask") and equals:
            given[name] = value
        elif word == "remove":
            given[name] = True
        else:
            raise ValueError(f"{where}: {word!r:.80} is none of box=, point=, mask=, label=, id=, at=, remove")
    return made(given, where)


def read_prompts(path: Path) -> list[ObjectPrompt]:
    """The objects of a JSON file: a list of them, or one under "objects"."""
    try:
        check_regular(path, LARGEST_FILE)
        content = json.loads(path.read_bytes())
        objects = content.get("objects") if isinstance(content, dict) else content
        if isinstance(content, dict) and content.keys() != {"objects"}:
            other = sorted(content.keys() - {"objects"}) or ["no objects"]
            raise ValueError(f"it has {other[0]!r:.80}: give a list of objects, or one under 'objects'")
        sequence(mapping(text, lambda *_: None), least=1)(objects, "the list of objects")
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        reason = "no JSON, which is text in UTF-8" if isinstance(error, UnicodeDecodeError) else reason
        raise ValueError(f"--prompts {path}: {reason or error}") from error
    return [_object_of(value, f"--prompts {path}: object {n} of the file", path) for n, value in enumerate(objects, 1)]


def _object_of(value: dict, where: str, path: Path) -> ObjectPrompt:
    """One object of a JSON file; null counts as not given."""
    given = {name: item for name, item in value.items() if item is not None}
    for name, item in given.items():
        if name not in KEYS:
            raise ValueError(f"{where} has {name!r:.80}, which is none of {', '.join(KEYS)}")
        try:
            KEYS[name](item, name)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if "box" in given:
        given["box"] = tuple(map(float, given["box"]))
    if "points" in given:
        points = [tuple(map(float, point)) for point in given.pop("points")]
        given["point"] = [point if len(point) > 2 else (*point, 1.0) for point in points]
    if "mask" in given:
        given["mask"] = str(path.parent / given["mask"])
    return made(given, where)


def made(given: dict, where: str) -> ObjectPrompt:
    """The object; `mask` is still the name of a file here."""
    try:
        if "mask" in given:
            masks = read_masks(given["mask"])
            if len(masks) > 1:
                raise ValueError(f"mask {given['mask']}: it shows {len(masks)} objects: give a file for each")
            given = given | {"mask": masks[0]}
        return ObjectPrompt(points=given.pop("point", ()), **given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {re.sub('^--', '', str(error))}") from error


def parse_whole(value: str, where: str) -> int:
    """ "40" -> 40. Its range is checked where it is used."""
    if not re.fullmatch(r"\d{1,10}", value):
        raise ValueError(f"{where}={value!r:.80}: give a whole number")
    return int(value)


def parse_point(value: str, where: str) -> tuple[float, ...]:
    """ "30,40" -> (30, 40, 1), on the object; "30,40,0" -> (30, 40, 0), on the background."""
    return parse_numbers(value if value.count(",") == 2 else value + ",1", where, 3)


def parse_numbers(text: str, flag: str, count: int) -> tuple[float, ...]:
    """ "1,2,3" -> floats. ValueError unless they are so many, and finite."""
    values = as_numbers(text.split(","))
    if len(values) != count:
        raise ValueError(f"{flag} {text!r}: give {'X1,Y1,X2,Y2' if count == 4 else 'X,Y or X,Y,0'} in pixels")
    return values


def read_masks(path: str) -> list[np.ndarray]:
    """The objects of a mask image, each bool (H, W). MediaError if it can't be read, ValueError if it is no mask."""
    try:
        masks, image = media.read_masks(path), media.read_image(path, lambda _: None)
    except media.MediaError as error:
        raise media.MediaError(f"--mask {error}") from error
    inside = masks[0]
    share = inside.mean()
    if len(masks) == 1 and share > 0.5 and image[~inside].max(initial=0) < LEAST_LIGHT:  # not the alpha of a cut-out
        # One object in one colour may be so large; a photograph has many colours.
        colours = image[inside].astype(int) @ (1 << 16, 1 << 8, 1)
        if np.unique(colours, return_counts=True)[1].max() < len(colours) / 2:
            raise ValueError(
                f"--mask {path}: {share:.0%} of it is not black: a mask image is black everywhere but on the object"
            )
    return masks
