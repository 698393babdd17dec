"""Moving sources, in: frame folders, animations, video files, cameras, a pipe. `media.frames` is their common face.

Videos and cameras need PyAV (the extra `cli`), the rest Pillow. FFmpeg may open only the containers below: others are
lists that name further files and addresses (HLS, concat, SDP), or text that it would paint letter by letter.
"""

import io
import os
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from .images import (
    IMAGE_SUFFIXES,
    MAX_BYTES,
    MAX_PIXELS,
    MediaError,
    decode,
    frame_of,
    is_picture,
    list_folder,
    open_picture,
    read_image,
    reason,
)

DEFAULT_FPS = 25.0  # of sources that state no rate: frame folders and pipes
REORDERED = 16  # frames by which a video's storage order may differ from its display order, at most
CONTAINERS = (
    "mov,matroska,webm,avi,mpeg,mpegts,asf,flv,ogg,mxf,nut,rm,dv,ivf,obu,h264,hevc,m4v,mpegvideo,mjpeg,"
    "yuv4mpegpipe"
)  # FFmpeg's names; mov is mp4 too
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # the end of a JPEG's entropy-coded data (ITU-T T.81, B.1.1)


def open_source(source: str, fps: float) -> "Reader":
    """The reader for a source as `media.frames` takes it; `fps` is for those that state no rate. MediaError."""
    if source == "-":
        return _Pipe(fps)
    if source.startswith("camera:"):
        return _Camera(source)
    if os.path.isdir(source):
        return _Folder(Path(source), fps)
    if not os.path.isfile(source):
        raise MediaError(f"{source}: no such file or folder")
    path = Path(source)
    return _Animation(path) if path.suffix.lower() in IMAGE_SUFFIXES or is_picture(path) else _Video(path)


def load_av(need: str) -> ModuleType:
    """PyAV, or a MediaError that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise MediaError(f"{need} needs PyAV: pip install 'minivit-minisam[cli]'") from error
    av.logging.set_level(None)  # with any level, a decoding thread that logs can lock up with one that closes its file
    return av


def open_video(path: str | Path):
    """PyAV's container of a video file, as a context manager. PyAV's errors, OSError."""
    # "file:" because a name like a:b.mp4 is an address to FFmpeg otherwise
    return load_av(str(path)).open(f"file:{path}", options={"format_whitelist": CONTAINERS})


class Reader:
    """What Frames needs of a source: name, fps, size (width, height), count or None, seekable, damaged, read."""

    count: int | None = None
    seekable = True
    damaged = 0

    def read(self, first: int, stride: int) -> Iterator[np.ndarray]:
        """Frames first, first + stride, ... of the source, each read when asked for."""
        raise NotImplementedError

    def exact_count(self) -> int:
        return self.count

    def close(self) -> None:
        pass


class _Folder(Reader):
    def __init__(self, path: Path, fps: float):
        self.name, self.fps, self.paths = str(path), fps, list_folder(path, IMAGE_SUFFIXES)
        if not self.paths:
            raise MediaError(f"{path}: no pictures in this folder")
        self.count = len(self.paths)
        self.size = read_image(self.paths[0]).shape[1::-1]

    def read(self, first: int, stride: int) -> Iterator[np.ndarray]:
        for path in self.paths[first::stride]:
            yield _same_size(read_image(path), self.size, path)


def _same_size(frame: np.ndarray, size: tuple[int, int], name: object) -> np.ndarray:
    if frame.shape[1::-1] != size:
        height, width = frame.shape[:2]
        raise MediaError(f"{name}: {width}x{height} pixels, but the first frame has {size[0]}x{size[1]}")
    return frame


class _Animation(Reader):
    """GIF, WebP, APNG, TIFF, or a still picture as one frame; the first ten durations tell the rate."""

    def __init__(self, path: Path):
        self.name, self.path = str(path), path
        try:
            with open_picture(path) as image:
                self.count, self.size = getattr(image, "n_frames", 1), frame_of(image).shape[1::-1]
                self.fps = self._rate(image)
        except Exception as error:  # as in decode
            raise MediaError(f"{path}: {reason(error)}") from error

    def _rate(self, image: Image.Image) -> float:
        durations = []
        for index in range(min(10, self.count)):
            try:
                frame_of(image, index)
            except Exception:  # as in read
                break
            durations.append(image.info.get("duration", 0))  # milliseconds; browsers show 0 as 100
        return 1000 * len(durations) / sum(duration or 100 for duration in durations) if durations else DEFAULT_FPS

    def read(self, first: int, stride: int) -> Iterator[np.ndarray]:
        with open_picture(self.path) as image:
            for index in range(first, self.count, stride):
                try:
                    frame = frame_of(image, index)
                except Exception:  # the file ends early: what came before is good
                    self.damaged += 1
                    return
                yield _same_size(frame, self.size, self.name)

    def exact_count(self) -> int:
        """Frames that can be decoded: the file may claim millions."""
        return sum(1 for _ in self.read(0, 1))


class _Video(Reader):
    """A video file; each `read` opens it anew, so that several can go on at once."""

    def __init__(self, path: Path):
        self.name, self.path, self.times = str(path), path, None
        self.av = load_av(self.name)
        try:
            with open_video(path) as container:
                stream = container.streams.video[0]
                self.fps = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
                self.count = stream.frames or None
        except IndexError as error:
            raise MediaError(f"{path}: no pictures in this file") from error
        except OSError as error:
            raise MediaError(f"{path}: {reason(error)}") from error
        except (self.av.FFmpegError, ValueError) as error:
            raise MediaError(f"{path}: not a video in a known format, or damaged") from error
        self.size = None
        first = next(self.read(0, 1), None)
        if first is None:
            raise MediaError(f"{path}: damaged, not one frame can be decoded")
        self.size = first.shape[1::-1]

    def read(self, first: int, stride: int) -> Iterator[np.ndarray]:
        times = self._scan() if first else []
        if first >= len(times) > 0:
            return
        with open_video(self.path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if first and None not in times:
                container.seek(times[max(0, first - REORDERED)], stream=stream)
            found = 0 if not first or None in times else None  # how many frames precede the next one, once known
            for frame in self._decoded(container, stream):
                found = first if found is None and frame.pts >= times[first] else found
                if found is None:
                    continue
                if found >= first and (found - first) % stride == 0:
                    yield self._to_rgb(frame)
                found += 1

    def _decoded(self, container, stream) -> Iterator:
        """Frames in the order of display; a packet that can't be decoded is counted and left out."""
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                decoded = packet.decode()
            except self.av.error.InvalidDataError:
                self.damaged += 1
                continue
            except self.av.error.EOFError:
                return
            except (self.av.FFmpegError, OSError):
                self.damaged += 1
                return
            yield from decoded

    def _to_rgb(self, frame) -> np.ndarray:
        if frame.width * frame.height > MAX_PIXELS:
            raise MediaError(f"{self.name}: {frame.width}x{frame.height} pixels are more than {MAX_PIXELS}")
        turned = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)  # rotation: degrees to the left
        if self.size not in (None, turned.shape[1::-1]):  # the size changes in the middle
            turned = np.asarray(Image.fromarray(turned).resize(self.size, Image.Resampling.BILINEAR))
        return np.ascontiguousarray(turned)

    def _scan(self) -> list[int | None]:
        """The time stamps of all frames in order of display, from the packets, without decoding them."""
        if self.times is None:
            self.times = []
            with open_video(self.path) as container:
                packets = container.demux(container.streams.video[0])
                try:
                    self.times = [packet.pts for packet in packets if packet.size and not packet.is_discard]
                except (self.av.FFmpegError, OSError):
                    self.damaged += 1
            if None not in self.times:
                self.times.sort()
        return self.times

    def exact_count(self) -> int:
        return len(self._scan())


class _Live(Reader):
    """A source that is read once, forward; the frame that told the size is kept for the reading."""

    seekable = False

    def _begin(self, pictures: Iterator[np.ndarray]) -> None:
        self.pictures, self.held = pictures, next(pictures, None)
        if self.held is None:
            raise MediaError(f"{self.name}: no picture came")
        self.size = self.held.shape[1::-1]

    def read(self, first: int, stride: int) -> Iterator[np.ndarray]:
        return islice(self._all(), first, None, stride)

    def _all(self) -> Iterator[np.ndarray]:
        if self.held is None:
            raise MediaError(f"{self.name}: a camera or pipe is read only once")
        held, self.held = self.held, None
        yield held
        for picture in self.pictures:
            yield _same_size(picture, self.size, self.name)


class _Camera(_Live):
    """camera:N through FFmpeg's input of the platform; on Windows camera:NAME, as its own list names it."""

    def __init__(self, source: str):
        self.name, which = source, source.removeprefix("camera:")
        av = load_av(source)
        kind, device = {"darwin": ("avfoundation", which), "win32": ("dshow", f"video={which}")}.get(
            sys.platform, ("v4l2", f"/dev/video{which}")
        )
        try:
            self.container = av.open(device, format=kind, options={"framerate": "30"} if kind == "avfoundation" else {})
        except (av.FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"{source}: no such camera, or it is in use ({reason(error)})") from error
        self.fps = float(self.container.streams.video[0].average_rate or 30)
        self._begin(frame.to_ndarray(format="rgb24") for frame in self.container.decode(video=0))

    def close(self) -> None:
        self.container.close()


class _Pipe(_Live):
    """PNG or JPEG pictures back to back on standard input, as `ffmpeg -f image2pipe -c:v mjpeg -` writes them."""

    name = "standard input"

    def __init__(self, fps: float):
        self.fps, self.data = fps, bytearray()
        self.stream = getattr(sys.stdin, "buffer", sys.stdin)
        self._begin(decode(io.BytesIO(picture), self.name) for picture in iter(self._picture, b""))

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
        picture = bytes(self.data[:end])
        del self.data[:end]
        return picture

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
            self._need(at + 4)
            scan = self.data[at + 1] == 0xDA
            at += 2 + int.from_bytes(self.data[at + 2 : at + 4], "big")
            self._need(at)
            while scan and not (marker := MARKER.search(self.data, at)):
                at = max(at, len(self.data) - 1)
                self._need(len(self.data) + 1)
            at = marker.start() if scan else at
