"""Progress of a video, and of many inputs: tqdm's bar on a terminal, else a plain line from time to time."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..support.text import printable
from .console import count, tell

LINE_EVERY = 10.0  # seconds
UNITS = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))


class Progress:
    """Frames done of `total` (None: unknown), frames per second, objects, time left; all on standard error.

    done: frames of an earlier run, which do not count for the speed. Use it as a context manager and call step after
    each frame. `done` is below 0 while a video that is read from its end has more frames than were estimated: it counts
    as 0 then.
    """

    def __init__(self, name: str, shown: bool, done: int = 0, total: int | None = None):
        done = max(done, 0)
        self.name, self.shown, self.first, self.done, self.total = name, shown, done, done, total
        self.start = self.last = time.monotonic()
        self.bar = bar_of(self, unit="frame", desc=printable(name)[-30:])

    def step(self, objects: int, done: int, total: int | None) -> None:
        """A frame with so many objects on it; `done` of `total` frames are done now."""
        done = max(done, 0)
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
        fps = max(self.done - self.first, 0) / max(time.monotonic() - self.start, 1e-3)
        of = f" of {self.total}" if self.total else ""
        left = f", {time_left(max(self.total - self.done, 0) / fps)} left" if self.total and fps else ""
        rate = f", {fps:.1f} frames/s" if fps >= 1 else f", {fps:.2g} frames/s" if fps else ""
        return f"{self.name}: frame {self.done}{of}{left}{rate}, {count(objects, 'object')}"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


class InputProgress:
    """Inputs done of `total`, how many a second, time left; on standard error, if there are several.

    done: inputs of an earlier run, which do not count for the speed. Use it as a context manager and call step.
    """

    def __init__(self, shown: bool, done: int, total: int):
        self.shown, self.first, self.done, self.total = shown and total > 1, done, done, total
        self.start = self.last = time.monotonic()
        self.bar = bar_of(self, bar_format="{desc} |{bar}|")

    def step(self, more: int) -> None:
        """Count so many inputs as done."""
        self.done += more
        if self.bar is not None:
            self.bar.set_description_str(self.line(), refresh=False)
            self.bar.update(more)
        elif self.shown and time.monotonic() - self.last > LINE_EVERY:
            self.last = time.monotonic()
            tell(self.line(), sys.stderr)

    def line(self) -> str:
        """ "137 of 10,000, 1.4 a second, 2 h left"."""
        rate = (self.done - self.first) / max(time.monotonic() - self.start, 1e-3)
        left = f", {rate:.2g} a second, {time_left((self.total - self.done) / rate)} left" if rate else ""
        return f"{self.done:,} of {self.total:,}{left}"

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while the block prints a line."""
        if self.bar is not None:
            self.bar.clear()
        yield
        if self.bar is not None:
            self.bar.refresh()

    def __enter__(self) -> "InputProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


def bar_of(progress: Progress | InputProgress, **options: str):
    """tqdm's bar, if it is to be shown on a terminal, and tqdm is installed."""
    if not progress.shown or not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=progress.total, initial=progress.first, dynamic_ncols=True, **options)


def time_left(seconds: float) -> str:
    """ "35 s", "12 min", "2 h", "3 days": in the largest unit of which it has two, or else in seconds."""
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= 2 * size), UNITS[-1])
    return f"{round(seconds / size)} {unit}"
