"""minisam_glue from Python: a wrong call is told what to give, and gives no wrong masks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.sam2_tiny import frames as small_frames
from helpers.sam2_tiny import tiny_model
from PIL import Image

import minisam_glue
from minisam_glue import Clicks, segment_video
from minisam_glue.clipseg.heat_mapper import HeatMapper
from minisam_glue.datasets.annotations import Annotation
from minisam_glue.datasets.dataset import DataSets
from minisam_glue.datasets.polygons import trace
from minisam_glue.demo import DETECTOR, FOLDER, load_detector
from minisam_glue.flow import warp
from minisam_glue.heatmap import HeatSettings, find_instances, otsu
from minisam_glue.layers import WeightsState
from minisam_glue.masks import encode_rle, erode, label_components, mask_iou
from minisam_glue.media.inputs import expand_inputs
from minisam_glue.media.writer import VideoWriter
from minisam_glue.models import choose_device
from minisam_glue.prompts import split_phrases
from minisam_glue.propagators import FlowPropagator
from minisam_glue.records import Segment, Segmented
from minisam_glue.render.overlay import crop, overlay
from minisam_glue.sam2 import ImagePredictor, VideoTracker


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return small_frames(1)[0]


@pytest.fixture
def predictor(model, picture) -> ImagePredictor:
    one = ImagePredictor(model)
    one.set_image(picture)
    return one


@pytest.fixture
def tracker(model, picture) -> VideoTracker:
    one = VideoTracker(model)
    one.seek(0, picture)
    return one


@pytest.fixture(scope="module")
def detector():
    return load_detector(FOLDER / DETECTOR)


def test_every_way_to_write_to_weights_is_noticed():
    state, weights = WeightsState(), [torch.randn(40, 30), torch.randn(7)]
    first = state(weights)
    assert state(weights) == first
    ways = (
        lambda: weights[1].add_(1),
        lambda: weights[0].data.mul_(2),
        lambda: torch.nn.utils.vector_to_parameters(torch.randn(1207), weights),
        lambda: weights[0].data.copy_(torch.randn(40, 30)),
    )
    numbers = [first]
    for write in ways:
        write()
        numbers.append(state(weights))
        assert state(weights) == numbers[-1]
    assert len(set(numbers)) == len(numbers)


def test_weights_that_moved_to_another_device_are_others():
    state, weights = WeightsState(), [torch.randn(40, 30)]
    first = state(weights)
    torch.utils.swap_tensors(weights[0], weights[0].to("meta"))  # the same object, as Module.to leaves it
    assert state(weights) != first


@pytest.mark.parametrize("kind", [VideoTracker, FlowPropagator])
def test_frames_of_16_bits_keep_their_levels(kind, model, picture):
    tracker = kind(model)
    tracker.seek(0, picture)
    dim = np.full((*tracker.size, 3), 500, np.uint16)
    bright = dim.copy()
    bright[0, 0] = 1100
    shown = []
    tracker.encode = lambda frame, image: shown.append(int(image[9, 9, 0])) or tracker.features
    for index, frame in enumerate((bright, dim, bright), 1):
        tracker.seek(index, frame)
    assert len(set(shown)) == 1


def test_a_video_of_16_bits_in_memory_keeps_its_levels():
    models = minisam_glue.load_models("demo")
    dim = np.full((64, 64), 500, np.uint16)
    bright = dim.copy()
    bright[0, 0] = 1100
    for propagate in ("memory", "flow"):
        clicks = Clicks(boxes=[[5, 5, 30, 30]])
        found = list(segment_video(models, [bright, dim, bright], clicks, propagate=propagate))
        assert len({int(one.image[40, 40, 0]) for one in found}) == 1


def test_rows_of_fewer_points_are_filled_up_with_none_wherever_it_is_said_to_be(predictor):
    points, labels = [[[5, 6], [9, 9]], [[20, 21], [0, 0]]], [[1, 0], [1, -1]]
    both = predictor.predict(points=points, labels=labels).low_res
    alone = predictor.predict(points=points[:1], labels=labels[:1]).low_res
    elsewhere = predictor.predict(points=[[[20, 21], [31, 30]]], labels=labels[1:]).low_res
    torch.testing.assert_close(both, torch.cat((alone, elsewhere)), rtol=1e-3, atol=1e-3)


def test_after_an_image_that_is_none_the_one_before_does_not_answer(predictor, picture):
    with pytest.raises(ValueError, match="floats in 0..1"):
        predictor.set_image(picture / 255)
    with pytest.raises(ValueError, match="no image yet"):
        predictor.predict(boxes=[1, 1, 9, 9])


def test_a_mask_of_255_is_the_mask():
    mask = np.zeros((8, 9), bool)
    mask[2:5, 3:7] = mask[6, 1] = True
    grey, tensor = mask * np.uint8(255), torch.from_numpy(mask)[None]
    assert label_components(grey).max() == label_components(mask).max() == 2
    assert np.array_equal(erode(grey, 1), erode(mask, 1)) and encode_rle(grey) == encode_rle(mask)
    assert float(mask_iou(tensor * 255, tensor)) == float(mask_iou(tensor.float(), tensor)) == 1
    assert len(trace(grey)) == len(trace(mask)) == 2


def test_masks_of_boxes_are_tensors_that_may_be_written_to(tracker):
    found = tracker.masks_for_boxes([[1, 1, 9, 9], [3, 3, 20, 20]])
    assert not found.logits.is_inference() and len(found.logits.mul_(2)) == 2


def test_devices_are_named_or_given():
    assert choose_device(torch.device("cpu")) == choose_device("cpu") == torch.device("cpu")
    assert choose_device(None) == choose_device("auto")


SHARES = np.full((64, 96), 0.3)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda p, t, d: p.predict(boxes=[0.1, 0.2, 0.5, 0.6]), "pixels, not shares"),
        (lambda p, t, d: p.predict(mask=p.predict(boxes=[1, 1, 9, 9]).low_res[0] > 0), "mask is bool: give logits"),
        (lambda p, t, d: p.predict(boxes=[1, 1, 9, 9], encoded=np.zeros(3)), "give what encode returns"),
        (lambda p, t, d: p.encode(iter([])), "give a list"),
        (lambda p, t, d: p.enlarge(torch.zeros(1, 1, 4, 4), 5), "image 5"),
        (lambda p, t, d: t.seek(torch.tensor(1), np.zeros((*t.size, 3), np.uint8)), "give a whole number"),
        (lambda p, t, d: t.seek(1.5, np.zeros((*t.size, 3), np.uint8)), "frame is 1.5: give a whole number"),
        (lambda p, t, d: VideoTracker(t.model, stride=1.5), "stride is 1.5: give a whole number"),
        (lambda p, t, d: VideoTracker(t.model, max_hole=-3), "max_hole -3: give at least 0"),
        (lambda p, t, d: t.prompt(1, box=[0.1, 0.2, 0.5, 0.6]), "pixels, not shares"),
        (lambda p, t, d: t.prompt(1, mask=np.full(t.size, 0.3)), "numbers between 0 and 1: give a bool mask"),
        (lambda p, t, d: Clicks(masks=[SHARES]).check_inside(SHARES.shape), "numbers between 0 and 1"),
        (lambda p, t, d: label_components(SHARES), "give bool"),
        (lambda p, t, d: encode_rle(SHARES), "give bool"),
        (lambda p, t, d: overlay(np.zeros((64, 96, 3), np.uint8), masks=[SHARES]), "give bool"),
        (lambda p, t, d: trace(SHARES), "give bool"),
        (lambda p, t, d: mask_iou(torch.zeros(1, 4, 6) > 0, torch.zeros(1, 6, 4) > 0), "give .n, h, w. and"),
        (lambda p, t, d: d.detect(np.zeros((9, 9, 3), np.uint8), "car.", box_threshold=35), "box is 35"),
        (lambda p, t, d: d.detect(np.zeros((9, 9, 3), np.uint8), "car.", {"car": float("nan")}), "box is nan"),
        (lambda p, t, d: d.detect(np.zeros((9, 9, 3), np.uint8), "car.", "0.3"), "box_threshold is '0.3'"),
        (lambda p, t, d: d.detect(np.zeros((9, 9, 3), np.uint8), "car.", nms_iou=2), "nms is 2"),
        (lambda p, t, d: d.detect(np.zeros((9, 9, 3), np.uint8), "car.", max_area=0), "max_area is 0"),
        (lambda p, t, d: d.detect([np.zeros((9, 9, 3), np.uint8)], None), "prompts is a NoneType: give"),
        (lambda p, t, d: label_components(SHARES > 1, connectivity=2), "connectivity is 2: give 8"),
        (lambda p, t, d: crop(np.zeros((64, 96, 4), np.uint8), SHARES > 0), "crop cuts from uint8"),
        (lambda p, t, d: find_instances(SHARES, 0.1, (64, 96), HeatSettings()), "a heat map is square"),
        (lambda p, t, d: HeatSettings(percentile=None), "heat percentile None: give"),
        (lambda p, t, d: HeatSettings(border=None), "border None: give"),
        (lambda p, t, d: otsu(SHARES, bins=1), "bins is 1"),
        (lambda p, t, d: VideoWriter("x.gif", 0, (9, 9)), "fps 0"),
        (lambda p, t, d: VideoWriter("x.gif", 10, (0, 9)), "give .width, height. in pixels"),
        (lambda p, t, d: VideoWriter("x.gif", float("nan"), (9, 9)), "fps nan"),
        (lambda p, t, d: type(d)(d.model, d.tokenizer, min_size=-5), "min_size -5"),
        (lambda p, t, d: warp(torch.zeros(1, 1, 5, 6), torch.zeros(1, 2, 9, 9)), "give .B, C, H, W."),
        (lambda p, t, d: HeatMapper(None, None, templates="a photo of {}"), "give a list of templates"),
        (lambda p, t, d: minisam_glue.read_image(Image.new("RGB", (4, 4))), "source is a Image"),
    ],
)
def test_a_wrong_call_is_told_what_to_give(call, words, predictor, tracker, detector):
    with pytest.raises((ValueError, TypeError), match=words):
        call(predictor, tracker, detector)


def test_a_video_file_is_tracked_backward(model, tmp_path):
    with VideoWriter(tmp_path / "film.gif", 10, (56, 40)) as writer:
        for frame in small_frames(4):
            writer.write(np.asarray(frame))
    found = {}
    for name, video in (("file", minisam_glue.frames(tmp_path / "film.gif")), ("list", None)):
        video = video or [minisam_glue.frames(tmp_path / "film.gif")[i] for i in range(4)]
        tracker = VideoTracker(model)
        tracker.seek(3, video[3])
        tracker.prompt(1, box=[5, 5, 30, 30])
        found[name] = [(one.frame, one.logits()) for one in tracker.propagate(video, reverse=True)]
    assert [frame for frame, _ in found["file"]] == [3, 2, 1, 0] == [frame for frame, _ in found["list"]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found["file"], found["list"]))


@pytest.mark.parametrize("ending", ["mp4", "mkv", "gif", "webp"])
def test_an_aborted_writer_leaves_the_older_file_and_takes_no_more_frames(ending, tmp_path):
    path, frame = tmp_path / f"film.{ending}", np.full((16, 24, 3), 99, np.uint8)
    with VideoWriter(path, 10, (24, 16)) as writer:
        writer.write(frame)
    before = path.read_bytes()
    with VideoWriter(path, 10, (24, 16)) as writer:
        writer.write(frame)
        writer.abort()
    writer.close()
    with pytest.raises(ValueError, match="is closed: no frame can follow"):
        writer.write(frame)
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == [path.name]


def test_two_writers_with_long_names_alike_keep_their_frames(tmp_path):
    names = [f"{'street_scene_of_2026_camera_number_one':-<60}{kind}.gif" for kind in ("overlay", "cutout")]
    with VideoWriter(tmp_path / names[0], 10, (24, 16)) as one, VideoWriter(tmp_path / names[1], 10, (24, 16)) as two:
        for _ in range(2):
            one.write(np.full((16, 24, 3), 40, np.uint8))
            two.write(np.full((16, 24, 3), 200, np.uint8))
    shown = [int(minisam_glue.frames(tmp_path / name)[0].mean()) for name in names]
    assert shown == pytest.approx([40, 200], abs=3)


def test_frames_say_how_many_they_are_and_know_none_before_the_first(tmp_path):
    with VideoWriter(tmp_path / "film.gif", 10, (24, 16)) as writer:
        for value in range(8):
            writer.write(np.full((16, 24, 3), 30 * value, np.uint8))
    for seconds in (0.25, 0.3, 0.31, 0.05, 5):
        video = minisam_glue.frames(tmp_path / "film.gif", max_seconds=seconds)
        assert video.count == len(list(video))
    for call in (lambda: list(video.forward(-1)), lambda: video.time(-1), lambda: video.time(8), lambda: video[-1]):
        with pytest.raises(IndexError):
            call()


def test_one_input_may_stand_without_a_list(tmp_path):
    Image.new("RGB", (9, 8)).save(tmp_path / "a.png")
    assert expand_inputs(str(tmp_path / "a.png")) == expand_inputs([tmp_path / "a.png"]) == [str(tmp_path / "a.png")]


def test_phrases_that_differ_in_case_or_blanks_alone_are_one():
    assert split_phrases("Green hexagon. green  hexagon, car. green hexagon") == ["Green hexagon", "car"]


def test_a_mask_of_255_has_the_area_of_its_pixels():
    mask = np.zeros((8, 9), np.uint8)
    mask[2:5, 3:7] = 255
    numpy = Segment(np.int64(1), "a", np.float32(0.5), tuple(np.array([3, 2, 7, 5], np.float32)), mask)
    assert json.loads(json.dumps(numpy.as_json())) == Segment(1, "a", 0.5, (3, 2, 7, 5), mask).as_json()
    assert Segment(1, "a", 0.5, (3, 2, 7, 5), mask).as_json()["area"] == Annotation(1, 0, 0.5, mask).area == 12


def test_a_data_set_takes_each_input_once_and_no_other(tmp_path, monkeypatch):
    for place in ("one", "two"):
        (tmp_path / place / "a").mkdir(parents=True)
        Image.new("RGB", (9, 8)).save(tmp_path / place / "a.png")
        found = Segmented(np.zeros((8, 9, 3), np.uint8), [])
        record = found.as_json() | {"source": str(tmp_path / place / "a.png")}
        (tmp_path / place / "a" / "result.json").write_text(json.dumps(record))
    inputs = ["a"]
    sets = DataSets(tmp_path / "out", ["coco"], ["dog"], {}, inputs)
    inputs.clear()
    monkeypatch.chdir(tmp_path / "one" / "a")
    sets.add(Path("."))
    sets.finish()
    [image] = json.loads((tmp_path / "out" / "coco" / "annotations.json").read_text())["images"]
    assert Path(image["file_name"]).stem == "a"
    with pytest.raises(ValueError, match="have one name in the data set"):
        sets.add(tmp_path / "two" / "a")
    (tmp_path / "two" / "a").rename(tmp_path / "two" / "b")
    with pytest.raises(ValueError, match="is none of the inputs"):
        sets.add(tmp_path / "two" / "b")
    for names, given, words in (
        (["cocoo"], ["a"], "cocoo"),
        ("coco", ["a"], "coco"),
        (["coco"], ["a", "a"], "one name"),
    ):
        with pytest.raises(ValueError, match=words):
            DataSets(tmp_path / "other", names, ["dog"], {}, given)


@pytest.mark.parametrize("given, words", [({"start": 9}, "the video has 2 frames"), ({"count": -1}, "from 0")])
def test_a_start_beyond_the_end_of_an_iterator_is_told(given, words, tracker, picture):
    tracker.prompt(1, box=[1, 1, 9, 9])
    with pytest.raises(ValueError, match=words):
        list(tracker.propagate(iter([picture, picture]), **given))
