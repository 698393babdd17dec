"""Moving pictures, out: H.264 video that browsers play, GIF and WebP animations, folders of PNG frames.

Frames are written as they come and none is kept. A file gets its name only when it is complete. GIF (GIF89a) and
WebP (the RIFF container of developers.google.com/speed/webp) animations are put together from still pictures that
Pillow encodes; video is PyAV's (the extra `cli`). Each frame is shown from its own time to that of the next one, so
that uneven rates stay as they are. Left out: other codecs; pixels that are not square, in GIF and WebP.
"""

import io
import math
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from numbers import Integral
from pathlib import Path

import numpy as np
from PIL import Image

from ..support.files import replace, temporary_name, whole_file
from .limits import MediaError, load_av
from .video import Video, open_video

VIDEO = {".mp4", ".m4v", ".mov", ".mkv"}
COPIED_SOUND = {"aac", "mp3", "opus"}  # what browsers play inside mp4; other sound is encoded as AAC
AAC_RATES = {  # ISO/IEC 14496-3, table of samplingFrequencyIndex, in Hz
    *(96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)
}
OTHER_RATE = 48_000  # Hz, of sound at a rate that AAC does not have
BT709, LIMITED_RANGE = 1, 1  # ITU-T H.273, tables 2 to 4, and FFmpeg's name for 16-235
SHORTEST, LONGEST = 0.001, 10_000.0  # seconds of a frame that can be written; damaged files claim others
SOUND_AHEAD = 1.0  # seek so many seconds before the sound is needed
TICKS = 90_000  # a second of the video's clock has at least so many


class VideoWriter:
    """Writes frames uint8 RGB (height, width, 3), one after another; use it as a context manager, or `close` it.

    `path` ends in .mp4 .m4v .mov .mkv (H.264 yuv420p, odd sizes padded by a pixel), .gif or .webp, or is a folder for
    000000.png, 000001.png, ... `size`: (width, height) in pixels. `fps`: rate of frames that come without a time, and
    how long the last one is shown.
    `audio_from`: a video whose sound is taken over, from `audio_start` seconds after its first frame on.
    `pixel_aspect`: width of a pixel over its height, which video files state. MediaError if the file can't be written
    or no frame came: there is then no file, and an older one stays as it was.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float,
        size: tuple[int, int],
        audio_from: str | Path | None = None,
        audio_start: float = 0.0,
        pixel_aspect: Fraction = Fraction(1),
    ):
        if not (math.isfinite(fps) and fps > 0 and pixel_aspect > 0):
            raise ValueError(f"fps {fps}, pixel_aspect {pixel_aspect}: give numbers above 0")
        if not (len(size) == 2 and all(isinstance(side, Integral) and side > 0 for side in size)):
            raise ValueError(f"size {size!r:.40}: give (width, height) in pixels, whole numbers above 0")
        self.path, self.size, self.count, self.closed = Path(path), tuple(size), 0, False
        self.waiting: np.ndarray | None = None  # the latest frame: how long it is shown, the next one tells
        self.length = min(max(1 / fps, SHORTEST), LONGEST)
        self.given, self.start = 0.0, 0.0  # times of the waiting frame: as given, and in the file
        suffix = self.path.suffix.lower()
        if suffix and suffix not in VIDEO | {".gif", ".webp"} and not self.path.is_dir():
            raise MediaError(f"{path}: can't write {suffix} files: choose .mp4, .gif, .webp or a folder for PNG frames")
        self.folder = not suffix or self.path.is_dir()
        self.temporary = temporary_name(self.path)
        self.encoder, self.errors = None, (OSError, ValueError)
        try:
            (self.path if self.folder else self.path.parent).mkdir(parents=True, exist_ok=True)
            if suffix in VIDEO and not self.folder:
                self.errors += (load_av(str(path)).FFmpegError,)
                sound = None if audio_from is None else (audio_from, audio_start)
                self.encoder = _Mp4(self.temporary, suffix, 1 / self.length, self.size, sound, Fraction(pixel_aspect))
            elif not self.folder:
                self.encoder = (_Gif if suffix == ".gif" else _WebP)(self.temporary, self.size)
        except self.errors as error:
            self._give_up(error)

    def write(self, frame: np.ndarray, time: float | None = None) -> None:
        """Append a frame, shown at `time` in seconds, of which only differences count; None: at the writer's rate.

        ValueError if it is not uint8 RGB of the writer's size, and once the writer is closed.
        """
        if self.closed:
            raise ValueError(f"{self.path} is closed: no frame can follow")
        if frame.dtype != np.uint8 or frame.shape != (self.size[1], self.size[0], 3):
            raise ValueError(
                f"a frame for {self.path} is uint8 {(self.size[1], self.size[0], 3)}, not {frame.dtype} {frame.shape}"
            )
        try:
            if self.folder:
                with whole_file(self.path / f"{self.count:06d}.png") as temporary:
                    Image.fromarray(frame).save(temporary, "PNG", compress_level=3)
            else:
                time = self.given + self.length * bool(self.count) if time is None else time
                self._show_until(time)
                self.waiting, self.given = frame.copy(), time
        except self.errors as error:
            self._give_up(error)
        self.count += 1

    def _show_until(self, time: float) -> None:
        """Write the frame that waits, if any."""
        if self.waiting is not None:
            begun = self.start
            self.start += min(max(time - self.given, SHORTEST), LONGEST)
            self.encoder.write(self.waiting, begun, self.start)

    def close(self, end: float | None = None) -> None:
        """Finish the file and give it its name. The last frame is shown until `end`, a time as those of `write`."""
        if self.closed:
            return
        try:
            if not self.count:
                raise MediaError("no frame was written")
            if not self.folder:
                self._show_until(self.given + self.length if end is None else end)
                self.encoder.finish()
                self.encoder.close()
                replace(self.temporary, self.path)
            self.closed = True
        except self.errors as error:
            self._give_up(error)

    def abort(self) -> None:
        """Drop what was written, and close; PNG frames, each of them whole, stay."""
        if self.closed:
            return
        self.closed = True
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
        sound: tuple[str | Path, float] | None,
        pixel_aspect: Fraction,
    ):
        self.av = load_av(str(path))
        kind = {".mkv": "matroska", ".mov": "mov"}.get(suffix, "mp4")
        options = {} if suffix == ".mkv" else {"movflags": "+faststart"}
        self.output = self.av.open(f"file:{path}", "w", format=kind, options=options)  # as video.open_video does
        rate = Fraction(fps).limit_denominator(1001) or Fraction(1, 1001)
        self.unit = Fraction(1, rate.numerator * math.ceil(TICKS / rate.numerator))  # so that an even rate is exact
        codec = "libx264" if "libx264" in self.av.codecs_available else "h264"
        # Without B-frames each packet follows the one shown before it, so that its duration is its frame's.
        self.stream = self.output.add_stream(codec, rate=rate, options={"crf": "20", "preset": "veryfast", "bf": "0"})
        self.stream.width, self.stream.height = (side + side % 2 for side in size)
        self.stream.pix_fmt = "yuv420p"
        context = self.stream.codec_context
        context.time_base = self.unit
        context.sample_aspect_ratio = pixel_aspect
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED_RANGE
        self.lengths = {}  # time stamp -> duration, both in units, of the frames that the encoder holds
        self.end = Fraction(0)
        self.input, self.sound, self.waiting = None, iter(()), None
        if sound is not None:
            self.input = open_video(sound[0])
            known = [stream for stream in self.input.streams.audio if stream.codec_context is not None]
            if known:
                self.sound = self._sound(known[0], _beginning(sound[0]) + sound[1])

    def write(self, frame: np.ndarray, start: float, end: float) -> None:
        odd = [(0, side % 2) for side in frame.shape[:2]]
        padded = np.pad(frame, [*odd, (0, 0)], "edge") if (0, 1) in odd else np.ascontiguousarray(frame)
        picture = self.av.VideoFrame.from_ndarray(padded, format="rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709"
        )
        begun, ended = round(start / self.unit), round(end / self.unit)
        picture.pts, picture.time_base = begun, self.unit
        self.lengths[begun], self.end = ended - begun, ended * self.unit
        self._mux(self.stream.encode(picture))
        self._mux_sound(self.end)

    def _mux(self, packets: list) -> None:
        for packet in packets:
            packet.duration = self.lengths.pop(packet.pts)
            self.output.mux(packet)

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
        """Packets of the sound, timed from second `start` of its source: copied, or as AAC at a rate that it has."""
        copied, rate = source.codec_context.name in COPIED_SOUND, source.codec_context.sample_rate
        target = (
            self.output.add_stream_from_template(source)
            if copied
            else self.output.add_stream("aac", rate=rate if rate in AAC_RATES else OTHER_RATE)
        )

        def packets() -> Iterator:
            if start > 0:
                self._seek_sound(source, start)
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

    def _seek_sound(self, source, start: float) -> None:
        """Go to a second of the sound; or to the beginning, if seeking ends behind that second."""
        stamp = max(0, round((start - SOUND_AHEAD) / source.time_base))
        with suppress(self.av.FFmpegError, OSError):
            self.input.seek(stamp, stream=source)
            stamps = (packet.pts for packet in self.input.demux(source))
            first = next((stamp for stamp in stamps if stamp is not None), None)
            late = first is None or first * source.time_base > start
            self.input.seek(0 if late else stamp, stream=source)

    def _decoded(self, source) -> Iterator:
        """Pieces of the sound, without the damaged ones."""
        for packet in self.input.demux(source):
            with suppress(ValueError):
                yield from packet.decode()

    def finish(self) -> None:
        self._mux(self.stream.encode(None))
        self._mux_sound(self.end)

    def close(self) -> None:
        self.sound = iter(())
        if self.input is not None:
            self.input.close()
        self.output.close()


def _beginning(path: str | Path) -> float:
    """The time stamp of a video's first frame in seconds; 0 for a file without one."""
    try:
        return Video(Path(path)).origin
    except MediaError:
        return 0.0


class _Animation:
    """The common part of GIF and WebP: durations that add up to the time although each is a whole number of units."""

    def __init__(self, path: Path, size: tuple[int, int]):
        if max(size) > self.longest:
            raise MediaError(f"{size[0]}x{size[1]} pixels, and sides of this format have at most {self.longest}")
        self.size, self.written = size, 0  # units
        self.file = path.open("wb")
        self.begin()

    def write(self, frame: np.ndarray, start: float, end: float) -> None:
        duration = min(max(1, round(end * self.units) - self.written), self.most)
        self.written += duration
        self.add(Image.fromarray(frame), duration)

    def close(self) -> None:
        self.file.close()


class _Gif(_Animation):
    units, most = 100, (1 << 16) - 1  # durations in hundredths of a second, in two bytes
    longest = (1 << 16) - 1

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
    units, most = 1000, (1 << 24) - 1  # durations in milliseconds, in three bytes
    longest = (1 << 14) - 1

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
        if self.file.tell() + len(content) > (1 << 32) - 16:  # its size stands in four bytes
            raise MediaError("a WebP file holds 4 GiB: write .mp4 instead")
        self.file.write(name + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2))

    def finish(self) -> None:
        size = self.file.tell() - 8
        self.file.seek(4)
        self.file.write(size.to_bytes(4, "little"))
