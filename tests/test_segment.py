import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import command, lines, run_tiny, wait_for_frames
from helpers.squares import film, picture, save, save_film
from helpers.tiny_segment import BrightDetector, tiny_models
from PIL import Image

from minisam_glue import media
from minisam_glue.cli import video
from minisam_glue.cli.outputs import Journal
from minisam_glue.masks import decode_rle
from minisam_glue.pipeline import segment_image


def test_a_picture_gets_masks_records_cut_outs_and_a_page_that_agree(tmp_path):
    source = save(picture(5, 30), tmp_path / "two.png")
    assert command(source, "bright.", "--out", tmp_path / "out", "--save", "crops", "--html", "--quiet") == 0
    out = tmp_path / "out" / "two"
    record = json.loads((out / "result.json").read_text())
    expected = segment_image(tiny_models(), picture(5, 30), "bright.")
    assert record["prompt"] == "bright." and record["size"] == [40, 56] and len(record["objects"]) == 2
    for saved, segmented in zip(record["objects"], expected.objects):
        mask = np.asarray(Image.open(out / "masks" / f"{saved['id']:03d}_bright.png"))
        assert np.array_equal(mask == 255, segmented.mask) and np.array_equal(decode_rle(saved["mask"]), segmented.mask)
        assert saved["box"] == list(segmented.box) and saved["area"] == segmented.mask.sum()
    assert np.array_equal(media.read_image(out / "annotated.png"), expected.annotated())
    assert len(list((out / "crops").iterdir())) == 2 and "bright" in (out / "page.html").read_text()
    assert not list(out.rglob(".*"))


def test_a_folder_gives_each_picture_what_it_gets_alone_and_names_what_can_not_be_read(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    save(picture(5), tmp_path / "in" / "a.png")
    save(picture(9), tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no picture")
    assert command(tmp_path / "in", "bright.", "--out", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert "bad.jpg" in printed.err and len(printed.err.splitlines()) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_jpg", "a_png"]
    assert command(tmp_path / "in" / "a.png", "bright.", "--out", tmp_path / "alone", "--quiet") == 0
    one, other = ((tmp_path / where / "masks" / "001_bright.png").read_bytes() for where in ("out/a_png", "alone/a"))
    assert one == other


def test_nothing_found_is_a_result_with_a_hint(tmp_path, capsys):
    assert command(save(picture(), tmp_path / "none.png"), "bright.", "--out", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "nothing found; the best is 'bright' with 0.10: try --box-threshold 0.09 --text-threshold 0.09" in text
    record = json.loads((tmp_path / "out" / "none" / "result.json").read_text())
    assert record["objects"] == [] and record["best"] == {"label": "bright", "score": 0.1}
    command(save(picture(5), tmp_path / "large.png"), "bright.", "--max-area", 0.01, "--out", tmp_path / "out")
    assert "the best is 'bright' with 0.90: try a larger --max-area" in capsys.readouterr().out


def test_a_hopeless_score_brings_no_advice_to_lower_thresholds(tmp_path, capsys, monkeypatch):
    detect = BrightDetector.detect
    monkeypatch.setattr(
        BrightDetector,
        "detect",
        lambda *args, **options: [replace(found, best=("bright", 0.012)) for found in detect(*args, **options)],
    )
    assert command(save(picture(), tmp_path / "none.png"), "bright.", "--out", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "nothing found; the best is 'bright' with 0.012: nothing here looks like it" in text and "try" not in text


@pytest.mark.parametrize("form", ["mp4", "gif", "webp", "png"])
def test_a_video_becomes_a_video_and_a_record_per_frame(form, tmp_path):
    source = save_film(tmp_path / "film", 6, empty=2)
    assert (
        command(
            source,
            "bright.",
            "--frames",
            "--fps",
            5,
            "--out",
            tmp_path / "out",
            "--quiet",
            "--format",
            form,
            "--save",
            "masks",
        )
        == 0
    )
    out = tmp_path / "out" / "film"
    records = lines(out / "result.jsonl")
    assert [r["frame"] for r in records] == list(range(6)) and [r["time"] for r in records[:3]] == [0, 0.2, 0.4]
    assert records[0]["objects"] == [] and records[2]["objects"][0]["label"] == "bright"
    summary = json.loads((out / "result.json").read_text())
    assert summary["frames"] == 6 and summary["fps"] == 5 and summary["objects"][0]["first"] == 2
    for record in records:
        for o in record["objects"]:
            mask = np.asarray(Image.open(out / "masks" / "001_bright" / f"{record['frame']:06d}.png")) == 255
            assert np.array_equal(mask, decode_rle(o["mask"]))
    annotated = media.frames(out / ("annotated" if form == "png" else f"annotated.{form}"))
    shown = list(annotated)
    assert len(shown) == 6 and shown[0].shape == (40, 56, 3)
    assert not list(out.glob(".*"))


def test_reverse_is_drawn_in_the_order_of_the_video(tmp_path):
    source = save_film(tmp_path / "film", 5)
    for direction in ("reverse", "both"):
        out = tmp_path / direction
        assert (
            command(
                source,
                "bright.",
                "--frames",
                "--out",
                out,
                "--quiet",
                "--format",
                "png",
                "--direction",
                direction,
                "--seed-frame",
                3,
            )
            == 0
        )
        records = lines(out / "film" / "result.jsonl")
        assert [r["frame"] for r in records] == [0, 1, 2, 3, 4]
        assert bool(records[4]["objects"]) == (direction == "both")
        for r in records:
            drawn = media.read_image(out / "film" / "annotated" / f"{r['frame']:06d}.png")
            changed = (drawn != film(5)[r["frame"]]).any()
            assert changed == bool(r["objects"])


def test_the_way_back_keeps_the_best_score_of_frames_on_which_nothing_was_found(tmp_path):
    words = [save_film(tmp_path / "film", 5, empty=2), "bright.", "--frames", "--format", "gif", "--quiet"]
    best = []
    for direction in ("forward", "both"):
        assert command(*words, "--direction", direction, "--out", tmp_path / direction) == 0
        best.append([r.get("best") for r in lines(tmp_path / direction / "film" / "result.jsonl")])
    assert best[0] == best[1] and best[0][:2] == [{"label": "bright", "score": 0.1}] * 2


def test_json_lines_go_to_standard_output_and_words_elsewhere(tmp_path, capsys):
    source = save_film(tmp_path / "film", 3)
    assert command(source, "bright.", "--frames", "--out", tmp_path / "out", "--json", "-", "--format", "gif") == 0
    printed = capsys.readouterr()
    assert [json.loads(line)["frame"] for line in printed.out.splitlines()] == [0, 1, 2]
    assert "3 frames" in printed.err


def test_boxes_points_and_mask_files_are_prompts(tmp_path):
    image = picture(5)
    source, mask = save(image, tmp_path / "one.png"), np.zeros((40, 56), np.uint8)
    mask[10:22, 5:15] = 255
    save(mask, tmp_path / "mask.png")
    for number, prompt in enumerate(
        (["--box", "5,10,15,22"], ["--point", "9,15", "--point", "40,30,0"], ["--mask", tmp_path / "mask.png"])
    ):
        assert command(source, "--out", tmp_path / str(number), "--quiet", *prompt) == 0
        record = json.loads((tmp_path / str(number) / "one" / "result.json").read_text())
        assert [o["label"] for o in record["objects"]] == ["object"]


MISTAKES = [
    ([], "nothing to do"),
    (["{png}"], "is not enough"),
    (["{png}", ""], "phrase"),
    (["{png}", " . , "], "phrase"),
    (["nowhere.jpg", "x"], "no such file"),
    (["{empty}", "x"], "no pictures"),
    (["{text}", "x"], "not a"),
    (["{png}", "--box", "1,2,3"], "X1,Y1,X2,Y2"),
    (["{png}", "--box", "9,9,1,1"], "x1 < x2"),
    (["{png}", "--box", "nan,0,1,1"], "in pixels"),
    (["{png}", "--point", "1"], "X,Y"),
    (["{png}", "--point", "1,1,5"], "on the background"),
    (["{png}", "--mask", "nowhere.png"], "nowhere.png"),
    (["{png}", "x", "--sam", "huge"], "invalid choice"),
    (["{png}", "x", "--colour"], "unrecognized"),
    (["{film}", "x", "--frames", "--stride", "0"], "stride"),
    (["{film}", "x", "--frames", "--start", "99"], "no frame"),
    (["{film}", "x", "--frames", "--seed-frame", "-1"], "--seed-frame"),
    (["camera:99", "x"], "camera"),
    (["{film}", "--frames", "--redetect", "3", "--box", "1,1,9,9"], "--redetect needs a sentence"),
    (["{film}", "x", "--frames", "--box", "1,1,9,9"], "take the place of a sentence"),
    (["--download", "nothing"], "no weights are called"),
    (["http://127.0.0.1:9/x.jpg", "x"], "127.0.0.1"),
]


@pytest.mark.parametrize("words, message", MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_line_that_names_it_and_leaves_nothing(words, message, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("words")
    places = {
        "png": save(picture(5), tmp_path / "one.png"),
        "film": save_film(tmp_path / "film", 3),
        "empty": tmp_path / "empty",
        "text": tmp_path / "text.txt",
    }
    assert command(*(word.format(**places) for word in words), "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("error: ") and "\n" not in error
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()] if (tmp_path / "out").exists() else []
    assert left == []


def test_a_seed_frame_beyond_the_end_is_said(tmp_path, capsys):
    source = save_film(tmp_path / "film", 3)
    assert command(source, "bright.", "--frames", "--seed-frame", 7, "--out", tmp_path / "out") == 2
    assert "--seed-frame 7" in capsys.readouterr().err


@pytest.mark.parametrize("how, direction", [(signal.SIGKILL, "forward"), (signal.SIGINT, "both")])
def test_a_run_that_was_stopped_goes_on_to_the_same_masks(how, direction, tmp_path):
    source = save_film(tmp_path / "film", 40)
    words = [
        source,
        "bright.",
        "--frames",
        "--quiet",
        "--format",
        "png",
        "--redetect",
        7,
        "--seed-frame",
        5,
        "--direction",
        direction,
    ]
    whole = run_tiny(*words, "--out", tmp_path / "whole")
    stopped = run_tiny(*words, "--out", tmp_path / "stopped")
    out = tmp_path / "stopped" / "film"
    wait_for_frames(out / ".unfinished" / "journal.jsonl", np.random.randint(6, 30), stopped)
    stopped.send_signal(how)
    stopped.wait(300)
    assert stopped.returncode == (-how if how == signal.SIGKILL else 130)
    assert not (out / "result.json").exists() and (out / ".unfinished" / "state.pt").exists()
    resumed = run_tiny(*words, "--out", tmp_path / "stopped", "--resume")
    assert (resumed.wait(300), whole.wait(300)) == (0, 0)
    assert (out / "result.jsonl").read_bytes() == (tmp_path / "whole" / "film" / "result.jsonl").read_bytes()
    for path in sorted((tmp_path / "whole" / "film" / "annotated").iterdir()):
        assert path.read_bytes() == (out / "annotated" / path.name).read_bytes()


def test_resume_refuses_other_settings_and_skips_what_is_finished(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(video, "SAVE_EVERY", 0.0)
    source, out = save_film(tmp_path / "film", 6), tmp_path / "out"
    words = [source, "bright.", "--frames", "--out", out, "--format", "gif"]

    def break_off(self, record):
        if record["frame"] == 4:
            raise OSError(28, "No space left on device")
        return append(self, record)

    append = Journal.append
    monkeypatch.setattr(Journal, "append", break_off)
    assert command(*words) == 2 and "No space left" in capsys.readouterr().err
    assert [path.name for path in (out / "film").iterdir()] == [".unfinished"]
    monkeypatch.setattr(Journal, "append", append)
    assert command(*words, "--resume", "--redetect", 2) == 2
    assert "another --redetect" in capsys.readouterr().err
    assert command(*words, "--resume") == 0 and (out / "film" / "annotated.gif").exists()
    before = (out / "film" / "result.json").stat().st_mtime_ns
    assert command(*words, "--resume") == 0 and "finished before" in capsys.readouterr().out
    assert (out / "film" / "result.json").stat().st_mtime_ns == before


def test_two_processes_share_the_inputs_and_write_each_result_once(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(5):
        save(picture(5 + number), tmp_path / "in" / f"{number}.png")
    ranks = [
        run_tiny(
            tmp_path / "in",
            "bright.",
            "--out",
            tmp_path / "out",
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0].splitlines() for process in ranks]
    assert [len(lines) for lines in said] == [3, 2]
    assert command(tmp_path / "in", "bright.", "--out", tmp_path / "alone", "--quiet") == 0
    for number in range(5):
        one, other = (tmp_path / where / str(number) / "result.json" for where in ("out", "alone"))
        assert one.read_bytes() == other.read_bytes()


def test_an_output_folder_that_can_not_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command(save(picture(5), tmp_path / "a.png"), "bright.", "--out", tmp_path / "file" / "out") == 2
    assert "error: " in capsys.readouterr().err and (tmp_path / "file").read_text() == ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the resource module is not there")
def test_a_thousand_frames_take_no_more_memory_than_a_hundred(tmp_path):
    peaks = {}
    for count in (100, 1000):
        source = save_film(tmp_path / str(count), 20)
        for t in range(20, count):
            os.link(f"{source}/{t % 20}.png", f"{source}/{t}.png")
        measured = (
            "import sys, resource; sys.path.insert(0, {!r}); "
            "from helpers import tiny_segment; from minisam_glue.cli import video; "
            "video.SAVE_EVERY = 1.0; code = tiny_segment.main(sys.argv[1:], tiny_segment.tiny_models()); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
        )
        words = [source, "bright.", "--frames", "--redetect", "50", "--quiet", "--out", str(tmp_path / f"out{count}")]
        done = subprocess.run(
            [sys.executable, "-c", measured.format(str(Path(__file__).parent)), *words],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[count] = int(done.stdout)
    assert peaks[1000] < 1.05 * peaks[100]


@pytest.mark.parametrize("moving", [False, True])
def test_cut_outs_have_the_pixels_of_the_source_without_what_is_drawn_on_it(moving, tmp_path):
    source = save_film(tmp_path / "in", 2) if moving else save(picture(5), tmp_path / "in.png")
    words = [source, "bright.", "--save", "crops", "--quiet", *(["--frames", "--format", "gif"] if moving else [])]
    assert command(*words, "--out", tmp_path / "out") == 0
    out = tmp_path / "out" / "in"
    name = "result.jsonl" if moving else "result.json"
    record = lines(out / name)[1] if moving else json.loads((out / name).read_text())
    mask = decode_rle(record["objects"][0]["mask"])
    saved = Image.open(out / "crops" / ("001_bright/000001.png" if moving else "001_bright.png"))
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    there = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    cut, image = np.asarray(saved), film(2)[1] if moving else picture(5)
    assert np.array_equal(cut[..., 3] == 255, mask[there])
    assert np.array_equal(cut[..., :3][mask[there]], image[there][mask[there]])
