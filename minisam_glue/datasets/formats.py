"""The formats of data sets by their names.

A format is two functions. `write(folder, picture, categories)` puts the files of a picture into a data set and returns
its entry: JSON, with the "files" and what the files of the whole set say of the picture.
`assemble(folder, entries, categories)` writes the files of the whole set from the entries of all inputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import coco, davis, labelme, voc, yolo
from .annotations import Categories, Entries, Picture


@dataclass(frozen=True)
class Format:
    """The functions that write the files of a picture, and those of the whole set."""

    write: Callable[[Path, Picture, Categories], dict]
    assemble: Callable[[Path, Entries, Categories], None]


FORMATS = {
    "coco": Format(coco.write, coco.assemble),
    "coco-rle": Format(coco.write_rle, coco.assemble),
    "yolo": Format(yolo.write, yolo.assemble),
    "labelme": Format(labelme.write, labelme.assemble),
    "davis": Format(davis.write, davis.assemble),
    "voc": Format(voc.write, voc.assemble),
}
