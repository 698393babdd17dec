"""The formats of data sets by their names.

A format is three functions. `files(picture)` names the files of a picture in a data set; `write(folder, picture,
categories)` puts them there and returns its entry: JSON, with the "files" and what the files of the whole set say of
the picture.
`assemble(folder, entries, categories)` writes the files of the whole set from the entries of all inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import coco, davis, labelme, voc, yolo
from .annotations import Categories, Entries, Picture


@dataclass(frozen=True)
class Format:
    """The functions that name and write the files of a picture, and write those of the whole set."""

    files: Callable[[Picture], list[str]]
    write: Callable[[Path, Picture, Categories], dict]
    assemble: Callable[[Path, Entries, Categories], None]


FORMATS = {
    "coco": Format(coco.files, coco.write, coco.assemble),
    "coco-rle": Format(coco.files, coco.write_rle, coco.assemble),
    "yolo": Format(yolo.files, yolo.write, yolo.assemble),
    "labelme": Format(labelme.files, labelme.write, labelme.assemble),
    "davis": Format(davis.files, davis.write, davis.assemble),
    "voc": Format(voc.files, voc.write, voc.assemble),
}
