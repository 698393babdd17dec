"""Pictures and moving pictures, in: files, URLs, frame folders, GIF and WebP animations, videos, cameras, a pipe.

Every frame is uint8 RGB (H, W, 3) as one would see it on a screen: turned as EXIF or the video's matrix says, alpha
laid on white (what a GIF without transparency leaves empty has its background colour, where browsers show nothing);
values of more than 8 bits have one scale in a source. Frames are read when they are asked for. Videos and cameras need
PyAV (the extra `cli`), the rest Pillow.
Left out: colour profiles (ICC), interlacing, sound (the writer copies it), changing the frame rate, network streams.
"""

import glob
import importlib.util
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from .images import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    is_heic,
    is_url,
    list_folder,
    looks_like_picture,
    natural_key,
    open_picture,
)
from .limits import MediaError
from .reader import TOLERANCE, Reader
from .sources import no_source, open_source
from .video import DEFAULT_FPS, is_video

log = logging.getLogger(__name__)

BACKWARD = 8  # frames held at a time while a source is read from its end
LONGEST = 1e9  # seconds (30 years), and frames of a stride
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # Pillow's names; the pages of a TIFF are no film unless one says so


def is_moving(source: str | Path) -> bool:
    """Whether `frames` rather than `read_image` is for it: a video, animation, camera or pipe. Folders are neither."""
    if str(source) == "-" or str(source).startswith("camera:"):
        return True
    if is_url(source) or os.path.isdir(source):
        return False
    try:
        if is_heic(source):
            return False
        with open_picture(source) as image:
            return image.format in ANIMATED and getattr(image, "n_frames", 1) > 1
    except Exception:  # no picture, or a damaged one
        return Path(source).suffix.lower() not in IMAGE_SUFFIXES


def expand_inputs(args: Sequence[str | Path] | str | Path, warn: Callable[[str], None] = log.warning) -> list[str]:
    """Files, globs (** too), folders, URLs, camera:N and - as one list, in natural order within each argument.

    A folder stands for the pictures and videos in it; `warn` is told in one line what else is there, and left out.
    MediaError for what is not there or empty.
    """
    args = [args] if isinstance(args, (str, Path)) else args
    return [source for arg in args for source in _expand(str(arg), warn)]


def _expand(arg: str, warn: Callable[[str], None]) -> list[str]:
    if is_url(arg) or arg == "-" or arg.startswith("camera:") or os.path.isfile(arg):
        return [arg]
    if os.path.isdir(arg):
        return [str(path) for path in list_folder(arg, _is_input, "pictures or videos", warn)]
    found = sorted((path for path in find_matches(arg) if os.path.isfile(path)), key=natural_key)
    if not found:
        raise MediaError(f"{arg}: no file fits") if glob.has_magic(arg) else no_source(arg)
    return found


def walk_once(
    directory: str | Path, onerror: Callable[[OSError], None] | None = None, known: Iterable[tuple[int, int]] = ()
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk as os.walk does, through links too, but into each folder once: links may lead in circles.

    known: places of folders that are not entered. The caller may change the list of folders.
    """
    known = set(known)
    for parent, folders, names in os.walk(directory, onerror=onerror, followlinks=True):
        if place(parent) in known:
            folders.clear()
        else:
            known.add(place(parent))
            yield parent, folders, names


def place(folder: str | Path) -> tuple[int, int]:
    """The device and inode of a folder, the same under all its names."""
    about = os.stat(folder)
    return about.st_dev, about.st_ino


def find_matches(pattern: str) -> list[str]:
    """Find what glob finds for a pattern; for ** by walk_once."""
    parts = pattern.replace(os.altsep or os.sep, os.sep).split(os.sep)
    if "**" not in parts:
        return glob.glob(pattern)
    at = parts.index("**")
    before, after = os.sep.join([*parts[:at], ""]), os.sep.join(parts[at + 1 :] or ["*"])
    found = {}  # in the order of finding, each name once
    for root in glob.glob(before) if before else [""]:
        for parent, folders, _ in walk_once(root or "."):
            shown = [name for name in folders if not name.startswith(".")]
            folders[:] = sorted(shown, key=lambda name: (os.path.islink(os.path.join(parent, name)), name))
            relative = parent if root else os.path.relpath(parent)
            inside = "" if relative == "." else glob.escape(relative)
            found |= dict.fromkeys(find_matches(os.path.join(inside, after)))
    return list(found)


def _is_input(path: Path) -> bool:
    """Whether a folder's file is taken: by its name, or by its content if the name says nothing."""
    return path.suffix.lower() in VIDEO_SUFFIXES or looks_like_picture(path) or (has_av() and is_video(path))


def has_av() -> bool:
    """Whether PyAV, which videos need, is installed."""
    return importlib.util.find_spec("av") is not None


class Frames:
    """The frames of a moving source: iterate over it, or use `forward` and `backward` from any frame.

    size: (width, height); count: how many frames, as far as the file says, else None; seekable: whether a single frame,
    or reading backward, is possible; pixel_aspect: width of a pixel over its height; end: when the last frame read so
    far ends, in seconds of the source. `close` when done, or use `with`. The times of frames are those of `time`. Of a
    damaged video frames beyond those that were read in order are counted by its packets, which may be more.
    """

    def __init__(self, reader: Reader, start: float, stride: int, max_seconds: float | None):
        self.reader, self.stride = reader, stride
        self.first = reader.first_from(start) if start else 0
        self.size, self.seekable = reader.size, reader.seekable
        self.pixel_aspect, self.max_seconds = reader.pixel_aspect, max_seconds
        self.latest, self.end = 0.0, 0.0
        self.until = math.inf  # seconds of the source before which a frame must be
        self.count = self._count(reader.count)

    def _count(self, total: int | None) -> int | None:
        """The number of frames that are taken of `total`; at an uneven rate about as many, until they are read."""
        if total is None:
            return None
        left = max(0, math.ceil((total - self.first) / self.stride))
        if self.max_seconds is None:
            return left
        return min(left, math.ceil(max(1, math.ceil((self.max_seconds - TOLERANCE) * self.reader.fps)) / self.stride))

    @property
    def fps(self) -> float:
        """Frames per second after the stride, on average; of an animation, of the frames that were read."""
        return self.reader.fps / self.stride

    @property
    def damaged(self) -> int:
        """Pieces of the source that were damaged and left out so far."""
        return self.reader.damaged

    @property
    def cut_off(self) -> tuple[float, float] | None:
        """(stated, read) seconds of a source that has ended long before the end that it states."""
        return self.reader.cut_off

    @property
    def lost(self) -> list[int] | None:
        """Frames that could not be decoded, for `forget` in another process that goes on with this source."""
        return self.reader.lost

    def forget(self, lost: list[int] | None) -> None:
        """Number the frames as the process did that had these `lost`."""
        self.reader.forget(lost)

    def time(self, index: int) -> float:
        """The time of frame `index`, in seconds after the first frame of the source. IndexError beyond the end."""
        if index < 0 or self.reader.lacks(self.first + index * self.stride):
            raise IndexError(f"{self.reader.name} has no frame {index}")
        return self.reader.time(self.first + index * self.stride)

    def lacks(self, index: int) -> bool:
        """Whether the source is known to have no frame `index`. With max_seconds, frames before it may be decoded."""
        if self.reader.lacks(self.first + index * self.stride):
            return True
        if not self.seekable or self.max_seconds is None or index + 1 < self.max_seconds * self.fps:
            return False
        try:
            return self.time(index) >= self.time(0) + self.max_seconds - TOLERANCE
        except IndexError:
            return True

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.forward()

    def forward(self, index: int = 0) -> Iterator[np.ndarray]:
        """Frames `index`, index + 1, ... to the end. IndexError below 0."""
        if index < 0:
            raise IndexError(f"frame {index}: frames count from 0")
        for timed in self.reader.read(self.first + index * self.stride, self.stride):
            if self.max_seconds is not None and self.until == math.inf:
                self.until = self.time(0) + self.max_seconds
            if timed.time >= self.until - TOLERANCE and (index or timed.time > self.time(0)):
                return
            if timed.time >= self.latest:
                self.latest, self.end = timed.time, min(timed.time + timed.length, self.until)
            yield timed.picture

    def backward(self, index: int | None = None) -> Iterator[np.ndarray]:
        """Frames `index` (default: the last), index - 1, ... 0. MediaError if the source can't be read backward."""
        return (frame for _, frame in self.numbered_backward(index))

    def numbered_backward(self, index: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Go backward, each frame with its index; a damaged source may have fewer than it claims."""
        self._need_seeking()
        end = self._exact_count() if index is None else index + 1
        for low in reversed(range(0, end, BACKWARD)):
            yield from reversed(list(enumerate(islice(self.forward(low), min(BACKWARD, end - low)), low)))

    def _exact_count(self) -> int:
        total = self.reader.exact_count(self.first)
        if self.max_seconds is not None:
            total = min(total, max(self.first + 1, self.reader.first_from(self.time(0) + self.max_seconds)))
        return max(0, math.ceil((total - self.first) / self.stride))

    def __reversed__(self) -> Iterator[np.ndarray]:
        return self.backward()

    def __getitem__(self, index: int) -> np.ndarray:
        """One frame. IndexError beyond the end; MediaError if the source has no random access."""
        self._need_seeking()
        for frame in self.forward(index) if index >= 0 else ():
            return frame
        raise IndexError(f"{self.reader.name} has no frame {index}")

    def _need_seeking(self) -> None:
        if not self.seekable:
            raise MediaError(f"{self.reader.name}: a camera or pipe is only read forward, frame after frame")

    def close(self) -> None:
        """Let go of a camera."""
        self.reader.close()

    def __enter__(self) -> "Frames":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def frames(
    source: str | Path,
    start: float = 0.0,
    stride: int = 1,
    max_seconds: float | None = None,
    fps: float = DEFAULT_FPS,
    warn: Callable[[str], None] = log.warning,
) -> Frames:
    """Open a video, animation, folder of pictures, camera:N, or - (PNG or JPEG pictures one after another on stdin).

    From the first frame at or after second `start`, each `stride`-th frame, and of these the ones that are shown before
    `max_seconds` more have passed. Seconds are those of the source's own time stamps, counted from its first frame;
    folders, pipes and the pages of a TIFF have `fps` frames in each. `warn` is told what is left out of a folder.
    MediaError if it can't be read or has no frame there.
    """
    if not (
        0 <= start <= LONGEST
        and 1 <= stride <= LONGEST
        and 1 / LONGEST <= fps <= LONGEST
        and (max_seconds is None or 0 < max_seconds <= LONGEST)
    ):
        raise MediaError(
            f"start {start} must be at least 0, stride {stride} at least 1, max_seconds {max_seconds} "
            f"and fps {fps} above {1 / LONGEST:g}, and none above {LONGEST:g}"
        )
    opened = Frames(open_source(str(source), fps, warn), start, stride, max_seconds)
    if opened.count == 0:
        reader = opened.reader
        total = reader.exact_count() if reader.damaged else reader.count  # a damaged one claims more
        raise MediaError(f"{source}: no frame at or after {start} s, it has {total}")
    return opened
