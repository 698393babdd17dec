"""labelme (github.com/wkentaro/labelme): an image and a JSON file of the same name, polygons to be edited.

The pieces of an object are polygons of one `group_id`, the object's number; what has holes is one ring that enters and
leaves them. The corners lie just inside their pixels: labelme fills polygons with Pillow, which fills the pixels of
their corners too.
"""

import json
from pathlib import Path

from ..support.files import whole_file
from .annotations import Categories, Entries, Picture
from .polygons import trace

INSET = 0.1  # of half a pixel
VERSION = "5.5.0"  # of labelme, which has read files of this form since


def files(picture: Picture) -> list[str]:
    """The image and the JSON file."""
    return [f"{picture.name}{picture.pixels.suffix}", f"{picture.name}.json"]


def write(folder: Path, picture: Picture, categories: Categories) -> dict:
    """Write the JSON file and the image."""
    image, path = files(picture)
    shapes = [
        {
            "label": categories.names[annotation.category],
            "points": shape.ring().round(2).tolist(),
            "group_id": annotation.track,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for annotation in picture.annotations
        for shape in trace(annotation.mask, INSET)
    ]
    content = {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": Path(image).name,
        "imageData": None,
        "imageHeight": picture.size[0],
        "imageWidth": picture.size[1],
    }
    picture.pixels.save(folder / image)
    with whole_file(folder / path) as temporary:
        temporary.write_text(json.dumps(content), encoding="ascii")
    return {"files": [image, path]}


def assemble(folder: Path, entries: Entries, categories: Categories) -> None:
    """Write labels.txt, which labelme's --labels reads."""
    with whole_file(folder / "labels.txt") as temporary:
        lines = "".join(f"{' '.join(name.split())}\n" for name in categories.names)
        temporary.write_bytes(lines.encode(errors="backslashreplace"))  # of an old result: bytes that were no text
