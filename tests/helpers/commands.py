"""segment.py with tiny models, called in this process or started as another one."""

import json
import subprocess
import sys
import time
from pathlib import Path

from helpers.tiny_segment import tiny_models
from minisam_glue.cli import main

TINY = [sys.executable, str(Path(__file__).with_name("tiny_segment.py"))]


def command(*words: object, models=None) -> int:
    """The exit status of segment.py in this process."""
    return main([str(word) for word in words], models or tiny_models())


def run_tiny(*words: object, **options) -> subprocess.Popen:
    """segment.py as a process of its own, which saves a state after each frame."""
    return subprocess.Popen(
        [*TINY, *map(str, words)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )


def wait_for_frames(journal: Path, count: int, process: subprocess.Popen) -> None:
    """Return when the journal has `count` lines and a state is saved, when the process ends, or after five minutes."""
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") >= count and journal.with_name("state.pt").exists():
            return
        time.sleep(0.002)


def lines(path: Path) -> list[dict]:
    """The records of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
