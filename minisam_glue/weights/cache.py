"""The folder of weights on this machine: find a file, or download it whole and checked, one process at a time."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..support.files import NO_LOCKS, replace
from . import transfer
from .table import Checkpoint, WeightsError, how_to_get, look_up

Progress = Callable[[str, int, int | None], None]  # name, bytes so far, bytes in all


def cache_dir() -> Path:
    """The folder of downloaded files: MINISAM_HOME, else `minisam_glue` in the user's cache of the platform.

    WeightsError if the user has no home folder, or MINISAM_HOME names one of a user who is not there.
    """
    home = os.environ.get("MINISAM_HOME")
    try:
        return Path(home).expanduser() if home else Path(_user_cache()) / "minisam_glue"
    except RuntimeError as error:
        where = f"MINISAM_HOME is {home}" if home else "there is no home folder"
        raise WeightsError(f"no cache folder for weights, {where}: set MINISAM_HOME to a folder") from error


def _user_cache() -> str | Path:
    if sys.platform == "win32":
        return os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"


def find(name: str, folder: str | Path | None = None) -> Path | None:
    """The file of `name` in `folder` (default: the cache), or None. WeightsError if its size is wrong.

    The hash is checked when a file is downloaded, not each time it is found: `verify` does it again.
    """
    checkpoint = look_up(name)
    path = Path(folder or cache_dir()) / checkpoint.file
    if not path.is_file():
        return None
    size = path.stat().st_size
    if checkpoint.bytes not in (None, size) or size == 0:
        raise WeightsError(
            f"{path} has {size} bytes instead of {checkpoint.bytes or 'more than none'}: "
            f"delete it, and {how_to_get(checkpoint, path.parent)}"
        )
    return path


def fetch(name: str, folder: str | Path | None = None, progress: Progress | None = None) -> Path:
    """The file of `name`, downloaded first where it is missing. WeightsError if that fails or `folder` is not there."""
    if folder is not None and not Path(folder).is_dir():
        raise WeightsError(f"no folder {folder} to look for {look_up(name).file} in: check the path")
    return find(name, folder) or download(name, folder, progress)


def download(name: str, folder: str | Path | None = None, progress: Progress | None = None) -> Path:
    """Get and check the file of `name`, into `folder` (default: the cache); one that is there already is kept.

    Several processes may ask at once: one downloads, the others wait and find it. With a progress they say so on
    standard error. WeightsError if the file can't be had.
    """
    checkpoint, folder = look_up(name), Path(folder or cache_dir())
    waiting = f"{name}: waiting for another process that downloads it" if progress else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f".{checkpoint.file}.lock", waiting):
            return find(name, folder) or _download(name, checkpoint, folder, progress or (lambda *_: None))
    except OSError as error:
        raise WeightsError(
            f"{folder} can't take {checkpoint.file} ({error.strerror or error}): make room or choose "
            f"another folder (MINISAM_HOME, --weights DIR), or use --weights demo"
        ) from error


def _download(name: str, checkpoint: Checkpoint, folder: Path, progress: Progress) -> Path:
    """Try each URL in turn; the lock is held, so the `.part` file is ours alone."""
    path = folder / checkpoint.file
    part = path.with_name(path.name + ".part")
    transfer.check_part(part)
    if checkpoint.sha256 is None:  # nothing would show that an old part belongs to another version of the file
        part.unlink(missing_ok=True)
    failures = []
    for url in checkpoint.urls:
        failure = transfer.get(url, part, checkpoint, lambda done, total: progress(name, done, total))
        if failure is None:
            replace(part, path)
            return path
        failures.append(f"{url}: {failure}")
    raise WeightsError(f"{name} could not be downloaded ({'; '.join(failures)}): {how_to_get(checkpoint, folder)}")


@contextmanager
def _locked(path: Path, waiting: str | None = None) -> Iterator[None]:
    """Hold an operating-system lock: it goes with its process, so that a crash never leaves one. A file system that has
    no locks keeps nobody waiting.

    waiting: what to say on standard error if another process holds it.
    """
    with path.open("a+b") as file:
        if not _try_lock(file):
            if waiting:
                print(waiting, file=sys.stderr, flush=True)
            while not _try_lock(file):
                time.sleep(0.2)
        yield  # closing the file lets go of the lock


def _try_lock(file) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        if error.errno not in NO_LOCKS:
            raise
    return True


def progress_line() -> Progress:
    """A progress that rewrites one line of a terminal's standard error, or prints two lines a file elsewhere."""
    began: dict[str, tuple[float, int]] = {}
    shown = 0.0

    def show(name: str, done: int, total: int | None) -> None:
        nonlocal shown
        now, ends = time.monotonic(), done == total
        first = name not in began
        start, offset = began.setdefault(name, (now, done))
        if not (first or ends or (sys.stderr.isatty() and now - shown > 0.1)):
            return
        shown = now
        rate = (done - offset) / max(now - start, 1e-3) / 1e6
        of = f" of {total / 1e6:.1f}" if total else ""
        line = f"{name}: {done / 1e6:.1f}{of} MB, {rate:.1f} MB/s"
        print(
            f"\r{line:<70}" if sys.stderr.isatty() else line,
            end="\n" if ends or not sys.stderr.isatty() else "",
            file=sys.stderr,
            flush=True,
        )

    return show
