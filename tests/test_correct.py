"""--correct: a finished video with objects prompted again, added or removed on a frame."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import tamper
from helpers.commands import command, lines
from helpers.squares import picture, save, save_film
from helpers.tiny_segment import tiny_models

from minisam_glue import frames, load_models
from minisam_glue.cli import folders, states
from minisam_glue.cli.correct import Correction, flags_of, touched
from minisam_glue.cli.data_sets import find_results
from minisam_glue.cli.outputs import VideoOutput
from minisam_glue.cli.parser import parse_arguments
from minisam_glue.cli.states import States, listed
from minisam_glue.demo.evaluate import innermost
from minisam_glue.demo.scenes import clip
from minisam_glue.masks import decode_rle
from minisam_glue.media.writer import VideoWriter
from minisam_glue.records import Segment, Segmented

AT, COUNT = 3, 5
CLICK = f"id=2 at={AT} point=45,15 point=30,30,0"


@pytest.fixture(scope="module")
def models():
    return tiny_models()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, models) -> Path:
    """The folder of a film and of its result, two objects of which the second joins on frame 1."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "film").mkdir()
    for t in range(COUNT):
        save(picture(4 + 2 * t, 40, seed=t), folder / "film" / f"{t}.png")
    words = [folder / "film", "--frames", "--format", "gif", "--out", folder / "out", "--quiet", "--save", "masks"]
    words += ["--identity", "off"]  # the masks of an untrained model lie on each other
    objects = ["--object", "box=5,10,15,22 label=dog", "--object", "box=40,10,50,22 label=cat at=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "EVERY", 2)
        assert command(*words, *objects, models=models) == 0
    return folder


@pytest.fixture
def result(finished, tmp_path, monkeypatch, one_thread) -> Path:
    """A copy of the result; its source stays where it is."""
    monkeypatch.setattr(states, "EVERY", 2)
    return Path(shutil.copytree(finished / "out" / "film", tmp_path / "out" / "film"))


def correct(result: Path, *corrections: str, models, flags=()) -> list[dict]:
    """The records of a result after these corrections."""
    words = [word for correction in corrections for word in ("--object", correction)]
    assert command("--correct", result, *words, *flags, "--quiet", models=models) == 0
    return lines(result / "result.jsonl")


def of(records: list[dict], number: int) -> list[dict]:
    """An object's records, frame by frame."""
    return [o for record in records for o in record["objects"] if o["id"] == number]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_one_object_changes_from_the_frame_on_and_nothing_else(result, models):
    before, seeding = lines(result / "result.jsonl"), json.loads((result / "result.json").read_text())["seeding"]
    assert {number for number, _ in listed(result / "states")} == {2, 4}
    after = correct(result, CLICK, models=models)
    assert of(after, 1) == of(before, 1) and after[:AT] == before[:AT]
    then, now = of(before, 2), of(after, 2)
    assert [a["mask"] == b["mask"] for a, b in zip(then, now)][AT - 1 :] == [False] * (COUNT - AT)
    summary = json.loads((result / "result.json").read_text())
    assert summary["seeding"] == seeding
    assert [(c["id"], c["at"]) for c in summary["corrections"]] == [(2, AT)] and len(summary["objects"]) == 2
    assert {number for number, _ in listed(result / "states")} == {2, 4}
    assert len(list((result / "masks" / "002_cat").iterdir())) == len(now)


def test_a_result_without_states_is_tracked_again_from_the_first_frame_to_the_same(result, tmp_path, models, capsys):
    other = Path(shutil.copytree(result, tmp_path / "other" / "film"))
    shutil.rmtree(other / "states")
    capsys.readouterr()
    assert command("--correct", other, "--object", CLICK, "--states", 0, models=models) == 0
    assert "tracking again from the first frame" in capsys.readouterr().out and not (other / "states").exists()
    correct(result, CLICK, models=models)
    assert (result / "result.jsonl").read_bytes() == (other / "result.jsonl").read_bytes()


def test_a_source_of_the_same_content_may_have_another_name(finished, result, tmp_path, models):
    moved = shutil.copytree(finished / "film", tmp_path / "moved")
    words = ["--correct", result, "--object", CLICK, "--quiet"]
    assert command(moved, *words, models=models) == 0
    assert json.loads((result / "result.json").read_text())["source"] == str(moved)
    save(picture(4), moved / "0.png")
    assert command(moved, *words, models=models) == 2


def test_a_correction_keeps_no_states_where_they_have_no_room(result, models):
    correct(result, CLICK, models=models, flags=("--states", 0))
    assert not (result / "states").exists()


def test_with_both_the_corrected_object_alone_is_tracked_back_too(result, models):
    before = lines(result / "result.jsonl")
    after = correct(result, CLICK, "box=25,10,35,22 at=2 label=new", models=models, flags=("--direction", "both"))
    assert of(after, 1) == of(before, 1)
    assert [o["label"] for o in of(after, 3)] == ["new"] * COUNT
    assert len(of(after, 2)) == COUNT and of(after, 2)[0]["mask"] != of(before, 2)[0]["mask"]


def test_an_object_is_removed_from_a_frame_on_or_from_all(result, models):
    before = lines(result / "result.jsonl")
    after = correct(result, "id=1 at=2 remove", models=models)
    assert of(after, 1) == of(before, 1)[:2] and of(after, 2) == of(before, 2)
    assert of(correct(result, "id=2 at=3 remove", models=models, flags=("--direction", "both")), 2) == []


def test_corrections_one_after_the_other_are_the_same_as_together(result, tmp_path, models):
    other = Path(shutil.copytree(result, tmp_path / "other" / "film"))
    earlier = "id=2 at=2 box=38,8,50,24"
    together = correct(result, earlier, CLICK, models=models)
    correct(other, CLICK, models=models)
    assert of(correct(other, earlier, models=models), 2) == of(together, 2)


REFUSED = [
    (["id=9 at=1 point=5,5"], [], "--object 9: the result has no such object, but 1, 2; leave out id="),
    ([f"id=2 at={COUNT} point=5,5"], [], "at=5: the result has 5 frames, counted from 0"),
    (["id=2 point=5,5"], [], "its frame is missing"),
    (["id=2 at=1"], [], "no prompt: give a box, a point, a mask, or remove"),
    (["at=1 point=5,5,0"], [], "of a new object: point 5,5,0: give at least one point on the object"),
    (["id=2 at=1 point=99,5"], [], "--object 2: point 99,5: it lies outside the picture of 56 x 40"),
    (["id=2 at=1 point=5,5 label=cow"], [], "the object is called cat"),
    (["id=2 at=1 point=5,5", "id=2 at=1 remove"], [], "two corrections on frame 1"),
    (["id=2 at=1 remove"], ["--stride", 2], "it is a result of another --stride (1 then, 2 now)"),
    (["id=2 at=1 remove"], ["--direction", "reverse"], "a correction goes forward"),
    (["id=2 at=1 remove"], ["--resume"], "--resume: --correct writes the new result in place of the old one"),
    (["id=2 at=1 remove"], ["--batch", 2], "--batch: the frames of a video are segmented one by one; leave it out"),
    ([], [], "--correct needs --object"),
    ([], ["--save", "coco"], "python -m minisam_glue.datasets {out} --to coco"),
]


def test_what_can_not_be_meant_is_one_line_and_changes_nothing(result, models, capsys):
    before = files(result.parent)
    for corrections, flags, message in REFUSED:
        message = message.format(out=result.parent)
        words = [word for correction in corrections for word in ("--object", correction)]
        capsys.readouterr()
        assert command("--correct", result, *words, *flags, models=models) == 2, message
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and message in said, said
    assert files(result.parent) == before


def test_a_result_of_something_else_is_refused(finished, result, tmp_path, models, capsys):
    def refused(folder: Path, *words: object) -> str:
        capsys.readouterr()
        assert command(*words, "--correct", folder, "--object", "id=1 at=1 remove", models=models) == 2
        return capsys.readouterr().err

    film = Path(shutil.copytree(finished / "film", tmp_path / "film"))
    save(picture(9), film / "2.png")
    assert "it is a result of other content of the source" in refused(result, film)
    summary = json.loads((result / "result.json").read_text())
    for change, message in (
        ({"of": summary["of"] | {"program": "0.0"}}, 'another version of this program ("0.0" then'),
        ({"of": summary["of"] | {"--direction": "both"}}, "only results of --direction forward"),
        ({"source": str(tmp_path / "gone.mp4")}, "it is not there; say where it is now"),
        ({"prompts": 5}, "is damaged, or of an earlier version"),
        ({"prompts": None, "of": summary["of"] | {"prompt": "dog."}}, "is damaged, or of an earlier version"),
        ({"prompts": [{"id": 1, "label": "dog", "at": "x"}]}, "is damaged, or of an earlier version"),
    ):
        (result / "result.json").write_text(json.dumps(summary | change))
        assert message in refused(result)
    source = save(picture(5), tmp_path / "a.png")
    assert command(source, "--box", "5,10,15,22", "--out", tmp_path / "pictures", models=models) == 0
    assert "it is a picture's result" in refused(tmp_path / "pictures" / "a")


# --- States ------------------------------------------------------------------------------------------------


def test_states_take_no_more_room_than_they_may(tmp_path, monkeypatch):
    monkeypatch.setattr(states, "EVERY", 2)
    state = {"tracker": torch.zeros(1000)}
    tracking = SimpleNamespace(next=0, reverse=False, tracker=SimpleNamespace(objects={1: 1}), state=lambda: state)
    for room, kept in ((0, []), (1e6, range(2, 41, 2)), (30_000, range(8, 41, 8)), (1000, [])):
        held = States(tmp_path / str(room), room, {})
        for tracking.next in range(1, 41):
            held.keep(tracking)
            assert sum(path.stat().st_size for _, path in listed(held.folder)) <= room
        assert [number for number, _ in listed(held.folder)] == sorted(kept, reverse=True)


def test_a_result_with_corrections_is_not_replaced_by_the_plain_command(finished, result, models, capsys):
    correct(result, "id=2 at=1 remove", models=models)
    before = files(result)
    for flags in ([], ["--stride", 2, "--resume"]):
        words = [finished / "film", "--frames", "--box", "5,10,15,22", "--out", result.parent, "--quiet", *flags]
        assert command(*words, models=models) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "has corrections, which would be lost: choose another --out" in line
    assert files(result) == before


def test_a_state_that_needs_more_room_than_there_is_is_told_in_one_line(tmp_path, monkeypatch, models, capsys):
    monkeypatch.setattr(states, "EVERY", 2)
    (tmp_path / "film").mkdir()
    for t in range(COUNT):
        save(picture(4 + 2 * t, seed=t), tmp_path / "film" / f"{t}.png")
    words = [tmp_path / "film", "bright.", "--frames", "--format", "gif", "--out", tmp_path / "out"]
    assert command(*words, "--states", 0.001, models=models) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "--states" in line]
    assert line.startswith(f"note: {tmp_path / 'film'}: a snapshot of the tracking takes ")
    assert "--states 0.001 allows less" in line
    assert not (tmp_path / "out" / "film" / "states").exists()


@pytest.mark.parametrize("step", [401, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["states/000002.pt", "result.json", "result.jsonl"])
def test_a_changed_file_of_a_result_ends_in_one_line_or_a_result(name, step, result, tmp_path, models, capsys):
    kept = Path(shutil.copytree(result, tmp_path / "kept"))
    content = (kept / name).read_bytes()
    if name.endswith(".pt"):
        cases = tamper.files(torch.load(kept / name, weights_only=True), content, step)
    else:
        first, *rest = content.splitlines(keepends=True) if name.endswith("l") else [content]
        changed = list(tamper.variants(json.loads(first), json=True))[:: max(1, step // 10)]
        cases = [(case, json.dumps(new).encode() + b"\n" + b"".join(rest)) for case, new in changed]
        cases += [("deep", tamper.deep()), ("empty", b"")]
    wrong = {}
    for case, data in cases:
        shutil.rmtree(result)
        shutil.copytree(kept, result)
        (result / name).write_bytes(data)
        capsys.readouterr()
        try:
            with tamper.bounded(60):
                status = command(
                    "--correct", result, "--object", f"id=2 at={COUNT - 2} remove", "--quiet", models=models
                )
        except (Exception, SystemExit, tamper.TooSlow) as error:
            wrong[case] = repr(error)[:200]
            continue
        said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
        if status not in (0, 2) or (status == 2) != (len(said) == 1) or any("\x1b" in line for line in said):
            wrong[case] = f"status {status}: {said}"[:300]
    assert wrong == {}


# --- What a correction is worth ----------------------------------------------------------------------------


def test_after_one_click_a_swapped_object_is_as_good_as_a_new_one_and_others_stay_bit_for_bit(tmp_path):
    demo, at, end = load_models("demo", None, device="cpu"), 3, 6
    scene = clip(14, "crossing", chosen=range(0, 2 * end, 2))
    lead, twin = scene.leads
    (tmp_path / "film").mkdir()
    for t, frame in enumerate(scene.frames):
        save(frame, tmp_path / "film" / f"{t}.png")
    boxes = [",".join(f"{side:.1f}" for side in scene.boxes[0, number].tolist()) for number in (twin, 0)]
    words = [tmp_path / "film", "--frames", "--format", "png", "--out", tmp_path / "out", "--quiet"]
    assert command(*words, "--object", f"box={boxes[0]}", "--object", f"box={boxes[1]}", models=demo) == 0
    result = tmp_path / "out" / "film"
    before = lines(result / "result.jsonl")
    masks = torch.from_numpy(scene.masks)
    x, y = innermost(masks[at, [lead]])[0].tolist()
    click = f"at={at} point={x:.1f},{y:.1f}"
    after = correct(result, f"id=1 {click}", click, models=demo)
    assert of(after, 2) == of(before, 2) and of(after, 1)[:at] == of(before, 1)[:at]
    then, now, new = (
        np.mean([iou(decode_rle(o["mask"]), scene.masks[t, lead]) for t, o in zip(range(at, end), objects)])
        for objects in (of(before, 1)[at:], of(after, 1)[at:], of(after, 3))
    )
    assert then < 0.2 and new > 0.7 and now > new - 0.02


def test_objects_in_a_row_are_touched_and_others_are_not():
    def segment(number: int, left: float, seen: bool = True) -> Segment:
        return Segment(number, "", 1, (left, 0, left + 10, 10), np.full((1, 1), seen))

    row = [segment(1, 0), segment(2, 9), segment(3, 18), segment(4, 28), segment(5, 9, seen=False)]
    assert touched({1}, row) == {2, 3} and touched({4}, row) == set()
    assert touched({4}, [*row, segment(4, 20)]) == {1, 2, 3}  # where it was, or where it is


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_what_a_second_pass_does_not_see_leaves_no_files_of_the_first(tmp_path):
    video = frames(save_film(tmp_path / "film", 2))
    output = VideoOutput(tmp_path / "out", video, "annotated.gif", False, ("masks", "crops"))
    shown, hidden = np.ones((40, 56), bool), np.zeros((40, 56), bool)
    for mask in (shown, hidden):
        for number in (1, 0):
            objects = [Segment(1, "dog", 1.0, (), mask if number else shown), Segment(2, "cat", 1.0, (), shown)]
            output.add(Segmented(video[number], objects, number))
    there = sorted(path.relative_to(output.new).as_posix() for path in output.new.rglob("*.png"))
    names = ("001_dog/000000", "002_cat/000000", "002_cat/000001")
    assert there == [f"{kind}/{name}.png" for kind in ("crops", "masks") for name in names]


def test_a_correction_is_made_in_the_precision_of_the_result():
    for given, precision, expected in (
        ("auto", "bfloat16", "bfloat16"),
        ("float32", "bfloat16", "float32"),
        ("auto", 5, "auto"),
    ):
        args = parse_arguments(["--correct", "x", "--object", "id=1 at=2 remove", "--dtype", given])
        assert flags_of(args, {"of": {"precision": precision}}).dtype == expected


@pytest.fixture(scope="module")
def sentence(tmp_path_factory, models) -> Path:
    """The folder of a film and of its result without states: three objects that a sentence has found."""
    folder = tmp_path_factory.mktemp("sentence")
    (folder / "film").mkdir()
    for t in range(COUNT):
        save(picture(4, 22, 40, seed=t), folder / "film" / f"{t}.png")
    words = [folder / "film", "bright.", "--frames", "--format", "gif", "--states", 0, "--identity", "off", "--quiet"]
    assert command(*words, "--out", folder / "out", models=models) == 0
    return folder


@pytest.mark.parametrize("number", [1, 2, 3])
def test_objects_of_a_sentence_keep_their_numbers_where_all_is_tracked_again(number, sentence, tmp_path, models):
    result = Path(shutil.copytree(sentence / "out" / "film", tmp_path / "film"))
    before = lines(result / "result.jsonl")
    assert [o["id"] for o in before[-1]["objects"]] == [1, 2, 3]
    added = correct(result, f"id={number} at=2 point=30,30", "box=30,2,36,8 at=3 label=new", models=models)
    for other in {1, 2, 3} - {number}:
        assert of(added, other) == of(before, other)
    assert of(added, number)[:2] == of(before, number)[:2] and len(of(added, number)) == COUNT
    assert [o["label"] for o in of(added, 4)] == ["new"] * 2
    removed = correct(result, f"id={number} at=1 remove", models=models)
    assert of(removed, number) == of(before, number)[:1]
    for other in {1, 2, 3, 4} - {number}:
        assert of(removed, other) == of(added, other)


@pytest.mark.parametrize("owner, step", [(VideoWriter, "__init__"), (Correction, "every_frame")])
def test_a_correction_that_was_killed_leaves_the_result_whole(owner, step, finished, result, models, capsys):
    before = correct(result, "id=1 at=2 remove", models=models)

    def killed(*_):
        raise SystemExit(9)  # what follows is not run, as after kill -9

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoOutput, "abort", lambda self: None)
        patch.setattr(owner, step, killed)
        with pytest.raises(SystemExit):
            command("--correct", result, "--object", CLICK, models=models)
    assert (result / ".unfinished").exists() and lines(result / "result.jsonl") == before
    words = [finished / "film", "--frames", "--format", "gif", "--out", result.parent, "--save", "masks", "--resume"]
    objects = ["--object", "box=5,10,15,22 label=dog", "--object", "box=40,10,50,22 label=cat at=1"]
    assert command(*words, "--identity", "off", *objects, models=models) == 0
    assert "finished before" in capsys.readouterr().out and lines(result / "result.jsonl") == before
    assert find_results(result.parent, SimpleNamespace(warn=pytest.fail)) == [result]
    after = correct(result, CLICK, models=models)
    assert of(after, 1) == of(before, 1) and not (result / ".unfinished").exists()


@pytest.mark.parametrize("words", [["box=25,10,35,22 at=2 label=new"], [CLICK, "at=2 point=30,15"]])
def test_a_correction_that_could_not_be_put_in_place_is_made_once_when_it_is_asked_again(words, result, models, capsys):
    objects = [word for correction in words for word in ("--object", correction)]

    def in_use(source: Path, target: Path) -> None:
        if source == result / "annotated.gif":
            raise PermissionError(13, "it is in use", str(source))
        replace(source, target)

    replace = folders.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "replace", in_use)
        assert command("--correct", result, *objects, "--direction", "both", models=models) == 2
    assert "the next --correct, then goes on" in capsys.readouterr().err
    other = Path(shutil.copytree(result, result.parent / "other"))
    assert command("--correct", result, *objects, "--direction", "both", models=models) == 0
    assert "in its place now" in capsys.readouterr().out and not (result / ".unfinished").exists()
    content = json.loads((result / "result.json").read_text())
    assert sorted(o["id"] for o in content["objects"]) == [1, 2, 3] and len(content["corrections"]) == len(words)
    after = correct(other, "id=1 at=3 remove", models=models)  # another one comes after it
    assert of(after, 3) == of(lines(result / "result.jsonl"), 3) and len(of(after, 1)) == 3
    assert of(correct(result, *words, models=models), 4)  # asked for once more


@pytest.mark.parametrize("kept", ["found", "mask"])
def test_an_object_keeps_its_number_by_the_box_that_it_was_found_in_or_in_earlier_results_by_its_mask(
    kept, tmp_path, models
):
    words = [save_film(tmp_path / "film", COUNT), "bright.", "--frames", "--format", "gif", "--quiet", "--states", 0]
    assert command(*words, "--out", tmp_path / "out", models=models) == 0
    path = tmp_path / "out" / "film" / "result.jsonl"
    first, *others = lines(path)
    assert first["found"] == [{"id": 1, "box": [4, 10, 14, 22]}] and not any("found" in record for record in others)
    if kept == "found":  # as if SAM 2 had seen nothing there
        first["objects"] = []
    else:  # as results were that did not tell it
        (o,) = first["objects"]
        o["box"] = first.pop("found")[0]["box"]
    path.write_text("".join(json.dumps(record) + "\n" for record in [first, *others]))
    for at in (AT, AT + 1):
        after = correct(path.parent, f"id=1 at={at} point=15,15", models=models, flags=("--states", 0))
        assert {o["id"] for record in after for o in record["objects"]} == {1}
    assert after[0].get("found") == first.get("found")
