"""When a frame is shown: its number, time and picture are those of the file, in whichever way it is reached."""

import json
import random
import signal
import struct
import zlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.commands import command, lines
from PIL import Image

from minisam_glue.cli.outputs import VideoOutput
from minisam_glue.media import MediaError, frames
from minisam_glue.media.video import upright
from minisam_glue.media.writer import VideoWriter

CASES = Path(__file__).parent / "cases"
WIDTH, HEIGHT = 64, 48
ROUNDED = 0.0011  # seconds: some containers keep times in whole milliseconds


def picture(number: int) -> np.ndarray:
    """A frame that states its number in eight bars, dark for 0 and bright for 1; a fine slope keeps frames apart."""
    bits = np.array([(number >> bit) & 1 for bit in range(8)])
    bars = np.repeat(40 + 170 * bits, WIDTH // 8)
    return np.broadcast_to(bars[None, :, None], (HEIGHT, WIDTH, 3)).astype(np.uint8)


def number_of(frame: np.ndarray) -> int:
    """The number that `picture` wrote."""
    bars = frame.reshape(frame.shape[0], 8, -1, 3).mean((0, 2, 3))
    return int(sum(1 << bit for bit in range(8) if bars[bit] > 125))


@dataclass
class Clip:
    """A file, and the truth: for each frame that can be decoded the number that was drawn, and its time in seconds.

    A number is None where damage leaves a frame without what it refers to: its picture is then of the decoder's making.
    """

    path: Path
    name: str
    numbers: list[int | None]
    times: list[float]


def same(found: list[int], numbers: list[int | None]) -> bool:
    """Whether frames with the numbers that are known were found."""
    return len(found) == len(numbers) and all(b in (None, a) for a, b in zip(found, numbers))


# container -> codec, options
CODECS = {
    "mp4": ("libx264", {"bf": "2"}),
    "mov": ("libx264", {"bf": "0"}),
    "mkv": ("libx264", {"bf": "3", "flags": "-cgop", "x264-params": "open-gop=1"}),
    "ts": ("libx264", {"bf": "2"}),
    "m2ts": ("mpeg2video", {"bf": "2"}),
    "mpg": ("mpeg2video", {"bf": "2"}),
    "avi": ("mpeg4", {"bf": "0"}),
    "flv": ("libx264", {"bf": "2"}),
    "webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "10", "deadline": "realtime", "cpu-used": "8"}),
}
ANIMATIONS = {"gif": 10, "webp": 1, "png": 1}  # the unit of their delays in milliseconds
KINDS = [*CODECS, *ANIMATIONS]
CONSTANT_RATE = {"mpg", "m2ts", "avi"}  # MPEG-2 and AVI have no other


def draw_animation(path: Path, rng: random.Random) -> Clip:
    """A GIF, WebP or APNG with delays that differ."""
    unit = ANIMATIONS[path.suffix[1:]]
    delays = [unit * rng.choice([2, 5, 7, 33, 200]) for _ in range(rng.randrange(8, 30))]
    first, *later = (Image.fromarray(picture(number)) for number in range(len(delays)))
    options = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=later, duration=delays, **options)
    times = [sum(delays[:number]) / 1000 for number in range(len(delays))]
    return Clip(path, f"{path.suffix[1:]}, uneven", list(range(len(delays))), times)


def write_apng(path: Path, size: tuple[int, int], patches: list[tuple]) -> None:
    """An APNG whose frames are patches of full height: (x, width, colour, disposal, blending, delay in ms)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    width, height = size
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))]
    parts.append(chunk(b"acTL", struct.pack(">II", len(patches), 0)))
    number = 0
    for x, w, colour, disposal, blending, delay in patches:
        control = struct.pack(">IIIIIHHBB", number, w, height, x, 0, delay, 1000, disposal, blending)
        data = zlib.compress((b"\0" + bytes(colour) * w) * height)
        parts.append(chunk(b"fcTL", control))
        parts.append(chunk(b"fdAT", struct.pack(">I", number + 1) + data) if number else chunk(b"IDAT", data))
        number += 2 if number else 1
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b""))


@pytest.mark.parametrize("blending", [0, 1])
def test_an_apng_frame_that_is_taken_back_leaves_nothing_however_it_is_reached(blending, tmp_path):
    red, green, blue, previous = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255), 2
    patches = [
        (0, 60, red, 0, 0, 100),
        (20, 20, green, previous, blending, 100),
        (40, 20, blue, previous, blending, 100),
    ]
    write_apng(tmp_path / "a.png", (60, 20), [*patches, (0, 20, green, 0, blending, 100)])
    rows = [[red, red, red], [red, green, red], [red, red, blue], [green, red, red]]
    wanted = [[list(colour[:3]) for colour in row] for row in rows]
    with frames(tmp_path / "a.png") as source:
        assert [frame[5, [10, 30, 50]].tolist() for frame in source] == wanted
        assert [source[i][5, [10, 30, 50]].tolist() for i in (3, 2, 1, 0, 2)] == [wanted[i] for i in (3, 2, 1, 0, 2)]
    with frames(tmp_path / "a.png", stride=2) as source:
        assert [frame[5, [10, 30, 50]].tolist() for frame in source] == wanted[::2]


def test_the_rate_of_an_animation_is_that_of_all_frames_that_were_read(tmp_path):
    first, *later = (Image.fromarray(picture(number)) for number in range(30))
    delays = [1000] * 10 + [20] * 20
    first.save(tmp_path / "a.webp", save_all=True, append_images=later, duration=delays, lossless=True)
    with frames(tmp_path / "a.webp", stride=2) as source:
        list(source)
        assert source.fps == pytest.approx(30 / sum(delays) * 1000 / 2)


def encode(path: Path, rate: Fraction, stamps: list[Fraction], codec: str, options: dict, gop: int) -> None:
    """A file whose frame k shows `picture(k)` at stamps[k] seconds."""
    fmt = {"m2ts": "mpegts", "ts": "mpegts", "mpg": "mpeg"}.get(path.suffix[1:])
    edited = {"avoid_negative_ts": "disabled", "use_editlist": "1"} if stamps[0] < 0 else {}  # what is before 0 is cut
    with av.open(str(path), "w", format=fmt, options=edited) as output:
        stream = output.add_stream(codec, rate=rate, options=options | {"g": str(gop), "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 400_000
        unit = 1 / rate if path.suffix[1:] in CONSTANT_RATE else Fraction(1, 90000)
        stream.codec_context.time_base = unit
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = round(stamp / unit), unit
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def draw_clip(seed: int, folder: Path) -> Clip:
    """A clip of a container, rate, offset and holes that the seed chooses."""
    rng = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    if kind in ANIMATIONS:
        return draw_animation(folder / f"clip{seed}.{kind}", rng)
    codec, options = CODECS[kind]
    rate = rng.choice([Fraction(25), Fraction(30000, 1001), Fraction(10), Fraction(60)])
    if kind in CONSTANT_RATE:
        rate = rng.choice([Fraction(25), Fraction(30000, 1001)])
    count = rng.randrange(20, 70)
    offset = Fraction(0) if kind == "avi" else rng.choice([0, 0, Fraction(7, 5), Fraction(3600)])
    steps = [Fraction(1)] * count
    uneven = kind not in CONSTANT_RATE and rng.random() < 0.5
    if uneven:
        steps = [Fraction(rng.choice([1, 1, 1, 2, 5, 40])) for _ in range(count)]
    if rng.random() < 0.5 and kind not in CONSTANT_RATE:  # frames that were never written
        steps[rng.randrange(5, count)] += 12
    stamps = [offset + sum(steps[1 : number + 1]) / rate for number in range(count)]
    path = folder / f"clip{seed}.{kind}"
    encode(path, rate, stamps, codec, options, gop=rng.choice([4, 12, 300]))
    drawn = [float(stamp - offset) for stamp in stamps]
    damaged = rng.random() < 0.4 and kind not in ("mpg", "m2ts")  # whose packets are not in one piece in the file
    if damaged:
        spoil(path, rng)
    state = "damaged" if damaged else "whole"
    name = f"{kind}, {float(rate):.2f}/s, from {float(offset)}, {'un' * uneven}even, {state}"
    return Clip(path, name, *(what_is_left(path, drawn) if damaged else (list(range(count)), drawn)))


def spoil(path: Path, rng: random.Random) -> None:
    """Overwrite packets in the middle of a file with zeros, as a rule up to a key frame."""
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size, p.is_keyframe) for p in container.demux(video=0) if p.size and p.pos]
    first = rng.randrange(len(packets) // 3, 2 * len(packets) // 3)
    keys = [at for at in range(first + 1, len(packets)) if packets[at][2]]
    last = keys[0] if keys else first + rng.randrange(1, 8)
    data = bytearray(path.read_bytes())
    for at, size, _ in packets[first:last]:
        data[at + 8 : at + size] = bytes(max(0, size - 8))
    path.write_bytes(data)


def what_is_left(path: Path, drawn: list[float]) -> tuple[list[int | None], list[float]]:
    """Numbers and times of the frames that a decoder which is run from the first packet to the last can decode.

    drawn: when each number is shown.
    """
    numbers, times, first = [], [], None
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            try:
                pictures = packet.decode()
            except av.FFmpegError:
                continue
            for frame in pictures:
                first = frame.time if first is None else first
                times.append(frame.time - first)
                number = min(range(len(drawn)), key=lambda n: abs(drawn[n] - times[-1]))
                assert abs(drawn[number] - times[-1]) < ROUNDED, (path, number, times[-1])
                shown = number_of(frame.to_ndarray(format="rgb24"))
                numbers.append(number if shown == number else None)
    return numbers, times


def check(clip: Clip, rng: random.Random) -> None:
    """Every way to a frame gives its number, time and picture."""
    count = len(clip.numbers)
    with frames(clip.path) as video:
        assert same([number_of(frame) for frame in video], clip.numbers), "forward"
        assert [video.time(index) for index in range(count)] == pytest.approx(clip.times, abs=ROUNDED), "times"
    with frames(clip.path) as video:
        back = [(index, number_of(frame)) for index, frame in video.numbered_backward()]
        assert [index for index, _ in back] == list(range(count))[::-1], "backward"
        assert same([number for _, number in back], clip.numbers[::-1]), "backward"
        times = [video.time(index) for index in range(count)]
        assert times == pytest.approx(clip.times, abs=ROUNDED), "times, backward"
        for index in rng.sample(range(count), 3):
            assert same([number_of(video[index])], [clip.numbers[index]]), "one by one"
    for chosen in rng.sample(range(count), 3):
        stride, start = rng.choice([1, 1, 3]), round(clip.times[chosen], 3)
        with frames(clip.path, start=start, stride=stride) as video:
            assert same([number_of(frame) for frame in video], clip.numbers[chosen::stride]), f"from {start}"
            assert video.time(0) == pytest.approx(clip.times[chosen], abs=ROUNDED), f"time from {start}"
            assert same([number_of(next(video.backward(0)))], [clip.numbers[chosen]]), f"back to {start}"
    stop = rng.randrange(1, count)
    with frames(clip.path) as video:
        reading = video.forward()
        for _ in range(stop):
            next(reading)
        lost = json.loads(json.dumps(video.lost))
    with frames(clip.path) as video:  # another process goes on
        video.forget(lost)
        assert same([number_of(frame) for frame in video.forward(stop)], clip.numbers[stop:]), f"resumed at {stop}"
        assert video.time(stop) == pytest.approx(clip.times[stop], abs=ROUNDED), f"time, resumed at {stop}"
        assert same([number_of(frame) for frame in video.backward(stop - 1)], clip.numbers[:stop][::-1]), "and back"


@pytest.mark.parametrize("seed", range(len(KINDS)))
def test_number_time_and_picture_of_each_frame_are_the_file_s_however_it_is_reached(seed, tmp_path):
    clip = draw_clip(seed, tmp_path)
    check(clip, random.Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
def test_frames_of_thirty_more_clips_are_the_file_s_however_they_are_reached(seed, tmp_path):
    clip = draw_clip(seed, tmp_path)
    check(clip, random.Random(seed))


def cut_and_joined(folder: Path) -> dict[str, Clip]:
    """Recordings that begin in the middle, or are two put together; and a film that is cut by an edit list."""
    rate = Fraction(25)
    stamps = [Fraction(number, 25) for number in range(40)]
    encode(folder / "whole.ts", rate, stamps, "libx264", {"bf": "2"}, gop=12)
    packets = (folder / "whole.ts").read_bytes()
    half = len(packets) // 188 // 2 * 188  # MPEG-TS is made of packets of 188 bytes (ISO/IEC 13818-1)
    (folder / "half.ts").write_bytes(packets[half:])
    (folder / "twice.ts").write_bytes(packets * 2)
    encode(folder / "edited.mp4", rate, [stamp - Fraction(10, 25) for stamp in stamps], "libx264", {"bf": "2"}, gop=12)
    clips = {}
    for name, numbers in (
        ("half.ts", list(range(24, 40))),  # from the first key frame on
        ("twice.ts", [*range(40), *range(40)]),
        ("edited.mp4", list(range(10, 40))),
    ):
        times = [index / 25 for index in range(len(numbers))]
        clips[name] = Clip(folder / name, name, numbers, times)
    return clips


@pytest.mark.parametrize("name", ["half.ts", "twice.ts", "edited.mp4"])
def test_recordings_that_were_cut_or_joined_begin_and_go_on_as_they_are_shown(name, tmp_path):
    check(cut_and_joined(tmp_path)[name], random.Random(0))


def times_of(path: Path, **options) -> list[float]:
    """The times of all frames, in the order in which they come."""
    with frames(path, **options) as video:
        return [video.time(index) for index, _ in enumerate(video)]


def same_pictures(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_uneven_frames_have_the_times_that_the_file_states():
    uneven = times_of(CASES / "time" / "vfr.mp4")
    assert len(uneven) == 20 and uneven[-1] == pytest.approx(2.133, abs=5e-4)
    assert times_of(CASES / "time" / "uneven.gif") == pytest.approx([0, *np.arange(2, 2.51, 0.05)])
    screen = times_of(CASES / "time" / "screen.mp4")
    assert len(screen) == 31 and screen[:3] + screen[-1:] == pytest.approx([0, 3, 3.033, 3.966], abs=5e-4)
    with frames(CASES / "time" / "screen.mp4", start=3) as video:
        first = next(iter(video))
        assert video.time(0) == 3 and np.array_equal(first, frames(CASES / "time" / "screen.mp4")[1])


@pytest.mark.parametrize(
    "start,seconds,expected",
    [(0, 1, [0]), (0, 3, [0]), (0, 3.04, [0, 3, 3.033]), (1, 0.1, [3, 3.033, 3.066]), (3.95, None, [3.966])],
)
def test_start_and_length_are_seconds_of_the_time_stamps(start, seconds, expected):
    path = CASES / "time" / "screen.mp4"
    assert times_of(path, start=start, max_seconds=seconds) == pytest.approx(expected, abs=5e-4)
    with frames(path, start=start, max_seconds=seconds) as video:
        assert len(list(video.backward())) == len(expected)
        assert video.end <= video.time(0) + (seconds or 1) + 5e-4  # as long as the sound then is


def test_frames_behind_a_hole_keep_their_times():
    whole, hole = times_of(CASES / "time" / "ok.mp4"), times_of(CASES / "time" / "hole.mp4")
    assert hole == whole[:20] + whole[30:] and len(whole) == 60
    with frames(CASES / "time" / "hole.mp4") as video:
        assert len(list(video)) == 50 and video.damaged == 10
    with frames(CASES / "time" / "hole.mp4") as video:
        assert [index for index, _ in video.numbered_backward()] == list(range(50))[::-1]


@pytest.mark.parametrize("start", [0.2, 0.76, 1.44])
def test_seeking_in_mpeg_ts_ends_at_the_frame_that_was_meant(start):
    one, other = (frames(CASES / "ts" / name, start=start) for name in ("cam.ts", "cam.mp4"))
    assert one.time(0) == other.time(0) == pytest.approx(start)
    assert same_pictures(one, other)


def test_a_seek_that_ends_late_is_repeated_earlier(monkeypatch):
    """A container that always goes to the last key frame, whatever it is asked for, until it is not asked at all."""
    video = frames(CASES / "ts" / "cam.ts")
    expected = list(video)
    sought = []

    def late(self, container, stream, stamp):
        sought.append(stamp)
        container.seek(144000, stream=stream)
        return True

    monkeypatch.setattr("minisam_glue.media.video.Video._sought", late)
    assert np.array_equal(video[25], expected[25]) and len(sought) > 1 and sought == sorted(sought, reverse=True)


def test_the_film_is_what_a_player_shows_not_its_cover():
    cover, plain = (frames(CASES / "streams" / name) for name in ("cover-first.mp4", "plain.mp4"))
    assert cover.size == (192, 144) and same_pictures(cover, plain) and len(list(plain)) == 8


def test_a_file_that_has_only_a_cover_is_no_film(tmp_path):
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as output:
        cover, sound = output.add_stream("mjpeg", rate=1), output.add_stream("aac", rate=8000)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        frame = av.VideoFrame.from_ndarray(picture(1), format="rgb24").reformat(format="yuvj420p")
        for stream, part in ((cover, frame), (cover, None), (sound, tone(1)), (sound, None)):
            output.mux(stream.encode(part))
    with pytest.raises(MediaError, match="no video in this file"):
        frames(path)


def tone(seconds: float) -> av.AudioFrame:
    """A beep of 20 ms each half second, at 8000 samples a second."""
    at = np.arange(round(8000 * seconds))
    wave = np.where(at % 4000 < 160, np.sin(at / 3) * 12000, 0).astype(np.int16)
    sound = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
    sound.sample_rate, sound.pts = 8000, 0
    return sound


def test_a_mirror_in_the_display_matrix_is_followed(tmp_path):
    stored = tmp_path / "stored.mp4"
    data = bytearray((CASES / "display" / "hflip.mp4").read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the matrix of ISO/IEC 14496-12, 8.3.2
    data[at : at + 4] = (1 << 16).to_bytes(4, "big")
    data[at + 24 : at + 28] = bytes(4)
    stored.write_bytes(data)
    plain, mirrored = frames(stored)[0], frames(CASES / "display" / "hflip.mp4")[0]
    assert np.array_equal(mirrored, plain[:, ::-1]) and not np.array_equal(mirrored, plain)
    upright = frames(CASES / "display" / "r90.mp4")[0].astype(int)  # the same scene, stored on its side
    assert upright.shape == plain.shape and np.abs(upright - plain[:, ::-1]).mean() < 4


@pytest.mark.parametrize(
    "matrix,expected",
    [
        ((1, 0, 0, 1), lambda p: p),
        ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
        ((1, 0, 0, -1), lambda p: p[::-1]),
        ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
        ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
        ((0, -1, 1, 0), lambda p: np.rot90(p)),
        ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda p: np.rot90(p, 2).transpose(1, 0, 2)),
    ],
)
def test_each_of_the_eight_display_matrices_turns_as_its_coordinates_say(matrix, expected):
    scene = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    a, b, c, d = (value << 16 for value in matrix)
    assert np.array_equal(upright(scene, np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30])), expected(scene))


def annotate(source: Path, out: Path, *words: object) -> tuple[list[dict], Path]:
    """The records of each frame, and the annotated video, of a run with small models."""
    assert command(source, "bright.", "--out", out, "--quiet", *words) == 0
    [annotated] = (out / source.stem).glob("annotated.*")
    return lines(out / source.stem / "result.jsonl"), annotated


def beeps(path: Path) -> list[float]:
    """When each beep of `tone` begins, in seconds after the first frame of the film."""
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).time
    found, last = [], -1.0
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            samples = frame.to_ndarray()[0]
            for at in np.flatnonzero(np.abs(samples) > (0.1 if samples.dtype.kind == "f" else 3000)):
                now = frame.time + at / frame.sample_rate - first
                if now - last > 0.1:
                    found.append(now)
                last = now
    return found


def with_beeps(path: Path, stamps: list[Fraction], offset: Fraction) -> None:
    """A film with frames at `stamps` and a beep at 0, 0.5, ... s, both from `offset` on."""
    with av.open(str(path), "w", format={".ts": "mpegts"}.get(path.suffix)) as output:
        film, sound = output.add_stream("libx264", rate=25, options={"g": "8"}), output.add_stream("aac", rate=8000)
        film.width, film.height, film.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        film.codec_context.time_base = Fraction(1, 90000)
        beep = tone(float(stamps[-1]))
        beep.pts, beep.time_base = round(offset * 8000), Fraction(1, 8000)
        packets = [*sound.encode(beep), *sound.encode(None)]
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = round((stamp + offset) * 90000), Fraction(1, 90000)
            packets += film.encode(frame)
        packets += film.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)


@pytest.mark.parametrize(
    "name,offset,words,start",
    [
        ("even.mp4", 0, (), 0.0),
        ("offset.ts", 3600, (), 0.0),
        ("offset.ts", 3600, ("--start", "1.2"), 1.2),
        ("late.mkv", 7, ("--start", "1", "--max-seconds", "1.5"), 1.0),
    ],
)
def test_sound_stays_in_step_with_frames_at_uneven_times(name, offset, words, start, tmp_path):
    source = tmp_path / name
    stamps = [Fraction(0)]
    for number in range(1, 30):
        stamps.append(stamps[-1] + Fraction(1, 25) * random.Random(number).choice([1, 1, 2, 5]))
    with_beeps(source, stamps, Fraction(offset))
    records, annotated = annotate(source, tmp_path / "out", *words)
    shown = [record["time"] - start for record in records]
    assert times_of(annotated) == pytest.approx([time - shown[0] for time in shown], abs=0.002)
    first = records[0]["time"]  # the first frame at or after the start: sound is from there on
    expected = [time - first for time in beeps(source) if first + 0.05 < time < records[-1]["time"]]
    found = [time for time in beeps(annotated) if 0.05 < time < shown[-1] - shown[0]]
    assert len(expected) >= 2 and found == pytest.approx(expected, abs=0.03)


def test_the_annotated_video_keeps_length_and_sound_of_an_uneven_one(tmp_path):
    source = CASES / "time" / "vfr.mp4"
    records, annotated = annotate(source, tmp_path)
    assert [record["time"] for record in records] == pytest.approx(times_of(source), abs=1e-4)
    assert times_of(annotated) == pytest.approx(times_of(source), abs=0.001)
    with av.open(str(annotated)) as new, av.open(str(source)) as old:
        kept, given = ([bytes(p) for p in file.demux(audio=0) if p.size and p.pts >= 0] for file in (new, old))
        assert kept == given and len(kept) == 36  # without the one before 0, which only prepares the decoder


def test_the_annotated_gif_keeps_each_frame_s_delay(tmp_path):
    source = CASES / "time" / "uneven.gif"
    _, annotated = annotate(source, tmp_path)
    assert delays(annotated) == delays(source) == [2000] + [50] * 11


def delays(path: Path) -> list[int]:
    with Image.open(path) as image:
        found = []
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            found.append(image.info["duration"])
    return found


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.gif", "a.webp"])
def test_what_is_written_at_uneven_times_is_read_at_them(name, tmp_path):
    times = [0, 0.5, 0.52, 3, 3.25, 3.3]
    with VideoWriter(tmp_path / name, 25, (WIDTH, HEIGHT)) as writer:
        for number, time in enumerate(times):
            writer.write(picture(number), 100 + time)
        writer.close(104)
    with frames(tmp_path / name) as video:
        assert [number_of(frame) for frame in video] == list(range(6))
        assert [video.time(index) for index in range(6)] == pytest.approx(times, abs=0.002)
        assert video.end == pytest.approx(4, abs=0.06 if name == "a.mkv" else 0.002)


def test_the_annotated_video_has_the_pixels_of_its_source(tmp_path):
    _, annotated = annotate(CASES / "display" / "sar.mp4", tmp_path)
    with av.open(str(annotated)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (192, 144) and stream.display_aspect_ratio == Fraction(16, 9)


def test_mpeg_ts_gives_the_records_of_the_same_frames_in_mp4_from_a_seed_frame_both_ways(tmp_path):
    results = []
    for name in ("cam.ts", "cam.mp4"):
        words = ("--seed-frame", "5", "--direction", "both", "--start", "0.8", "--format", "gif")
        records, _ = annotate(CASES / "ts" / name, tmp_path / name, *words)
        results.append(records)
    assert results[0] == results[1] and [record["frame"] for record in results[0]] == list(range(20))
    assert results[0][0]["time"] == 0.8


def test_an_interrupted_run_on_a_film_with_a_hole_goes_on_with_the_same_numbers(tmp_path, monkeypatch):
    source = CASES / "time" / "hole.mp4"
    whole, _ = annotate(source, tmp_path / "whole", "--format", "gif")
    add, after = VideoOutput.add, 30

    def stop(self, result):
        record = add(self, result)
        if result.frame == after:
            signal.raise_signal(signal.SIGINT)
        return record

    monkeypatch.setattr(VideoOutput, "add", stop)
    words = [source, "bright.", "--out", tmp_path / "stopped", "--quiet", "--format", "gif"]
    assert command(*words) == 130
    monkeypatch.setattr(VideoOutput, "add", add)
    resumed, annotated = annotate(source, tmp_path / "stopped", "--format", "gif", "--resume")
    assert resumed == whole and [record["time"] for record in whole] == times_of(source)
    assert annotated.read_bytes() == (tmp_path / "whole" / "hole" / "annotated.gif").read_bytes()


def test_a_camera_s_frames_have_the_times_at_which_it_took_them(tmp_path, monkeypatch):
    view, real = CASES / "time" / "vfr.mp4", av.open
    devices = ("v4l2", "avfoundation", "dshow")
    monkeypatch.setattr(av, "open", lambda file, format=None, **options: real(str(view) if format in devices else file))
    taken = times_of(view)
    assert times_of("camera:0") == pytest.approx(taken)
    assert times_of("camera:0", start=0.25, max_seconds=0.5) == pytest.approx([t for t in taken if 0.25 <= t < 0.75])


def test_a_picture_for_those_who_see_no_animation_is_not_part_of_it(tmp_path):
    path = tmp_path / "a.png"
    first, *later = (Image.fromarray(picture(number)) for number in range(4))
    first.save(path, save_all=True, append_images=later, duration=[100, 300, 200], default_image=True)
    with frames(path) as video:
        assert [number_of(frame) for frame in video] == [1, 2, 3] and video.count == 3
    assert times_of(path) == pytest.approx([0, 0.1, 0.4])


@pytest.mark.parametrize("start", [0, 0.4])
def test_another_process_numbers_the_frames_behind_a_hole_in_the_same_way(start):
    path = CASES / "time" / "hole.mp4"
    with frames(path, start=start) as video:
        expected = list(video)
    with frames(path, start=start) as video:
        reading = video.forward()
        for _ in range(len(expected) - 6):  # beyond the hole
            next(reading)
        lost = video.lost
    with frames(path, start=start) as video:
        video.forget(lost)
        assert len(lost) == 10 and same_pictures(video.forward(len(expected) - 6), expected[-6:])
        assert video.time(len(expected) - 1) == pytest.approx(59 / 25)


def test_packets_that_are_not_shown_are_not_counted(tmp_path):
    """VP8 has frames that others only refer to: here each key frame comes twice, first with its `show` bit off."""
    shown = tmp_path / "shown.webm"
    encode(shown, Fraction(25), [Fraction(n, 25) for n in range(20)], "libvpx", {}, gop=5)
    path = tmp_path / "hidden.webm"
    with av.open(str(shown)) as source, av.open(str(path), "w") as output:
        target = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size and packet.is_keyframe and packet.pts:
                data = bytearray(bytes(packet))
                data[0] &= 0xEF
                copy = av.Packet(bytes(data))
                copy.pts = copy.dts = packet.pts - 10
                copy.time_base, copy.stream, copy.is_keyframe = packet.time_base, target, True
                output.mux(copy)
            if packet.size:
                packet.stream = target
                output.mux(packet)
    check(Clip(path, "hidden", list(range(20)), [n / 25 for n in range(20)]), random.Random(0))
    with frames(path) as video:
        assert number_of(video[17]) == 17  # sought before anything else is read
