"""Writing files so that a reader, a crash or a full disk never leaves half of one."""

import errno
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

NUMBERS = count(1)  # of temporary files of this process
TEMPORARY = re.compile(r"\..+\.\d+\.\d+\.tmp")  # names that whole_file gives
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # where there are none
OF_THE_SYSTEM = re.compile(r"\.ds_store|thumbs\.db|desktop\.ini|\._.*")  # in small letters
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds between tries to replace a file that another process holds


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; put in place when the block ends well, removed when it does not."""
    path = Path(path)
    temporary = temporary_name(path)
    try:
        yield temporary
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nothing else in this or another process writes to."""
    # The beginning of the name: a name has at most 255 bytes.
    return path.with_name(f".{path.name[:40]}.{os.getpid()}.{next(NUMBERS)}.tmp")


def replace(source: Path, target: Path) -> None:
    """os.replace, with patience on Windows, where a virus scanner or another reader may hold the target for a while."""
    for pause in PAUSES if sys.platform == "win32" else ():
        try:
            os.replace(source, target)
            return
        except PermissionError:
            time.sleep(pause)
    os.replace(source, target)


def is_temporary(name: str) -> bool:
    """Whether a file is called as whole_file calls what it has not put in place yet."""
    return bool(TEMPORARY.fullmatch(name))


def is_of_the_system(entry: Path | os.DirEntry) -> bool:
    """Whether it is a file that a file manager of macOS or Windows puts into any folder that it shows."""
    return bool(OF_THE_SYSTEM.fullmatch(entry.name.lower())) and entry.is_file() and not entry.is_symlink()


def remove_if_empty(folder: Path) -> None:
    """Remove a folder, with what a file manager put there, unless there is more. OSError if it can't be removed."""
    with os.scandir(folder) as entries:
        inside = list(entries)
    if all(map(is_of_the_system, inside)):
        for entry in inside:
            os.unlink(entry)
        folder.rmdir()


def clear_temporaries(folder: Path, name: str) -> None:
    """Remove what processes that were killed left of a file of this name. Nobody may be writing it now."""
    for path in list(folder.glob(f".{name[:40]}.*.tmp")):
        if is_temporary(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()
