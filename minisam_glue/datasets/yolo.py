"""Segmentation data set of Ultralytics' YOLO: data.yaml, images/train/, labels/train/.

A label file has a line for each object: its class, then the corners of one ring as shares of width and height
(docs.ultralytics.com/datasets/segment). The corners lie just inside their pixels: Ultralytics cuts them off to whole
pixels, which then gives the mask, and the box around them is the mask's own to a tenth of a pixel. An object in pieces
is one ring, joined by lines that Ultralytics fills too; where these would be more than a hundredth of its area, it is
a line for each piece. There is one split, `train`, and `val` is the same: split it yourself. The labels of a picture
are looked for where the last `images` of its path is `labels`, so no video's folder is called so.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..support.files import whole_file
from .annotations import Annotation, Categories, Entries, Picture
from .polygons import join, trace

INSET = 0.1  # of half a pixel
LONGEST_JOINT = 0.01  # of the area


def files(picture: Picture) -> list[str]:
    """The label file and the image."""
    name = re.sub(r"^images_*(?=/)", r"\g<0>_", picture.name, flags=re.IGNORECASE)  # no two become the same
    return [f"labels/train/{name}.txt", f"images/train/{name}{picture.pixels.suffix}"]


def write(folder: Path, picture: Picture, categories: Categories) -> dict:
    """Write the label file and then the image: one without labels would count as empty."""
    label, image = files(picture)
    lines = [line for annotation in picture.annotations for line in _lines(annotation, picture.size)]
    (folder / label).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / label) as temporary:
        temporary.write_text("".join(lines), encoding="ascii")
    picture.pixels.save(folder / image)
    return {"files": [label, image]}


def _lines(annotation: Annotation, size: tuple[int, int]) -> Iterator[str]:
    rings = [shape.ring() for shape in trace(annotation.mask, INSET)]
    ring, length = join(rings)
    for corners in [ring] if length <= LONGEST_JOINT * annotation.area else rings:
        shares = (corners / np.array(size[::-1])).ravel()
        yield f"{annotation.category} {' '.join(f'{share:.7f}' for share in shares)}\n"


def quoted(name: str) -> str:
    """A string of YAML: as in JSON, but for letters above U+FFFF, which JSON escapes as two that YAML does not join."""
    return '"' + "".join(c if ord(c) > 0xFFFF else json.dumps(c)[1:-1] for c in name) + '"'


def assemble(folder: Path, entries: Entries, categories: Categories) -> None:
    """Write data.yaml, whose paths are beside it. nc, the number of classes, is what older trainers read (YOLOv7)."""
    names = "".join(f"  {number}: {quoted(name)}\n" for number, name in enumerate(categories.names))
    with whole_file(folder / "data.yaml") as temporary:
        head = f"train: images/train\nval: images/train  # the same: split it yourself\nnc: {len(categories.names)}\n"
        temporary.write_text(f"{head}names:\n{names}", encoding="utf-8")
