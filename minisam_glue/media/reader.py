"""The common part of all sources of frames: numbers, times, pictures. The sources are in sources.py and video.py."""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from PIL import Image

from .limits import MediaError

TOLERANCE = 0.00051  # seconds: a time that a user gives may be rounded to milliseconds, up or down


class Timed(NamedTuple):
    """A frame: when it is shown, in seconds after the first frame; for how long, until the next one that is read; and
    its picture, uint8 RGB (H, W, 3)."""

    time: float
    length: float
    picture: np.ndarray


class Reader:
    """One source. Its frames are numbered from 0; here they come at an even rate, in a subclass at times of their own.

    name: for messages; fps: frames per second, on average; size: (width, height); count: how many frames, as far as is
    known, else None; seekable: whether it can be read more than once; damaged: pieces that were left out so far;
    cut_off: (how long it should be, how long it is) in seconds, once it has ended long before the end that it states;
    pixel_aspect: width of a pixel over its height.
    """

    name: str
    fps: float
    size: tuple[int, int]
    count: int | None = None
    seekable = True
    damaged = 0
    cut_off: tuple[float, float] | None = None
    pixel_aspect = Fraction(1)

    def read(self, first: int, stride: int) -> Iterator[Timed]:
        """Frames first, first + stride, ..., each read when it is asked for."""
        raise NotImplementedError

    def time(self, number: int) -> float:
        """The time of frame `number`, in seconds after the first frame. IndexError where it is known to be none."""
        return number / self.fps

    def first_from(self, seconds: float) -> int:
        """The number of the first frame at or after so many seconds; `count` or more if there is none."""
        return math.ceil((seconds - TOLERANCE) * self.fps)

    def lacks(self, number: int) -> bool:
        """Whether it is known, without decoding, that there is no frame `number`."""
        return self.count is not None and number >= self.count

    def exact_count(self, first: int = 0) -> int:
        """The number of frames. A subclass decodes those from `first` on, where the source may claim too many."""
        return self.count

    @property
    def lost(self) -> list[int] | None:
        """The facts by which another reader of this source numbers the frames read so far in the same way.

        Time stamps of frames that could not be decoded; None if frames are counted from the start each time.
        """
        return []

    def forget(self, lost: list[int] | None) -> None:
        """Number the frames as the reader that had these `lost`."""

    def close(self) -> None:
        """Let go of the source."""


def every(stride: int, frames: Iterable[Timed]) -> Iterator[Timed]:
    """Take each `stride`-th frame, shown until the next of these; pictures of the others are not looked at."""
    held = last = None
    for position, last in enumerate(frames):
        if position % stride == 0:
            if held is not None:
                yield held._replace(length=last.time - held.time)
            held = last
    if held is not None:
        yield held._replace(length=last.time + last.length - held.time)


def same_size(frame: np.ndarray, size: tuple[int, int], name: object) -> np.ndarray:
    """The frame. MediaError if it has another size (width, height)."""
    if frame.shape[1::-1] != size:
        height, width = frame.shape[:2]
        raise MediaError(f"{name}: {width}x{height} pixels, but the first frame has {size[0]}x{size[1]}")
    return frame


def resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The frame at another size (width, height)."""
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))
