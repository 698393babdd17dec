"""COCO instances (cocodataset.org, "Data format"): one annotations.json beside images/.

Polygons follow the edges of the pixels, so that pycocotools gives the same masks; what has holes is one ring that
enters and leaves them. With run lengths ("coco-rle") masks are in the compressed form of pycocotools.

Videos are described in both ways that are in use. TAO (TrackEval, docs/TAO-format.txt): `videos`, `tracks`, the
`frame_index` of an image, the `track_id` of an annotation. CocoVID (MMTracking, "Customize Datasets") calls the same
numbers `frame_id` and `instance_id`, and gives annotations a `video_id`. Frames count from 0.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from ..masks import encode_rle
from ..support.files import whole_file
from ..support.reading import Kind, fields, optional, sequence, text, whole
from .annotations import Annotation, Categories, Entries, Picture
from .polygons import trace

ANNOTATIONS = "annotations.json"


def files(picture: Picture) -> list[str]:
    """The image."""
    return [f"images/{picture.name}{picture.pixels.suffix}"]


def write(folder: Path, picture: Picture, categories: Categories) -> dict:
    """Write the image. Returns what annotations.json says of it, with polygons."""
    return _write(folder, picture, _polygons)


def write_rle(folder: Path, picture: Picture, categories: Categories) -> dict:
    """Write as `write` does, with run lengths."""
    return _write(folder, picture, lambda annotation: encode_rle(annotation.mask))


def _polygons(annotation: Annotation) -> list[list[int]]:
    return [shape.ring().astype(int).ravel().tolist() for shape in trace(annotation.mask)]


def _write(folder: Path, picture: Picture, segmentation: Callable[[Annotation], object]) -> dict:
    (path,) = files(picture)
    picture.pixels.save(folder / path)
    objects = []
    for a in picture.annotations:
        left, top, right, bottom = a.box
        objects.append(
            {
                "category_id": a.category + 1,
                "segmentation": segmentation(a),
                "area": a.area,
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": 0,
                "score": a.score,
                "track": a.track,
            }
        )
    image = {"file_name": path.removeprefix("images/"), "height": picture.size[0], "width": picture.size[1]}
    frame = picture.frame if picture.video else None
    searched = [category + 1 for category in picture.searched]
    return {"files": [path], "image": image, "frame": frame, "searched": searched, "objects": objects}


def entry_kind(categories: int) -> Kind:
    """The kind of an entry."""
    held = fields(category_id=whole(1, categories), track=optional(whole()))
    image = fields(file_name=text, height=whole(1), width=whole(1))
    searched = sequence(whole(1, categories))
    return fields(image=image, frame=optional(whole()), searched=searched, objects=sequence(held))


def assemble(folder: Path, entries: Entries, categories: Categories) -> None:
    """Write annotations.json. Ids count from 1 in the order of the inputs; one without a result yet keeps a number."""
    names = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(categories.names, 1)]
    videos, tracks = [], {}
    for name, frames in entries():
        video = [entry for entry in frames or () if entry["frame"] is not None]
        if video:
            videos.append({"id": len(videos) + 1, "name": name} | _size(video[0]) | _looked_for(video))
        for held in (held for entry in video for held in entry["objects"]):
            known = {"video_id": len(videos), "category_id": held["category_id"], "object_id": held["track"]}
            tracks.setdefault((name, held["track"]), {"id": len(tracks) + 1} | known)
    ids = {video["name"]: video["id"] for video in videos}
    head = {"info": {"description": "masks by minisam_glue"}, "licenses": [], "categories": names, "videos": videos}
    with whole_file(folder / ANNOTATIONS) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(head | {"tracks": list(tracks.values())})[:-1])
        _write_list(file, "images", _images(entries, ids))
        _write_list(file, "annotations", _annotations(entries, tracks))
        file.write("}\n")


def _write_list(file, key: str, items: Iterator[dict]) -> None:
    """A list of a JSON object, item by item: a data set may be larger than memory."""
    file.write(f', "{key}": [')
    for number, item in enumerate(items):
        file.write((",\n" if number else "\n") + json.dumps(item))
    file.write("]")


def _numbered(entries: Entries) -> Iterator[tuple[int, str, dict]]:
    """Entries with the id of their image and the name of their input."""
    number = 0
    for name, found in entries():
        for entry in found or ():
            number += 1
            yield number, name, entry
        number += not found


def _images(entries: Entries, videos: dict[str, int]) -> Iterator[dict]:
    for number, name, entry in _numbered(entries):
        at = entry["frame"]
        frame = {} if at is None else {"video_id": videos[name], "frame_id": at, "frame_index": at}
        yield {"id": number} | entry["image"] | frame


def _annotations(entries: Entries, tracks: dict[tuple[str, int], dict]) -> Iterator[dict]:
    number = 0
    for image, name, entry in _numbered(entries):
        for held in entry["objects"]:
            number += 1
            track = {} if entry["frame"] is None else _track(tracks[name, held["track"]])
            yield {"id": number, "image_id": image} | {k: v for k, v in held.items() if k != "track"} | track


def _track(track: dict) -> dict:
    """The fields of an annotation that say which object of which video it shows."""
    return {"track_id": track["id"], "instance_id": track["id"], "video_id": track["video_id"]}


def _looked_for(video: list[dict]) -> dict:
    """The categories that TAO has for a video: those that were looked for and are not there, in which each track of a
    tracker is wrong; and those of which more objects may be there than are annotated, as after clicks."""
    searched = {number for entry in video for number in entry["searched"]}
    shown = {held["category_id"] for entry in video for held in entry["objects"]}
    return {"neg_category_ids": sorted(searched - shown), "not_exhaustive_category_ids": sorted(shown - searched)}


def _size(entry: dict) -> dict:
    """Width and height of a frame."""
    return {side: entry["image"][side] for side in ("width", "height")}
