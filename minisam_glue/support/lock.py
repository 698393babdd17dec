"""One run at a time in an output folder; the processes of one torchrun are one run.

The lock is the operating system's (flock), on a small file in the folder: however a process ends, its lock goes with
it, and a file that stays behind holds nobody up. The first process of a run takes it alone, writes the name of its run
into the file and then shares it with processes of the same run. Windows and some network drives have no such lock:
there `held` is False, and nothing keeps two runs apart.
"""

import errno
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

from .files import NO_LOCKS
from .processes import rank_and_number

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".minisam.lock"
PATIENCE = 2.0  # seconds for another process of this run to write its name, or for one that is leaving
STARTUP = 10.0  # seconds within which the processes of one run begin
BUSY = (errno.EACCES, errno.EAGAIN)
LONGEST_NAME = 200  # bytes of the name of a run


def run_name() -> str:
    """The name of this run: of its own for a process alone, the same in all processes of one torchrun."""
    _, ranks = rank_and_number()
    if ranks == 1:
        return uuid.uuid4().hex
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    known = [os.environ.get(name, "") for name in names]
    # Ranks that were set by hand have a parent in common.
    return f"{ranks} {' '.join(known) if known[2] else os.getppid()}"[:LONGEST_NAME]


class FolderLock:
    """Held from now until `release`. ValueError if another run holds the folder: nothing is changed then. OSError if
    the folder can't be written to."""

    def __init__(self, folder: Path, run: str | None = None):
        self.path, self.run, self.file, self.held = folder / NAME, (run or run_name()).encode(), -1, False
        self.begun = time.monotonic()
        if fcntl is None:
            return
        until = time.monotonic() + PATIENCE
        while not self._enter():
            if time.monotonic() > until:
                raise self._refusal()
            time.sleep(0.02)

    def _enter(self) -> bool:
        """Try once. False if somebody else is just about to enter or leave."""
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            self.held = self._first() or self._after_others()
        except OSError as error:
            if error.errno in NO_LOCKS:
                return True  # there are no locks here
            raise
        finally:
            if not self.held:
                os.close(self.file)
        return self.held

    def _first(self) -> bool:
        """Alone with the file: write the name, then share. A run that comes between is told by its name."""
        if not self._lock(fcntl.LOCK_EX) or not self._is_there():
            return False
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, self.run, 0)
        return self._after_others()

    def _after_others(self) -> bool:
        """Share the lock with processes of the same run. ValueError if it is another's."""
        if not self._lock(fcntl.LOCK_SH) or not self._is_there():
            return False
        if os.pread(self.file, LONGEST_NAME, 0) != self.run:
            raise self._refusal()
        return True

    def _lock(self, how: int) -> bool:
        try:
            fcntl.flock(self.file, how | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in BUSY:
                return False
            raise
        return True

    def _is_there(self) -> bool:
        """Whether the open file is still the one in the folder: whoever leaves last removes it."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self.file), os.stat(self.path))
        return False

    def _refusal(self) -> ValueError:
        return ValueError(
            f"{self.path.parent}: another run writes into this folder: wait for its end, or write into another one"
        )

    def wait_for_others(self) -> None:
        """Return when no other process of this run works in the folder; those that wait here don't count."""
        if self.held:
            time.sleep(max(0.0, self.begun + STARTUP - time.monotonic()))
            self._lock(fcntl.LOCK_UN)  # two that wait would wait for each other
            while not self._lock(fcntl.LOCK_EX):
                time.sleep(0.2)

    def release(self) -> None:
        """Let go of the folder; whoever is the last removes the file."""
        if self.held:
            with suppress(OSError):
                if self._lock(fcntl.LOCK_EX) and self._is_there():
                    os.unlink(self.path)
            os.close(self.file)
        self.held = False
