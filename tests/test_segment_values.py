"""Each number and choice of segment.py is checked where it enters: one line that names the flag, exit status 2."""

import argparse
import inspect
import json
import re
import sys

import numpy as np
import pytest
import torch
from helpers.commands import command
from helpers.squares import film, picture, save, save_film
from helpers.tiny_segment import tiny_models
from PIL import Image

from minisam_glue import Clicks, Thresholds, demo, load_models, segment_image, segment_images, segment_video
from minisam_glue.cli import main, parser, video
from minisam_glue.cli import run as cli_run
from minisam_glue.cli.arguments import seeding_of
from minisam_glue.cli.progress import Progress
from minisam_glue.demo.drawing import COLOURS, SHAPES
from minisam_glue.grounding_dino import WordPieceTokenizer
from minisam_glue.grounding_dino.detector import pack_captions
from minisam_glue.heatmap import HeatSettings
from minisam_glue.prompts import Seeding, split_phrases
from minisam_glue.propagation import Tracking

# Flag -> values below, at and above its range, or that are none of its choices; and values that are taken.
# The picture has 56 x 40 pixels, the clip 4 frames at 10 a second.
NUMBERS = {
    "--box-threshold": (("-0.01", "1.01", "35", "nan", "inf", "x", ""), ("0", "1", "0.5", "auto")),
    "--text-threshold": (("-0.01", "1.01", "25", "nan", "-inf", "x"), ("0", "1")),
    "--nms": (("-1", "1.5", "nan", "x"), ("0", "1")),
    "--max-area": (("0", "-1", "1.01", "nan", "50%"), ("0.001", "1")),
    "--fps": (("0", "-1", "1001", "nan", "x", "1e-300"), ("0.5", "1000")),
    "--start": (("-0.1", "-1", "1e10", "nan", "x"), ("0", "0.1")),
    "--max-seconds": (("0", "-1", "1e10", "nan", "x"), ("0.1", "1e9")),
    "--stride": (("0", "-1", "1.5", "99999999999", "x"), ("1", "3")),
    "--seed-frame": (("-1", "0.5", "x", "99999999999"), ("0", "3")),
    "--redetect": (("-5", "2.5", "x", ""), ("0", "1")),
    "--refine-every": (("0", "-1", "1.5", "x"), ("1", "3")),
    "--batch": (("0", "-1", "1.5", "x"), ("1", "3")),
    "--size": (("0", "31", "500", "8192", "1.5", "x"), ("64",)),
    "--states": (("-1", "nan", "x", "1e9"), ("0", "0.1", "64")),
    "--heat-size": (("0", "7", "1.5", "x"), ("352",)),
    "--heat-threshold": (("-0.1", "1.1", "nan", "Otsu"), ("0", "1", "otsu")),
    "--heat-percentile": (("-0.1", "97", "x"), ("0", "1")),
    "--min-area": (("-1", "nan", "x"), ("0", "1e9")),
    "--positives": (("-1", "0.5", "x"), ("0", "8")),
    "--negatives": (("-1", "0.5", "x"), ("0", "8")),
    "--border": (("-1", "0.5", "x"), ("0", "5")),
}
CHOICES = {
    "--direction": (("sideways", "Forward", ""), ("forward", "reverse", "both")),
    "--identity": (("yes", ""), ("on", "off")),
    "--propagate": (("optical", ""), ("memory", "flow")),
    "--save": (("mask", "COCO", ""), ("masks", "crops", "heatmap", "coco")),
    "--method": (("both", ""), ("detector",)),
    "--seed-prompt": (("circle", ""), ("box", "points", "mask")),
    "--template": (("a photo", ""), ("a photo of {}.",)),
    "--format": (("avi", "MP4", ""), ("gif", "png")),
    "--json": (("out.json", ""), ("-",)),
    "--detector": (("swin-l", ""), ("swin-t", "swin-b")),
    "--sam": (("huge", ""), ("tiny", "large")),
    "--dtype": (("float64", "half", ""), ("auto", "float32")),
    "--device": (("tpu", "cpu0", "cuda:99", ""), ("cpu",)),
    "--weights": (("nowhere", ""), ()),
    "--download": (("nothing", ""), ()),
    "--out": (("{file}", "{file}/deeper"), ()),
    "--correct": (("nowhere", "{file}", "{film}"), ()),
}
PLACES = {
    "--box": (
        *("1,2,3", "1,2,3,4,5", "a,b,c,d", "nan,0,1,1", "0,0,inf,9", "", "9,9,1,1", "9,0,1,9"),  # malformed
        *("5,5,5,9", "5,5,9,5", "5,5,5,5"),  # without area
        *("56,0,60,9", "0,40,9,50", "-20,5,0,9", "-20,-20,-5,-5"),  # outside
        *("0.1,0.1,0.5,0.5", "0,0,1,0.5"),  # shares of the picture
    ),
    "--point": (
        *("1", "1,2,3,4", "x,y", "nan,1", "", "1,1,5", "1,1,0.5", "1,1,-1"),
        *("56,10", "10,40", "-1,10", "10,-0.5", "5000,5000"),
        *("0.5,0.5", "0.25,0.99", "9,15,0"),  # shares of the picture; only background
    ),
    "--mask": ("nowhere.png", "", "{file}", "{photograph}", "{jpeg}", "{black}", "{small}"),
    "--object": (
        *(
            "",
            "dog",
            "box",
            "box=1,2,3",
            "box=9,9,1,1",
            "point=",
            "point=9,15,0",
            "point=x,y",
            "box=5,5,9,9 box=5,5,9,9",
        ),
        *("box=5,5,9,9 at=-1", "box=5,5,9,9 at=x", "box=5,5,9,9 at=9", "box=5,5,9,9 id=0", "box=5,5,9,9 label="),
        *("box=56,0,60,9", "point=5,15 point=56,10,0", "box=5,5,9,9 remove", "remove", "label=dog", "at=0 id=1"),
        *("box=5,5,9,9 size=3", "box=5,5,9,9 'open", "mask={square} point=5,15", "mask=nowhere.png", "mask={small}"),
    ),
    "--prompts": (
        "nowhere.json",
        "",
        "{file}",
        "{film}",
        "{wrong_key}",
        "{no_list}",
        "{no_object}",
        "{twice}",
        "{deep}",
    ),
}
TAKEN = {
    "--box": ("0,0,56,40", "-20,5,20,30", "40,30,90,90", "0,0,1,1", "55.5,39.5,56,40"),
    "--point": ("0,0", "55.9,39.9", "1,1", "9,15,1"),
    "--mask": ("{square}", "{white}"),
    "--object": ("box=0,0,56,40", "point=0,0 label='big dog' id=7 at=0", 'mask={square} label="it\'s"', "point=9,15,1"),
    "--prompts": ("{good}",),
}
PROMPT_FILES = {
    "wrong_key": [{"box": [5, 10, 15, 22]}, {"box": [5, 10, 15, 22], "colour": "red"}],
    "no_list": {"objects": 5},
    "no_object": [],
    "twice": [{"id": 3, "box": [5, 10, 15, 22]}, {"id": 3, "points": [[9, 15]]}],
    "deep": "[" * 100_000,
    "good": {"objects": [{"box": [5, 10, 15, 22], "label": "dog"}, {"points": [[9, 15], [30, 30, 0]], "mask": None}]},
}
WITHOUT_VALUE = {"--frames", "--resume", "--html", "--story", "--quiet", "--profile", "--help"}


@pytest.fixture
def places(tmp_path):
    rng, square = np.random.default_rng(0), np.zeros((40, 56), np.uint8)
    square[10:22, 5:15] = 255
    (tmp_path / "file").write_text("words")
    files = {}
    for name, content in PROMPT_FILES.items():
        (tmp_path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        files[name] = tmp_path / f"{name}.json"
    return files | {
        "png": save(picture(5), tmp_path / "one.png"),
        "film": save_film(tmp_path / "film", 4),
        "file": tmp_path / "file",
        "jpeg": save(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8), tmp_path / "photograph.jpg"),
        "photograph": save(rng.integers(1, 255, (40, 56, 3), dtype=np.uint8), tmp_path / "photograph.png"),
        "black": save(np.zeros((40, 56), np.uint8), tmp_path / "black.png"),
        "small": save(square[:20], tmp_path / "small.png"),
        "square": save(square, tmp_path / "square.png"),
        "white": save(np.full((40, 56), 255, np.uint8), tmp_path / "white.png"),
    }


def refused(flag: str, words: list, capsys) -> str:
    """What is wrong with the refusal of this command; an empty string if nothing is."""
    status, printed = command(*words), capsys.readouterr()
    lines = printed.err.splitlines()
    good = status == 2 and len(lines) == 1 and lines[0].startswith("error: ") and flag in lines[0]
    return "" if good else f"{words[1:]}: status {status}, {lines}"


@pytest.mark.parametrize("flag", [*NUMBERS, *CHOICES])
def test_a_value_out_of_range_is_one_line_that_names_the_flag(flag, places, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = [value.format(**places) for value in (NUMBERS | CHOICES)[flag][0]]
    unloaded = {"--device", "--weights"}  # these are read when models are loaded
    for value in values:
        words = [places["film"], "bright.", "--frames", flag, value]
        words += [] if flag == "--out" else ["--out", tmp_path / "out"]
        if flag in unloaded:
            status, lines = main(list(map(str, words))), capsys.readouterr().err.splitlines()
            assert (status, len(lines)) == (2, 1) and flag in lines[0], (value, lines)
        else:
            assert refused(flag, words, capsys) == ""
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize("flag", [*NUMBERS, *CHOICES])
def test_values_at_the_ends_of_a_range_are_taken(flag, places, tmp_path, capsys):
    for value in (NUMBERS | CHOICES)[flag][1]:
        words = [places["film"], "bright.", "--frames", flag, value, "--out", tmp_path / "out"]
        words += [] if flag == "--format" else ["--format", "gif"]
        words += [] if flag == "--fps" else ["--fps", 10]
        assert command(*words, "--quiet") == 0, value


@pytest.mark.parametrize("flag", PLACES)
def test_a_box_point_or_mask_that_can_not_be_meant_is_one_line_that_names_the_flag(flag, places, tmp_path, capsys):
    for source in (["png"], ["film", "--frames"]):
        for value in PLACES[flag]:
            words = [places[source[0]], *source[1:], flag, value.format(**places), "--out", tmp_path / "out"]
            assert refused(flag, words, capsys) == ""
    assert not list((tmp_path / "out").rglob("*")) if (tmp_path / "out").exists() else True


@pytest.mark.parametrize("flag", TAKEN)
def test_boxes_points_and_masks_up_to_the_border_are_taken(flag, places, tmp_path):
    for value in TAKEN[flag]:
        words = [places["png"], flag, value.format(**places), "--out", tmp_path / "out", "--quiet"]
        assert command(*words) == 0, value


def test_every_flag_is_in_one_of_the_tables(monkeypatch):
    made, add = [], argparse._ActionsContainer.add_argument

    def noted(self, *names, **options):
        made.extend(names)
        return add(self, *names, **options)

    monkeypatch.setattr(argparse._ActionsContainer, "add_argument", noted)
    parser.parse_arguments([])
    flags = {name for name in made if name.startswith("--")}
    assert flags == {*NUMBERS, *CHOICES, *PLACES, *WITHOUT_VALUE}


def test_relative_coordinates_are_answered_with_pixels(places, tmp_path, capsys):
    assert command(places["png"], "--box", "0.1,0.1,0.5,0.5", "--out", tmp_path / "out") == 2
    assert "give 6,4,28,20" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (["{png}", "green", "hexagon"], "green: no such file or folder; put the sentence last, in quotes"),
        (["bright.", "{png}"], "put the sentence last, in quotes"),
        (["{png}"], "a sentence is missing"),
        (["{png}", "{jpeg}"], "photograph.jpg' is an input, and a sentence is missing after it"),
        (["{png}", "camera:0"], "'camera:0' is an input, and a sentence is missing after it"),
        (["bright thing"], "an input is missing"),
        (["nowhere.jpg", "x"], "no such file or folder"),
        (["{film}", "--frames", "--redetect", "3", "--point", "9,15"], "--redetect needs a sentence"),
        (["{film}", "x", "--frames", "--seed-frame", "4"], "--seed-frame 4: the video has no such frame"),
        (["{png}", "--box", "1,1,9,9", "--box", "2,2,8,8", "--point", "9,15"], "points correct one box"),
        (["{png}", "--object", "box=1,2,30,40 label='x y"], "a quotation mark has no partner"),
        (["{png}", "--prompts", "{jpeg}"], "no JSON, which is text in UTF-8"),
        (["{png}", "bright.", "--weights", ""], "--weights '': no such folder"),
        (["{png}", "bright.", "--story"], "--story tells of videos, and no input is one"),
        (["{film}", "x", "--frames", "--story", "--identity", "off"], "leave out --identity off"),
        (["{film}", "x", "--frames", "--story", "--propagate", "flow"], "leave out --propagate flow"),
    ],
)
def test_a_message_says_flags_and_what_to_do(words, message, places, tmp_path, capsys):
    assert command(*(word.format(**places) for word in words), "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert ("in quotes" in error) == ("in quotes" in message)


@pytest.mark.parametrize(
    "words, note",
    [
        (["{png}", "bright.", "--redetect", "3"], "--redetect does nothing for pictures"),
        (["{png}", "bright.", "--start", "2", "--stride", "2"], "--start, --stride do nothing for pictures"),
        (["{png}", "bright.", "--save", "masks"], "--save masks does nothing for pictures, which always have masks"),
        (["{png}", "bright.", "--frames"], "--frames does nothing without a folder, or a TIFF of many pages"),
        (["{png}", "bright.", "--positives", "2"], "--positives does nothing without --seed-prompt points"),
        (["{png}", "bright.", "--save", "crops", "heatmap"], "--save heatmap does nothing without --method clipseg"),
        (["{png}", "bright.", "--identity", "on"], "--identity does nothing for pictures"),
        (
            ["{film}", "bright.", "--frames", "--identity", "on", "--propagate", "flow"],
            "--identity does nothing with --propagate flow: the rules are for SAM 2's memory",
        ),
        (["{film}", "bright.", "--frames", "--propagate", "flow", "--refine-every", "2"], ""),
        (
            ["{film}", "bright.", "--frames", "--refine-every", "2"],
            "--refine-every does nothing without --propagate flow",
        ),
        (["{png}", "--point", "9,15", "--save", "heatmap"], "--save heatmap does nothing without a sentence"),
        (
            ["{film}", "bright.", "--frames", "--states", "9", "--direction", "both"],
            "--states does nothing with --direction both, which --correct does not take",
        ),
        (
            ["{film}", "bright.", "--frames", "--batch", "2"],
            "--batch does nothing for videos, whose frames are segmented one by one",
        ),
        (["{film}", "{png}", "bright.", "--frames", "--batch", "2", "--states", "9"], ""),
        (["{png}", "--point", "9,15", "--nms", "0.5"], "--nms does nothing without a sentence"),
        (
            ["{film}", "--frames", "--object", "box=5,10,15,22 at=1", "--seed-frame", "1"],
            "--seed-frame does nothing where each object has its own at=",
        ),
        (["{film}", "--frames", "--object", "box=5,10,15,22", "--seed-frame", "1"], ""),
        (["{film}", "bright.", "--frames", "--html"], ""),
        (["{film}", "bright.", "--frames", "--redetect", "2", "--fps", "5"], ""),
        (["{png}", "bright.", "--html", "--max-area", "0.9"], ""),
    ],
)
def test_flags_without_effect_are_said_unless_quiet(words, note, places, tmp_path, capsys):
    words = [*(word.format(**places) for word in words), "--out", tmp_path / "out"]
    assert command(*words) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert said == ([f"note: {note}"] if note else [])
    assert command(*words, "--quiet") == 0 and capsys.readouterr().out == ""


@pytest.mark.parametrize("how, every", [("flow", 2), ("memory", 1)])
def test_refine_every_is_for_flow(how, every, places, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(video, "Tracking", lambda *args, **more: made.append(args[8]) or Tracking(*args, **more))
    words = [places["film"], "bright.", "--frames", "--propagate", how, "--refine-every", "2", "--format", "gif"]
    assert command(*words, "--out", tmp_path / "out", "--quiet") == 0 and made == [every]


def test_frames_of_a_tiff_of_many_pages_is_no_idle_flag(tmp_path, capsys):
    first, second = (Image.fromarray(picture(left)) for left in (5, 9))
    first.save(tmp_path / "pages.tif", save_all=True, append_images=[second])
    words = [tmp_path / "pages.tif", "bright.", "--frames", "--format", "gif", "--out", tmp_path / "out"]
    assert command(*words) == 0
    said = capsys.readouterr().out
    assert "note: " not in said and "2 frames, 1 bright" in said


def test_a_full_stop_inside_a_number_ends_no_phrase():
    assert split_phrases("1.5 l bottle. dog") == ["1.5 l bottle", "dog"]
    assert split_phrases("1.5 l bottle, cat.") == ["1.5 l bottle", "cat"]
    assert split_phrases("number 7. dog") == ["number 7", "dog"] and split_phrases("a.b,c;d") == ["a", "b", "c", "d"]


def test_demo_weights_say_what_they_know():
    known = ["green hexagon", "The red circles", "all shapes"]
    foreign = ["a 1.5 l bottle", "dog", "!!!", "\N{HOT BEVERAGE}"]
    assert demo.foreign([*known, *foreign]) == foreign
    words = set(re.findall(r"\w+", demo.KNOWN)) - {"and", "eight", "colours", "shapes"}
    assert words == {*COLOURS, *SHAPES}


def test_the_time_left_counts_the_frames_of_this_run_only(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress("clip.mp4", True, done=50, total=100)
    for done in range(51, 61):
        now[0] += 2.0
        progress.step(1, done, 100)
    assert progress.line(1) == "clip.mp4: frame 60 of 100, 80 s left, 0.5 frames/s, 1 object"
    assert progress.line(2).endswith("2 objects")


@pytest.mark.parametrize("direction, total", [("forward", 6), ("reverse", 6), ("both", 9)])
def test_progress_counts_every_frame_that_comes_also_after_a_resume(direction, total):
    settings = {"seed_frame": 3, "direction": direction}
    tracking, frames = Tracking(tiny_models(), Clicks(boxes=[[10, 10, 20, 22]]), **settings), film(6)
    counted = [tracking.counted(6) for _ in tracking.run(frames)]
    assert [done for done, _ in counted] == list(range(1, total + 1)) and counted[-1][1] == total
    first, second = (Tracking(tiny_models(), Clicks(boxes=[[10, 10, 20, 22]]), **settings) for _ in range(2))
    run = first.run(frames)
    for _ in range(total - 1):
        next(run)
    second.restore(first.state())
    assert second.counted(6) == (total - 1, total)


# --- The Python interface ----------------------------------------------------------------------------------

BOX = [[5, 10, 15, 22]]


@pytest.mark.parametrize(
    "make, kind, message",
    [
        (lambda m, p: Clicks(points=[[9, 15]]), ValueError, r"point \[9, 15\]: give \(x, y, 1\)"),
        (lambda m, p: Clicks(points=[[9, 15, 0]]), ValueError, "at least one point on the object"),
        (lambda m, p: Clicks(boxes=None), TypeError, "boxes is a NoneType"),
        (lambda m, p: Clicks(boxes=[None]), ValueError, "box None"),
        (lambda m, p: Clicks(boxes=b"5,10"), TypeError, "boxes is a bytes"),
        (lambda m, p: Clicks(boxes=[5, 10, 15, 22]), ValueError, "boxes is a single one: give a list of them"),
        (lambda m, p: Clicks(boxes=[[5, 10, float("nan"), 22]]), ValueError, "give the four numbers"),
        (lambda m, p: Clicks(boxes=[[0, 0, 10**400, 5]]), ValueError, "give the four numbers"),
        (lambda m, p: segment_image(m, p, Clicks(masks=[p[..., 0] * np.nan])), ValueError, "mask has values that"),
        (lambda m, p: Thresholds(box=35), ValueError, "box is 35: give a number from 0 to 1"),
        (lambda m, p: Thresholds(text="0.3"), ValueError, "text is '0.3'"),
        (lambda m, p: Thresholds(max_area=0), ValueError, "max_area is 0: give a number above 0"),
        (lambda m, p: segment_image(m, p, None), TypeError, "a prompt is a sentence"),
        (lambda m, p: segment_image(m, p, b"bright."), TypeError, "a prompt is a sentence"),
        (lambda m, p: segment_image(m, p, []), ValueError, "no phrase"),
        (lambda m, p: segment_image(m, p, [1, 2]), TypeError, "strings, not a int$"),
        (lambda m, p: segment_image(m, p, [p]), TypeError, "strings, not a ndarray; HeatMapper.heat_maps takes pict"),
        (lambda m, p: segment_image(m, p, p), TypeError, "or Clicks, not a ndarray; HeatMapper.heat_maps takes pict"),
        (
            lambda m, p: segment_image(m, p, Clicks(boxes=[[60, 0, 70, 9]])),
            ValueError,
            "outside the picture of 56 x 40",
        ),
        (lambda m, p: segment_image(m, None, "bright."), TypeError, "a picture is a PIL image or an array, not a None"),
        (lambda m, p: segment_image(m, "one.png", "bright."), TypeError, r"minisam_glue.read_image\(path\)"),
        (lambda m, p: segment_image(m, b"\x89PNG", "bright."), TypeError, "not a bytes"),
        (lambda m, p: segment_images(m, p, "bright."), TypeError, "one picture"),
        (lambda m, p: segment_images(m, [], "bright."), ValueError, "images is empty"),
        (lambda m, p: segment_images(m, "folder", "bright."), TypeError, "images is a str"),
        (lambda m, p: segment_video(m, "clip.mp4", "bright."), TypeError, r"minisam_glue.frames\(path\)"),
        (lambda m, p: segment_video(m, p, "bright."), TypeError, "one picture"),
        (lambda m, p: segment_video(m, None, "bright."), TypeError, "frames is a NoneType"),
        (lambda m, p: segment_video(m, b"", "bright."), TypeError, "is the path"),
        (lambda m, p: segment_video(m, [], "bright."), ValueError, "frames is empty"),
        (
            lambda m, p: list(segment_video(m, [p, p[:20]], Clicks(boxes=[[5, 10, 15, 22]]))),
            ValueError,
            "all frames of a video have one size",
        ),
        (lambda m, p: segment_video(m, [p], None), TypeError, "a prompt is a sentence"),
        (lambda m, p: segment_video(m, [p], "bright.", redetect=-5), ValueError, "redetect is -5: give a whole number"),
        (lambda m, p: segment_video(m, [p], "bright.", seed_frame=1.5), ValueError, "seed_frame is 1.5"),
    ],
)
def test_a_mistake_in_python_is_told_when_it_is_made(make, kind, message):
    with pytest.raises(kind, match=message):
        make(tiny_models(), picture(5))


def test_arrays_of_any_library_are_boxes_and_points():
    models, image = tiny_models(), picture(5)
    expected = segment_image(models, image, Clicks(boxes=BOX, points=[[9, 15, 1]]))
    for kind in (np.float32, np.int64):
        clicks = Clicks(boxes=np.array(BOX, kind), points=np.array([[9, 15, 1]], kind))
        assert np.array_equal(segment_image(models, image, clicks).masks, expected.masks)
    clicks = Clicks(boxes=torch.tensor(BOX), points=torch.tensor([[9.0, 15.0, 1.0]]))
    assert np.array_equal(segment_image(models, image, clicks).masks, expected.masks)


def test_a_phrase_that_the_vocabulary_has_no_word_of_is_said():
    tokenizer = WordPieceTokenizer.load(demo.VOCABULARY)
    for phrase in ("图片", "Ωμέγα", "🦄 🦄"):
        with pytest.raises(ValueError, match="the phrase .* has no word that the vocabulary knows"):
            pack_captions(["dog", phrase], tokenizer)
    assert len(pack_captions(["dog", "red 图"], tokenizer)) == 1


def test_control_characters_of_names_are_escaped_on_the_terminal(tmp_path, capsys):
    source = save(picture(5), tmp_path / "a\x1b[31mb\x07.png")
    assert command(source, "bright.", "--out", tmp_path / "out") == 0
    assert command(tmp_path / "no\x1b]0;file.png", "bright.", "--out", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert "a\\x1b[31mb\\x07.png" in printed.out and "no\\x1b]0;file.png" in printed.err
    assert not set(printed.out + printed.err) & {"\x1b", "\x07"}


def test_a_sentence_of_unknown_words_is_said_once_for_all_inputs(tmp_path, capsys):
    for name in "abc":
        save(picture(5), tmp_path / f"{name}.png")
    assert main([str(tmp_path), "图片", "--weights", "demo", "--quiet", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "has no word that the vocabulary knows" in error and error.count("\n") == 1


def test_the_demo_says_once_what_it_does_not_know(tmp_path, capsys):
    words = ["dog. red circle.", "--weights", "demo", "--out", str(tmp_path / "out")]
    assert main([save(picture(5), tmp_path / "a.png"), *words]) == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert demo.KNOWN in note and note.endswith("not 'dog'")


@pytest.mark.parametrize("rank, number", [("abc", "2"), ("0", "0"), ("2", "2"), ("-1", "2"), ("0", "")])
def test_ranks_that_can_not_be_are_one_line(rank, number, places, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", number)
    assert command(places["png"], "bright.", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert ("RANK" in error or "WORLD_SIZE" in error) and error.count("\n") == 1


@pytest.mark.parametrize(
    "rank, message", [("abc", "LOCAL_RANK=abc"), ("-1", "LOCAL_RANK=-1"), ("4", "has GPUs 0 to 1")]
)
def test_a_rank_on_this_machine_that_can_not_be_is_one_line(rank, message, places, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert main([places["png"], "bright.", "--weights", "demo", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_hints_name_the_python_that_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)  # as if PyAV were not installed
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    assert command(tmp_path / "clip.mp4", "bright.", "--out", tmp_path / "out") == 2
    assert f"{sys.executable} -m pip install" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    torch.save({}, tmp_path / "empty" / demo.SEGMENTER)
    words = [save(picture(5), tmp_path / "a.png"), "car.", "--weights", tmp_path / "empty", "--out", tmp_path / "out"]
    assert main(list(map(str, words))) == 2
    assert f"{sys.executable} -m minisam_glue.demo.train_detector" in capsys.readouterr().err


# --- Flags that reach what they are for -----------------------------------------------------------------------


def test_the_limits_of_the_command_reach_the_detector(tmp_path, monkeypatch):
    models, asked = tiny_models(), []
    detect = models.detector.detect
    monkeypatch.setattr(
        models.detector, "detect", lambda *a, **k: asked.append((*a[2:], k["max_area"])) or detect(*a, **k)
    )
    flags = ["--box-threshold", 0.31, "--text-threshold", 0.21, "--nms", 0.41, "--max-area", 0.9]
    source = save(picture(5), tmp_path / "a.png")
    assert command(source, "bright.", *flags, "--out", tmp_path / "out", models=models) == 0
    assert asked == [(0.31, 0.21, 0.41, 0.9)]


def test_the_flags_of_heat_maps_are_their_settings():
    words = "--heat-threshold 0.2 --heat-percentile 0.9 --min-area 50 --positives 3 --negatives 2 --border 4"
    args = parser.parse_arguments([*words.split(), "--seed-prompt", "points"])
    wanted = HeatSettings(0.2, 0.9, min_area=50, positives=3, negatives=2, border=4)
    assert seeding_of(args) == Seeding(("points",), wanted)


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["--redetect", 2, "--seed-frame", 1], {"redetect": 2, "seed_frame": 1, "rules": True}),
        (["--identity", "off"], {"rules": False}),
        (["--propagate", "flow", "--refine-every", 2], {"refine_every": 2}),
    ],
)
def test_the_flags_of_a_video_are_those_of_its_tracking(words, wanted, tmp_path, monkeypatch):
    seen, run = [], Tracking.run
    monkeypatch.setattr(Tracking, "run", lambda self, frames: seen.append(self) or run(self, frames))
    flags = ["--frames", "--format", "gif", *words, "--out", tmp_path / "out"]
    assert command(save_film(tmp_path / "film", 3), "bright.", *flags) == 0
    tracking, tracker = seen[0], seen[0].tracker
    found = {"redetect": tracking.redetect, "seed_frame": tracking.seed_frame}
    found |= {"rules": tracker.identity is not None} if hasattr(tracker, "identity") else {}
    found |= {"refine_every": tracker.refine_every} if hasattr(tracker, "refine_every") else {}
    assert wanted.items() <= found.items()


def test_the_flags_of_the_models_reach_them_each_in_its_place(monkeypatch):
    given, signature = [], inspect.signature(load_models)
    monkeypatch.setattr(cli_run, "load_models", lambda *a, **k: given.append(signature.bind(*a, **k).arguments))
    flags = ["--weights", "w", "--sam", "tiny", "--dtype", "bfloat16", "--size", "256", "--device", "cpu", "--quiet"]
    for more in (["--detector", "swin-b"], ["--method", "clipseg", "--heat-size", "64", "--template", "a {}."]):
        cli_run.load(parser.parse_arguments(["a.png", "cat.", *flags, *more]), False)
    common = {"source": "w", "sam": "tiny", "device": "cpu", "dtype": "bfloat16", "size": 256, "progress": None}
    boxes = {"method": "detector", "detector": "swin-b", "heat_size": None, "templates": ("{}",)}
    heat = {"method": "clipseg", "detector": "swin-t", "heat_size": 64, "templates": ["a {}."]}
    assert given == [common | boxes, common | heat]
