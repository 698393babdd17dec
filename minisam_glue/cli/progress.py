"""Progress of a video: tqdm's bar on a terminal, else a plain line from time to time."""

import sys
import time

from ..support.text import printable
from .console import count, tell

LINE_EVERY = 10.0  # seconds


class Progress:
    """Frames done of `total` (None: unknown), frames per second, objects, time left; all on standard error.

    done: frames of an earlier run, which do not count for the speed. Use it as a context manager and call step after
    each frame.
    """

    def __init__(self, name: str, shown: bool, done: int = 0, total: int | None = None):
        self.name, self.shown, self.first, self.done, self.total = name, shown, done, done, total
        self.start = self.last = time.monotonic()
        self.bar = self._bar() if shown and sys.stderr.isatty() else None

    def _bar(self):
        try:
            from tqdm import tqdm
        except ImportError:
            return None
        return tqdm(
            total=self.total, initial=self.first, unit="frame", desc=printable(self.name)[-30:], dynamic_ncols=True
        )

    def step(self, objects: int, done: int, total: int | None) -> None:
        """A frame with so many objects on it; `done` of `total` frames are done now."""
        more, self.done, self.total = done - self.done, done, total
        if self.bar is not None:
            self.bar.total = total
            self.bar.set_postfix(objects=objects, refresh=False)
            self.bar.update(more)
        elif self.shown and time.monotonic() - self.last > LINE_EVERY:
            self.last = time.monotonic()
            tell(printable(self.line(objects)), sys.stderr)

    def line(self, objects: int) -> str:
        """ "clip.mp4: frame 20 of 90, 35 s left, 2.0 frames/s, 1 object"."""
        fps = (self.done - self.first) / max(time.monotonic() - self.start, 1e-3)
        of = f" of {self.total}, {max(self.total - self.done, 0) / fps:.0f} s left" if self.total else ""
        return f"{self.name}: frame {self.done}{of}, {fps:.1f} frames/s, {count(objects, 'object')}"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
