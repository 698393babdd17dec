"""Moving sources, in: frame folders, animations, cameras, a pipe; video files are video.py's. See `media.frames`."""

import io
import itertools
import os
import re
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..pixels import Levels, join_levels
from .images import (
    IMAGE_SUFFIXES,
    decode,
    frame_of,
    is_heic,
    is_picture,
    levels_of_frame,
    list_folder,
    looks_like_picture,
    open_picture,
    read_image,
    reason,
)
from .limits import MAX_BYTES, MediaError, ReadError, is_read_error, load_av
from .reader import TOLERANCE, Reader, Timed, every, same_size
from .video import Video, film_stream

SAMPLES = 8  # pictures of a source, spread over it, that fix the scale of values of more than 8 bits
NO_DURATION = 100  # milliseconds that browsers show a frame of an animation whose duration is stated as 0
MOST_DAMAGED = 100  # packets of a camera in a row that can't be decoded, after which nothing more is expected
PICTURE = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n")  # the beginning of a JPEG or PNG picture
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # the end of a JPEG's entropy-coded data (ITU-T T.81, B.1.1)
FILL = re.compile(rb"\xff+")  # any marker may have more of its first byte (B.1.1.2)


def open_source(source: str, fps: float, warn: Callable[[str], None]) -> Reader:
    """The reader for a source as `media.frames` takes it; `fps` is for those that state no rate. MediaError."""
    if source == "-":
        return _Pipe(fps, warn)
    if source.startswith("camera:"):
        return _Camera(source, warn)
    if os.path.isdir(source):
        return _Pictures(source, list_folder(source, looks_like_picture, "pictures", warn), fps)
    if not os.path.isfile(source):
        raise no_source(source)
    path = Path(source)
    if is_heic(path):
        return _Pictures(source, [path], fps)
    if path.suffix.lower() in IMAGE_SUFFIXES or is_picture(path):
        return _Animation(path, fps)
    return Video(path)


def no_source(name: str) -> MediaError:
    """The error of a path that is neither a file nor a folder."""
    if os.path.exists(name):
        return MediaError(f"{name}: it is no regular file; pictures one after another come by - on standard input")
    return MediaError(f"{name or repr(name)}: no such file or folder")


def _common_levels(levels: Callable[[int], Levels | None], count: int) -> Levels | None:
    """One scale for all frames, so that brightness does not jump within a source. None if the first has 8 bits.

    levels: gives those of the frame of a number.
    """
    first = levels(0)
    others = range(1, count, max(1, count // SAMPLES)) if first else ()
    return join_levels([first, *map(levels, others)])


class _Pictures(Reader):
    """The files of a folder."""

    def __init__(self, name: str, paths: list[Path], fps: float):
        self.name, self.fps, self.paths, self.count = name, fps, paths, len(paths)
        self.levels = _common_levels(lambda number: levels_of_frame(paths[number]), self.count)
        self.size = read_image(paths[0], levels=self.levels).shape[1::-1]

    def read(self, first: int, stride: int) -> Iterator[Timed]:
        for number in range(first, self.count, stride):
            path = self.paths[number]
            picture = same_size(read_image(path, levels=self.levels), self.size, path)
            yield Timed(self.time(number), min(stride, self.count - number) / self.fps, picture)


class _Animation(Reader):
    """GIF, WebP, APNG, AVIF; the pages of a TIFF, which state no durations; or a still picture as one frame."""

    def __init__(self, path: Path, fps: float):
        self.name, self.path, self.starts = str(path), path, [0]  # milliseconds; of the frames so far, and the next
        try:
            with open_picture(path) as image:
                self.count = getattr(image, "n_frames", 1)
                self.length = 1000 / fps if image.format == "TIFF" else NO_DURATION
                self.hidden = self._hidden(image)
                self.count -= self.hidden
            self.levels = _common_levels(lambda number: levels_of_frame(path, number + self.hidden), self.count)
            with open_picture(path) as image:
                self.size = frame_of(image, self.hidden).shape[1::-1]
        except Exception as error:  # as in decode
            raise MediaError(f"{path}: {reason(error)}") from error
        for _ in self._timed(0, 1):
            if len(self.starts) > 10 or len(self.starts) > self.count:
                break
        self.damaged = 0  # the file's end, if it comes early, counts when it is used
        self.stated = fps

    @property
    def fps(self) -> float:
        """Frames per second, on average of those whose lengths are known: at first about ten, in the end all."""
        return 1000 * (len(self.starts) - 1) / self.starts[-1] if self.starts[-1] else self.stated

    def _hidden(self, image: Image.Image) -> int:
        """1 if the first picture is one that is shown only where animation is not understood: an APNG may have it."""
        if image.info.get("default_image") and self.count > 1:
            with suppress(Exception):  # as in decode
                frame_of(image, 1)
                return 1
        return 0

    def read(self, first: int, stride: int) -> Iterator[Timed]:
        return every(stride, self._timed(first, stride))

    def _timed(self, first: int, stride: int) -> Iterator[Timed]:
        """All frames from `first` on; those between the strides without a picture, where their length is known."""
        with open_picture(self.path) as image:
            for number in range(min(first, len(self.starts) - 1), self.count):
                wanted, known = number >= first and (number - first) % stride == 0, number < len(self.starts) - 1
                try:
                    frame = None if known and not wanted else frame_of(image, number + self.hidden, self.levels)
                except MemoryError:
                    raise
                except Exception as error:
                    if is_read_error(error):
                        raise ReadError(f"{self.name}: {reason(error)}") from error
                    # the file ends early: what came before is good
                    self.damaged = 1
                    return
                if not known:
                    self.starts.append(self.starts[-1] + (image.info.get("duration") or self.length))
                if wanted:
                    same_size(frame, self.size, self.name)
                if number >= first:
                    start, end = self.starts[number : number + 2]
                    yield Timed(start / 1000, (end - start) / 1000, frame)

    def time(self, number: int) -> float:
        self._read_on(lambda: number < len(self.starts))
        return self.starts[number] / 1000

    def first_from(self, seconds: float) -> int:
        least = 1000 * (seconds - TOLERANCE)
        self._read_on(lambda: least <= self.starts[-1])
        before = bisect_left(self.starts, least)
        return min(before, self.count) if before < len(self.starts) else self.count

    def _read_on(self, far_enough) -> None:
        """Learn further times, until that is true or the end is reached."""
        if not far_enough():
            for _ in self._timed(len(self.starts) - 1, 1):
                if far_enough():
                    break

    def exact_count(self, first: int = 0) -> int:
        """Frames that can be decoded: the file may claim millions."""
        self._read_on(lambda: False)
        return len(self.starts) - 1


class _Live(Reader):
    """A source that is read once, forward; the frame that comes next is kept, since it tells the size.

    Damage is counted and left out. An error behind the first picture ends the recording, which is told: the pictures so
    far can't be had again.
    """

    seekable = False
    warn: Callable[[str], None]

    def _begin(self, frames: Iterator[Timed]) -> None:
        self.frames, self.times, self.number, self.used = frames, [], 0, False
        self.held = next(frames, None)
        if self.held is None:
            raise MediaError(f"{self.name}: no picture came")
        self.size = self.held.picture.shape[1::-1]

    def _fail(self, error: Exception, begun: bool) -> None:
        """Tell the end of a recording that has begun. MediaError if no picture has come."""
        if not begun:
            raise MediaError(f"{self.name}: {reason(error)}") from error
        self.warn(f"{self.name}: the recording ends here: {reason(error)}")

    def first_from(self, seconds: float) -> int:
        while self.held is not None and self.held.time < seconds - TOLERANCE:
            self._next()
        if self.held is None:
            raise MediaError(f"{self.name}: no frame at or after {seconds} s, it has {self.number}")
        return self.number

    def read(self, first: int, stride: int) -> Iterator[Timed]:
        if self.used:
            raise MediaError(f"{self.name}: a camera or pipe is read only once")
        self.used = True
        while self.held is not None:
            if self.number >= first and (self.number - first) % stride == 0:
                same_size(self.held.picture, self.size, self.name)
                yield self.held._replace(length=self.held.length * stride)
            self._next()

    def _next(self) -> None:
        self.times.append(self.held.time)
        self.held, self.number = next(self.frames, None), self.number + 1

    def time(self, number: int) -> float:
        return self.held.time if self.held is not None and number == self.number else self.times[number]


class _Camera(_Live):
    """camera:N through FFmpeg's input of the platform; on Windows camera:NAME, as its own list names it."""

    def __init__(self, source: str, warn: Callable[[str], None]):
        self.name, self.warn, which = source, warn, source.removeprefix("camera:")
        self.av = av = load_av(source)
        kind, device = {"darwin": ("avfoundation", which), "win32": ("dshow", f"video={which}")}.get(
            sys.platform, ("v4l2", f"/dev/video{which}")
        )
        try:
            self.container = av.open(device, format=kind, options={"framerate": "30"} if kind == "avfoundation" else {})
        except (av.FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"{source}: no such camera, or it is in use ({reason(error)})") from error
        self.fps = float(self.container.streams.video[0].average_rate or 30)
        self._begin(self._timed())

    def _timed(self) -> Iterator[Timed]:
        """Frames at the times that the camera states; at an even rate if it states none."""
        first, last = None, -1 / self.fps
        for frame in self._decoded():
            first = frame.time if first is None else first
            stated = last + 1 / self.fps if frame.time is None else frame.time - first
            last = max(stated, last + 1e-6)
            yield Timed(last, 1 / self.fps, frame.to_ndarray(format="rgb24"))

    def _decoded(self) -> Iterator[Any]:
        """Frames as they come. Between two of them FFmpeg's input on macOS asks to be asked again."""
        begun, damaged = False, 0  # packets in a row
        while damaged <= MOST_DAMAGED:
            try:
                for frame in self.container.decode(film_stream(self.container)):
                    begun, damaged = True, 0
                    yield frame
                return
            except BlockingIOError:
                time.sleep(0.005)
            except self.av.error.InvalidDataError:
                damaged += 1
                self.damaged += 1
            except EOFError:
                return
            except (self.av.FFmpegError, OSError) as error:
                self._fail(error, begun)
                return
        self._fail(MediaError("damaged, nothing more can be decoded"), begun)

    def close(self) -> None:
        self.container.close()


class _Pipe(_Live):
    """PNG or JPEG pictures back to back on standard input, as `ffmpeg -f image2pipe -c:v mjpeg -` writes them."""

    name = "standard input"

    def __init__(self, fps: float, warn: Callable[[str], None]):
        self.fps, self.warn, self.data = fps, warn, bytearray()
        self.stream = getattr(sys.stdin, "buffer", sys.stdin)
        self.levels: Levels | None = None  # of all pictures so far: those to come are not known
        self._begin(self._pictures())

    def _pictures(self) -> Iterator[Timed]:
        """Pictures at an even rate; behind a damaged one the others keep their times."""
        damaged = False
        for number in itertools.count():
            try:
                if damaged:
                    self._skip_damage()
                damaged, picture = False, self._picture()
                if not picture:
                    return
                yield Timed(number / self.fps, 1 / self.fps, self._decode(picture))
            except MediaError as error:
                if not number or isinstance(error.__cause__, MemoryError):
                    raise
                damaged = True
                self.damaged += 1
            except OSError as error:
                self._fail(error, number > 0)
                return

    def _decode(self, picture: bytes) -> np.ndarray:
        self.levels = join_levels([self.levels, levels_of_frame(io.BytesIO(picture))])
        return decode(io.BytesIO(picture), self.name, levels=self.levels)

    def _picture(self) -> bytes:
        """The bytes of the next picture, b"" at the end. A last picture that is cut off is counted as damaged."""
        try:
            if not self._fill(1):
                return b""
            self._need(8)
            if self.data[:2] == b"\xff\xd8":
                end = self._jpeg_end()
            elif self.data[:8] == b"\x89PNG\r\n\x1a\n":
                end = self._png_end()
            else:
                raise MediaError(f"{self.name}: neither PNG nor JPEG pictures one after another")
        except EOFError:
            self.damaged += 1
            return b""
        except MediaError:
            del self.data[:2]  # so that the next picture is looked for behind the beginning of this one
            raise
        picture = bytes(self.data[:end])
        del self.data[:end]
        return picture

    def _skip_damage(self) -> None:
        """Drop what comes before the next picture, or the end."""
        while not (found := PICTURE.search(self.data)):
            del self.data[:-8]  # which may hold a part of its first bytes
            if not self._fill(len(self.data) + 1):
                self.data.clear()
                return
        del self.data[: found.start()]

    def _fill(self, size: int) -> bool:
        """Have `size` bytes at hand, if they come."""
        while len(self.data) < size:
            chunk = self.stream.read1(1 << 16)
            if not chunk:
                return False
            self.data += chunk
        return True

    def _need(self, size: int) -> None:
        if size > MAX_BYTES:
            raise MediaError(f"{self.name}: a picture of more than {MAX_BYTES} bytes")
        if not self._fill(size):
            raise EOFError

    def _png_end(self) -> int:
        at = 8
        while True:
            self._need(at + 8)
            length, kind = int.from_bytes(self.data[at : at + 4], "big"), self.data[at + 4 : at + 8]
            at += 12 + length  # length, kind, content, checksum
            self._need(at)
            if kind == b"IEND":
                return at

    def _jpeg_end(self) -> int:
        at = 2
        while True:
            self._need(at + 2)
            if self.data[at : at + 2] == b"\xff\xd9":
                return at + 2
            if self.data[at] != 0xFF:
                raise MediaError(f"{self.name}: a damaged JPEG picture")
            if self.data[at + 1] == 0xFF:
                at = FILL.match(self.data, at).end() - 1
                continue
            self._need(at + 4)
            scan = self.data[at + 1] == 0xDA
            at += 2 + int.from_bytes(self.data[at + 2 : at + 4], "big")
            self._need(at)
            while scan and not (marker := MARKER.search(self.data, at)):
                at = max(at, len(self.data) - 1)
                self._need(len(self.data) + 1)
            at = marker.start() if scan else at
