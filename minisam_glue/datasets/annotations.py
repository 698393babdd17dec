"""Annotated pictures from the results of segment.py: what all data sets have in common.

    result = Result.read(Path("segmented/clip"))
    for picture in result.pictures(categories):
        picture.name, picture.size, [(a.category, a.box, a.area) for a in picture.annotations]

A picture gives one, a video one per frame. Boxes and areas are those of the masks. Categories are the phrases, in their
order, in which upper and lower case are the same. Left out: splits into training and test, and crowds.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from .. import media
from ..masks import as_bool, decode_rle, mask_box, rle_size
from ..media.images import open_picture
from ..pixels import JPEG_SIDE, is_deep_colour
from ..prompts import split_phrases
from ..records import LARGEST_RESULT, LONGEST_LINE, RECORD
from ..support.files import whole_file
from ..support.reading import check_regular, fields, mapping, optional, plain, real, sequence, text, whole

RESULT = fields(source=text, objects=sequence(fields(id=whole(1), label=text)), size=sequence(whole(1), 2))
READING = mapping(text, plain)  # "of", see cli/provenance.py; of a video these:
FLAGS = fields(**{"--start": real, "--stride": whole(1), "--max-seconds": optional(real), "--fps": real})


# Endings of files that data sets write beside the folders of videos. A name that ends so gets a line below its end, and
# one that ends in such lines another one: so no two become the same.
FILE_LIKE = re.compile(r"\.(avif|bmp|gif|heic|heif|jp2|jpe?g|json|pgm|png|ppm|tiff?|txt|webp|xml)_*$", re.IGNORECASE)


def folder_name(name: str) -> str:
    """The name of a video's folder in a data set: one that can't be that of a file beside it."""
    return f"{name}_" if FILE_LIKE.search(name) else name


# The entries of a data set by input, in order; None stands for an input without a result. See formats.py.
Entries = Callable[[], Iterator[tuple[str, list[dict] | None]]]


class Categories:
    """The names of what is annotated, numbered from 0; "Dog" and "dog" are one, called as it came first."""

    def __init__(self, labels: Iterable[str]):
        self.names: list[str] = []
        self.numbers: dict[str, int] = {}
        for label in labels:
            if self.numbers.setdefault(label.casefold(), len(self.names)) == len(self.names):
                self.names.append(label)

    def number(self, label: str) -> int:
        """The number of a label. ValueError if there is none."""
        if label.casefold() not in self.numbers:
            raise ValueError(f"the label {label!r} is none of the data set's: {', '.join(map(repr, self.names))}")
        return self.numbers[label.casefold()]


@dataclass
class Annotation:
    """One object on one picture."""

    track: int  # its number in the result: on all frames of a video the same
    category: int  # from 0
    score: float
    mask: np.ndarray  # bool (H, W), not empty

    @property
    def box(self) -> tuple[int, int, int, int]:
        """xyxy, the mask's own: pixels, the last two exclusive."""
        return mask_box(self.mask)

    @property
    def area(self) -> int:
        """Pixels of the mask."""
        return int(as_bool(self.mask).sum())


@dataclass
class Pixels:
    """A picture: as an array uint8 (H, W, 3), and as the file it was read from, if there is one."""

    array: Callable[[], np.ndarray]
    file: Path | None = None
    lossless: bool = True  # the way to write what has no file to copy: PNG, or JPEG for the frames of videos
    encoded: dict[str, bytes] = field(default_factory=dict)

    @cached_property
    def suffix(self) -> str:
        """.jpg or .png: the file's own if it can be copied."""
        return (self.file and _plain_kind(self.file)) or (".png" if self.lossless else ".jpg")

    def save(self, path: Path) -> None:
        """Write it whole: a copy of the file if it ends as `path` does, else as PNG, or JPEG of quality 95."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            if self.file and _plain_kind(self.file) == path.suffix:
                shutil.copyfile(self.file, temporary)
            else:
                temporary.write_bytes(self._encode(path.suffix))

    def copies_grey(self, suffix: str) -> bool:
        """Whether `save` under this ending copies a file of one channel."""
        if not self.file or _plain_kind(self.file) != suffix:
            return False
        with open_picture(self.file) as image:
            return image.mode == "L"

    def _encode(self, suffix: str) -> bytes:
        if suffix not in self.encoded:
            content, size = io.BytesIO(), self.array().shape
            if suffix == ".jpg" and max(size) > JPEG_SIDE:
                raise ValueError(f"{size[1]}x{size[0]} pixels are too long for a JPEG: choose another data set")
            how = {"format": "JPEG", "quality": 95, "subsampling": 0} if suffix == ".jpg" else {"format": "PNG"}
            Image.fromarray(self.array()).save(content, **how)
            self.encoded[suffix] = content.getvalue()
        return self.encoded[suffix]


def _plain_kind(path: Path) -> str | None:
    """.jpg or .png if every program shows the file as we do: upright, opaque, 8 bits of grey or RGB."""
    try:
        with open_picture(path) as image:
            eight_bits = image.mode in ("RGB", "L") and not is_deep_colour(image)  # before getexif, which decodes
            turned = image.getexif().get(0x0112, 1) != 1
            plain_file = eight_bits and not turned and not image.has_transparency_data
            return {"JPEG": ".jpg", "PNG": ".png"}.get(image.format) if plain_file else None
    except Exception:  # damaged headers and EXIF make Pillow raise nearly anything
        return None


@dataclass
class Picture:
    """One picture of a data set. name: its path there without the ending, such as "dog" or "clip/000003"."""

    name: str
    size: tuple[int, int]  # height, width
    annotations: list[Annotation]
    pixels: Pixels
    video: str | None = None  # name of the video that it is a frame of
    frame: int = 0
    tracks: tuple[int, ...] = ()  # the numbers of all objects of the picture or the whole video, ascending
    searched: tuple[int, ...] = ()  # the categories of all that was looked for, found or not; none after clicks


@dataclass
class Result:
    """The result of one input: a folder with a result.json, and for a video a result.jsonl."""

    folder: Path
    source: str
    of: dict  # what it is of, as cli/provenance.py says; may be empty
    content: dict  # of result.json

    @classmethod
    def read(cls, folder: Path, source: str | None = None) -> "Result":
        """ValueError or OSError, which names the file, if it is no result. source: where its source is now, if it may
        be elsewhere than it was."""
        path = folder / "result.json"
        try:
            check_regular(path, LARGEST_RESULT)
            content = json.loads(path.read_bytes())
            RESULT(content, "result.json")
            (fields(frames=whole(1)) if "frames" in content else RECORD)(content, "result.json")
            READING(content.get("of", {}), "its 'of'")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no result of segment.py ({_short(error)})") from error
        return cls(folder, source or content["source"], content.get("of", {}), content)

    @property
    def name(self) -> str:
        """The name of its folder, under which its pictures stand in a data set."""
        return self.folder.name

    @property
    def is_video(self) -> bool:
        """Whether it has a line for each frame."""
        return "frames" in self.content

    @property
    def keeps_frames(self) -> bool:
        """Whether --save frames has kept the plain frames of a video, so that its source is not needed."""
        return self.is_video and (self.folder / "frames" / f"{self.content['frames'] - 1:06d}.png").is_file()

    def phrases(self) -> list[str]:
        """The phrases of its prompt; none after clicks."""
        prompt = self.of.get("prompt")
        return split_phrases(prompt) if isinstance(prompt, str) else []

    def labels(self) -> list[str]:
        """The phrases of its prompt, and the labels of its objects."""
        return self.phrases() + [record["label"] for record in self.content["objects"]]

    def pictures(self, categories: Categories, image: np.ndarray | None = None) -> Iterator[Picture]:
        """The annotated picture, or the frames in order. image: the pixels, uint8 (H, W, 3), if they are at hand.

        ValueError or OSError if the source can't be read, or is not what the result was made of.
        """
        of_all = (
            tuple(sorted({record["id"] for record in self.content["objects"]})),
            tuple(sorted({categories.number(phrase) for phrase in self.phrases()})),
        )
        if self.is_video:
            for number, (record, frame) in enumerate(zip(self._lines(), self._frames())):
                name = f"{folder_name(self.name)}/{number:06d}"
                pixels = Pixels(lambda frame=frame: frame, lossless=False)
                yield Picture(name, *self._annotated(record, frame, categories), pixels, self.name, number, *of_all)
            return
        frame = media.read_image(self.source, lambda _: None) if image is None else image  # told before, too
        file = Path(self.source) if os.path.isfile(self.source) else None
        shown = self._annotated(self.content, frame, categories)
        yield Picture(self.name, *shown, Pixels(lambda: frame, file), None, 0, *of_all)

    def _annotated(self, record: dict, frame: np.ndarray, categories: Categories) -> tuple[tuple[int, int], list]:
        """Size and annotations of a record that fits its frame."""
        size = tuple(self.content["size"])
        if frame.shape[:2] != size:
            raise ValueError(f"{self.source} has {frame.shape[:2]} pixels, but its result in {self.folder} has {size}")
        found = []
        for held in record["objects"]:
            if rle_size(held["mask"]) != size:  # before a mask of any size is unpacked
                raise ValueError(f"{self.folder}: a mask of {rle_size(held['mask'])}, but pictures of {size}")
            mask = decode_rle(held["mask"])
            if mask.any():
                found.append(Annotation(held["id"], categories.number(held["label"]), held["score"], mask))
        return size, found

    def _lines(self) -> Iterator[dict]:
        """The records of the frames. ValueError for a damaged line, or one that is missing."""
        path, number = self.folder / "result.jsonl", 0
        check_regular(path)
        with open(path, "rb") as file:
            while line := file.readline(LONGEST_LINE):
                try:
                    record = json.loads(line)
                    RECORD(record, "the record")
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}: line {number + 1} is damaged ({_short(error)})") from error
                if record["frame"] != number:
                    raise ValueError(f"{path}: line {number + 1} is of frame {record['frame']}")
                yield record
                number += 1
        if number != self.content["frames"]:
            raise ValueError(f"{path} has {number} lines, but result.json says {self.content['frames']} frames")

    def _frames(self) -> Iterator[np.ndarray]:
        """The plain frames: those that --save frames has kept, else the source's, read as they were then."""
        count, kept = self.content["frames"], self.folder / "frames"
        if self.keeps_frames:
            yield from (media.read_image(kept / f"{number:06d}.png") for number in range(count))
            return
        if self.source == "-" or self.source.startswith("camera:"):
            raise ValueError(f"{self.folder}: {self.source} can't be read again: --save frames keeps its frames")
        reading = {"--start": 0.0, "--stride": 1, "--max-seconds": None, "--fps": media.DEFAULT_FPS} | self.of
        FLAGS(reading, f"{self.folder}/result.json")
        read, given = 0, [reading[flag] for flag in ("--start", "--stride", "--max-seconds", "--fps")]
        with media.frames(self.source, *given, warn=lambda _: None) as film:  # told when it was segmented
            for read, frame in enumerate(film, 1):
                yield frame
                if read == count:
                    return
        raise ValueError(f"{self.source} has {read} frames now, but its result in {self.folder} has {count}")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
