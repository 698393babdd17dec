"""A result knows what it is of; a folder has one writer, which removes what a run made and nothing else."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import torch
from helpers.commands import command
from helpers.squares import film, picture, save, save_film
from helpers.tiny_segment import BrightDetector, tiny_models
from PIL import Image

from minisam_glue.cli import folders, outputs, provenance, video
from minisam_glue.cli.arguments import VIDEO_FLAGS
from minisam_glue.cli.outputs import Journal
from minisam_glue.cli.parser import parse_arguments
from minisam_glue.cli.provenance import CHANGE_NOTHING, STATED_OTHERWISE, differences, facts_of, weights_hash
from minisam_glue.cli.run import Run
from minisam_glue.grounding_dino import Detections
from minisam_glue.support import lock
from minisam_glue.support.lock import FolderLock, run_name

TESTS = Path(__file__).parent
CASES = TESTS / "cases" / "resume"


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


@pytest.mark.parametrize("fault", ["emptied", "the user's own", "in use"])
def test_resume_tells_of_a_result_that_it_can_not_look_at_and_does_the_others(
    fault, tmp_path, monkeypatch, capsys, models
):
    first, last = save_film(tmp_path / "film", 2), save(picture(5), tmp_path / "last.png")
    words = ["bright.", "--frames", "--format", "gif", "--out", tmp_path / "out", "--quiet"]
    assert command(first, *words, models=models) == 0
    folder = tmp_path / "out" / "film"
    waiting = folder / ".unfinished" / "results"
    if fault == "emptied":
        for path in Path(first).iterdir():
            path.unlink()
    elif fault == "the user's own":
        shutil.copytree(folder, waiting)
        (folder / "masks").write_text("dear")
    else:
        shutil.copytree(folder, waiting)
        replace = folders.replace

        def in_use(source: Path, target: Path) -> None:
            if source == folder / "annotated.gif":
                raise PermissionError(13, "it is in use", str(source))
            replace(source, target)

        monkeypatch.setattr(folders, "replace", in_use)
    assert command(first, last, *words, "--resume", models=models) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "film" in error and error.count("\n") == 1
    assert (tmp_path / "out" / "last" / "result.json").exists() and (folder / "result.json").exists()
    assert waiting.exists() == (fault != "emptied")


@pytest.mark.parametrize("how", ["finished before", "of another process"])
def test_flags_of_videos_are_judged_by_all_inputs_also_those_that_are_not_this_process_s_to_do(
    how, tmp_path, monkeypatch, capsys, models
):
    film, image = save_film(tmp_path / "film", 3), save(picture(5), tmp_path / "image.png")
    words = ["bright.", "--frames", "--fps", 5, "--story", "--format", "gif", "--save", "masks"]
    if how == "finished before":
        assert command(film, *words, "--out", tmp_path / "out", models=models) == 0
    else:
        for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
            monkeypatch.setenv(name, value)
    assert command(film, image, *words, "--out", tmp_path / "out", "--resume", models=models) == 0
    assert (tmp_path / "out" / "image" / "result.json").exists()
    assert "nothing" not in capsys.readouterr().out
    assert command(image, *words, "--out", tmp_path / "other", models=models) == 2
    assert "no input is one" in capsys.readouterr().err
    words.remove("--story")
    assert command(image, image, *words, "--out", tmp_path / "other", models=models) == 0
    if how == "finished before":
        assert "--format does nothing for pictures" in capsys.readouterr().out


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
    args = parse_arguments(["a.png", "x.", "--refine-every", "2"])  # which is no part of them by default
    source = str(save(picture(5), tmp_path / "a.png"))
    film, still = (facts_of(source, args, "x.", models, moving) for moving in (True, False))
    flags = {"--" + name.replace("_", "-") for name in vars(args).keys() - {*CHANGE_NOTHING, *STATED_OTHERWISE}}
    assert {name for name in film if name.startswith("--")} == flags
    of_videos = {"--" + name.replace("_", "-") for name in {*VIDEO_FLAGS, "fps"}.difference(CHANGE_NOTHING)}
    assert film.keys() - still.keys() == of_videos


def test_results_of_before_refine_every_count_as_those_of_its_default(tmp_path, models):
    source = str(save(picture(5), tmp_path / "a.png"))
    film, default, other = (
        facts_of(source, parse_arguments(["a.png", "x.", *words]), "x.", models, True)
        for words in ([], ["--refine-every", "1"], ["--refine-every", "2"])
    )
    assert film == default and "--refine-every" not in film
    assert differences(film, other) == ["another --refine-every (none then, 2 now)"]


def test_what_nobody_can_compare_is_never_taken_for_the_same(models):
    for source in ("http://127.0.0.1/a.png", "camera:0", "-"):
        facts = facts_of(source, parse_arguments([source, "x."]), "x.", models, False)
        assert differences(facts, facts) == ["content that can't be compared"]
    called = {"prompt": "unknown", "source": "unknown", "--method": "unknown", "content": "0"}
    assert differences(called, called) == []  # a word as any other, but of content


@pytest.mark.parametrize("content", ["3", "null", "{}", '{"content": "0"}', '{"content": {"a": [null]}}'])
def test_a_result_that_does_not_say_what_it_is_of_is_done_again(content, tmp_path, capsys, models):
    words = [save(picture(5), tmp_path / "a.png"), "bright.", "--out", tmp_path / "out", "--resume"]
    (tmp_path / "out" / "a").mkdir(parents=True)
    assert command(*words, models=models) == 0
    whole, files_of = (tmp_path / "out" / "a" / "result.json").read_text(), result(tmp_path / "out" / "a")["files"]
    (tmp_path / "out" / "a" / "result.json").write_text(
        f'{{"prompt": "x.", "objects": [], "of": {content}, "files": {json.dumps(files_of)}}}'
    )
    capsys.readouterr()
    assert command(*words, models=models) == 0 and "done again" in capsys.readouterr().out
    assert (tmp_path / "out" / "a" / "result.json").read_text() == whole


# --- One run at a time -------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


posix = pytest.mark.skipif(os.name != "posix", reason="there are no such locks here")


@posix
@pytest.mark.parametrize("trials", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_of_two_runs_in_one_folder_one_has_its_result_and_the_other_one_line(trials, tmp_path, capsys, models):
    source, alone = save(picture(5), tmp_path / "a.png"), tmp_path / "alone"
    assert command(source, "bright.", "--out", alone, models=models) == 0
    script = (
        "import sys, time; from helpers.commands import command; from minisam_glue.cli import run\n"
        "save = run.save_picture; run.save_picture = lambda *args: (time.sleep(0.3), save(*args))\n"
        "for trial in range(int(sys.argv[3])):\n"
        "    print(file=sys.stderr, flush=True); sys.stdin.readline()\n"
        "    print(command(sys.argv[1], 'bright.', '--out', f'{sys.argv[2]}/{trial}', '--quiet'), flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", script, source, str(tmp_path), str(trials)]
    runs = [
        subprocess.Popen(words, text=True, bufsize=1, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment)
        for _ in range(2)
    ]
    won = 0
    for trial in range(trials):
        for run in runs:
            assert run.stderr.readline() == "\n"  # both are ready
        for run in runs:
            run.stdin.write("\n")
            run.stdin.flush()
        ends = [int(run.stdout.readline()) for run in runs]
        assert ends in ([0, 2], [2, 0], [0, 0])  # both, where one ended before the other began
        if 2 in ends:
            line = runs[ends.index(2)].stderr.readline()
            assert "another run writes into this folder" in line
            won += 1
        assert files(tmp_path / str(trial)) == files(alone)
    assert [run.communicate()[1] for run in runs] == ["", ""]
    assert won or trials < 20  # a busy machine may run them one after the other


@posix
def test_a_second_run_touches_nothing_and_goes_when_the_first_has_ended(tmp_path, capsys, models):
    source, out = save(picture(5), tmp_path / "a.png"), tmp_path / "out"
    out.mkdir()
    first = FolderLock(out)
    before = {path.name: path.stat() for path in out.iterdir()}
    assert command(source, "bright.", "--out", out, models=models) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {out}: another run") and error.count("\n") == 1
    assert {path.name: path.stat() for path in out.iterdir()} == before
    first.release()
    assert not list(out.iterdir())
    assert command(source, "bright.", "--out", out, models=models) == 0 and [p.name for p in out.iterdir()] == ["a"]


@posix
def test_processes_of_one_torchrun_share_the_folder_and_another_torchrun_does_not(tmp_path, monkeypatch):
    def names(port: int) -> list[str]:
        found = []
        for rank in range(2):
            for name, value in {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "here", "MASTER_PORT": port}.items():
                monkeypatch.setenv(name, str(value))
            found.append(run_name())
        return found

    first = [FolderLock(tmp_path, name) for name in names(29500)]
    with pytest.raises(ValueError, match="another run"):
        FolderLock(tmp_path, names(29501)[0])
    first[0].release()
    with pytest.raises(ValueError, match="another run"):
        FolderLock(tmp_path, names(29501)[0])
    first[1].release()
    assert not list(tmp_path.iterdir())
    FolderLock(tmp_path, names(29501)[0]).release()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run_name() != run_name()


@posix
def test_a_process_of_several_that_failed_ends_after_the_others_lest_torchrun_ends_them(tmp_path, monkeypatch, models):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lock, "STARTUP", 0.3)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    words = [tmp_path / "broken.png", save(picture(5), tmp_path / "a.png"), "bright.", "--out", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    ended, others = [], []

    def begin_late():
        others.append(FolderLock(tmp_path / "out"))
        time.sleep(1.0)
        ended.append("other")
        others[0].release()

    late = threading.Timer(0.0, begin_late)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "read", lambda *_: (late.start(), ({}, {}, 2))[1])
        assert command(*words, models=models) == 2
    ended.append("failed")
    late.join()
    assert ended == ["other", "failed"] and not (tmp_path / "out" / lock.NAME).exists()

    def wait(held: FolderLock) -> None:
        held.wait_for_others()
        held.release()

    both = [FolderLock(tmp_path / "out") for _ in range(2)]
    waiting = [threading.Thread(target=wait, args=(held,), daemon=True) for held in both]
    for thread in waiting:  # two that failed do not wait for each other
        thread.start()
    for thread in waiting:
        thread.join(10)
        assert not thread.is_alive()
    assert not (tmp_path / "out" / lock.NAME).exists()


@posix
def test_the_lock_of_a_process_that_was_killed_holds_nobody_up(tmp_path):
    held = f"held = FolderLock(Path({str(tmp_path)!r})); print(flush=True); input()"
    script = f"from minisam_glue.support.lock import FolderLock, Path; {held}"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=PIPE, stdout=PIPE, cwd=TESTS.parent)
    process.stdout.readline()
    with pytest.raises(ValueError, match="another run"):
        FolderLock(tmp_path)
    process.kill()
    process.communicate()
    assert [path.name for path in tmp_path.iterdir()] == [".minisam.lock"]
    FolderLock(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_where_there_are_no_locks_it_is_said(tmp_path, monkeypatch, capsys, models):
    monkeypatch.setattr(lock, "fcntl", None)
    assert command(save(picture(5), tmp_path / "a.png"), "bright.", "--out", tmp_path / "out", models=models) == 0
    assert "can't be locked on this system" in capsys.readouterr().out


# --- Only what a run made is removed -----------------------------------------------------------------------


def of_the_user(kind: str, folder: Path, elsewhere: Path) -> str:
    """Something of the user's own where results go. Returns its name."""
    folder.mkdir(parents=True, exist_ok=True)
    elsewhere.mkdir()
    (elsewhere / "dear.txt").write_text("dear")
    if kind == "folder":
        shutil.copytree(elsewhere, folder / "masks")
        return "masks/dear.txt"
    if kind == "empty folder":
        (folder / "crops").mkdir()
        return "crops/"
    if kind == "file":
        (folder / "annotated.txt").write_text("dear")
        return "annotated.txt"
    if kind == "result.json":
        (folder / "result.json").write_text('{"dear": 1}')
        return "result.json"
    if kind == "unfinished":
        shutil.copytree(elsewhere, folder / ".unfinished")
        return ".unfinished/dear.txt"
    name = {"link": "masks", "link of unfinished": ".unfinished", "link of all": ""}[kind]
    if not name:
        folder.rmdir()
    os.symlink(elsewhere, folder / name if name else folder)
    return name


def tree(folder: Path) -> dict[str, object]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else p.is_symlink() for p in folder.rglob("*")}


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize(
    "kind", ["folder", "empty folder", "file", "result.json", "unfinished", "link", "link of unfinished", "link of all"]
)
def test_what_is_the_users_own_is_refused_in_one_line_and_stays(kind, moving, tmp_path, capsys, models):
    words = [save_film(tmp_path / "film", 3), "bright.", "--frames", "--format", "gif", "--out", tmp_path / "out"]
    if not moving:
        words = [save(picture(5), tmp_path / "film.png"), "bright.", "--out", tmp_path / "out"]
    name = of_the_user(kind, tmp_path / "out" / "film", tmp_path / "elsewhere")
    before = tree(tmp_path)
    assert command(*words, "--quiet", models=models) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and name.rstrip("/") in error and "move it away, or choose another --out" in error
    assert tree(tmp_path) == before


def test_what_a_user_put_between_the_results_stays_and_the_next_run_says_so(tmp_path, capsys, models):
    words = [save(picture(5), tmp_path / "a.png"), "bright.", "--out", tmp_path / "out", "--quiet"]
    assert command(*words, models=models) == 0 and command(*words, models=models) == 0
    notes = tmp_path / "out" / "a" / "masks" / "notes.txt"
    notes.write_text("dear")
    before = tree(tmp_path / "out")
    assert command(*words, models=models) == 2 and "masks/notes.txt was not made" in capsys.readouterr().err
    assert tree(tmp_path / "out") == before


def test_what_a_file_manager_put_between_the_results_is_nobody_s_and_goes_with_its_folder(tmp_path, capsys, models):
    words = [save_film(tmp_path / "film", 3), "bright.", "--frames", "--format", "png", "--out", tmp_path / "out"]
    assert command(*words, "--save", "masks", "crops", "coco", models=models) == 0
    folder, names = tmp_path / "out" / "film", (".DS_Store", "Thumbs.db", "desktop.ini", "._000000.png")
    for place in (folder, folder / "masks", folder / "masks" / "001_bright", folder / "annotated"):
        for name in names:
            (place / name).write_bytes(b"")
    (folder / ".unfinished").mkdir()
    (folder / ".unfinished" / ".DS_Store").write_bytes(b"")
    (tmp_path / "out" / "yolo").mkdir()
    (tmp_path / "out" / "yolo" / ".DS_Store").write_bytes(b"")
    assert command(*words, "--save", "yolo", models=models) == 0 and not capsys.readouterr().err
    annotated = [f"annotated/{number:06d}.png" for number in range(3)]
    assert sorted(files(folder)) == sorted([*names, *annotated, "result.json", "result.jsonl"])
    (tmp_path / "new" / "film").mkdir(parents=True)
    (tmp_path / "new" / "film" / ".DS_Store").write_bytes(b"")
    folders.clear(tmp_path / "new" / "film")
    assert not (tmp_path / "new" / "film").exists()


def test_a_result_lists_its_files_and_lists_of_others_are_not_believed(tmp_path, models):
    words = [save(picture(5), tmp_path / "a.png"), "bright.", "--out", tmp_path / "out", "--html"]
    assert command(*words, "--save", "crops", models=models) == 0
    folder = tmp_path / "out" / "a"
    content = result(folder)
    assert sorted(content["files"]) == sorted(files(folder))
    for name in ("notes.txt", "../b.txt"):
        (folder / name).write_text("dear")
    content["files"] += ["notes.txt", "../b.txt", str(tmp_path / "a.png"), "", ".", ".."]
    (folder / "result.json").write_text(json.dumps(content))
    assert command(*words[:4], models=models) == 0
    assert sorted(files(folder)) == ["annotated.png", "masks/001_bright.png", "notes.txt", "result.json"]
    assert (folder / "../b.txt").exists() and (tmp_path / "a.png").exists()


def test_results_without_a_list_are_replaced_where_the_names_are_ours(tmp_path, capsys, models):
    words = [save_film(tmp_path / "film", 3), "bright.", "--frames", "--out", tmp_path / "out", "--quiet"]
    assert command(*words, "--format", "png", "--save", "masks", "crops", models=models) == 0
    folder = tmp_path / "out" / "film"
    content = result(folder)
    del content["files"], content["of"]
    (folder / "result.json").write_text(json.dumps(content))
    (folder / "masks" / "cat.png").write_text("dear")
    assert command(*words, "--format", "gif", models=models) == 2 and "masks/cat.png" in capsys.readouterr().err
    (folder / "masks" / "cat.png").unlink()
    assert command(*words, "--format", "gif", models=models) == 0
    assert sorted(files(folder)) == ["annotated.gif", "result.json", "result.jsonl"]


class Killed(BaseException):
    """Stands in for a process that ends at once."""


def publish_until(step: int, folder: Path, monkeypatch) -> bool:
    """Publish a part of a result in its place; killed before its step-th change. Whether it ended before that."""
    left = [step]

    def counted(change):
        def changed(*args):
            left[0] -= 1
            if not left[0]:
                raise Killed
            return change(*args)

        return changed

    unlike = [".unfinished", "crops", "thumbnail.jpg"]  # what the new result does not have
    new = shutil.copytree(folder, folder / ".unfinished" / "results", ignore=lambda *_: unlike)
    (new / "result.json").write_text(json.dumps(result(folder) | {"files": sorted(files(new))}))
    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "rmdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            folders.publish(new, folder)
        except Killed:
            return False
    return True


def test_a_kill_at_any_step_of_publishing_leaves_nothing_that_the_next_run_can_not_clear(tmp_path, monkeypatch, models):
    words = [save(picture(5), tmp_path / "a.png"), "bright.", "--html", "--quiet", "--save", "crops", "--out"]
    assert command(*words, tmp_path / "out", models=models) == 0
    whole, step = files(tmp_path / "out"), 1
    while True:
        out = shutil.copytree(tmp_path / "out", tmp_path / str(step))
        if publish_until(step, out / "a", monkeypatch):
            break
        assert outputs.finished_of(out / "a") is None
        assert command(*words, out, models=models) == 0 and files(out) == whole, f"killed at step {step}"
        step += 1
    assert step > (8 if sys.version_info >= (3, 11) else 5)  # pathlib of Python 3.10 removes files by other names


def test_what_a_kill_at_any_step_of_publishing_left_is_completed(tmp_path, monkeypatch, models):
    words = [save(picture(5), tmp_path / "a.png"), "bright.", "--html", "--quiet", "--save", "crops", "--out"]
    assert command(*words, tmp_path / "out", models=models) == 0
    step, done = 1, False
    while not done:
        folder = shutil.copytree(tmp_path / "out", tmp_path / str(step)) / "a"
        done = publish_until(step, folder, monkeypatch)
        folders.complete(folder)
        assert not (folder / ".unfinished").exists() or done, f"killed at step {step}"
        found = {name for name in files(folder) if not name.startswith(".unfinished")}
        assert found == set(result(folder)["files"]) and "thumbnail.jpg" not in found, f"killed at step {step}"
        step += 1
    assert step > 5


@pytest.mark.parametrize("content", ['{"files": 5}', '{"files": [5]}', '{"files": ["../a.png"]}', "[]", "x", ""])
def test_a_damaged_list_of_what_waits_to_be_published_ends_in_a_result_or_one_line(content, tmp_path, capsys, models):
    words = [save(picture(5), tmp_path / "a.png"), "bright.", "--quiet", "--out", tmp_path / "out"]
    assert command(*words, models=models) == 0
    waiting = tmp_path / "out" / "a" / ".unfinished" / "results"
    waiting.mkdir(parents=True)
    (waiting / "result.json").write_text(content)
    status = command(*words, "--resume", models=models)
    assert (status, capsys.readouterr().err.count("\n")) in ((0, 0), (2, 1))
    assert (tmp_path / "a.png").exists()


def test_temporary_files_of_killed_runs_go_and_others_stay(tmp_path, monkeypatch, models):
    words = [save_film(tmp_path / "film", 5), "bright.", "--frames", "--format", "gif", "--out", tmp_path / "out"]
    stop_at(3, words, monkeypatch, models)
    folder = tmp_path / "out" / "film"
    for name in (".state.pt.17.23.tmp", "results/.x.png.17.23.tmp"):
        (folder / ".unfinished" / name).write_text("half")
    for path in (folder / ".dear.tmp", tmp_path / "out" / ".state.pt.17.23.tmp"):
        path.write_text("dear")
    seen, finish = [], outputs.VideoOutput.finish

    def look(self, *args):
        seen.extend(path.name for path in self.unfinished.rglob(".*.17.23.tmp"))
        return finish(self, *args)

    monkeypatch.setattr(outputs.VideoOutput, "finish", look)
    assert command(*words, "--resume", models=models) == 0
    assert seen == [] and sorted(p.name for p in folder.iterdir() if p.name[0] == ".") == [".dear.tmp"]


def test_a_resumed_video_keeps_the_states_and_the_hint_of_one_in_one_go(tmp_path, monkeypatch, models, capsys):
    monkeypatch.setattr("minisam_glue.cli.states.EVERY", 1)
    source, flags = save_film(tmp_path / "film", 9), ["--frames", "--format", "gif", "--identity", "off"]
    words = [source, "bright.", *flags, "--max-seconds", 0.9, "--out"]
    assert command(*words, tmp_path / "one", models=models) == 0
    size = max(path.stat().st_size for path in (tmp_path / "one" / "film" / "states").iterdir())
    words[-1:] = ["--states", 3.5 * size / 1e6, "--out"]
    assert command(*words, tmp_path / "whole", models=models) == 0
    stop_at(5, [*words, tmp_path / "out"], monkeypatch, models)
    assert command(*words, tmp_path / "out", "--resume", models=models) == 0
    whole, out = ({p.name for p in (tmp_path / o / "film" / "states").iterdir()} for o in ("whole", "out"))
    assert out == whole and "000003.pt" not in whole

    dim = save_film(tmp_path / "dim", 4, empty=4)
    words = [dim, "bright.", *flags, "--seed-frame", 0, "--out", tmp_path / "out"]
    stop_at(2, words, monkeypatch, models)
    capsys.readouterr()
    assert command(*words, "--resume", models=models) == 0
    assert "the best is 'bright' with 0.10" in capsys.readouterr().out


def test_an_input_that_can_not_be_read_any_more_is_told_with_its_earlier_result(tmp_path, models, capsys):
    words = [save(picture(5), tmp_path / "a.png"), "bright.", "--quiet", "--out", tmp_path / "out"]
    for ending in ("", f"; its earlier result stays in {tmp_path / 'out' / 'a'}\n"):
        (tmp_path / "a.png").write_bytes(b"broken")
        assert command(*words, models=models) == 2
        (error,) = capsys.readouterr().err.splitlines(keepends=True)
        assert error.endswith(ending) and ("earlier" in error) == bool(ending)
        save(picture(5), tmp_path / "a.png")
        assert command(*words, models=models) == 0


# --- Pages -------------------------------------------------------------------------------------------------


def test_a_folder_of_pictures_and_a_video_get_pages_and_an_index(tmp_path, capsys, models):
    source, out = tmp_path / "in & out", tmp_path / "out"
    source.mkdir()
    save(picture(5, 30), source / "a <b>.png")
    save(picture(), source / "none.png")
    frames = [Image.fromarray(frame) for frame in film(4)]
    frames[0].save(source / "film.gif", save_all=True, append_images=frames[1:], duration=100)
    words = [source, "bright.", "--html", "--quiet", "--resume", "--out", out]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".index.html.17.23.tmp").write_text("half")
    for _ in range(2):  # the second time all are finished
        assert command(*words, models=models) == 0
        index = (out / "index.html").read_text("utf-8")
        assert (
            index.count("<li>") == 3 and "a &lt;b&gt;.png" in index and "2 bright" in index and "nothing found" in index
        )
        (out / "index.html").unlink()
    assert sorted(path.name for path in out.iterdir()) == ["a _b_", "film", "none"]
    for name, title in {"a _b_": "a &lt;b&gt;.png", "film": "film.gif", "none": "none.png"}.items():
        assert f"<title>{title}</title>" in (out / name / "page.html").read_text("utf-8")
        assert max(Image.open(out / name / "thumbnail.jpg").size) <= 240
        assert {"page.html", "thumbnail.jpg"} <= set(result(out / name)["files"])
    assert (out / "film" / "page.html").read_text("utf-8").count('class="key"') == 4
    (out / "index.html").write_text("dear")
    capsys.readouterr()
    assert command(*words, models=models) == 2 and "index.html was not made" in capsys.readouterr().err
    assert (out / "index.html").read_text() == "dear"


def test_a_result_that_would_be_called_as_the_index_gets_another_name(tmp_path, models):
    (tmp_path / "in").mkdir()
    for name in ("index.html.png", "b.png"):
        save(picture(5), tmp_path / "in" / name)
    assert command(tmp_path / "in", "bright.", "--html", "--quiet", "--out", tmp_path / "out", models=models) == 0
    assert (tmp_path / "out" / "index.html").is_file() and (tmp_path / "out" / "index.html-2" / "page.html").is_file()


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_the_page_of_a_resumed_video_is_that_of_a_whole_one(direction, tmp_path, monkeypatch, models):
    one = BrightDetector.one

    def unsure(self, *args) -> Detections:
        found = one(self, *args)
        return replace(found, scores=torch.full_like(found.scores, 0.13497))  # as 0.1350 it is shown as 0.14

    monkeypatch.setattr(BrightDetector, "one", unsure)
    (tmp_path / "film").mkdir()
    for t in range(5):  # with room for a score
        save(picture(4 + 2 * t, seed=t, height=80, width=160), tmp_path / "film" / f"{t}.png")
    words = [tmp_path / "film", "bright.", "--frames", "--format", "gif", "--html", "--seed-frame", 2]
    words += ["--direction", direction, "--story", "--out"]
    assert command(*words, tmp_path / "whole", models=models) == 0
    stop_at(4, [*words, tmp_path / "out"], monkeypatch, models)
    assert command(*words, tmp_path / "out", "--resume", models=models) == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")
