"""segment.py when something breaks off: a full disk, Ctrl-C, a reader that goes, damaged states, results of before."""

import errno
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from helpers.commands import TINY, command, lines
from helpers.no_memory import NO_MEMORY
from helpers.squares import film, picture, save, save_film
from helpers.tiny_segment import tiny_models
from PIL import Image

import segment
from minisam_glue.cli import outputs, run, video
from minisam_glue.cli.console import Console
from minisam_glue.cli.job import Job
from minisam_glue.datasets import DataSets
from minisam_glue.media import sources
from minisam_glue.media.video import Video
from minisam_glue.media.writer import VideoWriter


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def largest_file():
    """largest_file(n): no file can be written beyond n bytes, as on a disk that is full; None: there is room again."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size or before[0], before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("form", ["gif", "mp4", "png"])
@pytest.mark.parametrize("size", [200, 700, 2500])  # standard error is a file too: room for one line
def test_a_full_disk_is_one_line_and_leaves_nothing_of_a_video(size, form, tmp_path, monkeypatch, capfd, largest_file):
    monkeypatch.setattr(video, "SAVE_EVERY", 0.0)
    words = [
        save_film(tmp_path / "film", 4),
        "bright.",
        "--frames",
        "--quiet",
        "--format",
        form,
        "--save",
        "masks",
        "crops",
        "--out",
        tmp_path / "out",
    ]
    largest_file(size)
    assert command(*words) == 2
    largest_file(None)
    error = capfd.readouterr().err
    assert error.startswith("error: ") and "File too large" in error and "film" in error and error.count("\n") == 1
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_a_disk_that_is_really_full_is_one_line_for_each_input_and_the_results_of_before_stay(
    size, disk, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(video, "SAVE_EVERY", 0.0)
    out = disk(size)
    source, film = tmp_path / "a.png", save_film(tmp_path / "film", 3)
    save(picture(5), source)
    assert command(source, "bright.", "--out", out) == 0
    before = {name: (out / name).read_bytes() for name in files(out)}
    save(picture(5, height=700, width=900), source)  # a page of it needs more than there is
    for path in sorted(Path(film).iterdir()):
        save(picture(5, height=700, width=900), path)
    words = ["bright.", "--frames", "--html", "--save", "masks", "crops", "--format", "png", "--out", out]
    capfd.readouterr()
    assert command(source, film, *words, "--quiet") == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") and "No space left" in line for line in errors)
    assert before == {name: (out / name).read_bytes() for name in before}
    assert not (out / "a" / ".unfinished").exists()
    assert not (out / "film").exists() or [path.name for path in (out / "film").iterdir()] == [".unfinished"]


def test_a_video_that_can_not_be_begun_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(outputs, "VideoWriter", fail_on(1, outputs.VideoWriter))
    assert command(save_film(tmp_path / "film", 4), "bright.", "--frames", "--out", tmp_path / "out") == 2
    assert "No space left" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("size", [200, 700, 2500])  # standard error is a file too: room for one line
def test_a_full_disk_leaves_the_results_of_before(size, tmp_path, capsys, largest_file):
    words = [save(picture(5, 30), tmp_path / "a.png"), "bright.", "--html", "--out", tmp_path / "out"]
    assert command(*words) == 0
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")}
    save(picture(9), tmp_path / "a.png")
    largest_file(size)
    assert command(*words, "--save", "crops") == 2
    largest_file(None)
    assert "File too large" in capsys.readouterr().err
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")}


def fail_on(call: int, function):
    """As `function`, but the call of that number finds the disk full."""
    calls = []

    def instead(*args, **options):
        calls.append(1)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*args, **options)

    return instead


@pytest.mark.parametrize("place, call", [("save_mask", 4), ("save_crop", 3), ("whole_file", 3), ("save_json", 1)])
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_a_video_that_filled_the_disk_goes_on_when_there_is_room(direction, place, call, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(video, "SAVE_EVERY", 0.0)
    words = [
        save_film(tmp_path / "film", 6),
        "bright.",
        "--frames",
        "--quiet",
        "--seed-frame",
        2,
        "--direction",
        direction,
        "--format",
        "png",
        "--save",
        "masks",
        "crops",
    ]
    assert command(*words, "--out", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(outputs, place, fail_on(call, getattr(outputs, place)))
        assert command(*words, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "No space left" in error and "film" in error and error.count("\n") == 1
    assert [path.name for path in (tmp_path / "out" / "film").iterdir()] == [".unfinished"]
    assert command(*words, "--out", tmp_path / "out", "--resume") == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole") and len(files(tmp_path / "out")) > 12
    for name in files(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def interrupted(words: list, after: int, monkeypatch, by: int = signal.SIGINT) -> int:
    """Ctrl-C, or another signal, while frame or picture number `after` is written, counted from 1."""
    calls, record = [], Console.record

    def press(self, line):
        calls.append(record(self, line))
        if len(calls) == after:
            signal.raise_signal(by)

    with monkeypatch.context() as patch:
        patch.setattr(Console, "record", press)
        return command(*words)


def test_ctrl_c_between_pictures_keeps_those_that_are_done_and_resume_does_the_others(tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    for number in range(9):
        save(picture(5 + number), tmp_path / "in" / f"{number}.png")
    words = [tmp_path / "in", "bright.", "--out", tmp_path / "out"]
    assert interrupted(words, 2, monkeypatch) == 130
    done = sorted(path.name for path in (tmp_path / "out").iterdir())
    *told, last = capsys.readouterr().out.splitlines()
    assert done == [str(number) for number in range(len(done))] and 2 <= len(done) < 9  # those that had begun end well
    assert last == f"stopped: {len(done)} of 9 inputs are done; continue with the same command and --resume"
    assert [f"{number}.png: 1 bright" in line for number, line in enumerate(told)] == [True] * len(done)
    first = (tmp_path / "out" / "0" / "result.json").stat().st_mtime_ns
    capsys.readouterr()
    assert command(*words, "--resume") == 0
    said = capsys.readouterr().out.splitlines()
    assert ["finished before" in line for line in said] == [True] * len(done) + [False] * (9 - len(done))
    assert len(list((tmp_path / "out").iterdir())) == 9
    assert (tmp_path / "out" / "0" / "result.json").stat().st_mtime_ns == first


def test_ctrl_c_while_resume_looks_through_the_inputs_ends_at_once(tmp_path, monkeypatch, capsys):
    sources = [save(picture(5), tmp_path / f"{number}.png") for number in range(4)]
    words = [*sources, "bright.", "--out", tmp_path / "out"]
    assert command(*words) == 0
    looked, finished = [], run.Run.finished

    def press(self, source, moving):
        looked.append(source)
        signal.raise_signal(signal.SIGINT)
        return finished(self, source, moving)

    monkeypatch.setattr(run.Run, "finished", press)
    monkeypatch.setattr(run, "is_video_run", lambda source, pages: looked.append(f"is {source} a video?"))
    capsys.readouterr()
    assert command(*words, "--resume", "--story") == 130
    assert looked == [f"is {sources[0]} a video?", sources[0]]
    assert [line[:8] for line in capsys.readouterr().out.splitlines()] == [f"{sources[0]}: finished"[:8], "stopped:"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_that_ends_programs_stops_as_ctrl_c_does_with_a_status_of_its_own(name, tmp_path, monkeypatch):
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f"no {name} here")
    words = [save_film(tmp_path / "film", 4), "bright.", "--frames", "--format", "gif", "--out", tmp_path / "out"]
    assert interrupted(words, 2, monkeypatch, number) == 128 + number
    assert (tmp_path / "out" / "film" / ".unfinished" / "state.pt").exists()
    assert command(*words, "--resume") == 0


@pytest.mark.parametrize("error", NO_MEMORY)
def test_memory_that_runs_out_is_one_line_and_the_other_inputs_go_on(error, tmp_path, monkeypatch, capsys):
    sources = [save(picture(5, height=h), tmp_path / f"{name}.png") for name, h in (("a", 60), ("b", 40))]
    segment_images = Job.segment_images

    def runs_out(self, images):
        if len(images[0]) == 60:
            raise error
        return segment_images(self, images)

    monkeypatch.setattr(Job, "segment_images", runs_out)
    assert command(*sources, "bright.", "--out", tmp_path / "out") == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {sources[0]}: out of memory: take a smaller --sam") and line.count("\n") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]


@pytest.mark.parametrize("what", ["prompt", "folder", "data set"])
def test_a_batch_loses_no_picture_for_what_is_wrong_with_another(what, tmp_path, monkeypatch, capsys):
    names = ("a", "b", "bad", "c")
    sources = {name: save(picture(5, height=30 if name == "bad" else 40), tmp_path / f"{name}.png") for name in names}
    (tmp_path / "broken.png").write_bytes(b"no picture")

    def refuse(function, place):
        def instead(*args):
            if args[place].name == "bad":
                raise ValueError("bad can't be held")
            return function(*args)

        return instead

    if what == "folder":
        monkeypatch.setattr(run, "save_picture", refuse(run.save_picture, 0))
    if what == "data set":
        monkeypatch.setattr(DataSets, "add", refuse(DataSets.add, 1))
    point = f"9,{35 if what == 'prompt' else 12}"
    words = [*sources.values(), tmp_path / "broken.png", "--point", point, "--batch", 5, "--save", "coco"]
    assert command(*words, "--out", tmp_path / "out") == 2
    printed = capsys.readouterr()
    errors = printed.err.splitlines()
    assert len(errors) == 2 and "broken.png" in errors[0] and errors[1].startswith(f"error: {sources['bad']}: ")
    done = [name for name in names if f"{sources[name]}: 1 object" in printed.out]
    assert done == [name for name in names if name != "bad" or what == "data set"]  # which is made of results
    assert all((tmp_path / "out" / name / "result.json").exists() for name in done)
    assert not (tmp_path / "out" / "coco" / ".parts" / "bad.jsonl").exists()


def test_another_error_of_pytorch_is_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    def wrong(self, images):
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    monkeypatch.setattr(Job, "segment_images", wrong)
    with pytest.raises(RuntimeError, match="must match"):
        command(save(picture(5), tmp_path / "a.png"), "bright.", "--out", tmp_path / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space, which other systems do not")
def test_a_picture_that_memory_does_not_hold_is_one_line(tmp_path):
    Image.new("RGB", (9000, 9000)).save(tmp_path / "large.png")
    save(picture(5), tmp_path / "small.png")
    limited = (
        "import resource, sys; from helpers.commands import command; "
        "pages = int(open('/proc/self/statm').read().split()[0]); "
        "resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (200 << 20),) * 2); "
        "sys.exit(command(*sys.argv[1:]))"
    )
    words = [sys.executable, "-c", limited, "large.png", "small.png", "bright.", "--out", "out"]
    tests = Path(__file__).parent
    path = f"{tests}{os.pathsep}{tests.parent}"
    # One arena: glibc reserves 64 MiB of addresses for those of each thread, and which thread needs one is chance.
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    process = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert process.returncode == 2 and "error: large.png: out of memory" in process.stderr, process.stderr
    assert "Traceback" not in process.stderr and (tmp_path / "out" / "small" / "result.json").exists()


def test_ctrl_c_while_models_load_is_quiet(tmp_path, monkeypatch, capsys):
    def load(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "load_models", load)
    assert segment.main([save(picture(5), tmp_path / "a.png"), "bright.", "--out", str(tmp_path / "out")]) == 130
    printed = capsys.readouterr()
    assert printed.out == printed.err == "" and not list((tmp_path / "out").iterdir())


def test_a_second_ctrl_c_ends_at_once_and_the_last_state_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "SAVE_EVERY", 0.0)
    words = [save_film(tmp_path / "film", 6), "bright.", "--frames", "--format", "gif", "--out", tmp_path / "out"]
    add = outputs.VideoOutput.add

    def press_twice(self, result):
        if result.frame == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return add(self, result)

    with monkeypatch.context() as patch:
        patch.setattr(outputs.VideoOutput, "add", press_twice)
        assert command(*words) == 130
    assert len(lines(tmp_path / "out" / "film" / ".unfinished" / "journal.jsonl")) == 3
    assert command(*words, "--resume") == 0
    assert len(lines(tmp_path / "out" / "film" / "result.jsonl")) == 6


def test_resume_after_a_newer_run_was_stopped_does_not_take_the_older_result_for_it(tmp_path, monkeypatch):
    words = [save_film(tmp_path / "film", 5), "bright.", "--frames", "--format", "gif", "--out", tmp_path / "out"]
    assert command(*words) == 0
    assert interrupted([*words, "--seed-frame", 1], 2, monkeypatch) == 130
    assert command(*words, "--seed-frame", 1, "--resume") == 0
    assert [len(r["objects"]) for r in lines(tmp_path / "out" / "film" / "result.jsonl")] == [0, 1, 1, 1, 1]


def test_a_new_run_does_not_keep_the_state_of_an_interrupted_one(tmp_path, monkeypatch):
    words = [save_film(tmp_path / "film", 5), "bright.", "--frames", "--format", "gif", "--out", tmp_path / "out"]
    assert interrupted(words, 3, monkeypatch) == 130
    unfinished = tmp_path / "out" / "film" / ".unfinished"
    assert (unfinished / "state.pt").exists()
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "save_json", fail_on(1, outputs.save_json))
        assert command(*words) == 2
    assert not unfinished.exists()


def test_results_of_an_earlier_run_do_not_mix_with_the_new_ones(tmp_path):
    source, words = save_film(tmp_path / "film", 6), ["bright.", "--frames", "--out", tmp_path / "out"]
    assert command(source, *words, "--format", "png", "--save", "masks", "crops") == 0
    (tmp_path / "out" / "film" / "notes.txt").write_text("of the user")
    assert command(source, *words, "--format", "gif", "--max-seconds", 0.1, "--save", "masks") == 0
    frames = [str(Path("masks", "001_bright", f"{t:06d}.png")) for t in range(3)]
    assert files(tmp_path / "out" / "film") == sorted(
        ["annotated.gif", "notes.txt", "result.json", "result.jsonl", *frames]
    )


@pytest.mark.parametrize(
    "name, content", [("state.pt", b""), ("state.pt", b"damaged"), ("journal.jsonl", b"{}\n"), ("journal.jsonl", None)]
)
def test_a_damaged_state_is_one_line_and_stays(name, content, tmp_path, monkeypatch, capsys):
    words = [save_film(tmp_path / "film", 5), "bright.", "--frames", "--format", "gif", "--out", tmp_path / "out"]
    assert interrupted(words, 3, monkeypatch) == 130
    path = tmp_path / "out" / "film" / ".unfinished" / name
    path.unlink() if content is None else path.write_bytes(content)
    capsys.readouterr()
    assert command(*words, "--resume") == 2
    error = capsys.readouterr().err
    assert "leave out --resume" in error and error.count("\n") == 1 and path.parent.exists()
    assert command(*words) == 0


def fail_after(read, count: int, code: int):
    """The method `read`, which fails with an error of the system behind `count` items."""

    def failing(*args):
        yield from islice(read(*args), count)
        raise OSError(code, os.strerror(code))

    return failing


@pytest.mark.parametrize("code", ["EIO", "ESTALE", "ENODEV", "ECONNRESET", "EACCES"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_disk_that_fails_in_a_video_is_not_its_end_and_resume_goes_on(code, direction, tmp_path, monkeypatch, capsys):
    with VideoWriter(tmp_path / "a.mp4", 5, (56, 40)) as writer:
        for frame in film(6):
            writer.write(frame)
    words = [tmp_path / "a.mp4", "bright.", "--format", "gif", "--direction", direction, "--quiet"]
    assert command(*words, "--out", tmp_path / "whole") == 0
    with monkeypatch.context() as broken:
        broken.setattr(Video, "_packets", fail_after(Video._packets, 4, getattr(errno, code)))
        assert command(*words, "--out", tmp_path / "out") == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "a.mp4: " in line and os.strerror(getattr(errno, code)) in line
        assert ("--resume" in line) == (direction == "forward")  # the way back begins with all packets
    assert not (tmp_path / "out" / "a" / "result.json").exists()
    assert command(*words, "--out", tmp_path / "out", "--resume") == 0
    results = [(tmp_path / name / "a" / "result.jsonl").read_bytes() for name in ("whole", "out")]
    assert results[0] == results[1] and results[0].count(b"\n") == 6


def test_a_disk_that_fails_in_an_animation_is_not_its_end(tmp_path, monkeypatch, capsys):
    first, *others = map(Image.fromarray, film(6))
    first.save(tmp_path / "a.webp", save_all=True, append_images=others, lossless=True)
    frame_of = sources.frame_of

    def failing(image, index=0, levels=None):
        if index == 4:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return frame_of(image, index, levels)

    monkeypatch.setattr(sources, "frame_of", failing)
    assert command(tmp_path / "a.webp", "bright.", "--out", tmp_path / "out", "--quiet") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "a.webp: Input/output error" in line and not (tmp_path / "out" / "a" / "result.json").exists()


def test_resume_refuses_to_save_other_things(tmp_path, monkeypatch, capsys):
    words = [save_film(tmp_path / "film", 5), "bright.", "--frames", "--format", "gif", "--out", tmp_path / "out"]
    assert interrupted(words, 3, monkeypatch) == 130
    assert command(*words, "--resume", "--save", "masks") == 2 and "another --save" in capsys.readouterr().err


@pytest.mark.parametrize("full", [False, True])
def test_standard_output_that_closes_or_is_full_ends_without_a_traceback(full, tmp_path):
    for name in "ab":
        save(picture(5), tmp_path / f"{name}.png")
    if full and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    words = [
        *TINY,
        tmp_path / "a.png",
        tmp_path / "b.png",
        "bright.",
        "--json",
        "-",
        "--quiet",
        "--out",
        tmp_path / "out",
    ]
    read, write = (None, os.open("/dev/full", os.O_WRONLY)) if full else os.pipe()
    if read is not None:
        os.close(read)
    process = subprocess.Popen(list(map(str, words)), stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    error = process.communicate(timeout=120)[1]
    want = (2, ["error: standard output: No space left on device"]) if full else (141, [])
    assert (process.returncode, error.splitlines()) == want


@pytest.mark.slow
def test_torchrun_shares_a_folder_among_two_processes(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3):
        save(picture(5 + number), tmp_path / "in" / f"{number}.png")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    subprocess.run([*torchrun, TINY[1], tmp_path / "in", "bright.", "--out", tmp_path / "out"], check=True, timeout=300)
    assert command(tmp_path / "in", "bright.", "--out", tmp_path / "alone", models=tiny_models()) == 0
    assert files(tmp_path / "out") == files(tmp_path / "alone") != []
    for name in files(tmp_path / "out"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_a_result_of_an_earlier_command_is_left_out_of_the_index(tmp_path):
    out, good, gone = tmp_path / "out", save(picture(5), tmp_path / "b.png"), Path(save(picture(5), tmp_path / "a.png"))
    words = ["--html", "--out", out, "--quiet"]
    assert command(gone, good, "bright.", *words) == 0
    gone.write_bytes(b"no picture")
    for sentence, entries in (("dark.", 1), ("bright.", 2)):
        assert command(gone, good, sentence, *words) == 2
        index = (out / "index.html").read_text()
        assert index.count("<li>") == entries and "b/page.html" in index


def test_a_damaged_result_of_another_input_is_left_out_of_the_index(tmp_path, capsys):
    out, good, gone = tmp_path / "out", save(picture(5), tmp_path / "b.png"), tmp_path / "a.png"
    gone.write_bytes(b"no picture")
    for content in ("{}", '{"objects": 5}', "[", '{"objects": [{"label": 1}]}'):
        (out / "a").mkdir(parents=True, exist_ok=True)
        (out / "a" / "result.json").write_text(content)
        (out / "a" / "page.html").write_text("")
        assert command(gone, good, "bright.", "--html", "--out", out, "--quiet") == 2
        assert capsys.readouterr().err.count("\n") == 1
        index = (out / "index.html").read_text()
        assert "b/page.html" in index and "a/page.html" not in index


def test_memory_that_runs_out_before_the_arguments_are_read_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("minisam_glue.cli.command.parse_arguments", lambda argv: bytearray(1 << 62))
    assert command("a.png", "bright.") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_current_folder_that_was_removed_is_one_line(tmp_path):
    script = "import os, sys; os.rmdir(os.getcwd()); sys.path.insert(0, sys.argv[1])\n"
    script += "from segment import main; sys.exit(main())"
    (tmp_path / "gone").mkdir()
    words = [sys.executable, "-c", script, str(Path(segment.__file__).parent), "a.png", "bright."]
    done = subprocess.run(words, cwd=tmp_path / "gone", capture_output=True, text=True)
    assert (
        done.returncode == 2 and done.stderr == "error: the current folder is no longer there: change to another one\n"
    )
