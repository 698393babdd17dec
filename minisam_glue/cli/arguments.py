"""From the words of a command line to inputs, what to look for in them, and a folder for the results of each."""

import math
import os
import re
from argparse import Namespace
from collections import Counter
from pathlib import Path

from .. import media
from ..prompts import Clicks, Prompt, split_phrases

LONGEST_NAME = 120  # bytes; file systems take 255, and Windows 260 letters of the whole path


def prompt_of(args: Namespace) -> tuple[list[str], Prompt]:
    """Inputs and what to look for in them. ValueError if one is missing."""
    if args.box or args.point or args.mask:
        clicks = Clicks(
            [numbers(box, "--box", 4) for box in args.box],
            [numbers(p if p.count(",") == 2 else p + ",1", "--point", 3) for p in args.point],
            [media.read_image(path).any(2) for path in args.mask],
        )
        sources, prompt = args.words, clicks
        check_no_sentence(args.words)
    else:
        sources, prompt = args.words[:-1], args.words[-1] if args.words else ""
        if sources:
            split_phrases(prompt)  # an empty one is an error before models are loaded
    if args.words and not sources:
        raise ValueError(f'one argument, {args.words[0]!r}, is not enough: python segment.py INPUT "what to look for."')
    if not sources:
        raise ValueError('nothing to do: python segment.py INPUT "what to look for." (see --help)')
    return sources, prompt


def check_no_sentence(words: list[str]) -> None:
    """ValueError if the last of several words is no input, and so probably a sentence."""
    try:
        media.expand_inputs(words[1:][-1:])
    except media.MediaError as error:
        raise ValueError(f"{error}; --box, --point and --mask take the place of a sentence") from error


def numbers(text: str, name: str, count: int) -> list[float]:
    """ "1,2,3" -> floats. ValueError unless they are so many, and finite."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise ValueError(f"{name} {text!r}: give {'X1,Y1,X2,Y2' if count == 4 else 'X,Y or X,Y,0'} in pixels")
    return values


def folders_of(sources: list[str], out: Path) -> dict[str, Path]:
    """A folder for each input: named as the file, with its ending or a number where two would be the same.

    ValueError if that would be the input itself, a folder of frames.
    """
    stems = Counter(stem(source).casefold() for source in sources)  # some file systems take A and a for the same
    folders, taken = {}, set()
    for source in sources:
        name = stem(source) if stems[stem(source).casefold()] == 1 else last_part(source).replace(".", "_")
        number, unique = 1, name
        while unique.casefold() in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique.casefold())
        folders[source] = out / unique
        if os.path.isdir(source) and folders[source].resolve() == Path(source).resolve():
            raise ValueError(f"the results of {source} would go into it: choose another --out")
    return folders


def stem(source: str) -> str:
    """What a folder for this input is called."""
    return Path(last_part(source)).stem.strip(". ") or "input"


def last_part(source: str) -> str:
    """The name at the end of a path or URL, without what file systems do not take."""
    if source == "-":
        return "stdin"
    name = source.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    name = name.split("?")[0] if "://" in source else name
    name = re.sub(r'[\0-\x1f:*?"<>|]', "_", name).encode(errors="ignore")  # those of Windows are the most
    if len(name) > LONGEST_NAME:
        name = name[: LONGEST_NAME // 2] + b"~" + name[-LONGEST_NAME // 2 :]
    return name.decode(errors="ignore").strip(". ") or "input"
