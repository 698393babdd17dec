"""Pictures and moving pictures, in: files, URLs, frame folders, GIF and WebP animations, videos, cameras, a pipe.

Every frame is uint8 RGB (H, W, 3) as one would see it on a screen: turned as EXIF or the video's matrix says, alpha
dropped. Frames are read when they are asked for. Videos and cameras need PyAV (the extra `cli`), the rest Pillow.
Left out: interlacing, sound (the writer copies it), changing the frame rate, network streams.
"""
import glob
import importlib.util
import io
import math
import re
import sys
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from .pixels import to_rgb

MAX_PIXELS = 89_478_485     # of one picture: Pillow's own limit against decompression bombs
MAX_BYTES = 1 << 28         # of one picture from a URL or a pipe
DEFAULT_FPS = 25.0          # of sources that state no rate: frame folders and pipes
BACKWARD = 8                # frames held at a time while a source is read from its end
REORDERED = 16              # frames by which a video's storage order may differ from its display order, at most
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv"}
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # the end of a JPEG's entropy-coded data (ITU-T T.81, B.1.1)


class MediaError(ValueError):
    """A picture or video can't be read or written; the message names it and says why."""


def read_image(source: str | Path) -> np.ndarray:
    """A file or http(s) URL -> uint8 RGB (H, W, 3). MediaError if there is no picture or one above MAX_PIXELS."""
    return _decode(_download(str(source)) if is_url(source) else source, str(source))


def is_url(source: str | Path) -> bool:
    """Whether it begins with http:// or https://."""
    return str(source).lower().startswith(("http://", "https://"))


def is_moving(source: str | Path) -> bool:
    """Whether `frames` rather than `read_image` is for it: a video, animation, camera or pipe. Folders are neither."""
    if str(source) == "-" or str(source).startswith("camera:"):
        return True
    if is_url(source) or Path(source).is_dir():
        return False
    try:
        with _open(source) as image:
            return image.format in ("GIF", "WEBP", "PNG") and getattr(image, "n_frames", 1) > 1
    except Exception:  # no picture, or a damaged one
        return Path(source).suffix.lower() not in IMAGE_SUFFIXES


def natural_key(path: str | Path) -> list[tuple[int, str]]:
    """Sort key by which frame2 comes before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", str(path))]


def expand_inputs(args: Sequence[str]) -> list[str]:
    """Files, globs (** too), folders, URLs, camera:N and - as one list, in natural order within each argument.

    A folder stands for the pictures and videos in it. MediaError for what is not there or empty.
    """
    return [source for arg in args for source in _expand(str(arg))]


def _expand(arg: str) -> list[str]:
    if is_url(arg) or arg == "-" or arg.startswith("camera:") or Path(arg).is_file():
        return [arg]
    if Path(arg).is_dir():
        found = [str(path) for path in _list(Path(arg), IMAGE_SUFFIXES | VIDEO_SUFFIXES)]
        if not found:
            raise MediaError(f"{arg}: no pictures or videos in this folder")
        return found
    found = sorted((path for path in glob.glob(arg, recursive=True) if Path(path).is_file()), key=natural_key)
    if not found:
        raise MediaError(f"{arg}: no such file or folder" if not glob.has_magic(arg) else f"{arg}: no file fits")
    return found


def _list(folder: Path, suffixes: set[str]) -> list[Path]:
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.name[0] != "."]
    except OSError as error:
        raise MediaError(f"{folder}: {error.strerror}") from error
    return sorted(files, key=lambda path: natural_key(path.name))


def _download(url: str) -> io.BytesIO:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "minisam_glue"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            data = answer.read(MAX_BYTES + 1)
    except Exception as error:  # urllib raises OSError, HTTPException and, for odd URLs, ValueError
        raise MediaError(f"{url}: {error}") from error
    if len(data) > MAX_BYTES:
        raise MediaError(f"{url}: more than {MAX_BYTES} bytes")
    return io.BytesIO(data)


def _open(source: str | Path | io.BytesIO) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we refuse what Pillow only warns of
        image = Image.open(source)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise MediaError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}: make it smaller first")
    return image


def _decode(source: str | Path | io.BytesIO, name: str) -> np.ndarray:
    try:
        with _open(source) as image:
            return to_rgb(image)
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise MediaError(f"{name}: {_reason(error, source)}") from error


def _reason(error: Exception, source: object) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture in a known format"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or f"damaged ({type(error).__name__})"


class Frames:
    """The frames of a moving source: iterate over it, or use `forward` and `backward` from any frame.

    fps: frames per second after the stride; size: (width, height); count: how many frames, as far as the file says,
    else None; seekable: whether a single frame, or reading backward, is possible. `close` when done, or use `with`.
    """

    def __init__(self, reader: "_Reader", start: float, stride: int, max_seconds: float | None):
        self.reader, self.stride = reader, stride
        self.first = round(start * reader.fps)
        self.limit = None if max_seconds is None else math.ceil(round(max_seconds * reader.fps) / stride)
        self.fps, self.size, self.seekable = reader.fps / stride, reader.size, reader.seekable
        self.count = self._count(reader.count)

    def _count(self, total: int | None) -> int | None:
        if total is None:
            return None
        left = max(0, math.ceil((total - self.first) / self.stride))
        return left if self.limit is None else min(left, self.limit)

    @property
    def damaged(self) -> int:
        """Pieces of the source that were damaged and left out so far."""
        return self.reader.damaged

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.forward()

    def forward(self, index: int = 0) -> Iterator[np.ndarray]:
        """Frames `index`, index + 1, ... to the end."""
        left = None if self.limit is None else max(0, self.limit - index)
        return islice(self.reader.read(self.first + index * self.stride, self.stride), left)

    def last(self) -> int:
        """The index of the last frame. MediaError if only reading to the end would tell."""
        self._need_seeking()
        return self._count(self.reader.exact_count()) - 1

    def backward(self, index: int | None = None) -> Iterator[np.ndarray]:
        """Frames `index` (default: the last), index - 1, ... 0. MediaError if the source can't be read backward."""
        self._need_seeking()
        end = 1 + (self.last() if index is None else index)
        for low in reversed(range(0, end, BACKWARD)):
            yield from reversed(list(islice(self.forward(low), min(BACKWARD, end - low))))

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


def frames(source: str | Path, start: float = 0.0, stride: int = 1, max_seconds: float | None = None,
           fps: float = DEFAULT_FPS) -> Frames:
    """Open a video, animation, folder of pictures, camera:N, or - (PNG or JPEG pictures one after another on stdin).

    From second `start`, each `stride`-th frame, `max_seconds` of the source at most; seconds are counted in frames at
    the average rate, which for folders and pipes is `fps`. MediaError if it can't be read or has no frame there.
    """
    if not (start >= 0 and stride >= 1 and fps > 0 and (max_seconds is None or max_seconds > 0)):
        raise MediaError(f"start {start} must be at least 0, stride {stride} at least 1, max_seconds {max_seconds} "
                         f"and fps {fps} above 0")
    opened = Frames(_reader(str(source), fps), start, stride, max_seconds)
    if opened.count == 0:
        raise MediaError(f"{source}: no frame at or after {start} s, it has {opened.reader.count}")
    return opened


def _reader(source: str, fps: float) -> "_Reader":
    if source == "-":
        return _Pipe(fps)
    if source.startswith("camera:"):
        return _Camera(source)
    path = Path(source)
    if path.is_dir():
        return _Folder(path, fps)
    if not path.is_file():
        raise MediaError(f"{source}: no such file or folder")
    return _Animation(path) if path.suffix.lower() in IMAGE_SUFFIXES or is_picture(path) else _Video(path)


def is_picture(path: str | Path) -> bool:
    """Whether Pillow knows the format, whatever the name ends in."""
    try:
        with _open(path):
            return True
    except Exception:  # damaged headers make Pillow raise nearly anything
        return False


class _Reader:
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


class _Folder(_Reader):
    def __init__(self, path: Path, fps: float):
        self.name, self.fps, self.paths = str(path), fps, _list(path, IMAGE_SUFFIXES)
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


class _Animation(_Reader):
    """GIF, WebP, APNG, TIFF, or a still picture as one frame; the first ten durations tell the rate."""

    def __init__(self, path: Path):
        self.name, self.path = str(path), path
        try:
            with _open(path) as image:
                self.count, self.size = getattr(image, "n_frames", 1), to_rgb(image).shape[1::-1]
                self.fps = self._rate(image)
        except Exception as error:  # as in _decode
            raise MediaError(f"{path}: {_reason(error, path)}") from error

    def _rate(self, image: Image.Image) -> float:
        durations = []
        for index in range(min(10, self.count)):
            try:
                image.seek(index)
                image.load()
            except Exception:  # as in read
                break
            durations.append(image.info.get("duration", 0))  # milliseconds; browsers show 0 as 100
        return 1000 * len(durations) / sum(duration or 100 for duration in durations) if durations else DEFAULT_FPS

    def read(self, first: int, stride: int) -> Iterator[np.ndarray]:
        with _open(self.path) as image:
            for index in range(first, self.count, stride):
                try:
                    image.seek(index)
                    frame = to_rgb(image)
                except Exception:  # the file ends early: what came before is good
                    self.damaged += 1
                    return
                yield _same_size(frame, self.size, self.name)


def has_av() -> bool:
    """Whether PyAV, which videos need, is installed."""
    return importlib.util.find_spec("av") is not None


def load_av(need: str) -> ModuleType:
    """PyAV, or a MediaError that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise MediaError(f"{need} needs PyAV: pip install 'minivit-minisam[cli]'") from error
    av.logging.set_level(None)  # with any level, a decoding thread that logs can lock up with one that closes its file
    return av


class _Video(_Reader):
    """A video file; each `read` opens it anew, so that several can go on at once."""

    def __init__(self, path: Path):
        self.name, self.path, self.times = str(path), path, None
        self.av = load_av(self.name)
        try:
            with self.av.open(str(path)) as container:
                stream = container.streams.video[0]
                self.fps = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
                self.count = stream.frames or None
        except IndexError as error:
            raise MediaError(f"{path}: no pictures in this file") from error
        except (self.av.FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"{path}: not a video that can be read ({_reason(error, path)})") from error
        self.size = None
        first = next(self.read(0, 1), None)
        if first is None:
            raise MediaError(f"{path}: damaged, not one frame can be decoded")
        self.size = first.shape[1::-1]

    def read(self, first: int, stride: int) -> Iterator[np.ndarray]:
        times = self._scan() if first else []
        if first >= len(times) > 0:
            return
        with self.av.open(str(self.path)) as container:
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
            with self.av.open(str(self.path)) as container:
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


class _Live(_Reader):
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
            sys.platform, ("v4l2", f"/dev/video{which}"))
        try:
            self.container = av.open(device, format=kind, options={"framerate": "30"} if kind == "avfoundation" else {})
        except (av.FFmpegError, OSError, ValueError) as error:
            raise MediaError(f"{source}: no such camera, or it is in use ({_reason(error, device)})") from error
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
        self._begin(_decode(io.BytesIO(picture), self.name) for picture in iter(self._picture, b""))

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
            length, kind = int.from_bytes(self.data[at:at + 4], "big"), self.data[at + 4:at + 8]
            at += 12 + length  # length, kind, content, checksum
            self._need(at)
            if kind == b"IEND":
                return at

    def _jpeg_end(self) -> int:
        at = 2
        while True:
            self._need(at + 2)
            if self.data[at:at + 2] == b"\xff\xd9":
                return at + 2
            if self.data[at] != 0xFF:
                raise MediaError(f"{self.name}: a damaged JPEG picture")
            self._need(at + 4)
            scan = self.data[at + 1] == 0xDA
            at += 2 + int.from_bytes(self.data[at + 2:at + 4], "big")
            self._need(at)
            while scan and not (marker := MARKER.search(self.data, at)):
                at = max(at, len(self.data) - 1)
                self._need(len(self.data) + 1)
            at = marker.start() if scan else at
