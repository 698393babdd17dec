"""Video files, in, by PyAV (the extra `cli`): which stream is the film, its time stamps, seeking, turning upright.

FFmpeg may open only the containers below: others are lists that name further files and addresses (HLS, concat, SDP),
or text that it would paint letter by letter.

Frames are numbered in the order in which they are shown, as far as they can be decoded. Reading from the start needs no
index. Anything else uses the time stamps of all packets, which are read once, without decoding. Where these are
missing or out of order, frames are counted from the start each time.
"""

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..pixels import on_white
from .images import reason
from .limits import MAX_PIXELS, MediaError, ReadError, is_read_error, load_av
from .reader import TOLERANCE, Reader, Timed, every, resized

DEFAULT_FPS = 25.0  # of sources that state no rate
CONTAINERS = (
    "mov,matroska,webm,avi,mpeg,mpegts,asf,flv,ogg,mxf,nut,rm,dv,ivf,obu,h264,hevc,m4v,mpegvideo,mjpeg,"
    "yuv4mpegpipe"
)  # FFmpeg's names; mov is mp4 too
SIGNED = {"mov", "matroska", "avi", "asf", "flv", "ogg", "mxf", "mpegts"}  # those whose files begin with a signature
NOT_THE_FILM = ("attached_pic", "timed_thumbnails", "still_image", "dependent")  # FFmpeg's dispositions
VP8_SHOWN = 0x10  # bit 4 of a VP8 frame's first byte (RFC 6386, section 9.1): 0 for a frame that is only referred to
STATED = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", re.ASCII)  # the tag DURATION of Matroska's writers
EARLIER = (0, 1, 4, 16, 64)  # seconds before a key frame: further back each time its packet is missed


class Entry(NamedTuple):
    """A key frame's packet, where decoding can begin: presentation and decoding time stamp."""

    pts: int
    dts: int


def open_video(path: str | Path):
    """PyAV's container of a video file, as a context manager. PyAV's errors, OSError."""
    # "file:" because a name like a:b.mp4 is an address to FFmpeg otherwise
    # container_options, because some versions of PyAV crash if a program stream gets `options`
    return load_av(str(path)).open(f"file:{path}", container_options={"format_whitelist": CONTAINERS})


def is_video(path: str | Path) -> bool:
    """Whether FFmpeg knows the file by its content, and it has a film."""
    try:
        with open_video(path) as container:
            return bool(SIGNED & set(container.format.name.split(","))) and film_stream(container) is not None
    except Exception:  # no video, or a damaged one
        return False


def film_stream(container):
    """The stream that a player shows, or None: no cover, thumbnails or tiles; the default one, else the largest."""
    kinds = type(container.streams.video[0].disposition) if container.streams.video else ()
    hidden = [getattr(kinds, name) for name in NOT_THE_FILM if hasattr(kinds, name)]
    films = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not any(stream.disposition & kind for kind in hidden)
    ]
    return max(films, key=lambda s: (bool(s.disposition & kinds.default), s.width * s.height), default=None)


def upright(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(H, W, 3) as the display matrix [a, b, u, c, d, v, x, y, w] of ISO/IEC 14496-12, 8.3.2, turns and mirrors it.

    The pixel (x, y) goes to (a x + c y, b x + d y); other angles than right ones become the nearest of them.
    """
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(b) + abs(c) > abs(a) + abs(d):
        picture, across, down = picture.transpose(1, 0, 2), c, b
    else:
        across, down = a, d
    return picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


class Video(Reader):
    """A video file; each `read` opens it anew, so that several can go on at once. MediaError if it has no film."""

    def __init__(self, path: Path):
        self.name, self.path, self.size = str(path), path, None
        self.stamps: list[int] = []  # of the frames, in the stream's units: those read from the start, or all of them
        self.entries: list[Entry] = []
        self.scanned, self.checked, self.indexed, self._lost = False, False, True, set()
        self.broken: set[tuple] = set()  # places of the pieces that could not be decoded
        self.av = load_av(self.name)
        try:
            with open_video(path) as container:
                stream = film_stream(container)
                if stream is None:
                    raise MediaError(f"{path}: no video in this file")
                self.unit = stream.time_base or Fraction(1, 90000)
                self.fps = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
                self.count = stream.frames or None
                aspect = stream.sample_aspect_ratio
                self.ends = (stream.start_time or 0) + stream.duration if stream.duration else None  # in units
                self.due = self._due(container, stream)
        except OSError as error:
            raise MediaError(f"{path}: {reason(error)}") from error
        except (self.av.FFmpegError, ValueError) as error:
            if isinstance(error, MediaError):
                raise
            raise MediaError(f"{path}: not a video in a known format, or damaged") from error
        self.step = max(1, round(1 / (self.fps * self.unit)))  # units from frame to frame, where nothing is stated
        first = next(self._frames(None), None)
        if first is None:
            raise MediaError(f"{path}: damaged, not one frame can be decoded")
        stamp, frame = first
        self.stamps.append(stamp)
        matrix = _display_matrix(frame)
        self.size = self._to_rgb(frame).shape[1::-1]
        if aspect and 0.1 < aspect < 10:
            turned = abs(int(matrix[1])) > abs(int(matrix[0]))
            self.pixel_aspect = 1 / aspect if turned else aspect

    def time(self, number: int) -> float:
        if number >= len(self.stamps):
            self._scan()
        if number >= len(self.stamps):
            self._count()
        return self._seconds(self.stamps[number])

    def _seconds(self, stamp: int) -> float:
        return float((stamp - self.stamps[0]) * self.unit)

    def _due(self, container, stream) -> int | None:
        """The time stamp at which the film should end, by what its file states."""
        if container.format.name == "avi" and stream.frames:  # FFmpeg guesses the rest from the size of the file
            return round(stream.frames / (stream.guessed_rate or DEFAULT_FPS) / self.unit)
        if self.ends is not None:
            return self.ends
        tag = STATED.fullmatch(stream.metadata.get("DURATION", ""))
        if tag:
            hours, minutes, seconds = tag.groups()
            return round((3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)) / self.unit)
        if container.duration and len(container.streams) == 1:  # else that of the whole file may be the sound's
            return round(Fraction((container.start_time or 0) + container.duration, 1_000_000) / self.unit)
        return None

    @property
    def origin(self) -> float:
        """The first frame's own time stamp in seconds, as the sound's are counted."""
        return float(self.stamps[0] * self.unit)

    def first_from(self, seconds: float) -> int:
        if seconds <= TOLERANCE:
            return 0
        self._scan()
        least = self.stamps[0] + (seconds - TOLERANCE) / self.unit
        if not self.indexed:
            self._count(least)
        return bisect_left(self.stamps, least)

    def read(self, first: int, stride: int) -> Iterator[Timed]:
        if first:
            self._scan()
        if not (first and self.indexed):
            frames = self._after(first)
        elif first < len(self.stamps):
            frames = self._from(self.stamps[first])
        else:
            return
        for timed in every(stride, self._timed(frames, first)):
            yield timed._replace(picture=self._to_rgb(timed.picture))

    def _timed(self, frames: Iterator[tuple[int, object]], first: int) -> Iterator[Timed]:
        """Frames with their times, as PyAV has them; how long the last one is shown, which no next one tells."""
        number, gap = first, self.step
        for stamp, frame in frames:
            self._note(number, stamp)
            if number > first:
                gap = stamp - self.stamps[number - 1]
            left = self.ends - stamp if self.ends is not None and self.ends > stamp else gap
            yield Timed(self._seconds(stamp), float(left * self.unit), frame)
            number += 1
        self._note_end(number)

    def _note(self, number: int, stamp: int) -> None:
        """Frame `number` has this time stamp: those that the index has before it could not be decoded."""
        if number < len(self.stamps):
            at = bisect_left(self.stamps, stamp, number)
            self._lost.update(self.stamps[number:at])
            del self.stamps[number:at]
        if number == len(self.stamps) or self.stamps[number] != stamp:
            self.stamps.insert(number, stamp)

    def _note_end(self, count: int) -> None:
        """Note the number of frames: those that the index has after them could not be decoded."""
        self._lost.update(self.stamps[count:])
        del self.stamps[count:]

    # --- Decoding --------------------------------------------------------------------------------------------------

    def _frames(self, entry: Entry | None) -> Iterator[tuple[int, object]]:
        """(time stamp, frame) in the order of display, from a key frame or (None) the start, stamps ever increasing."""
        last, length = None, 0
        for frame in self._decoded(entry):
            stamp, length = frame.pts, frame.duration or self.step
            if stamp is None or (last is not None and stamp <= last):
                self.indexed = False
                stamp = 0 if last is None else last + self.step
            last = stamp
            yield stamp, frame
        if last is not None and self.due is not None and self.due - last > length + 2 * self.step:
            self.cut_off = self._seconds(self.due), self._seconds(last + length)

    def _after(self, count: int) -> Iterator[tuple[int, object]]:
        """Frames as `_frames` has them, without the first `count`, which are decoded all the same."""
        for number, (stamp, frame) in enumerate(self._frames(None)):
            if number < count:
                self._note(number, stamp)
            else:
                yield stamp, frame

    def _from(self, stamp: int) -> Iterator[tuple[int, object]]:
        """Frames as `_frames` has them, from this time stamp on, or the next one that can be decoded.

        A key frame may open a passage whose first frames can't be decoded without what precedes it. So the first
        time stamp is looked at, and if it lies late, decoding begins at an earlier key frame, at last at the start.
        """
        place = bisect_right(self.entries, stamp, key=lambda entry: entry.pts)
        back = 1
        while True:
            entry = self.entries[place - back] if back <= place else None
            frames = self._frames(entry)
            found = next(((s, frame) for s, frame in frames if s >= stamp), None)
            if entry is None or (found is not None and found[0] == stamp):
                break
            frames.close()
            back *= 2
        if found is not None:
            yield found
            yield from frames

    def _decoded(self, entry: Entry | None) -> Iterator:
        """Frames in the order of display; a packet that can't be decoded is counted and left out."""
        packets = self._packets(entry)
        try:
            while True:
                try:
                    packet = next(packets, None)
                    if packet is None:
                        return
                    decoded = packet.decode()
                except self.av.error.InvalidDataError:
                    self.broken.add((packet.pts, packet.dts, packet.pos))
                    continue
                except self.av.error.EOFError:
                    return
                except (self.av.FFmpegError, OSError) as error:
                    self._end_early(error)
                    return
                yield from decoded
        finally:
            packets.close()

    def _end_early(self, error: Exception) -> None:
        """Count the damage behind which nothing can be read. ReadError if it is none: the rest may be whole."""
        if is_read_error(error):
            raise ReadError(f"{self.name}: {reason(error)}") from error
        self.broken.add(("the end",))

    @property
    def damaged(self) -> int:
        """The pieces that could not be decoded, each once, however often it was tried."""
        return len(self.broken)

    def _packets(self, entry: Entry | None) -> Iterator:
        """The film's packets from a key frame's on, or (None) all.

        Seeking may end behind that packet, in MPEG-TS for instance; then further ahead, at last nowhere, is sought.
        """
        for seconds in (*EARLIER, None) if entry else (None,):
            with self._opened() as container:
                stream = film_stream(container)
                stream.thread_type = "AUTO"
                if seconds is not None and not self._sought(container, stream, min(entry) - round(seconds / self.unit)):
                    continue
                begun = entry is None
                for packet in container.demux(stream):
                    if not begun and seconds is not None and _behind(packet, entry):
                        break
                    begun = begun or (packet.pts, packet.dts) == entry
                    if begun:
                        yield packet
                if begun:
                    return

    def _opened(self):
        """The file once more. ReadError if it can't be opened now: it could before, and so it is not damaged."""
        try:
            return open_video(self.path)
        except (self.av.FFmpegError, OSError) as error:
            raise ReadError(f"{self.name}: {reason(error)}") from error

    def _sought(self, container, stream, stamp: int) -> bool:
        try:
            container.seek(stamp, stream=stream)
        except (self.av.FFmpegError, OSError):  # some formats have no seeking
            return False
        return True

    def _to_rgb(self, frame) -> np.ndarray:
        if frame.width * frame.height > MAX_PIXELS:
            raise MediaError(f"{self.name}: {frame.width}x{frame.height} pixels are more than {MAX_PIXELS}")
        alpha = any(component.is_alpha for component in frame.format.components)
        pixels = on_white(frame.to_ndarray(format="rgba")) if alpha else frame.to_ndarray(format="rgb24")
        turned = upright(pixels, _display_matrix(frame))
        if self.size not in (None, turned.shape[1::-1]):  # the size changes in the middle
            turned = resized(turned, self.size)
        return np.ascontiguousarray(turned)

    # --- The index -------------------------------------------------------------------------------------------------

    def _scan(self) -> None:
        """Learn the time stamps of all frames from the packets, if those tell them; `indexed` says so."""
        if self.scanned:
            return
        packets = []
        try:
            for packet in self._packets(None):
                if packet.size:
                    packets.append((packet.pts, packet.dts, packet.is_keyframe, self._shown(packet)))
        except (self.av.FFmpegError, OSError) as error:
            self._end_early(error)
        self.scanned = True
        self.entries = sorted({Entry(pts, dts) for pts, dts, key, _ in packets if key and None not in (pts, dts)})
        stamps, decoding = [pts for pts, _, _, shown in packets if shown], [dts for _, dts, _, _ in packets]
        self.indexed = (
            self.indexed
            and None not in stamps + decoding
            and len(set(stamps)) == len(stamps)
            and all(one < next_ for one, next_ in zip(decoding, decoding[1:]))
        )
        if self.indexed:
            known = set(self.stamps)
            self._lost = {stamp for stamp in stamps if self.stamps[0] < stamp < self.stamps[-1]} - known
            self.stamps += sorted(stamp for stamp in stamps if stamp > self.stamps[-1])
            self.count = len(self.stamps)

    def _count(self, least: float = math.inf) -> None:
        """Learn the time stamps by decoding from the start, up to the first frame of at least that one."""
        for number, (stamp, _) in enumerate(self._frames(None)):
            self._note(number, stamp)
            if stamp >= least:
                return
        self.count = len(self.stamps)

    def _shown(self, packet) -> bool:
        if packet.is_discard:  # before the beginning of an edit list
            return False
        return packet.stream.codec_context.name != "vp8" or bool(bytes(packet)[0] & VP8_SHOWN)

    def lacks(self, number: int) -> bool:
        if self.count is not None and number < self.count:
            return False
        self._scan()
        return self.indexed and number >= len(self.stamps)

    def exact_count(self, first: int = 0) -> int:
        self._scan()
        if not self.indexed and not self.checked:
            self._count()
        elif not self.checked:
            number = first
            for stamp, _ in self._from(self.stamps[first]) if first else self._frames(None):
                self._note(number, stamp)
                number += 1
            self._note_end(number)
        self.checked, self.count = True, len(self.stamps)
        return len(self.stamps)

    @property
    def lost(self) -> list[int] | None:
        try:
            self._scan()
        except ReadError:  # without an index frames are counted from the start
            return None
        return sorted(self._lost) if self.indexed else None

    def forget(self, lost: list[int] | None) -> None:
        self.indexed = self.indexed and lost is not None
        self._scan()
        self._lost.update(lost or ())
        self.stamps = [stamp for stamp in self.stamps if stamp not in self._lost]


def _behind(packet, entry: Entry) -> bool:
    return packet.dts is not None and packet.dts > entry.dts


def _display_matrix(frame) -> np.ndarray:
    """Nine numbers, see `upright`; those of a frame that states none leave it as it is."""
    stated = frame.side_data.get("DISPLAYMATRIX")
    return np.array([1, 0, 0, 0, 1, 0, 0, 0, 1]) if stated is None else np.frombuffer(bytes(stated), np.int32)
