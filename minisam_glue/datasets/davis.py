"""DAVIS 2017 (arXiv 1704.00675): per video a folder of JPEG frames and one of palette PNG, whose pixels are objects.

The numbers of the objects are those of the result, closed up: 1, 2, ... in each video. A picture is a video of one
frame. Where masks overlap, the smallest lies on top: this format can't keep both. meta.json names the category of each
object and the frames it is on, as YouTube-VOS has it.
"""

import json
from pathlib import Path

from ..support.files import whole_file
from ..support.reading import Kind, fields, mapping, refuse, text, whole
from .annotations import Categories, Entries, Picture
from .palette import MOST, number_map, save

RESOLUTION = "Full-Resolution"  # DAVIS's name for what is not made smaller


def files(picture: Picture) -> list[str]:
    """The annotation and the frame."""
    frame = f"{picture.video or picture.name}/{picture.frame:05d}"
    return [f"Annotations/{RESOLUTION}/{frame}.png", f"JPEGImages/{RESOLUTION}/{frame}.jpg"]


def write(folder: Path, picture: Picture, categories: Categories) -> dict:
    """Write annotation and frame. ValueError if a video has more objects than a palette."""
    video, frame = picture.video or picture.name, f"{picture.frame:05d}"
    if len(picture.tracks) > MOST:
        raise ValueError(f"{video} has {len(picture.tracks)} objects, and DAVIS holds {MOST}: choose another data set")
    numbers = [picture.tracks.index(annotation.track) + 1 for annotation in picture.annotations]
    mask, image = files(picture)
    save(folder / mask, number_map(picture.size, picture.annotations, numbers))
    picture.pixels.save(folder / image)
    seen = {str(number): a.category for number, a in zip(numbers, picture.annotations)}
    return {"files": [mask, image], "frame": frame, "seen": seen}


def entry_kind(categories: int) -> Kind:
    """The kind of an entry."""
    return fields(frame=text, seen=mapping(_number, whole(0, categories - 1)))


def _number(value: object, where: str) -> None:
    """The number of an object, as a key of JSON has it."""
    text(value, where)
    if not (value.isascii() and value.isdigit()):
        refuse(value, where, "a number of digits")


def assemble(folder: Path, entries: Entries, categories: Categories) -> None:
    """Write meta.json and the list of videos."""
    videos = {}
    for name, frames in entries():
        if frames is None:
            continue
        objects = videos[name] = {}
        for entry in frames:
            for number, category in entry["seen"].items():
                about = objects.setdefault(number, {"category": categories.names[category], "frames": []})
                about["frames"].append(entry["frame"])
    lists = folder / "ImageSets" / "2017"
    lists.mkdir(parents=True, exist_ok=True)
    with whole_file(lists / "train.txt") as temporary:
        temporary.write_text("".join(f"{name}\n" for name in videos), encoding="utf-8")
    meta = {
        name: {"objects": dict(sorted(objects.items(), key=lambda o: int(o[0])))} for name, objects in videos.items()
    }
    with whole_file(folder / "meta.json") as temporary:
        temporary.write_text(json.dumps({"videos": meta}, indent=1) + "\n", encoding="ascii")
