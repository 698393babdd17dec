"""Facts of a result: the source's content, the prompt, the weights, the program, and every flag that changes it.

These facts stand in result.json and in the state of an interrupted video, under "of". A result is another run's, unless
`differences` finds none. Left out: the device, which changes the last bits of a result and no more; and the content of
URLs, cameras and pipes, which nothing says before they are read again: a result of theirs is never taken for a new one.
"""

import hashlib
import json
import os
from argparse import Namespace
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from .. import __version__, media
from ..datasets import FORMATS
from ..media.images import list_folder, looks_like_picture
from ..models import Models
from ..prompts import Clicks, ObjectPrompt, Prompt
from ..support.reading import check_regular
from ..support.text import shortened
from ..weights import CHECKPOINTS, cache_dir
from .arguments import VIDEO_FLAGS

Facts = dict[str, object]  # plain values, as JSON has them

STATED_OTHERWISE = (
    "words",
    "box",
    "point",
    "mask",
    "object",
    "prompts",
    "weights",
    "detector",
    "sam",
    "dtype",
)  # see facts_of
CHANGE_NOTHING = (  # in what is written
    *("out", "resume", "json", "quiet", "profile", "download", "device", "batch"),
    *("correct", "states"),
)
WORDS = {
    "content": "other content of the source",
    "boxes": "other --box",
    "points": "other --point",
    "masks": "other --mask",
    "objects": "other --object or --prompts",
    "weights": "other weights",
    "program": "another version of this program",
    "precision": "another precision",
    "prompt": "another prompt",
    "source": "another source",
}
HASH_SHOWN = 12  # digits of a hash
UNKNOWN = "unknown"  # content that can't be compared


def facts_of(source: str, args: Namespace, prompt: Prompt, models: Models, moving: bool) -> Facts:
    """The facts of one input's result. moving: whether it is a video. OSError or ValueError as of content."""
    of = {"source": os.path.basename(source.rstrip("/\\")), "content": content(source)}
    return of | settings_of(args, prompt, models, moving)


def settings_of(args: Namespace, prompt: Prompt, models: Models, moving: bool) -> Facts:
    """The facts that all inputs of a run share."""
    clicks = prompt if isinstance(prompt, Clicks) else None
    flags = vars(args).keys() - {*STATED_OTHERWISE, *CHANGE_NOTHING} - (set() if moving else {*VIDEO_FLAGS, "fps"})
    facts = {
        "prompt": None if clicks else prompt,
        "boxes": [list(map(float, box)) for box in clicks.boxes] if clicks else [],
        "points": [list(map(float, point)) for point in clicks.points] if clicks else [],
        "masks": [_hash_mask(mask) for mask in clicks.masks] if clicks else [],
        "weights": {path.name: weights_hash(path) for path in models.files},
        "precision": str(next(models.sam.parameters()).dtype).removeprefix("torch."),
        "program": __version__,
    }
    if clicks and clicks.objects:
        facts["objects"] = [_facts_of_object(prompt) for prompt in clicks.prompts()]
    facts |= {"--" + name.replace("_", "-"): getattr(args, name) for name in sorted(flags)}
    if "identity" in flags:
        facts["--identity"] = args.identity or "on"  # the default, whether or not it is given
    if args.refine_every == 1:  # as in results of before there was this flag
        facts.pop("--refine-every", None)
    facts["--save"] = sorted(set(args.save) - FORMATS.keys())  # a data set is made of a result, and is none of it
    return json.loads(json.dumps(facts))  # tuples become lists, as they are when they are read again


def _facts_of_object(prompt: ObjectPrompt) -> Facts:
    """An object as it is asked for; its mask as a hash."""
    shown = {
        "box": None if prompt.box is None else list(map(float, prompt.box)),
        "points": [list(map(float, point)) for point in prompt.points],
        "mask": None if prompt.mask is None else _hash_mask(prompt.mask),
    }
    return {"id": prompt.id, "label": prompt.label, "at": prompt.at} | shown


def differences(then: Facts, now: Facts) -> list[str]:
    """The differences between two results, each in words: 'another prompt ("car." then, "dog." now)'. Of more than five
    the first four, and how many there are beside them."""
    found = [_difference(name, then.get(name), now.get(name)) for name in {**now, **then}]
    found = [words for words in found if words]
    return found if len(found) <= 5 else [*found[:4], f"{len(found) - 4} other settings"]


def _difference(name: str, then: object, now: object) -> str:
    """How a fact differs, in words; "" if it does not."""
    if name == "content" and UNKNOWN in (then, now):  # a sentence may well be "unknown"
        return "content that can't be compared"
    if then == now:
        return ""
    words, shown = WORDS.get(name, f"another {name}"), (_shown(then), _shown(now))
    return words if shown[0] == shown[1] else f"{words} ({shown[0]} then, {shown[1]} now)"


def _shown(value: object) -> str:
    """A value in few letters: hashes are cut, what is missing is "none"."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {str(digest)[:HASH_SHOWN]}" for name, digest in value.items()) or "none"
    if isinstance(value, str) and len(value) == 64 and " " not in value:
        return value[:HASH_SHOWN]
    return "none" if value in (None, []) else shortened(json.dumps(value, ensure_ascii=False))


# --- Hashes ------------------------------------------------------------------------------------------------


def content(source: str) -> str:
    """SHA-256 of a file, or of the names and contents of the pictures in a folder; UNKNOWN for all else. OSError, or
    ValueError for a pipe or device."""
    if os.path.isdir(source):
        return _hash_folder(list_folder(source, looks_like_picture, "pictures", lambda _: None))
    if source == "-" or source.startswith("camera:") or media.is_url(source):
        return UNKNOWN
    return _hash_file(source)


def _hash_folder(paths: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(hashlib.sha256(os.fsencode(path.name)).digest() + bytes.fromhex(_hash_file(path)))
    return total.hexdigest()


def _hash_file(path: str | Path) -> str:
    try:
        check_regular(path)  # of a pipe or device there would be no end
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def _hash_mask(mask: np.ndarray) -> str:
    return hashlib.sha256(str(mask.shape).encode() + np.packbits(mask).tobytes()).hexdigest()


def weights_hash(path: Path) -> str:
    """SHA-256 of a file of weights. One that was downloaded into the cache was checked then: its published hash counts,
    so that nobody waits for a gigabyte to be read twice."""
    published = {checkpoint.file: checkpoint.sha256 for checkpoint in CHECKPOINTS.values()}.get(path.name)
    if published and len(published) == 64 and path.parent == cache_dir():
        return published
    about = path.stat()
    return _remembered(str(path), about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=64)
def _remembered(path: str, size: int, changed: int) -> str:
    """The hash of a file as it is now: each command hashes it once."""
    return _hash_file(path)
