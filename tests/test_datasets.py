"""Data sets out of results: what independent readers read is what the masks were; and how a data set grows."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torchvision
from helpers.commands import command
from helpers.picture_cases import png_of_16_bits
from helpers.squares import film, picture, save, save_film
from helpers.tiny_segment import tiny_models
from PIL import Image, ImageDraw

from minisam_glue.cli.data_sets import run
from minisam_glue.datasets import FORMATS, Categories, DataSets, Picture, Pixels, voc, yolo
from minisam_glue.datasets.annotations import Annotation
from minisam_glue.datasets.dataset import DataSet, read_about
from minisam_glue.datasets.palette import number_map
from minisam_glue.datasets.polygons import trace
from minisam_glue.demo.scenes import clip, scene
from minisam_glue.masks import mask_box
from minisam_glue.media import read_image
from minisam_glue.records import Segment, Segmented
from minisam_glue.support.lock import FolderLock

PICTURES, CLIPS, FRAMES = 20, 5, 5


def test_the_folder_of_a_video_never_has_the_name_of_a_file(tmp_path):
    image = picture(5)
    found = [Segmented(image, [Segment(1, "red circle", 0.5, (0, 0, 1, 1), image.min(2) > 139)], 0)]
    out, videos = tmp_path / "out", ("a.jpg", "a.json", "a.JPG_", "a.txt", "labels.txt", "b")
    out.mkdir()
    write_result(out / "a", Path(save(image, tmp_path / "a.jpg")), found, False)
    for name in videos:
        (tmp_path / "films" / name).mkdir(parents=True)
        save(image, tmp_path / "films" / name / "0.png")
        write_result(out / name, tmp_path / "films" / name, found, True)
    assert run([str(out), "--to", *FORMATS, "--quiet"]) == 0
    images = json.loads((out / "coco" / "annotations.json").read_text())["images"]
    names = {image["file_name"].casefold() for image in images}
    assert names == {"a.jpg", "b/000000.jpg", "labels.txt_/000000.jpg"} | {
        f"a.{end}_/000000.jpg" for end in ("jpg", "jpg_", "json", "txt")
    }
    for name in FORMATS:
        assert len({str(path).casefold() for path in (out / name).rglob("*.jpg")}) >= 7


def test_a_run_ends_well_beside_a_file_that_has_the_name_of_a_folder_of_one_that_was_killed(tmp_path):
    source, out = save(picture(5), tmp_path / "0.png"), tmp_path / "out"
    assert command(source, "bright.", "--save", "coco", "--quiet", "--out", out) == 0
    (out / "coco" / ".parts" / "0.png.begun").write_text('"images/0.png/000000.jpg"\n"images"\n')
    assert command(source, "bright.", "--save", "coco", "--quiet", "--out", out, "--resume") == 0
    assert (out / "coco" / "images" / "0.png").is_file() and not list((out / "coco" / ".parts").glob("*.begun"))


def test_data_sets_and_an_index_of_earlier_results_are_told(tmp_path, capsys):
    sources, out = [save(picture(5), tmp_path / f"{n}.png") for n in range(2)], tmp_path / "out"
    assert command(*sources, "bright.", "--html", "--save", "coco", "--out", out) == 0
    assert "of earlier results" not in capsys.readouterr().out
    assert command(*sources, "dark.", "--out", out) == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "of earlier results" in line]
    again = f"python -m minisam_glue.datasets {out} --to coco"
    assert note == (
        f"note: {out / 'index.html'}, {out / 'coco'}: of earlier results; remove them, then if needed: "
        f"--resume --html; {again}"
    )
    shutil.rmtree(out / "coco")
    assert command(*sources, "dark.", "--html", "--out", out) == 0
    assert "of earlier results" not in capsys.readouterr().out


def objects_of(masks: np.ndarray, figures: list, number: int = 0) -> list[Segment]:
    """Records of the true masks (n, H, W); labels in capitals on every other picture."""
    labels = [f"{f.colour} {f.shape}" for f in figures]
    labels = [label.title() if number % 2 else label for label in labels]
    return [Segment(i, label, 0.5, (0, 0, 1, 1), mask) for i, (label, mask) in enumerate(zip(labels, masks), 1)]


def write_result(folder: Path, source: Path, frames: list[Segmented], moving: bool) -> None:
    """A result.json, and for a film a result.jsonl, as segment.py writes them."""
    folder.mkdir()
    about = {"source": str(source), "of": {"prompt": "red circle. blue square.", "source": source.name}}
    if moving:
        records = [frame.as_json() for frame in frames]
        (folder / "result.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        held = {o.id: {"id": o.id, "label": o.label} for frame in frames for o in frame.objects}
        about |= {"size": list(frames[0].image.shape[:2]), "frames": len(frames), "objects": list(held.values())}
    else:
        about |= frames[0].as_json()
    (folder / "result.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with data sets of every format, and the true results by the names of their pictures."""
    place, truth = tmp_path_factory.mktemp("made"), {}
    (place / "out").mkdir()
    for seed in range(PICTURES):
        one = scene(seed)
        path, name = place / f"s{seed}.{'jpg' if seed % 2 else 'png'}", f"s{seed}"
        save(one.image, path)
        truth[name] = Segmented(one.image, objects_of(one.masks, one.figures, seed))
        write_result(place / "out" / name, path, [truth[name]], False)
    for seed in range(CLIPS):
        film, name = clip(seed, frames=FRAMES), f"v{seed}"
        frames = [Segmented(f, objects_of(m, film.figures), t) for t, (f, m) in enumerate(zip(film.frames, film.masks))]
        (place / name).mkdir()
        for t, frame in enumerate(frames):
            save(frame.image, place / name / f"{t:03d}.png")
            truth[f"{name}/{t:06d}"] = frame
        write_result(place / "out" / name, place / name, frames, True)
    assert run([str(place / "out"), "--to", *FORMATS, "--quiet"]) == 0
    return place / "out", truth


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def filled(size: tuple[int, int], rings: list[np.ndarray]) -> np.ndarray:
    """Rings (n, 2) filled by Pillow, which takes in the pixels of their corners."""
    canvas = Image.new("L", size[::-1])
    for ring in rings:
        ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in ring.tolist()], outline=1, fill=1)
    return np.array(canvas, bool)


@pytest.mark.parametrize("name", ["coco", "coco-rle"])
def test_pycocotools_reads_the_same_masks_boxes_areas_and_tracks(name, made, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    folder, truth = made
    read = coco.COCO(str(folder / name / "annotations.json"))
    names = {c["id"]: c["name"] for c in read.loadCats(read.getCatIds())}
    assert list(names.values())[:2] == ["red circle", "blue square"] and len(
        set(map(str.lower, names.values()))
    ) == len(names)
    assert [image["id"] for image in read.loadImgs(read.getImgIds())] == list(range(1, len(truth) + 1))
    tracks = {}
    for image in read.loadImgs(read.getImgIds()):
        true = truth[image["file_name"].rsplit(".", 1)[0]]
        with Image.open(folder / name / "images" / image["file_name"]) as shown:
            assert shown.size == (image["width"], image["height"]) == true.image.shape[1::-1]
        found = read.loadAnns(read.getAnnIds(image["id"]))
        assert [names[a["category_id"]].lower() for a in found] == [o.label.lower() for o in true.seen]
        for annotation, held in zip(found, true.seen):
            left, top, right, bottom = mask_box(held.mask)
            assert np.array_equal(read.annToMask(annotation), held.mask)
            assert annotation["bbox"] == [left, top, right - left, bottom - top]
            assert annotation["area"] == held.mask.sum() and annotation["iscrowd"] == 0
            if "video_id" in image:
                assert tracks.setdefault(annotation["track_id"], (image["video_id"], held.id)) == (
                    image["video_id"],
                    held.id,
                )
    assert (
        len(set(tracks.values())) == len(tracks) == len(read.dataset["tracks"]) and len(read.dataset["videos"]) == CLIPS
    )


def test_coco_says_which_frame_and_which_object_of_a_video_as_tao_and_as_cocovid_do(made):
    folder, truth = made
    content = json.loads((folder / "coco" / "annotations.json").read_text())
    videos, tracks, images = ({one["id"]: one for one in content[key]} for key in ("videos", "tracks", "images"))
    for image in images.values():
        video, _, number = image["file_name"].rpartition("/")
        assert bool(video) == ("video_id" in image) == ("frame_id" in image)
        if video:
            assert image["frame_id"] == image["frame_index"] == int(number.split(".")[0])
            about = videos[image["video_id"]]
            assert about["name"] == video and (about["width"], about["height"]) == (image["width"], image["height"])
            assert about["neg_category_ids"] is not about["not_exhaustive_category_ids"]  # TrackEval asks for both
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        if "video_id" not in image:
            assert not {"track_id", "instance_id", "video_id"} & annotation.keys()
            continue
        assert annotation["track_id"] == annotation["instance_id"] and annotation["video_id"] == image["video_id"]
        track = tracks[annotation["track_id"]]
        assert (track["video_id"], track["category_id"]) == (annotation["video_id"], annotation["category_id"])
        true = truth[image["file_name"].split(".")[0]]
        assert annotation["area"] in [o.mask.sum() for o in true.objects if o.id == track["object_id"]]


def test_yolo_labels_fill_to_the_masks_and_their_boxes_are_the_masks_own(made):
    folder, truth = made
    names = json.loads((folder / "coco" / "annotations.json").read_text())["categories"]
    yaml = (folder / "yolo" / "data.yaml").read_text().splitlines()
    assert yaml[2] == f"nc: {len(names)}"  # as many as Ultralytics counts names
    assert yaml[4:] == [f"  {i}: {json.dumps(c['name'])}" for i, c in enumerate(names)]
    for name, true in truth.items():
        (image,) = (folder / "yolo" / "images" / "train").glob(f"{name}.*")
        size = np.array(Image.open(image).size)
        rows = [row.split() for row in (folder / "yolo" / "labels" / "train" / f"{name}.txt").read_text().splitlines()]
        rings = [(int(row[0]), np.array(row[1:], float).reshape(-1, 2) * size) for row in rows]
        assert all(0 <= ring.min() and (ring < size).all() and len(ring) > 2 for _, ring in rings)
        for held in true.seen:
            pieces = [r for label, r in rings if names[label]["name"].lower() == held.label.lower()]
            own = [r for r in pieces if held.mask[tuple(r[0].astype(int)[::-1])]]
            assert iou(filled(held.mask.shape, [np.floor(r) for r in own]), held.mask) >= 0.98
            corners = np.concatenate(own)
            assert np.abs(np.concatenate((corners.min(0), corners.max(0))) - mask_box(held.mask)).max() <= 0.1


def test_labelme_polygons_fill_to_the_masks_and_pieces_share_a_group(made):
    folder, truth = made
    for name, true in truth.items():
        content = json.loads((folder / "labelme" / f"{name}.json").read_text())
        assert Image.open((folder / "labelme" / name).parent / content["imagePath"]).size == true.image.shape[1::-1]
        assert (content["imageHeight"], content["imageWidth"], content["imageData"]) == (*true.image.shape[:2], None)
        for held in true.seen:
            shapes = [shape for shape in content["shapes"] if shape["group_id"] == held.id]
            assert {shape["label"].lower() for shape in shapes} == {held.label.lower()}
            drawn = filled(held.mask.shape, [np.array(shape["points"]) for shape in shapes])
            assert iou(drawn, held.mask) >= 0.98


def test_davis_palettes_hold_the_numbers_of_the_objects(made):
    folder, truth = made
    davis = folder / "davis"
    listed = (davis / "ImageSets" / "2017" / "train.txt").read_text().split()
    meta = json.loads((davis / "meta.json").read_text())["videos"]
    assert set(listed) == set(meta) == {name.split("/")[0] for name in truth}
    for name, true in truth.items():
        video, frame = (*name.split("/"), "0")[:2]
        place = f"Full-Resolution/{video}/{int(frame):05d}"
        numbers = Image.open(davis / "Annotations" / f"{place}.png")
        assert numbers.mode == "P" and numbers.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
        assert Image.open(davis / "JPEGImages" / f"{place}.jpg").size == numbers.size
        for held in true.objects:
            assert np.array_equal(np.array(numbers) == held.id, held.mask)
        for held in true.seen:
            about = meta[video]["objects"][str(held.id)]
            assert about["category"].lower() == held.label.lower() and f"{int(frame):05d}" in about["frames"]


def test_torchvision_reads_voc_masks_classes_and_boxes(made):
    folder, truth = made
    root, how = str(folder / "voc"), {"image_set": "train", "download": False}
    masks, boxes = (
        kind(root, **how) for kind in (torchvision.datasets.VOCSegmentation, torchvision.datasets.VOCDetection)
    )
    base = folder / "voc" / "VOCdevkit" / "VOC2012"
    classes = (base / "labels.txt").read_text().splitlines()
    lines = [line.split(":") for line in (base / "labelmap.txt").read_text().splitlines()]
    colours = {name.lower(): [*map(int, colour.split(","))] for name, colour, _, _ in lines}
    assert list(colours) == ["background", *map(str.lower, classes)] and colours["background"] == [0, 0, 0]
    names = (base / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    assert sorted(names) == sorted(truth) and len(masks) == len(boxes) == len(names)
    for number, name in enumerate(names):
        (image, by_class), (_, about), true = masks[number], boxes[number], truth[name]
        by_object = np.array(Image.open(base / "SegmentationObject" / f"{name}.png"))
        found = about["annotation"].get("object", [])
        assert image.size == true.image.shape[1::-1] and len(found) == len(true.seen)
        for place, (held, listed) in enumerate(zip(true.seen, found), 1):
            assert np.array_equal(by_object == place, held.mask)
            assert {classes[n - 1].lower() for n in np.unique(np.array(by_class)[held.mask])} == {held.label.lower()}
            assert (np.array(by_class.convert("RGB"))[held.mask] == colours[held.label.lower()]).all()  # as CVAT reads
            left, top, right, bottom = mask_box(held.mask)
            box = [int(listed["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")]
            assert listed["name"].lower() == held.label.lower() and box == [left + 1, top + 1, right, bottom]


def test_yolo_labels_of_a_video_called_images_lie_where_ultralytics_looks(tmp_path):
    image, places = picture(5), set()
    found = [Segmented(image, [Segment(1, "red circle", 0.5, (0, 0, 1, 1), image.min(2) > 139)], 0)]
    (tmp_path / "out").mkdir()
    for name in ("images", "Images_", "images__", "images-2"):
        (tmp_path / name).mkdir()
        save(image, tmp_path / name / "0.png")
        write_result(tmp_path / "out" / name, tmp_path / name, found, True)
    assert run([str(tmp_path / "out"), "--to", "yolo", "--quiet"]) == 0
    for path in map(str, (tmp_path / "out" / "yolo").rglob("*.jpg")):
        label = Path("/labels/".join(path.rsplit("/images/", 1))).with_suffix(".txt")  # ultralytics: img2label_paths
        assert label.is_file(), label
        places.add(label.parent.name.casefold())
    assert len(places) == 4 and "images" not in places


@pytest.mark.parametrize("name", ["yolo", "labelme"])
def test_the_loaders_of_ultralytics_and_labelme_read_the_same_masks(name, made):
    folder, truth = made
    reader = pytest.importorskip({"yolo": "ultralytics", "labelme": "labelme"}[name])
    if name == "yolo":
        from ultralytics.data.dataset import YOLODataset
        from ultralytics.data.utils import check_det_dataset, polygons2masks

        data = check_det_dataset(str(folder / name / "data.yaml"))
        read = YOLODataset(img_path=data["train"], data=data, task="segment", augment=False)
        assert len(read.labels) == len(truth)
        for labels in read.labels:
            true = truth[Path(labels["im_file"]).relative_to(data["train"]).with_suffix("").as_posix()]
            size, (height, width) = np.float32(labels["shape"][::-1]), labels["shape"]
            assert (height, width) == true.image.shape[:2]
            masks = [polygons2masks((height, width), [(s * size).ravel()], 1)[0] > 0 for s in labels["segments"]]
            for held in true.seen:
                assert max(iou(mask, held.mask) for mask in masks) >= 0.98 or len(trace(held.mask)) > 1
            union = np.logical_or.reduce([np.zeros((height, width), bool), *masks])
            assert not true.seen or iou(union, true.masks.any(0)) >= 0.98
        return
    for picture_name, true in truth.items():
        read = reader.LabelFile(str(folder / name / f"{picture_name}.json"))
        values = {shape["label"]: number for number, shape in enumerate(read.shapes, 1)}
        _, instances = reader.utils.shapes_to_label(true.image.shape, read.shapes, values)
        order = list(dict.fromkeys(shape["group_id"] for shape in read.shapes))
        for held in true.seen:
            assert iou(instances == order.index(held.id) + 1, held.mask) >= 0.98


def test_outlines_of_any_mask_fill_to_the_same_mask():
    mask_api = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = rng.random(rng.integers(1, 14, 2)) < rng.choice([0.2, 0.5, 0.8, 1])
        rings = [shape.ring().ravel().tolist() for shape in trace(mask)]
        if rings:
            height, width = mask.shape
            drawn = mask_api.decode(mask_api.merge(mask_api.frPyObjects(rings, height, width)))
            assert np.array_equal(drawn, mask)
            held = np.concatenate([shape.ring() for shape in trace(mask, 0.1)]).astype(int)
            assert mask[held[:, 1], held[:, 0]].all()  # each corner in a pixel of the mask
    assert trace(np.zeros((3, 4), bool)) == []
    corner, ring = np.eye(2, dtype=bool), np.pad(np.zeros((2, 2), bool), 1, constant_values=True)
    assert len(trace(corner)) == 1  # what touches at a corner is one piece, and its background two
    (shape,) = trace(ring)
    assert len(shape.holes) == 1 and {*map(tuple, shape.holes[0].tolist())} == {(1, 1), (1, 3), (3, 3), (3, 1)}


def test_images_are_copies_where_every_program_shows_them_alike_and_new_files_elsewhere(tmp_path):
    image = picture(5)
    save(image, tmp_path / "plain.png")
    Image.fromarray(image).save(tmp_path / "plain.jpg", quality=80)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(image).convert("RGBA").save(tmp_path / "alpha.png")
    png_of_16_bits(image.astype(np.uint16) * 16)(tmp_path / "deep.png")
    names = {"plain.png": ".png", "plain.jpg": ".jpg", "turned.jpg": ".png", "alpha.png": ".png", "deep.png": ".png"}
    for name, suffix in names.items():
        pixels = Pixels(lambda: image, tmp_path / name)
        assert pixels.suffix == suffix
        pixels.save(tmp_path / f"copy{suffix}")
        same = (tmp_path / f"copy{suffix}").read_bytes() == (tmp_path / name).read_bytes()
        assert same == name.startswith("plain")
    assert np.array_equal(np.array(Image.open(tmp_path / "copy.png")), image)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def inputs(tmp_path):
    """A picture, a film, and two pictures more."""
    pictures = [save(picture(*lefts, seed=n), tmp_path / f"p{n}.png") for n, lefts in enumerate(([5], [], [5, 30]))]
    return [pictures[0], save_film(tmp_path / "film", 3), *pictures[1:]]


def made_by(inputs: list[str], out: Path, *flags: str) -> int:
    """Data sets of every format by the command; `bright` and `Bright` are one category."""
    words = ["bright. Bright.", "--frames", "--format", "gif", "--save", *FORMATS, "--quiet", "--out", out]
    return command(*inputs, *words, *flags)


def data_sets(out: Path) -> dict[str, bytes]:
    return {f"{name}/{path}": content for name in FORMATS for path, content in files(out / name).items()}


def test_a_run_that_is_killed_and_resumed_makes_the_same_data_sets(inputs, tmp_path, monkeypatch):
    assert made_by(inputs, tmp_path / "whole") == 0
    whole, write = data_sets(tmp_path / "whole"), Pixels.save
    assert len([name for name in whole if name.startswith("yolo/images")]) == 6
    names = json.loads(whole["coco/annotations.json"])["categories"]
    assert [category["name"] for category in names] == ["bright"]

    class Killed(BaseException):
        pass

    for step in (2, 9, 20, 33):
        left = iter(range(step))

        def killed(pixels: Pixels, path: Path, left=left) -> None:
            if next(left, None) is None:
                (path.parent / f".{path.name}.1.1.tmp").write_bytes(b"half")
                raise Killed
            write(pixels, path)

        monkeypatch.setattr(Pixels, "save", killed)
        with pytest.raises(Killed):
            made_by(inputs, tmp_path / "out")
        for name, content in data_sets(tmp_path / "out").items():
            if name.endswith("annotations.json"):  # whole, of images that are there
                for image in json.loads(content)["images"]:
                    assert (tmp_path / "out" / name).parent.joinpath("images", image["file_name"]).is_file()
        monkeypatch.setattr(Pixels, "save", write)
        assert made_by(inputs, tmp_path / "out", "--resume") == 0
        assert data_sets(tmp_path / "out") == whole, f"killed at image {step}"
        for name in FORMATS:
            for path in sorted((tmp_path / "out" / name).rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()


ODD_ENTRIES = [
    ("coco", {"frame": "0"}),
    ("coco", {"objects": 5}),
    ("coco", {"objects": [{"category_id": 9, "track": 1}]}),
    ("coco", {"image": {}}),
    ("davis", {"seen": {"x": 0}}),
    ("davis", {"seen": {"1": 99}}),
    ("voc", {"name": None}),
    ("yolo", {"files": ["../../mine"]}),
]


def test_an_entry_of_a_data_set_that_no_run_wrote_is_made_again(inputs, tmp_path):
    out = tmp_path / "out"
    assert made_by(inputs, out) == 0
    whole = data_sets(out)
    for name, changes in ODD_ENTRIES:
        part = out / name / ".parts" / "film.jsonl"
        lines = [json.dumps(json.loads(line) | changes) for line in part.read_text().splitlines()]
        part.write_text("\n".join(lines))
        assert made_by(inputs, out, "--resume") == 0 and data_sets(out) == whole, (name, changes)


def test_a_label_that_no_file_can_hold_is_refused_and_one_of_an_old_result_is_escaped(inputs, tmp_path, capsys):
    for words in (["r\udce9d square."], ["--object", "box=1,1,9,9 label=caf\udce9"]):
        assert command(inputs[0], *words, "--out", tmp_path / "out", "--save", *FORMATS) == 2
        error = one_line(capsys)
        assert "holds a byte that is no text: write it in UTF-8" in error and not (tmp_path / "out").exists()
    assert command(inputs[0], "bright.", "--quiet", "--out", tmp_path / "out") == 0
    path = tmp_path / "out" / "p0" / "result.json"
    path.write_text(path.read_text().replace('"bright"', '"r\\udce9d"'))
    for name in FORMATS:
        assert run([str(tmp_path / "out"), "--to", name, "--quiet"]) == 0
    assert (tmp_path / "out" / "labelme" / "labels.txt").read_text() == "bright\nr\\udce9d\n"


def test_one_format_that_can_not_be_written_leaves_the_others_whole(inputs, tmp_path, capsys, monkeypatch):
    assert made_by(inputs, tmp_path / "whole") == 0

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(FORMATS, "coco", dataclasses.replace(FORMATS["coco"], assemble=full))
    assert made_by(inputs, tmp_path / "out") == 2 and "No space left" in capsys.readouterr().err
    whole, made = data_sets(tmp_path / "whole"), data_sets(tmp_path / "out")
    assert {name: content for name, content in whole.items() if name not in made}.keys() == {"coco/annotations.json"}


def test_an_input_that_another_process_completes_while_a_set_is_written_waits_for_the_next_time(inputs, tmp_path):
    assert made_by(inputs, tmp_path / "out") == 0
    about = read_about(tmp_path / "out" / "coco")
    held = DataSets(tmp_path / "out", ["coco"], about["categories"], about["of"], about["inputs"]).sets[0]
    part, passes = tmp_path / "out" / "coco" / ".parts" / "film.jsonl", []
    content = part.read_bytes()
    part.unlink()

    def assemble(folder: Path, entries, categories: Categories) -> None:
        for _ in range(2):
            passes.append([name for name, found in entries() if found is not None])
            part.exists() or part.write_bytes(content)

    held.how = dataclasses.replace(held.how, assemble=assemble)
    held.assemble()
    assert ["film" in names for names in passes[:4]] == [False, False, True, True]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs the file types of Unix")
def test_a_source_that_has_become_a_pipe_or_a_device_is_not_waited_for(inputs, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(inputs[0], "bright.", "--quiet", "--out", out) == 0
    Path(inputs[0]).unlink()
    os.mkfifo(inputs[0])
    assert run([str(out / "p0"), "--to", "coco"]) == 2 and "p0.png': it is no regular file" in one_line(capsys)
    path = out / "p0" / "result.json"
    for source, said in (("/dev/zero", "it is no regular file"), ("a\0b", "embedded null")):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"source": source}))
        assert run([str(out / "p0"), "--to", "coco"]) == 2 and said in one_line(capsys)


@pytest.mark.parametrize("name", FORMATS)
def test_files_that_a_killed_process_began_go_when_their_input_does_not_come_again(name, inputs, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    write, left = Pixels.save, iter(range(2))

    def killed(pixels: Pixels, path: Path) -> None:
        if next(left, None) is None:
            raise Killed
        write(pixels, path)

    words = ["bright.", "--frames", "--format", "gif", "--save", name, "--quiet", "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(Pixels, "save", killed)
        patch.setattr(DataSet, "_clear_begun", lambda *_: None)  # a process that is killed clears nothing
        with pytest.raises(Killed):
            command(inputs[1], inputs[0], *words, tmp_path / "out")
    assert any("film" in file for file in files(tmp_path / "out" / name))
    for out in ("out", "whole"):
        assert command(inputs[0], *words, tmp_path / out) == 0
    assert files(tmp_path / "out" / name) == files(tmp_path / "whole" / name)


def test_a_result_whose_rewriting_fails_is_in_the_data_set_no_more(inputs, tmp_path, monkeypatch):
    words = ["bright.", "--frames", "--format", "gif", "--quiet", "--out", tmp_path / "out", "--save", "coco", "yolo"]
    assert command(*inputs[:2], *words) == 0
    write, left = Pixels.save, iter(range(1))

    def full(pixels: Pixels, path: Path) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        write(pixels, path)

    with monkeypatch.context() as patch:
        patch.setattr(Pixels, "save", full)
        assert run([str(tmp_path / "out"), "--to", "coco", "yolo", "--quiet"]) == 2
    made = data_sets(tmp_path / "out")
    assert [image["file_name"] for image in json.loads(made["coco/annotations.json"])["images"]] == []
    assert not [file for file in made if "/film/" in file or ".begun" in file]
    assert run([str(tmp_path / "out"), "--to", "coco", "yolo", "--quiet"]) == 0
    assert len(json.loads((tmp_path / "out" / "coco" / "annotations.json").read_text())["images"]) == 4


def test_two_processes_make_the_same_data_sets_as_one(inputs, tmp_path, monkeypatch):
    assert made_by(inputs, tmp_path / "one") == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        assert made_by(inputs, tmp_path / "two") == 0
    assert data_sets(tmp_path / "two") == data_sets(tmp_path / "one")


def test_results_that_are_there_become_a_data_set_without_the_models(inputs, tmp_path):
    assert made_by(inputs, tmp_path / "out") == 0
    models = tiny_models()
    words = [*inputs, "bright. Bright.", "--frames", "--format", "gif", "--quiet", "--out", tmp_path / "plain"]
    assert command(*words) == 0
    assert command(*words, "--resume", "--save", "coco", models=models) == 0 and models.detector.looked == 0
    assert run([str(tmp_path / "plain"), "--to", "yolo", "--quiet"]) == 0
    expected = data_sets(tmp_path / "out")
    for name in ("coco/annotations.json", "yolo/labels/train/film/000002.txt", "yolo/images/train/p0.png"):
        assert data_sets(tmp_path / "plain")[name] == expected[name]


@pytest.mark.parametrize(
    "words, absent, not_exhaustive",
    [(["bright. dark. grey."], [2, 3], []), (["--object", "box=5,10,15,22 label=bright"], [], [1])],
)
def test_coco_says_which_categories_a_video_was_searched_for_in_vain_and_which_may_have_more(
    words, absent, not_exhaustive, tmp_path
):
    words = [save_film(tmp_path / "film", 2), *words, "--frames", "--format", "gif", "--save", "coco", "--quiet"]
    assert command(*words, "--out", tmp_path / "out") == 0
    (video,) = json.loads((tmp_path / "out" / "coco" / "annotations.json").read_text())["videos"]
    assert (video["neg_category_ids"], video["not_exhaustive_category_ids"]) == (absent, not_exhaustive)


def test_results_of_one_source_of_several_prompts_and_of_earlier_times_are_told(inputs, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(inputs[0], inputs[2], "bright.", "--quiet", "--out", out, "--save", "coco") == 0
    shutil.copytree(out / "p0", out / "p0 copy")
    assert run([str(out), "--to", "coco", "--quiet"]) == 2
    assert f"p0 copy: its source {inputs[0]} is that of {out / 'p0'}, too: remove one of them" in one_line(capsys)
    shutil.rmtree(out / "p0 copy")
    assert command(inputs[2], "dark.", "--quiet", "--out", out) == 0
    assert run([str(out), "--to", "yolo", "--quiet"]) == 0
    assert "not all results are of one prompt" in capsys.readouterr().err
    Path(inputs[2]).unlink()
    assert run([str(out), "--to", "coco", "--quiet"]) == 2
    error, stays = capsys.readouterr().err.splitlines()
    assert f"its source {inputs[2]} is not here: bring it back, or remove this result" in error
    assert f"what {out / 'coco'} holds of it is of an earlier result, and stays" in stays


def test_voc_says_how_many_channels_a_copied_picture_has(tmp_path):
    Image.fromarray(picture(5)).convert("L").save(tmp_path / "grey.jpg")
    Image.fromarray(picture(5)).save(tmp_path / "colours.jpg")
    save(picture(5)[..., 0], tmp_path / "made.png")
    words = [*(tmp_path / name for name in ("grey.jpg", "colours.jpg", "made.png")), "--box", "5,10,15,22"]
    assert command(*words, "--save", "voc", "--quiet", "--out", tmp_path / "out") == 0
    root = next((tmp_path / "out").rglob("JPEGImages")).parent
    for name in ("grey", "colours", "made"):
        with Image.open(root / "JPEGImages" / f"{name}.jpg") as image:
            channels = len(image.getbands())
        assert f"<depth>{channels}</depth>" in (root / "Annotations" / f"{name}.xml").read_text()


def test_formats_may_stand_before_the_folder(inputs, tmp_path, capsys):
    assert command(inputs[0], "bright.", "--quiet", "--out", tmp_path / "out") == 0
    assert run(["--to", "coco", "yolo", str(tmp_path / "out"), "--quiet"]) == 0
    assert (tmp_path / "out" / "coco").is_dir() and (tmp_path / "out" / "yolo").is_dir()
    assert run([str(tmp_path / "out"), "--to", "coc"]) == 2
    assert "(see python -m minisam_glue.datasets --help)" in one_line(capsys)


def test_labels_of_results_of_another_sentence_are_no_categories(tmp_path):
    source, out = save(picture(5), tmp_path / "a.png"), tmp_path / "out"
    for sentence, flags in (("dark.", []), ("bright.", ["--resume", "--save", "coco"])):
        assert command(source, sentence, "--quiet", "--out", out, *flags) == 0
    made = json.loads((out / "coco" / "annotations.json").read_text())
    assert [category["name"] for category in made["categories"]] == ["bright"]


def test_a_result_that_is_resumed_from_elsewhere_goes_into_the_data_set_with_the_pixels_that_are_there(tmp_path):
    here, there = (tmp_path / name / "a.png" for name in ("here", "there"))
    for path in (here, there):
        path.parent.mkdir()
        save(picture(5), path)
    words = ["bright.", "--quiet", "--out", tmp_path / "out"]
    assert command(here, *words) == 0
    save(picture(30, seed=1), here)
    models = tiny_models()
    assert command(there, *words, "--resume", "--save", "coco", models=models) == 0 and models.detector.looked == 0
    assert (tmp_path / "out" / "coco" / "images" / "a.png").read_bytes() == there.read_bytes()


def test_a_data_set_of_frames_that_were_kept_needs_no_source(tmp_path):
    source, out = save_film(tmp_path / "film", 2), tmp_path / "out"
    words = ["bright.", "--frames", "--format", "gif", "--save", "frames", "--quiet", "--out", out]
    assert command(source, *words) == 0
    (tmp_path / "film").rename(tmp_path / "gone")
    assert run([str(out), "--to", "coco", "--quiet"]) == 0
    assert len(list((out / "coco" / "images" / "film").iterdir())) == 2


def test_ctrl_c_stops_the_taking_over_of_results_that_are_there_and_resume_does_the_others(tmp_path, monkeypatch):
    words = [*(save(picture(5), tmp_path / f"{n}.png") for n in range(3)), "bright.", "--quiet", "--out", tmp_path]
    assert command(*words) == 0
    add = DataSets.add

    def press(self, *args):
        add(self, *args)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(DataSets, "add", press)
        assert command(*words, "--resume", "--save", "coco") == 130
    taken = tmp_path / "coco" / ".parts"
    assert [path.name for path in taken.iterdir()] == ["0.jsonl"]
    assert command(*words, "--resume", "--save", "coco") == 0 and len(list(taken.iterdir())) == 3


def test_the_data_set_of_a_run_with_a_failed_input_can_be_made_again_of_its_results(tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    sources, out = [save(picture(5), tmp_path / f"{n}.png") for n in range(2)], tmp_path / "out"
    words = ["bright.", "--save", "coco", "--quiet", "--out", out]

    def names() -> list[str]:
        images = json.loads((out / "coco" / "annotations.json").read_text())["images"]
        return [image["file_name"] for image in images]

    assert command(sources[0], tmp_path / "broken.jpg", sources[1], *words) == 2
    capsys.readouterr()
    assert run([str(out), "--to", "coco", "--quiet"]) == 0 and not capsys.readouterr().err
    assert names() == ["0.png", "1.png"]
    save(picture(5), tmp_path / "broken.jpg")
    assert command(sources[0], tmp_path / "broken.jpg", sources[1], *words, "--resume") == 0
    assert names() == ["0.png", "broken.jpg", "1.png"]
    assert command(*sources, *words) == 2 and "which is no input now" in capsys.readouterr().err


def test_frames_that_come_once_are_kept_for_the_data_set(tmp_path, monkeypatch):
    import io
    import sys

    stream = io.BytesIO()
    for frame in film(3):
        Image.fromarray(frame).save(stream, "PNG")
    stream.seek(0)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
    assert command("-", "bright.", "--format", "gif", "--save", "coco", "--quiet", "--out", tmp_path) == 0
    made = json.loads((tmp_path / "coco" / "annotations.json").read_text())
    assert [image["file_name"] for image in made["images"]] == [f"stdin/{n:06d}.jpg" for n in range(3)]
    assert len(list((tmp_path / "stdin" / "frames").iterdir())) == 3


def test_an_input_named_as_a_data_set_gets_another_folder(tmp_path):
    source = save(picture(5), tmp_path / "coco.png")
    assert command(source, "bright.", "--save", "coco", "--quiet", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "coco-2" / "result.json").exists()
    (image,) = json.loads((tmp_path / "out" / "coco" / "annotations.json").read_text())["images"]
    assert image["file_name"] == "coco-2.png"


def test_a_result_that_one_format_can_not_hold_is_in_none_of_them(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    image = picture(height=20, width=16)
    masks = np.eye(320, dtype=bool)[:255].reshape(-1, 20, 16)
    for name, count in (("few", 3), ("many", 255)):
        found = [Segment(i, "red circle", 0.5, (0, 0, 1, 1), mask) for i, mask in enumerate(masks[:count], 1)]
        source = Path(save(image, tmp_path / f"{name}.png"))
        write_result(tmp_path / "out" / name, source, [Segmented(image, found)], False)
    assert run([str(tmp_path / "out"), "--to", "yolo", "labelme", "davis", "voc"]) == 2
    said = capsys.readouterr()
    assert said.err == "error: many has 255 objects, and DAVIS holds 254: choose another data set\n"
    assert said.out.splitlines()[-1].startswith("1 result -> ")
    for name in ("yolo", "labelme", "davis", "voc"):
        made = [file for file in files(tmp_path / "out" / name) if not file.startswith(".")]
        assert any("few" in file for file in made) and not any("many" in file for file in made)


def test_a_picture_that_a_data_set_refuses_is_told_and_its_result_too(inputs, tmp_path, capsys, monkeypatch):
    def refuse(self, folder, image, source):
        raise ValueError(f"{folder.name} can't be held")

    monkeypatch.setattr(DataSets, "add", refuse)
    words = [inputs[0], inputs[2], "bright.", "--save", "coco", "--json", "-", "--out", tmp_path / "out"]
    assert command(*words) == 2
    printed, told = capsys.readouterr()
    assert [json.loads(line)["source"] for line in printed.splitlines()] == [inputs[0], inputs[2]]
    for source, name in ((inputs[0], "p0"), (inputs[2], "p1")):
        assert f"{source}: " in told and f"error: {source}: {name} can't be held\n" in told
        assert (tmp_path / "out" / name / "result.json").exists()


def one_line(capsys) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_a_folder_of_another_run_or_of_the_users_is_refused_and_stays(inputs, tmp_path, capsys):
    out, words = tmp_path / "out", ["--save", "coco", "--quiet", "--out", tmp_path / "out"]
    assert command(inputs[0], inputs[2], "bright.", *words) == 0
    before = files(out)
    assert command(inputs[0], inputs[2], "dark.", *words) == 2
    assert 'holds the data set of another run (prompt "bright." then, "dark." now' in one_line(capsys)
    assert command(inputs[0], "bright.", *words) == 2 and "'p1'" in one_line(capsys)
    assert files(out) == before
    assert command(*inputs[:1], *inputs[2:], "bright.", *words) == 0  # one input more
    assert len(json.loads((out / "coco" / "annotations.json").read_text())["images"]) == 3
    (tmp_path / "mine" / "yolo").mkdir(parents=True)
    (tmp_path / "mine" / "yolo" / "data.yaml").write_text("mine")
    assert command(inputs[0], "bright.", "--save", "yolo", "--out", tmp_path / "mine") == 2
    assert "is no data set of this program" in one_line(capsys)
    assert files(tmp_path / "mine") == {"yolo/data.yaml": b"mine"}


@pytest.mark.parametrize("flags", [[], ["--out", "{}/other"]])
def test_the_folders_of_data_sets_and_results_are_locked(flags, inputs, tmp_path, capsys):
    out, made = tmp_path / "out", tmp_path / ("other" if flags else "out") / "coco"
    words = [str(out / "p0"), "--to", "coco", "--quiet", *(flag.format(tmp_path) for flag in flags)]
    assert command(inputs[0], "bright.", "--quiet", "--out", out) == 0
    lock = FolderLock(out, "another")
    assert run(words) == 2
    assert "another run" in one_line(capsys) and not made.exists()
    lock.release()
    assert run(words) == 0 and made.exists() and not list(tmp_path.rglob(lock.path.name))


@pytest.mark.parametrize("place", [".", "..", "masks/.."])
def test_a_result_has_its_name_in_a_data_set_however_its_folder_is_given(place, inputs, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert command(inputs[0], "bright.", "--quiet", "--out", out) == 0
    monkeypatch.chdir(out / "p0" / ("masks" if place == ".." else ""))
    before = files(out / "p0")
    assert run([place, "--to", "coco", "yolo", "--quiet"]) == 0
    assert files(out / "p0") == before and (out / "yolo" / "labels" / "train" / "p0.txt").exists()
    (image,) = json.loads((out / "coco" / "annotations.json").read_text())["images"]
    assert image["file_name"] == "p0.png"


def test_what_the_command_can_not_take_is_one_line_and_exit_status_2(inputs, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert command(inputs[0], inputs[2], "bright.", "--quiet", "--out", out) == 0
    to = ["--to", "coco", "--quiet"]
    for words, said in (
        ([tmp_path / "nowhere", *to], "no such folder"),
        ([tmp_path / "film", *to], "no result of segment.py is in it"),
        ([out, "--to", "tfrecord"], "invalid choice: 'tfrecord'"),
        ([out], "--to"),
        ([out, *to, "--out", inputs[0]], "can't be made a folder"),
    ):
        assert run([str(word) for word in words]) == 2
        assert said in one_line(capsys)
    save(picture(20), Path(inputs[0]))  # another picture under the name of one that has a result
    assert run([str(out), *to]) == 2 and "has changed since" in one_line(capsys)
    made = json.loads((out / "coco" / "annotations.json").read_text())
    assert [image["file_name"] for image in made["images"]] == ["p1.png"]  # the other one is there
    Path(inputs[2]).unlink()
    assert run([str(out / "p1"), *to]) == 2 and "bring it back, or remove this result" in one_line(capsys)
    result = json.loads((out / "p0" / "result.json").read_text())
    segment = result["objects"][0]
    for damage, said in (
        ({"source": 5}, "is no result of segment.py"),
        ({"objects": [{"id": 1}]}, "is no result of segment.py"),
        ({"size": [9, 9]}, "pixels, but its result in"),
        (
            {"objects": [segment | {"mask": {"size": [60_000, 60_000], "counts": [0, 3_600_000_000]}}]},
            "a mask of (60000",
        ),
    ):
        (out / "p0" / "result.json").write_text(json.dumps(result | {"of": {}} | damage))
        assert run([str(out / "p0"), *to, "--out", str(tmp_path / "other")]) == 2 and said in one_line(capsys), damage


def test_memory_that_runs_out_is_one_line_and_the_other_results_are_taken_over(inputs, tmp_path, capsys, monkeypatch):
    out, add = tmp_path / "out", DataSets.add

    def large(self, folder, *image):
        if folder.name == "p0":
            raise MemoryError
        add(self, folder, *image)

    assert command(inputs[0], inputs[2], "bright.", "--quiet", "--out", out) == 0
    monkeypatch.setattr(DataSets, "add", large)
    assert run([str(out), "--to", "coco", "--quiet"]) == 2
    assert one_line(capsys) == f"error: {out / 'p0'}: out of memory"
    assert [path.name for path in (out / "coco" / ".parts").iterdir()] == ["p1.jsonl"]
    monkeypatch.setattr(DataSets, "finish", lambda self: bytearray(1 << 62))
    assert run([str(out), "--to", "coco", "--quiet"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: out of memory"


def test_labels_that_differ_in_case_are_one_category_and_unknown_ones_are_refused():
    categories = Categories(["Dog", "cat", "dog"])
    assert categories.names == ["Dog", "cat"] and categories.number("DOG") == 0
    with pytest.raises(ValueError, match="'bird' is none of the data set's"):
        categories.number("bird")


def test_a_class_whose_name_a_label_map_can_not_hold_is_left_out_of_it_and_the_others_keep_their_colours(tmp_path):
    voc.assemble(tmp_path, lambda: iter(()), Categories(["3:15 clock", "#1 dog", "background", "cat"]))
    base = tmp_path / "VOCdevkit" / "VOC2012"
    assert (base / "labelmap.txt").read_text().splitlines() == ["background:128,128,0::", "cat:0,0,128::"]
    assert (base / "labels.txt").read_text().splitlines() == ["3:15 clock", "#1 dog", "background", "cat"]


def test_voc_names_are_single_words_of_its_lists_and_of_no_two_pictures_the_same(tmp_path):
    names = ["IMG 1", "IMG%201", "a #1", "clip [x]/000003", "Zürich\u3000 ?", "-dash"]
    entries, pixels = [], Pixels(lambda: picture(5, height=6, width=7))
    for name in names:
        entries.append(voc.write(tmp_path, Picture(name, (6, 7), [], pixels), Categories([])))
    voc.assemble(tmp_path, lambda: iter([("all", entries)]), Categories([]))
    base = tmp_path / "VOCdevkit" / "VOC2012"
    listed = np.loadtxt(base / "ImageSets" / "Main" / "train.txt", dtype=str, encoding="utf-8").tolist()
    assert listed[:2] == ["IMG%201", "IMG%25201"] and len(set(listed)) == len(names)
    for name in listed:
        about = (base / "Annotations" / f"{name}.xml").read_text(encoding="utf-8")
        assert f"<filename>{name.split('/')[-1]}.jpg</filename>" in about
        assert all((base / path).is_file() for path in (f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png"))
    assert [unquote(name) for name in listed] == names


@pytest.mark.parametrize("name", ["dog \U0001f600", 'a "b" \\u0041', "Zürich\u2028\u0085", "\ufeff: #-"])
def test_yolo_s_names_are_strings_of_yaml(name):
    written = yolo.quoted(name)
    assert json.loads(written) == name  # so far JSON and YAML agree; YAML joins no two escapes to one letter
    assert "\\ud83d" not in written and not set("\u2028\u0085\ufeff") & set(written)


@pytest.mark.parametrize(
    "flags, numbers",
    [
        (["--start", 0.08, "--stride", 2, "--max-seconds", 0.2], [2, 4, 6]),
        (["--fps", 10, "--start", 0.3, "--max-seconds", 0.2], [3, 4]),
    ],
)
def test_the_frames_of_a_data_set_are_those_that_were_segmented(flags, numbers, tmp_path):
    source, out = save_film(tmp_path / "film", 9), tmp_path / "out"
    assert command(source, "bright.", "--frames", "--format", "gif", *flags, "--quiet", "--out", out) == 0
    assert run([str(out), "--to", "coco", "--quiet"]) == 0
    shown = [read_image(str(path)).astype(int) for path in sorted((out / "coco" / "images" / "film").iterdir())]
    assert [int(np.argmin([abs(image - frame).mean() for frame in film(9)])) for image in shown] == numbers


def test_of_masks_that_overlap_the_smallest_lies_on_top():
    large, small = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    small[1:3, 1:3] = True
    for order in ([(large, 1), (small, 2)], [(small, 2), (large, 1)]):
        numbers = number_map((4, 4), [Annotation(n, 0, 0.5, mask) for mask, n in order], [n for _, n in order])
        assert (numbers[1:3, 1:3] == 2).all() and (numbers == 1).sum() == 12


def test_coco_annotations_have_the_scores_of_their_objects(tmp_path):
    source, out = save(picture(5, 30), tmp_path / "a.png"), tmp_path / "out"
    assert command(source, "bright.", "--save", "coco", "coco-rle", "--quiet", "--out", out) == 0
    wanted = [(o["box"][0], o["score"]) for o in json.loads((out / "a" / "result.json").read_text())["objects"]]
    assert sorted(wanted) == [(5, 0.9), (30, 0.8)]
    for name in ("coco", "coco-rle"):
        held = json.loads((out / name / "annotations.json").read_text())["annotations"]
        assert [annotation["score"] for annotation in held] == [score for _, score in wanted]
