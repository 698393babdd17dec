"""This process: its number among those that torchrun starts, its GPU, its Python, the signals that end it.

It imports nothing that takes time: the command line needs it before torch is there.
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from .text import one_line

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
CLOSED_PIPE = 13  # SIGPIPE, also where the system has no signal of that name


def rank_and_number() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are: 0 and 1 without torchrun.

    ValueError if RANK, WORLD_SIZE or LOCAL_RANK are no such numbers.
    """
    _environment("LOCAL_RANK", 0)
    rank, number = (_environment(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if not 0 <= rank < number:
        raise ValueError(f"RANK={rank} and WORLD_SIZE={number}: torchrun sets ranks from 0 to WORLD_SIZE - 1")
    return rank, number


def own_gpu(number: int) -> str:
    """The device of this process among the `number` GPUs of its machine. ValueError if there are too few."""
    rank = _environment("LOCAL_RANK", 0)
    if rank >= number:
        raise ValueError(
            f"LOCAL_RANK={rank}: this machine has GPUs 0 to {number - 1}; start fewer processes, or give --device"
        )
    return f"cuda:{rank}"


def shell_word(path: str | Path) -> str:
    """A path as one types it in a shell: for hints."""
    path = str(path)
    if sys.platform == "win32":
        return f'"{path}"' if " " in path else path
    return shlex.quote(path)


def interpreter() -> str:
    """The Python that runs this, as one types it in a shell: for hints."""
    return shell_word(sys.executable or "python")


def install_command(extra: str) -> str:
    """The command that installs this package with one of its extras: for hints."""
    return f'{interpreter()} -m pip install "minivit-minisam[{extra}]"'


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.strip().isdecimal():
        raise ValueError(f"{name}={text}: torchrun sets it to a whole number; unset it to run one process")
    return int(text)


class Stopped(KeyboardInterrupt):
    """A signal asks the program to end. number: of the signal, which makes its exit status 128 + number."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def stop(number: int, frame: object) -> None:
    """Answer a signal by Stopped."""
    raise Stopped(number)


@contextmanager
def on_signals(answer: Callable[[int, object], None]) -> Iterator[None]:
    """Let `answer` be called for SIGINT (Ctrl-C), SIGTERM and SIGHUP while the block runs.

    A signal that this process ignores, as SIGHUP under nohup, stays ignored. Only the main thread can answer signals;
    in another one the block just runs.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        present = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in present.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, answer)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def escape_unknown_letters() -> None:
    """Print letters that the encoding of standard output lacks, as in names of files, as escapes."""
    if hasattr(sys.stdout, "reconfigure"):  # not in notebooks
        sys.stdout.reconfigure(errors="backslashreplace")


def begin_program() -> None:
    """Prepare a process that runs a command line and nothing else.

    Ctrl-C ends it at once and without a word, as long as nothing answers signals: while torch is imported, and at the
    very end. Standard streams that whoever started it has closed lead nowhere.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    try:
        os.getcwd()
    except OSError:  # torch's libraries would end the process in words of their own
        sys.stderr.write("error: the current folder is no longer there: change to another one\n")
        sys.exit(2)


def lead_nowhere(stream: TextIO) -> None:
    """Let a stream whose reader has gone take everything from now on: Python would fail again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run_program(work: Callable[[], None]) -> int:
    """Run a program beside the main command, and return its exit status: what its user can mend becomes one line."""
    try:
        with on_signals(stop):
            work()
            sys.stdout.flush()
        return 0
    except BrokenPipeError:  # `| head` has seen enough
        lead_nowhere(sys.stdout)
        return 128 + CLOSED_PIPE
    except KeyboardInterrupt as stopped:
        return 128 + getattr(stopped, "number", signal.SIGINT)
    except (ValueError, OSError, MemoryError) as error:
        sys.stderr.write(f"error: {one_line(error) or 'there is not enough memory'}\n")
        return 2
