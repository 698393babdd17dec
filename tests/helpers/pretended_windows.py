"""A file system like that of Windows: what this process has open can't be moved, removed or replaced. Linux only."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest


def is_open(path: str | Path) -> bool:
    """Whether this process has a file open, or one that lies in a folder."""
    wanted, found = os.path.realpath(path), set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return any(name == wanted or name.startswith(wanted + os.sep) for name in found)


def pretend(patch: pytest.MonkeyPatch) -> None:
    """Let os.replace, os.unlink and os.remove refuse as they do there."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("which files are open is known on Linux only")

    def refusing(function):
        def call(*paths, **kwargs):
            for path in paths:
                if not kwargs.get("dir_fd") and os.path.lexists(path) and is_open(path):
                    raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))
            if len(paths) > 1 and os.path.isdir(paths[1]):
                raise PermissionError(errno.EACCES, "Access is denied", str(paths[1]))  # onto a folder, even empty
            return function(*paths, **kwargs)

        return call

    for name in ("replace", "unlink", "remove"):
        patch.setattr(os, name, refusing(getattr(os, name)))
