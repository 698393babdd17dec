"""Moving pictures, out: H.264 video that browsers play, GIF and WebP animations, folders of PNG frames.

Frames are written as they come and none is kept. A file gets its name only when it is complete. GIF (GIF89a) and
WebP (the RIFF container of developers.google.com/speed/webp) animations are put together from still pictures that
Pillow encodes; video is PyAV's (the extra `cli`). Left out: other codecs, variable frame rates.
"""

import io
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import whole_file
from .images import MediaError
from .sources import load_av, open_video

VIDEO = {".mp4", ".m4v", ".mov", ".mkv"}
COPIED_SOUND = {"aac", "mp3", "opus"}  # what browsers play inside mp4; other sound is encoded as AAC
BT709, LIMITED_RANGE = 1, 1  # ITU-T H.273, tables 2 to 4, and FFmpeg's name for 16-235
SLOWEST, FASTEST = 0.01, 1000.0  # frames per second that all formats can state; damaged files claim others


class VideoWriter:
    """Writes frames uint8 RGB (height, width, 3), one after another; use it as a context manager, or `close` it.

    `path` ends in .mp4 .m4v .mov .mkv (H.264 yuv420p, odd sizes padded by a pixel), .gif or .webp, or is a folder for
    000000.png, 000001.png, ... `audio_from`: a video whose sound is taken over, from second `audio_start` on.
    MediaError if the file can't be written or no frame came: there is then no file, and an older one stays as it was.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float,
        size: tuple[int, int],
        audio_from: str | Path | None = None,
        audio_start: float = 0.0,
    ):
        self.path, self.size, self.count = Path(path), tuple(size), 0
        fps = min(max(fps, SLOWEST), FASTEST)
        suffix = self.path.suffix.lower()
        if suffix and suffix not in VIDEO | {".gif", ".webp"} and not self.path.is_dir():
            raise MediaError(f"{path}: can't write {suffix} files: choose .mp4, .gif, .webp or a folder for PNG frames")
        self.folder = not suffix or self.path.is_dir()
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        self.encoder, self.errors = None, (OSError, ValueError)
        try:
            (self.path if self.folder else self.path.parent).mkdir(parents=True, exist_ok=True)
            if suffix in VIDEO and not self.folder:
                self.errors += (load_av(str(path)).FFmpegError,)
                self.encoder = _Mp4(self.temporary, suffix, fps, self.size, audio_from, audio_start)
            elif not self.folder:
                self.encoder = (_Gif if suffix == ".gif" else _WebP)(self.temporary, fps, self.size)
        except self.errors as error:
            self._give_up(error)

    def write(self, frame: np.ndarray) -> None:
        """Append a frame. ValueError if it is not uint8 RGB of the writer's size."""
        if frame.dtype != np.uint8 or frame.shape != (self.size[1], self.size[0], 3):
            raise ValueError(
                f"a frame for {self.path} is uint8 {(self.size[1], self.size[0], 3)}, not {frame.dtype} {frame.shape}"
            )
        try:
            if self.folder:
                with whole_file(self.path / f"{self.count:06d}.png") as temporary:
                    Image.fromarray(frame).save(temporary, "PNG", compress_level=3)
            else:
                self.encoder.write(frame)
        except self.errors as error:
            self._give_up(error)
        self.count += 1

    def close(self) -> None:
        """Finish the file and give it its name."""
        try:
            if not self.count:
                raise MediaError("no frame was written")
            if not self.folder:
                self.encoder.finish()
                self.encoder.close()
                os.replace(self.temporary, self.path)
        except self.errors as error:
            self._give_up(error)

    def abort(self) -> None:
        """Drop what was written; PNG frames, each of them whole, stay."""
        with suppress(*self.errors):  # what could not be written can't be flushed either
            if self.encoder is not None:
                self.encoder.close()
        with suppress(OSError):  # there may be no folder either
            self.temporary.unlink()

    def _give_up(self, error: Exception) -> None:
        self.abort()
        if isinstance(error, MediaError) and str(error).startswith(str(self.path)):
            raise error
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise MediaError(f"{self.path}: can't be written: {reason}") from error

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self.close() if kind is None else self.abort()


class _Mp4:
    def __init__(
        self,
        path: Path,
        suffix: str,
        fps: float,
        size: tuple[int, int],
        audio_from: str | Path | None,
        audio_start: float,
    ):
        self.av = load_av(str(path))
        kind = {".mkv": "matroska", ".mov": "mov"}.get(suffix, "mp4")
        self.output = self.av.open(
            str(path), "w", format=kind, options={} if suffix == ".mkv" else {"movflags": "+faststart"}
        )
        self.rate, self.frames = Fraction(fps).limit_denominator(1001), 0
        codec = "libx264" if "libx264" in self.av.codecs_available else "h264"
        self.stream = self.output.add_stream(codec, rate=self.rate, options={"crf": "20", "preset": "veryfast"})
        self.stream.width, self.stream.height = (side + side % 2 for side in size)
        self.stream.pix_fmt = "yuv420p"
        context = self.stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED_RANGE
        self.input, self.sound, self.waiting = None, iter(()), None
        if audio_from is not None:
            self.input = open_video(audio_from)
            known = [stream for stream in self.input.streams.audio if stream.codec_context is not None]
            if known:
                self.sound = self._sound(known[0], audio_start)

    def write(self, frame: np.ndarray) -> None:
        odd = [(0, side % 2) for side in frame.shape[:2]]
        padded = np.pad(frame, [*odd, (0, 0)], "edge") if (0, 1) in odd else np.ascontiguousarray(frame)
        picture = self.av.VideoFrame.from_ndarray(padded, format="rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709"
        )
        picture.pts, picture.time_base = self.frames, 1 / self.rate
        self.output.mux(self.stream.encode(picture))
        self.frames += 1
        self._mux_sound(self.frames / self.rate)

    def _mux_sound(self, until: Fraction) -> None:
        """Write the sound up to `until` (seconds), so that the file's two streams stay side by side."""
        while (packet := self.waiting or next(self.sound, None)) is not None:
            self.waiting = packet
            if packet.pts is not None and packet.pts * packet.time_base >= until:
                return
            with suppress(ValueError):  # a damaged piece, out of order: the video goes on without it
                self.output.mux(packet)
            self.waiting = None

    def _sound(self, source, start: float) -> Iterator:
        """Packets of the sound, timed from second `start` of its source: copied, or as AAC."""
        copied = source.codec_context.name in COPIED_SOUND
        target = (
            self.output.add_stream_from_template(source)
            if copied
            else self.output.add_stream("aac", rate=source.codec_context.sample_rate)
        )

        def packets() -> Iterator:
            if start > 0:
                self.input.seek(int(start * self.av.time_base))
            for item in self.input.demux(source) if copied else self._decoded(source):
                if item.pts is None or item.pts * item.time_base < start:
                    continue
                item.pts -= round(start / item.time_base)
                if copied:
                    item.dts, item.stream = item.pts, target
                    yield item
                else:
                    with suppress(ValueError):  # a damaged piece, of another rate or layout
                        yield from target.encode(item)
            if not copied:
                yield from target.encode(None)

        return packets()

    def _decoded(self, source) -> Iterator:
        """Pieces of the sound, without the damaged ones."""
        for packet in self.input.demux(source):
            with suppress(ValueError):
                yield from packet.decode()

    def finish(self) -> None:
        self.output.mux(self.stream.encode(None))
        self._mux_sound(self.frames / self.rate)

    def close(self) -> None:
        self.sound = iter(())
        if self.input is not None:
            self.input.close()
        self.output.close()


class _Animation:
    """What GIF and WebP share: durations that add up to the frame rate although each is a whole number of units."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]):
        self.fps, self.size, self.frames = fps, size, 0
        self.file = path.open("wb")
        self.begin()

    def write(self, frame: np.ndarray) -> None:
        self.frames += 1
        ends = (round(number * self.units / self.fps) for number in (self.frames - 1, self.frames))
        self.add(Image.fromarray(frame), max(1, -next(ends) + next(ends)))

    def close(self) -> None:
        self.file.close()


class _Gif(_Animation):
    units = 100  # durations in hundredths of a second

    def begin(self) -> None:
        width, height = (side.to_bytes(2, "little") for side in self.size)
        loop = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
        self.file.write(b"GIF89a" + width + height + b"\0\0\0" + loop)

    def add(self, image: Image.Image, duration: int) -> None:
        """The image block of a still GIF, its global table of colours made local (GIF89a, sections 18 to 23)."""
        still = io.BytesIO()
        image.quantize(256).save(still, "GIF", interlace=False)
        data = still.getvalue()
        table_bits = data[10] & 7
        at = 13 + 3 * 2 ** (table_bits + 1)
        table = data[13:at]
        while data[at] == 0x21:  # extensions, each a chain of blocks with their lengths
            at += 2
            while data[at]:
                at += 1 + data[at]
            at += 1
        delay = b"\x21\xf9\x04\0" + duration.to_bytes(2, "little") + b"\0\0"
        self.file.write(delay + data[at : at + 9] + bytes([0x80 | table_bits]) + table + data[at + 10 : -1])

    def finish(self) -> None:
        self.file.write(b"\x3b")


class _WebP(_Animation):
    units = 1000  # durations in milliseconds

    def begin(self) -> None:
        self.canvas = b"".join((side - 1).to_bytes(3, "little") for side in self.size)
        self.file.write(b"RIFF\0\0\0\0WEBP")
        self._chunk(b"VP8X", b"\x02\0\0\0" + self.canvas)
        self._chunk(b"ANIM", b"\0\0\0\0\0\0")

    def add(self, image: Image.Image, duration: int) -> None:
        """The image chunk of a still WebP inside an ANMF chunk: the whole canvas, no blending."""
        still = io.BytesIO()
        image.save(still, "WEBP", quality=85)
        self._chunk(b"ANMF", b"\0" * 6 + self.canvas + duration.to_bytes(3, "little") + b"\x02" + still.getvalue()[12:])

    def _chunk(self, name: bytes, content: bytes) -> None:
        self.file.write(name + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2))

    def finish(self) -> None:
        size = self.file.tell() - 8
        self.file.seek(4)
        self.file.write(size.to_bytes(4, "little"))
