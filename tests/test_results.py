"""A result knows what it is of; a folder has one writer, which removes what a run made and nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import command
from helpers.squares import picture, save, save_film
from helpers.tiny_segment import tiny_models
from PIL import Image

from minisam_glue.cli import provenance, video
from minisam_glue.cli.arguments import VIDEO_FLAGS
from minisam_glue.cli.outputs import Journal
from minisam_glue.cli.parser import parse_arguments
from minisam_glue.cli.provenance import CHANGE_NOTHING, STATED_OTHERWISE, differences, facts_of, weights_hash

CASES = Path(__file__).parent / "cases" / "resume"


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def stop_at(frame: int, words: list, monkeypatch, models) -> None:
    """A run of a video that ends with an error at a frame, and has a saved state of the frames before."""
    append = Journal.append

    def full(self, record):
        if record["frame"] == frame:
            raise OSError(28, "No space left on device")
        return append(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(video, "SAVE_EVERY", 0.0)
        patch.setattr(Journal, "append", full)
        assert command(*words, models=models) == 2


# --- What a result is of -----------------------------------------------------------------------------------


def test_a_picture_of_the_same_name_with_other_content_is_done_again(tmp_path, capsys, models):
    def found(day: str) -> tuple[str, list]:
        words = [CASES / day / "0001.png", "bright.", "--out", tmp_path / "out", "--resume"]
        assert command(*words, models=models) == 0
        said = capsys.readouterr().out
        return said, (tmp_path / "out" / "0001" / "annotated.png").read_bytes()

    (_, monday), (said, tuesday) = found("mon"), found("tue")
    assert "is of other content of the source (" in said and "done again" in said and monday != tuesday
    assert found("tue")[0].count("finished before") == 1
    assert command(CASES / "tue" / "0001.png", "bright.", "--out", tmp_path / "alone", models=models) == 0
    assert (tmp_path / "alone" / "0001" / "annotated.png").read_bytes() == tuesday


CHANGES = [  # flags of a second run, and what is said to differ
    (["dark."], 'another prompt ("bright." then, "dark." now)'),
    (["bright.", "--box-threshold", 0.2], "another --box-threshold (0.35 then, 0.2 now)"),
    (["bright.", "--save", "crops"], "another --save"),
    (["bright.", "--html"], "another --html (false then, true now)"),
    (["bright.", "--seed-prompt", "points"], 'another --seed-prompt (none then, ["points"] now)'),
    (["--box", "5,10,15,22"], "other --box (none then, [[5.0, 10.0, 15.0, 22.0]] now)"),
    (["--point", "7,12"], "other --point"),
    (["--mask", "{mask}"], "other --mask"),
]


@pytest.mark.parametrize("flags, said", CHANGES, ids=[change[1] for change in CHANGES])
def test_a_finished_picture_of_something_else_is_done_again_and_it_is_said_what_differs(
    flags, said, tmp_path, capsys, models
):
    source, out = save(picture(5), tmp_path / "a.png"), tmp_path / "out"
    mask = np.zeros(picture(5).shape[:2], np.uint8)
    mask[10:22, 5:15] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    flags = [str(flag).format(mask=tmp_path / "mask.png") for flag in flags]
    assert command(source, "bright.", "--out", out, models=models) == 0
    capsys.readouterr()
    for expected in (f"{source}: the result in {out / 'a'} is of", "finished before"):
        assert command(source, *flags, "--out", out, "--resume", models=models) == 0
        told = capsys.readouterr().out
        assert expected in told and (said in told) == ("done again" in told) == (expected != "finished before")


def test_another_mask_in_the_same_file_is_noticed(tmp_path, capsys, models):
    source, file = save(picture(5), tmp_path / "a.png"), tmp_path / "mask.png"
    for left in (5, 6):
        mask = np.zeros(picture(5).shape[:2], np.uint8)
        mask[10:22, left : left + 10] = 255
        Image.fromarray(mask).save(file)
        assert command(source, "--mask", file, "--out", tmp_path / "out", "--resume", models=models) == 0
    assert "other --mask" in capsys.readouterr().out


FILM_CHANGES = [
    (["dark."], 'of another prompt ("bright." then, "dark." now): leave out --resume to begin anew'),
    (["bright.", "--redetect", 2], "another --redetect (0 then, 2 now)"),
    (["bright.", "--stride", 2], "another --stride (1 then, 2 now)"),
    (["bright.", "--start", 0.1], "another --start (0.0 then, 0.1 now)"),
    (["bright.", "--format", "webp"], 'another --format ("gif" then, "webp" now)'),
]


def test_an_unfinished_video_of_something_else_is_refused_in_one_line_and_stays(tmp_path, monkeypatch, capsys, models):
    source, out = save_film(tmp_path / "film", 5), tmp_path / "out"
    film = [source, "--frames", "--format", "gif", "--out", out]
    stop_at(3, [*film, "bright."], monkeypatch, models)
    before = {path: path.read_bytes() for path in (out / "film").rglob("*") if path.is_file()}
    capsys.readouterr()

    def refused(flags: list) -> str:
        assert command(*film, *flags, "--resume", models=models) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: --resume: the unfinished result in ") and error.count("\n") == 1
        assert {path: path.read_bytes() for path in (out / "film").rglob("*") if path.is_file()} == before
        return error

    for flags, said in FILM_CHANGES:
        assert said in refused(flags)
    source = Path(source)
    frame = sorted(source.iterdir())[-1]
    content = frame.read_bytes()
    save(picture(30), frame)
    assert "other content of the source" in refused(["bright."])
    frame.write_bytes(content)
    frame.rename(source / "zz.png")
    assert "other content of the source" in refused(["bright."])
    (source / "zz.png").rename(frame)
    assert command(*film, "bright.", "--resume", models=models) == 0
    assert command(*film, "bright.", "--resume", models=models) == 0 and "finished before" in capsys.readouterr().out


def test_other_weights_are_other_results_and_a_published_file_is_not_hashed(tmp_path, monkeypatch):
    args, models = parse_arguments(["a.png", "x."]), tiny_models()
    source, file = str(save(picture(5), tmp_path / "a.png")), tmp_path / "tiny.pt"
    models.files, facts = (file,), []
    for content in (b"one", b"other"):
        file.write_bytes(content)
        facts.append(facts_of(source, args, "x.", models, False))
    [said] = differences(*facts)
    assert said.startswith("other weights (tiny.pt ") and differences(facts[0], facts[0]) == []
    checkpoint = provenance.CHECKPOINTS["swin-t"]
    monkeypatch.setenv("MINISAM_HOME", str(tmp_path))
    assert weights_hash(tmp_path / checkpoint.file) == checkpoint.sha256  # there is no such file to hash
    read = []
    monkeypatch.setattr(provenance, "_hash_file", lambda path: read.append(path) or "")
    file.write_bytes(b"third")
    assert weights_hash(file) == weights_hash(file) == "" and len(read) == 1


def test_every_flag_is_part_of_the_facts_or_listed_as_without_effect(tmp_path, models):
    args, source = parse_arguments(["a.png", "x."]), str(save(picture(5), tmp_path / "a.png"))
    film, still = (facts_of(source, args, "x.", models, moving) for moving in (True, False))
    flags = {"--" + name.replace("_", "-") for name in vars(args).keys() - {*CHANGE_NOTHING, *STATED_OTHERWISE}}
    assert {name for name in film if name.startswith("--")} == flags
    assert film.keys() - still.keys() == {"--" + name.replace("_", "-") for name in (*VIDEO_FLAGS, "fps")}


def test_what_nobody_can_compare_is_never_taken_for_the_same(models):
    for source in ("http://127.0.0.1/a.png", "camera:0", "-"):
        facts = facts_of(source, parse_arguments([source, "x."]), "x.", models, False)
        assert differences(facts, facts) == ["content that can't be compared"]


@pytest.mark.parametrize(
    "content", ["{}", "[]", "{", '{"of": 3}', '{"of": {"content": "%s"}}' % ("0" * 64), "[" * 99999]
)
def test_a_result_that_does_not_say_what_it_is_of_is_done_again(content, tmp_path, capsys, models):
    words = [save(picture(5), tmp_path / "a.png"), "bright.", "--out", tmp_path / "out", "--resume"]
    (tmp_path / "out" / "a").mkdir(parents=True)
    assert command(*words, models=models) == 0
    whole = (tmp_path / "out" / "a" / "result.json").read_text()
    (tmp_path / "out" / "a" / "result.json").write_text(content)
    capsys.readouterr()
    assert command(*words, models=models) == 0 and "done again" in capsys.readouterr().out
    assert (tmp_path / "out" / "a" / "result.json").read_text() == whole
