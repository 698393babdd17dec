"""The formats of data sets by their names.

A format is four functions. `files(picture)` names the files of a picture in a data set; `write(folder, picture,
categories)` puts them there and returns its entry: JSON, with the "files" and what the files of the whole set say of
the picture.
`assemble(folder, entries, categories)` writes the files of the whole set from the entries of all inputs;
`entry_kind(number)` is the kind of an entry, where there are so many categories.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..support.reading import Kind, fields
from . import coco, davis, labelme, voc, yolo
from .annotations import Categories, Entries, Picture


def any_entry(categories: int) -> Kind:
    """The kind of an entry from which `assemble` reads nothing."""
    return fields()


@dataclass(frozen=True)
class Format:
    """The functions that name and write the files of a picture, write those of the whole set, and check its entries."""

    files: Callable[[Picture], list[str]]
    write: Callable[[Path, Picture, Categories], dict]
    assemble: Callable[[Path, Entries, Categories], None]
    entry_kind: Callable[[int], Kind] = any_entry


FORMATS = {
    "coco": Format(coco.files, coco.write, coco.assemble, coco.entry_kind),
    "coco-rle": Format(coco.files, coco.write_rle, coco.assemble, coco.entry_kind),
    "yolo": Format(yolo.files, yolo.write, yolo.assemble),
    "labelme": Format(labelme.files, labelme.write, labelme.assemble),
    "davis": Format(davis.files, davis.write, davis.assemble, davis.entry_kind),
    "voc": Format(voc.files, voc.write, voc.assemble, voc.entry_kind),
}
