"""States of the tracking of one video, kept beside its result, so that a correction need not begin at the first frame.

One file for each, states/<number of the next frame>.pt, every so many frames. When they take more room than they may,
every second one goes.
"""

import io
import logging
import re
from collections.abc import Callable
from pathlib import Path

import torch

from ..propagation import Tracking
from ..support.files import whole_file
from ..support.reading import anything, fields, load, mapping, plain, text, whole
from .provenance import Facts

log = logging.getLogger(__name__)

EVERY = 16  # frames between two states at first
NAME = re.compile(r"(\d{6,9})\.pt")
VERSION = 7  # of a state, see Tracking.state
KIND = fields(version=whole(), of=mapping(text, plain), tracking=anything)  # `tracking`: see Tracking.restore


class States:
    """The states in one folder, of at most `room` bytes together; none are kept if that is 0. of: see provenance.py.

    tell: is told in one line if a single state needs more room. No more are kept then.
    """

    def __init__(self, folder: Path, room: float, of: Facts, tell: Callable[[str], None] = log.warning):
        self.folder, self.room, self.of, self.every, self.tell = folder, room, of, EVERY, tell

    def go_on(self, every: object) -> None:
        """Go on at the distance that a run which was interrupted had reached. ValueError if it is none."""
        whole(1)(every, "the distance of states")
        self.every = every

    def keep(self, tracking: Tracking) -> bool:
        """Write the present state, if it is time. Returns whether others went for it. OSError if it can't be done."""
        frame, before = tracking.next, self.every
        if not self.room or tracking.reverse or frame % self.every or not tracking.tracker.objects:
            return False
        content = io.BytesIO()  # because torch.save does not raise OSError when a disk is full
        torch.save({"version": VERSION, "of": self.of, "tracking": tracking.state() | {"held": []}}, content)
        size = content.getbuffer().nbytes
        if size > self.room:
            room = f"--states {self.room / 1e6:g} allows less"
            self.tell(f"a snapshot of the tracking takes {size / 1e6:.3g} MB, {room}: no more are kept for --correct")
            self.room = 0
            return False
        self.folder.mkdir(exist_ok=True)
        with whole_file(self.folder / f"{frame:06d}.pt") as path:
            path.write_bytes(content.getbuffer())
        self._make_room()
        return self.every != before

    def _make_room(self) -> None:
        """Remove every second state until the others have room."""
        sizes = {number: path.stat().st_size for number, path in listed(self.folder)}
        while sizes and sum(sizes.values()) > self.room:
            self.every *= 2
            for number in [number for number in sizes if number % self.every]:
                (self.folder / f"{number:06d}.pt").unlink()
                del sizes[number]


def listed(folder: Path) -> list[tuple[int, Path]]:
    """The states in a folder, the latest first: the number of the frame that comes next, and the file."""
    paths = folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ()
    found = [(int(match[1]), path) for path in paths if (match := NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def read_state(path: Path, of: Facts) -> dict:
    """The state of the tracking in a file; Tracking.restore checks it. ValueError or OSError if it is no such file, or
    of another result."""
    content = load(path)
    KIND(content, "the state")
    if content["version"] != VERSION:
        raise ValueError("it is of another version of this program")
    if content["of"] != of:
        raise ValueError("it is of another result")
    return content["tracking"]
