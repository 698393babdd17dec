"""Text for people on the console: results, hints, warnings, errors, the time of each stage; and JSON lines."""

import errno
import json
import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TextIO

import torch

from ..clipseg.heat_mapper import SIZE
from ..support.processes import lead_nowhere
from ..support.text import one_line, printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

USAGE_ERROR = 2  # the exit status
STREAMS = "standard output", "standard error"
HOPELESS = 0.05  # a best score below this is no reason to lower thresholds


def failed(error: Exception | str) -> int:
    """Print one line on standard error. Returns the exit status of a usage or input error."""
    tell(error_line(error), sys.stderr)
    return USAGE_ERROR


def error_line(error: Exception | str) -> str:
    """The line that tells an error."""
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        if error.errno == errno.ENOSPC and error.filename not in STREAMS:
            message += ": make room, or choose another --out"
        error = message
    if isinstance(error, MemoryError):  # which may have no words
        error = "out of memory"
    return f"error: {one_line(error)}"


def tell(line: str, stream: TextIO) -> bool:
    """Print one line. False if the stream's reader has gone; then it takes what else comes, and nobody sees it.

    OSError, which names the stream, if the line can't be written for another reason.
    """
    try:
        with in_turn(stream):
            print(line, file=stream, flush=True)
    except BrokenPipeError:
        lead_nowhere(stream)
        return False
    except OSError as error:
        name = STREAMS[0] if stream is sys.stdout else STREAMS[1]
        raise OSError(error.errno, error.strerror, name) from None
    return True


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, Pillow's, a GPU's, the system's, or that of PyTorch on a
    CPU, which is a plain RuntimeError."""
    if isinstance(error, RuntimeError):
        words = ("out of memory", "not enough memory", "allocate memory", "std::bad_alloc")
        words += ("could not create a primitive",)  # oneDNN's
        return any(phrase in str(error) for phrase in words)
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def too_large(args: Namespace) -> str:
    """The flags to make smaller when memory runs out: those that are not at their smallest yet."""
    on_cuda = args.device.startswith("cuda") or (args.device == "auto" and torch.cuda.is_available())
    halved = args.dtype in ("bfloat16", "float16") or (args.dtype == "auto" and on_cuda)
    smaller = {
        "a smaller --sam": args.weights != "demo" and args.sam != "tiny",
        "--size 512": args.weights != "demo" and (args.size or 1024) > 512,
        "--dtype bfloat16": not halved,
        f"--heat-size {SIZE}": (args.heat_size or 0) > SIZE,
    }
    ways = [*(way for way, helps in smaller.items() if helps), "smaller pictures"]
    return f"out of memory: take {', '.join(ways[:-1])}{' or ' if len(ways) > 1 else ''}{ways[-1]}"


@contextmanager
def in_turn(stream: TextIO) -> Iterator[None]:
    """Lock the stream against the other processes of this run: a long line is written in pieces, which would mix."""
    several = fcntl is not None and os.environ.get("WORLD_SIZE", "1") != "1"
    with suppress(OSError, ValueError):  # of what has no such lock
        if several:
            fcntl.lockf(stream, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            if several:
                fcntl.lockf(stream, fcntl.LOCK_UN)


class Console:
    """Printed text. quiet: errors and warnings only. json: a line per picture or frame on standard output, everything
    else on standard error. on_closed: is called when the reader of standard output has gone."""

    def __init__(self, quiet: bool, json: bool):
        self.quiet, self.json = quiet, json
        self.ran_out = False  # whether memory did, for what was told here
        self.aside: Callable[[], AbstractContextManager] = nullcontext  # makes room for a line, where a bar is shown
        self.on_closed: Callable[[], None] = lambda: None

    def tell(self, line: str, error: bool) -> None:
        """Print one line on standard output, or on standard error."""
        with self.aside():
            there = tell(line, sys.stderr if error else sys.stdout)
        if not there and not error:
            self.on_closed()

    def say(self, text: str) -> None:
        """Print one line of progress or result."""
        if not self.quiet:
            self.tell(printable(text), error=self.json)

    def warn(self, text: str) -> None:
        """Print one line on standard error, also if quiet."""
        self.tell(f"warning: {printable(text)}", error=True)

    def fail(self, error: Exception | str) -> int:
        """Tell an error in one line, and return the exit status of a failure."""
        self.tell(error_line(error), error=True)
        return USAGE_ERROR

    def record(self, record: dict) -> None:
        """A JSON line, if they are asked for."""
        if self.json:
            self.tell(json.dumps(record), error=False)

    def profile(self, seconds: Counter, total: float) -> None:
        """The seconds of each stage and their share of the total, on standard error."""
        stages = Counter(seconds)
        stages["other"] = max(0.0, total - sum(seconds.values()))
        for stage, spent in stages.most_common():
            tell(f"{stage:<8}{spent:9.2f} s {spent / total:6.1%}", sys.stderr)


class KeptConsole(Console):
    """A console that keeps its lines, for another one to tell them later: threads tell in the order of their inputs."""

    def __init__(self, quiet: bool, json: bool):
        super().__init__(quiet, json)
        self.lines: list[tuple[str, bool]] = []

    def tell(self, line: str, error: bool) -> None:
        """Keep a line."""
        self.lines.append((line, error))


def summary(labels: list[str], best: tuple[str, float] | None, hints: dict[str, float]) -> str:
    """ "2 car, 1 person", or that nothing was found and what may help."""
    counts = ", ".join(f"{count} {label}" for label, count in Counter(labels).items())
    return counts or nothing_found(best, hints)


def nothing_found(best: tuple[str, float] | None, hints: dict[str, float]) -> str:
    """The best score, and the flags of thresholds, with their present values, that would let it pass."""
    if best is None:
        return "nothing found"
    label, score = best
    digits = 2 if score >= HOPELESS else 3
    text = f"nothing found; the best is {label!r} with {score:.{digits}f}"
    if score < HOPELESS:
        return f"{text}: nothing here looks like it"
    by_heat_maps = "--heat-threshold" in hints
    lower = score / 2 if by_heat_maps else score - 0.01  # the tip of a heat map's peak would be too small a region
    options = [f"{flag} {lower:.2f}" for flag, value in hints.items() if value > score - 0.01]
    other = "a larger --max-area"
    if by_heat_maps:
        other = "a smaller --min-area or a larger --max-area, unless SAM 2 finds no clear object there"
    return f"{text}: try {' '.join(options or [other])}"


def count(number: int, noun: str) -> str:
    """ "1 frame", "2 frames"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
