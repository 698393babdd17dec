"""PASCAL VOC 2012 (the development kit's documentation): JPEG images, XML boxes, palette PNG of classes and of objects.

It lies in VOCdevkit/VOC2012, where torchvision.datasets.VOCSegmentation and VOCDetection look for it. Classes are
numbered from 1 in the order of labels.txt; the numbers of the objects are their places in the XML file. Boxes are
counted from 1 with both ends in them, as VOC counts. Where masks overlap, the smallest lies on top. There is no void.
The lists of images are read word by word (VOC's textread, NumPy's loadtxt), so that a blank in a name is written %20.

VOC's own classes are fixed, so it has no file for others. CVAT and Datumaro read them from labelmap.txt beside the
folders (docs.cvat.ai, "Pascal VOC"): name, colour in the palette, parts, actions.
"""

import re
from pathlib import Path
from xml.sax.saxutils import escape

from ..support.files import whole_file
from ..support.reading import Kind, fields, text
from ..support.text import printable
from .annotations import Categories, Entries, Picture
from .palette import MOST, colours, number_map, save

ROOT = "VOCdevkit/VOC2012"


def files(picture: Picture) -> list[str]:
    """The masks of objects and classes, the boxes and the image."""
    name = one_word(picture.name)
    masks = [f"{ROOT}/SegmentationObject/{name}.png", f"{ROOT}/SegmentationClass/{name}.png"]
    return [*masks, f"{ROOT}/Annotations/{name}.xml", f"{ROOT}/JPEGImages/{name}.jpg"]


def write(folder: Path, picture: Picture, categories: Categories) -> dict:
    """Write both masks, boxes and image. ValueError if there are more objects or classes than a palette holds."""
    for count, what in ((len(picture.annotations), "objects"), (len(categories.names), "classes")):
        if count > MOST:
            raise ValueError(f"{picture.name}: {count} {what}, and VOC holds {MOST}: choose another data set")
    name, found = one_word(picture.name), picture.annotations
    by_object, by_class, boxes, image = files(picture)
    save(folder / by_object, number_map(picture.size, found, list(range(1, len(found) + 1))))
    save(folder / by_class, number_map(picture.size, found, [a.category + 1 for a in found]))
    (folder / boxes).parent.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / boxes) as temporary:
        temporary.write_text(_xml(picture, name, categories), encoding="utf-8")
    picture.pixels.save(folder / image)
    return {"files": [by_object, by_class, boxes, image], "name": name}


def one_word(name: str) -> str:
    """A name without blanks and #, which begins a comment in NumPy's lists: these and % as their bytes, such as %20."""
    return re.sub(r"[\s#%]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), name)


def _xml(picture: Picture, name: str, categories: Categories) -> str:
    """The description of one image, which is called `name` in the data set."""
    height, width = picture.size
    place, _, file = f"{name}.jpg".rpartition("/")
    depth = 1 if picture.pixels.copies_grey(".jpg") else 3
    objects = "".join(
        f"\t<object>\n\t\t<name>{escape(printable(categories.names[a.category]))}</name>\n"
        "\t\t<pose>Unspecified</pose>\n\t\t<truncated>0</truncated>\n\t\t<difficult>0</difficult>\n"
        f"\t\t<bndbox><xmin>{a.box[0] + 1}</xmin><ymin>{a.box[1] + 1}</ymin>"
        f"<xmax>{a.box[2]}</xmax><ymax>{a.box[3]}</ymax></bndbox>\n\t</object>\n"
        for a in picture.annotations
    )
    return (
        f"<annotation>\n\t<folder>{escape(printable(place or 'VOC2012'))}</folder>\n"
        f"\t<filename>{escape(printable(file))}</filename>\n"
        f"\t<size><width>{width}</width><height>{height}</height><depth>{depth}</depth></size>\n"
        f"\t<segmented>1</segmented>\n{objects}</annotation>\n"
    )


def entry_kind(categories: int) -> Kind:
    """The kind of an entry."""
    return fields(name=text)


def assemble(folder: Path, entries: Entries, categories: Categories) -> None:
    """Write the lists of images, labels.txt and labelmap.txt."""
    for task in ("Segmentation", "Main"):
        path = folder / ROOT / "ImageSets" / task / "train.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for _, found in entries():
                file.writelines(f"{entry['name']}\n" for entry in found or ())
    names = [printable(name) for name in categories.names]
    for file_name, lines in (("labels.txt", names), ("labelmap.txt", _label_map(names))):
        with whole_file(folder / ROOT / file_name) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _label_map(names: list[str]) -> list[str]:
    """The lines of labelmap.txt. A name that would not be read back there, for a colon or a leading #, has none."""
    table = colours()
    return [
        f"{name}:{','.join(map(str, table[3 * number : 3 * number + 3]))}::"
        for number, name in enumerate(["background", *names])
        if (number or "background" not in names) and ":" not in name and not name.startswith("#")
    ]
