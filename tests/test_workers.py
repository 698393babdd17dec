"""Many pictures: threads that overlap, in order, with bounded memory; what is told; the bar over all inputs."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from helpers.commands import command
from helpers.squares import picture, save
from helpers.tiny_segment import tiny_models

from minisam_glue.cli import progress, run
from minisam_glue.cli.progress import InputProgress, Progress, time_left
from minisam_glue.cli.workers import in_order, shared_cores


def test_results_come_in_order_from_overlapping_calls_and_few_items_are_taken_ahead():
    taken, inside, most, lock = [], 0, 0, threading.Lock()

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02 if number % 3 else 0.06)
        with lock:
            inside -= 1
        return number * number

    for number, result in enumerate(in_order(work, items(), 3)):
        assert result == number * number and len(taken) <= number + 4
    assert number == 19 and most == 3


def test_an_exception_comes_in_its_turn_and_what_has_not_begun_never_does():
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.02)
        if number == 1:
            raise OSError("two")
        return number

    results = in_order(work, range(20), 3)
    assert next(results) == 0
    with pytest.raises(OSError, match="two"):
        next(results)
    assert max(begun) <= 5


def test_the_cores_are_shared_and_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with shared_cores(2):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def pictures(tmp_path):
    """Seven pictures; the third can't be read, and the fifth shows nothing."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(7):
        save(picture(*[] if number == 4 else [5 + 4 * number], seed=number), folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    return folder


@pytest.mark.parametrize("batch", [[], ["--batch", 3]])
def test_threads_write_and_tell_what_one_thread_does_in_the_same_order(batch, pictures, tmp_path, monkeypatch, capsys):
    outputs = {}
    for slots in (1, 2):
        monkeypatch.setattr(run, "SLOTS", slots)
        monkeypatch.setattr(run, "shared_cores", lambda slots: shared_cores(1))
        monkeypatch.setattr(torch, "get_num_threads", lambda slots=slots: slots)
        out = tmp_path / f"out{slots}"
        assert command(pictures, "bright.", "--out", out, "--json", "-", *batch) == 2
        printed = capsys.readouterr()
        errors = [re.sub(r"\(.* s\)", "", line).replace(str(out), "") for line in printed.err.splitlines()]
        files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        outputs[slots] = printed.out, errors, files
    assert outputs[1] == outputs[2]
    said = [line for line in outputs[1][1] if ".png:" in line]
    if not batch:
        assert [line.split("/")[-1][0] for line in (text.split(".png:")[0] for text in said)] == list("0123456")
    assert sum(line.startswith("error: ") for line in said) == 1
    assert len(outputs[1][2]) == 2 * 6 + 5  # result.json, annotated.png, and five masks


def test_pictures_in_several_threads_equal_those_of_one(pictures, tmp_path, monkeypatch):
    (pictures / "2.png").unlink()
    results = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(run, "shared_cores", lambda slots: shared_cores(1))
        out = tmp_path / f"out{threads}"
        assert command(pictures, "bright.", "--out", out, "--quiet") == 0
        results.append({path.name: (path / "result.json").read_bytes() for path in sorted(out.iterdir())})
    assert results[0] == results[1] and len(results[0]) == 6


def test_two_signals_end_pictures_in_threads_at_once_and_leave_nothing_half_written(pictures, tmp_path, monkeypatch):
    models, looked = tiny_models(), []
    detect = models.detector.detect

    def slow(*args, **options):
        looked.append(1)
        if len(looked) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        return detect(*args, **options)

    models.detector.detect = slow
    assert command(pictures, "bright.", "--out", tmp_path / "out", "--quiet", models=models) == 130
    assert len(looked) <= 4 and not models.ended.is_set()
    assert len(list((tmp_path / "out").glob("*/result.json"))) <= 2  # none of those that were in the models
    assert not list((tmp_path / "out").rglob(".*")) and threading.active_count() < 4


def test_pictures_that_a_signal_stops_say_how_many_are_done_and_resume_does_the_rest(pictures, tmp_path, capsys):
    models, looked = tiny_models(), []
    detect = models.detector.detect

    def slow(*args, **options):
        looked.append(1)
        if len(looked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return detect(*args, **options)

    models.detector.detect = slow
    words = [pictures, "bright.", "--out", tmp_path / "out"]
    assert command(*words, models=models) == 128 + signal.SIGTERM
    line = capsys.readouterr().out.splitlines()[-1]
    done = len(list((tmp_path / "out").glob("*/result.json")))
    assert re.fullmatch(r"stopped: (\d) of 7 inputs are done; continue with the same command and --resume", line)
    assert 2 <= done < 7 and int(line.split()[1]) in (done, done + 1)  # one can't be read
    assert command(*words, "--resume") == 2 and "stopped" not in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*/result.json"))) == 6


def test_the_line_over_all_inputs_has_rate_and_time_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with InputProgress(True, 37, 10_000) as shown:
        now[0] += 80
        shown.step(100)
    assert capsys.readouterr().err == "137 of 10,000, 1.2 a second, 2 h left\n"
    assert [time_left(seconds) for seconds in (0, 90, 119, 720, 7300, 260_000)] == [
        *("0 s", "90 s", "119 s", "12 min", "2 h", "3 days")
    ]
    for quiet in (InputProgress(False, 0, 9), InputProgress(True, 0, 1)):
        now[0] += 80
        quiet.step(1)
    assert capsys.readouterr().err == ""


def test_the_line_of_a_video_has_no_negative_number_where_its_frames_are_more_than_estimated(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("a.mp4", True, -2, 20) as shown:
        for done in (-1, 0, 10, 25):
            now[0] += 20
            shown.step(1, done, 20)
    assert capsys.readouterr().err.splitlines() == [
        "a.mp4: frame 0 of 20, 1 object",
        "a.mp4: frame 0 of 20, 1 object",
        "a.mp4: frame 10 of 20, 60 s left, 0.17 frames/s, 1 object",
        "a.mp4: frame 25 of 20, 0 s left, 0.31 frames/s, 1 object",
    ]
    assert Progress("a.mp4", False, 9, 20).line(1) == "a.mp4: frame 9 of 20, 1 object"


def test_a_bar_makes_room_for_lines(monkeypatch):
    calls = []

    class Bar:
        def __getattr__(self, name):
            return lambda *_, **__: calls.append(name)

    shown = InputProgress(False, 0, 3)
    shown.bar = Bar()
    with shown.aside():
        calls.append("line")
    shown.step(1)
    assert calls == ["clear", "line", "refresh", "set_description_str", "update"]


def test_what_memory_does_not_hold_beside_others_is_done_in_its_turn(pictures, tmp_path, monkeypatch, capsys):
    segment_images, tried = run.Job.segment_images, []

    def runs_out(self, images):
        tried.append(threading.current_thread())
        if tried[-1] is not threading.main_thread():
            raise MemoryError
        return segment_images(self, images)

    monkeypatch.setattr(run.Job, "segment_images", runs_out)
    (pictures / "2.png").unlink()
    assert command(pictures, "bright.", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr()
    told = [line.split(".png:")[0][-1] for line in printed.out.splitlines() if ".png:" in line]
    assert told == list("013456") and not printed.err and len(tried) == 12


def test_processes_of_one_run_print_whole_lines_into_one_pipe():
    pytest.importorskip("fcntl")
    code = "import sys\nfrom minisam_glue.cli.console import Console\n"
    code += "print('r', end='', file=sys.stderr, flush=True)\nsys.stdin.read()\n"
    code += "for _ in range(50): Console(True, True).record({'mask': 'x' * 100_000})"
    reading, writing = os.pipe()
    pipes = {"stdin": subprocess.PIPE, "stdout": writing, "stderr": subprocess.PIPE}
    env = os.environ | {"WORLD_SIZE": "2"}
    several = [subprocess.Popen([sys.executable, "-c", code], env=env, **pipes) for _ in range(2)]
    os.close(writing)
    assert [process.stderr.read(1) for process in several] == [b"r", b"r"]  # both are there, and begin together
    for process in several:
        process.stdin.close()
    with open(reading) as stream:
        assert [json.loads(line)["mask"] for line in stream] == ["x" * 100_000] * 100
    assert [process.wait() for process in several] == [0, 0]
