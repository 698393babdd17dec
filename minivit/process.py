"""The process of a command line: the signals that end it, its standard streams, its memory.

It imports nothing that takes time: the command line needs it before torch is there.
"""

import ctypes
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
CLOSED_PIPE = 13  # SIGPIPE, also where the system has no signal of that name


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


def keep_freed_memory() -> None:
    """Let glibc give the memory of a freed tensor to the next one, not back to the system. Does nothing elsewhere.

    By default a block of more than 32 MiB is mapped anew each time, and the kernel clears each of its pages when it is
    first written: a tenth to a fifth of a training step on a CPU. So it stays for these blocks where an older glibc
    refuses a higher limit. Constants: malloc.h; limits: man 3 mallopt.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            # The largest block that is not mapped on its own, bytes. An older glibc refuses more than 32 MiB. With
            # no limit set, the next call would still end glibc's own rule, which raises it from 128 KiB.
            if not mallopt(M_MMAP_THRESHOLD, 2**30):
                mallopt(M_MMAP_THRESHOLD, 2**25)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # the free memory at the end of the heap that is kept, bytes


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, Pillow's, a GPU's, the system's, or that of PyTorch on a
    CPU, which is a plain RuntimeError."""
    if isinstance(error, RuntimeError):
        words = ("out of memory", "not enough memory", "allocate memory", "std::bad_alloc")
        words += ("could not create a primitive",)  # oneDNN's
        return any(phrase in str(error) for phrase in words)
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
