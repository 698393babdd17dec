"""Files that no reader, crash or full disk finds half-written, and folders that no two runs share."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path

from minivit.reading import read_json

NUMBERS = count(1)  # of temporary files of this process
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds between tries to replace a file that another process holds


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file beside `path`, then put it in place: the old content or the new, whole.

    A symbolic link stays, and the file that it names is replaced. An OSError names `path`.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    # The beginning of its name: a name has at most 255 bytes.
    temporary = target.with_name(f".{target.name[:40]}.{os.getpid()}.{next(NUMBERS)}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # before it gets its name: a power cut would leave that with no content
        replace(temporary, target)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk names no file
    finally:
        with suppress(PermissionError):  # Windows: torch.save may still hold it; clear_temporaries removes it later
            temporary.unlink(missing_ok=True)


def unwritten(error: OSError | RuntimeError) -> str:
    """The reason why torch.save wrote no file, in words; of a disk that is full torch makes a RuntimeError."""
    return getattr(error, "strerror", None) or "the disk may be full"


def replace(source: Path, target: Path) -> None:
    """os.replace, with patience on Windows, where a virus scanner or another reader may hold the target for a while."""
    for pause in PAUSES if sys.platform == "win32" else ():
        try:
            os.replace(source, target)
            return
        except PermissionError:
            time.sleep(pause)
    os.replace(source, target)


def clear_temporaries(folder: Path) -> None:
    """Remove what write_atomically left in a folder when its process was killed, and nothing else."""
    for path in folder.iterdir():
        if re.fullmatch(r"\..+\.\d+\.\d+\.tmp", path.name) and path.is_file():
            path.unlink()


def check_ours(folder: Path, names: Iterable[str], index: str, key: str, what: str) -> None:
    """ValueError if a folder holds one of the files that are about to be written there, and it is somebody else's.

    They are ours if `index`, a JSON file beside them, has a `key`. what: "a run", for the message.
    """
    there = [folder / name for name in names if os.path.lexists(folder / name)]
    if not there:
        return
    try:
        content = read_json(folder / index, most=1 << 26)
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or key not in content:
        raise ValueError(f"{there[0]} is not of {what}, and is not overwritten: move it away, or choose another --out")


class Claim:
    """A folder or file that one process holds, until it is released or the process ends, however it ends.

    BlockingIOError if another one holds it, unless it is to be waited for. On Windows, which has no flock, nothing is
    held.
    """

    def __init__(self, folder: Path, wait: bool = False):
        self.descriptor = None
        try:
            import fcntl
        except ImportError:
            return
        self.descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            self.release()
            if isinstance(error, BlockingIOError):
                raise  # a file system without locks raises others

    def release(self) -> None:
        """Let another run have the folder."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    __del__ = release


def write_json(path: Path, content: dict) -> None:
    """Write indented JSON, whole or not at all. ValueError for NaN and infinity, which JSON does not have."""
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(path, lambda temporary: temporary.write_text(text))
