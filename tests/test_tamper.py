"""Files that somebody changed: each ends in a result or one line, within bounds of time and memory, in one process."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import tamper
from helpers.commands import command
from helpers.squares import save_film
from helpers.tiny_segment import tiny_models

from minisam_glue.cli.console import Console

pytest.importorskip("resource", reason="limits of memory are set as on Unix")
Cases = Iterator[tuple[str, bytes]]


def problems(path: Path, cases: Cases, run: Callable[[], int], capsys) -> dict[str, str]:
    """Run with each content of a file. What went wrong, by case: no status 0 or 2, several lines, no memory or time."""
    wrong = {}
    for name, content in cases:
        path.write_bytes(content)
        capsys.readouterr()
        try:
            with tamper.bounded():
                status = run()
        except (Exception, tamper.TooSlow) as error:
            wrong[name] = repr(error)[:200]
            continue
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if not line.startswith("warning: ")]
        if status not in (0, 2) or (status == 2) != (len(lines) == 1) or "memory" in said or "\x1b" in said:
            wrong[name] = f"status {status}: {said[:300]!r}"
    return wrong


# --- An interrupted video ----------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> tuple[Path, list]:
    """The folder of an interrupted run, and the command that continues it."""
    words = [save_film(tmp_path / "film", 4), "bright.", "--frames", "--format", "gif", "--out", tmp_path / "out"]
    with monkeypatch.context() as patch:
        frames = []
        patch.setattr(
            Console, "record", lambda *_: frames.append(1) or len(frames) == 2 and signal.raise_signal(signal.SIGINT)
        )
        assert command(*words) == 130
    return tmp_path / "out" / "film" / ".unfinished", [*words, "--resume", "--quiet"]


def resume(stopped: tuple[Path, list], name: str, cases: Cases, capsys) -> dict[str, str]:
    folder, words = stopped
    shutil.copytree(folder, folder.parent.parent / "kept")

    def each() -> Cases:
        for case in cases:
            shutil.rmtree(folder.parent)
            shutil.copytree(folder.parent.parent / "kept", folder)
            yield case

    models = tiny_models()
    return problems(folder / name, each(), lambda: command(*words, models=models), capsys)


def state_cases(path: Path) -> Cases:
    state = torch.load(path, weights_only=True)
    for name, content in tamper.variants(state):
        yield name, tamper.saved(content)
    yield from tamper.broken_archives(path.read_bytes())


def journal_cases(path: Path) -> Cases:
    lines = path.read_bytes().splitlines(keepends=True)
    for name, content in tamper.variants(json.loads(lines[0]), json=True):
        line = json.dumps(content).encode() + b"\n"
        yield name, line + b"".join(lines[1:])
        yield f"{name} of the same length", line[: len(lines[0]) - 1].ljust(len(lines[0]) - 1) + b"\n" + lines[1]
    yield "deep", tamper.deep()
    yield "empty", b""
    yield "longer", b"".join(lines) * 2
    yield "once", lines[0]


def part(cases: Cases, step: int) -> Cases:
    """Each step-th case."""
    return (case for number, case in enumerate(cases) if number % step == 0)


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_a_changed_state_of_a_video_is_refused_in_one_line_or_continued(step, stopped, capsys):
    cases = part(list(state_cases(stopped[0] / "state.pt")), step)
    assert resume(stopped, "state.pt", cases, capsys) == {}


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_a_changed_journal_of_a_video_is_refused_in_one_line_or_continued(step, stopped, capsys):
    cases = part(list(journal_cases(stopped[0] / "journal.jsonl")), step)
    assert resume(stopped, "journal.jsonl", cases, capsys) == {}
