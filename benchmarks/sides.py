"""The sides of a comparison, each in a process of its own that answers lines on its standard input by lines of JSON."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress


def start(
    side: str, command: Sequence[str], verbose: bool, environment: Mapping[str, str] | None = None
) -> subprocess.Popen | None:
    """The process of a side once it is ready, or None if it can't start. verbose: show what it says on the way.

    environment: variables beside those of this process.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        stderr=None if verbose else subprocess.DEVNULL,
        env=os.environ | (environment or {}),
    )
    ready = answer(process)
    if ready is None:
        return None
    print(f"{side}: ready, torch {ready['torch']}")
    return process


def ask(process: subprocess.Popen, question: object = "run") -> dict | None:
    """The answer to one line, or None if the process has died."""
    with suppress(BrokenPipeError):
        process.stdin.write(f"{question}\n")
        process.stdin.flush()
    return answer(process)


def answer(process: subprocess.Popen) -> dict | None:
    """The next line of JSON; libraries may print others. None if the process has ended."""
    line = next((line for line in process.stdout if line.startswith("{")), None)
    return line and json.loads(line)


def end(process: subprocess.Popen) -> None:
    """Let a process go, and wait until it has."""
    process.stdin.close()
    process.wait()
