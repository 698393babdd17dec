"""--correct on results of a sentence, with the demo weights: numbers, removals, and what a later correction keeps."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.commands import command, lines
from PIL import Image, ImageDraw

from minisam_glue import load_models
from minisam_glue.cli.data_sets import run as data_sets

COUNT = 12
SENTENCE = "black circle. blue square. red circle."


def draw(t: int) -> Image.Image:
    """A black circle that goes right, a blue square that goes left, and from frame 6 on a red circle that stays."""
    image = Image.new("RGB", (128, 96), (235, 230, 220))
    paint = ImageDraw.Draw(image)
    paint.ellipse((5 + 5 * t, 20, 27 + 5 * t, 42), fill=(20, 20, 20))
    paint.rectangle((100 - 4 * t, 58, 122 - 4 * t, 80), fill=(30, 60, 220))
    if t >= 6:
        paint.ellipse((92, 10, 114, 32), fill=(220, 30, 30))
    return image


@pytest.fixture(scope="module")
def models():
    return load_models("demo", size=128)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "film"
    folder.mkdir()
    for t in range(COUNT):
        draw(t).save(folder / f"{t:02d}.png")
    return folder


@pytest.fixture(scope="module")
def made(film, models, tmp_path_factory):
    """made(words): a copy of the result of these words, which is made once."""
    done = {}

    def make(out: Path, *words) -> Path:
        if words not in done:
            done[words] = tmp_path_factory.mktemp("made")
            assert (
                command(film, *words, "--frames", "--format", "gif", "--quiet", "--out", done[words], models=models)
                == 0
            )
        return Path(shutil.copytree(done[words] / "film", out / "film"))

    return make


def correct(result: Path, *words, models) -> dict[int, dict[int, list]]:
    """{id: {frame: box}} after a correction, or several words of one."""
    assert command("--correct", result, *words, "--quiet", models=models) == 0
    return boxes(result)


def boxes(result: Path) -> dict[int, dict[int, list]]:
    found = {}
    for record in lines(result / "result.jsonl"):
        for o in record["objects"]:
            if o["area"]:
                found.setdefault(o["id"], {})[record["frame"]] = o["box"]
    return found


def labels(result: Path) -> dict[int, str]:
    return {o["id"]: o["label"] for record in lines(result / "result.jsonl") for o in record["objects"]}


def test_with_redetect_an_object_that_was_corrected_before_can_be_removed(tmp_path, made, models):
    result = made(tmp_path, SENTENCE, "--redetect", 3)
    assert labels(result)[3] == "red circle"
    correct(result, "--object", "id=3 at=7 point=103,20", models=models)
    after = correct(result, "--object", "id=3 at=8 remove", models=models)
    assert max(after[3]) == 7


def test_an_object_corrected_before_the_sentence_finds_any_keeps_its_number_and_the_others_theirs(
    tmp_path, made, models
):
    words = "black circle. blue square.", "--seed-frame", 5
    result = made(tmp_path, *words)
    before = labels(result)
    assert before == {1: "blue square", 2: "black circle"}
    for number, box in ((1, "83,57,123,81"), (2, "14,18,38,44")):
        copy = Path(shutil.copytree(result, tmp_path / str(number) / "film"))
        after = correct(copy, "--object", f"id={number} at=2 box={box}", models=models)
        assert labels(copy) == before
        assert min(after[number]) == 2 and min(after[3 - number]) == 5


def test_objects_found_again_keep_the_numbers_that_they_had(tmp_path, made, models):
    result = made(tmp_path, SENTENCE, "--redetect", 3)
    before = labels(result)
    correct(result, "--object", "id=3 at=8 point=103,20", models=models)
    removed = next(number for number, label in before.items() if label == "black circle")
    after = correct(result, "--object", f"id={removed} at=0 remove", models=models)
    assert {number: labels(result).get(number) for number in before if number != removed} == {
        number: label for number, label in before.items() if number != removed
    }
    assert all(box[0] > 80 and box[3] < 40 for box in after[3].values())  # the red circle, where it stands


def test_an_object_that_was_removed_does_not_come_back_when_another_is_corrected_from_the_first_frame(
    tmp_path, made, models
):
    result = made(tmp_path, SENTENCE, "--states", 0)
    before = labels(result)
    square = next(number for number, label in before.items() if label == "blue square")
    correct(result, "--object", f"id={3 - square} at=0 remove", models=models)
    after = correct(result, "--object", f"id={square} at=0 box=99,57,123,81", models=models)
    assert labels(result) == {square: "blue square"} and set(after) == {square}
    assert {found["id"] for found in lines(result / "result.jsonl")[0]["found"]} <= {1, 2}  # the circle is no third


def test_a_new_object_has_a_number_that_nothing_had_not_even_what_was_found_and_never_seen(tmp_path, made, models):
    result = made(tmp_path, SENTENCE, "--states", 0)
    records = lines(result / "result.jsonl")
    records[0]["found"].append({"id": 6, "box": [2, 80, 12, 92]})  # where nothing is
    (result / "result.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    correct(result, "--object", "at=2 label=mine box=92,57,116,81", models=models)
    assert [o["id"] for o in json.loads((result / "result.json").read_text())["corrections"]] == [7]


def test_settings_that_are_zero_are_those_of_the_result(tmp_path, made, models):
    result = made(tmp_path, "blue square.", "--seed-frame", 0, "--nms", 0, "--border", 0)
    correct(result, "--object", "id=1 at=3 point=99,69", models=models)


def test_an_object_can_not_be_removed_before_it_comes(tmp_path, made, models, capsys):
    objects = "--object", "box=4,19,28,43 label=circle", "--object", "box=91,9,115,33 label=red at=6"
    result = made(tmp_path, *objects)
    capsys.readouterr()
    assert command("--correct", result, "--object", "id=2 at=3 remove", models=models) == 2
    assert capsys.readouterr().err == "error: --object 2: at=3: it first comes on frame 6; remove it from there on\n"


def test_a_point_of_the_background_makes_no_object_of_one_that_is_not_tracked_there(tmp_path, made, models, capsys):
    objects = "--object", "box=4,19,28,43 label=circle", "--object", "box=91,9,115,33 label=red at=6"
    result = made(tmp_path, *objects)
    before = boxes(result)
    capsys.readouterr()
    assert command("--correct", result, "--object", "id=2 at=3 point=5,5,0", models=models) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "object 2 is not tracked on frame 3" in line
    assert boxes(result) == before


def test_what_both_has_done_before_its_frame_stays_in_later_corrections(tmp_path, made, models):
    result = made(tmp_path, "black circle. blue square.")
    number = {label: number for number, label in labels(result).items()}
    circle, square = number["black circle"], number["blue square"]
    after = correct(result, "--object", f"id={circle} at=8 remove", "--direction", "both", models=models)
    assert circle not in after
    there = f"id={square} at=2 box=14,19,38,43"  # where the circle was: the two meet
    after = correct(result, "--object", there, models=models)
    assert circle not in after
    added = correct(result, "--object", f"id={circle} at=5 box=29,19,53,43", "--direction", "both", models=models)
    assert sorted(added[circle]) == list(range(8))  # the removal stands
    last = correct(result, "--object", f"id={square} at=1 box=9,19,33,43", models=models)
    assert {t: last[circle].get(t) for t in range(5)} == {t: added[circle][t] for t in range(5)}


def test_states_hold_where_a_correction_joined_before_the_sentence_found_anything(
    tmp_path, made, models, monkeypatch, capsys
):
    monkeypatch.setattr("minisam_glue.cli.states.EVERY", 2)
    result = made(tmp_path, "purple heart.")
    correct(result, "--object", "box=4,19,28,43 at=0 label=thing", "--object", "box=91,57,115,81 at=2", models=models)
    capsys.readouterr()
    correct(result, "--object", "id=1 at=7 point=51,31", models=models)
    assert "can't be used" not in capsys.readouterr().err


def test_flags_that_a_correction_does_not_use_are_refused(tmp_path, made, models, capsys):
    result = made(tmp_path, "blue square.", "--seed-frame", 0, "--nms", 0, "--border", 0)
    capsys.readouterr()
    for words, hint in ((["--save", "coco"], "minisam_glue.datasets"), (["--box", "1,2,30,40"], "--object corrects")):
        assert command("--correct", result, *words, "--object", "id=1 at=3 point=99,69", models=models) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {words[0]}") and hint in line


def test_the_data_sets_of_a_corrected_result_are_made_again_in_their_place(tmp_path, film, models):
    words = [
        film,
        "blue square.",
        "--frames",
        "--format",
        "gif",
        "--quiet",
        "--out",
        tmp_path,
        "--save",
        "coco",
        "yolo",
    ]
    assert command(*words, models=models) == 0
    for number, label in enumerate(("thing", "red"), 1):
        correct(tmp_path / "film", "--object", f"box=91,9,115,33 at={9 + number} label={label}", models=models)
        if number == 1:
            assert data_sets([str(tmp_path), "--to", "coco", "yolo", "--quiet"]) == 0
        else:
            assert command(*words, "--resume", models=models) == 0
        coco = json.loads((tmp_path / "coco" / "annotations.json").read_text())
        assert [c["name"] for c in coco["categories"]] == ["blue square", "thing", "red"][: 1 + number]
        assert len({a["category_id"] for a in coco["annotations"]}) == 1 + number
    assert '2: "red"' in (tmp_path / "yolo" / "data.yaml").read_text()
