"""Reading and writing pictures and moving pictures; the frames carry their number, so that order is visible."""

import io
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from helpers import damage
from helpers.picture_cases import png_of_16_bits
from PIL import Image

from minisam_glue import media
from minisam_glue.media import (
    MediaError,
    ReadError,
    expand_inputs,
    frames,
    images,
    is_moving,
    read_image,
    sources,
    video,
)
from minisam_glue.media.writer import VideoWriter

WIDTH, HEIGHT, FPS = 48, 32, 10


def numbered(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A frame whose brightness is its number times 8."""
    return np.full((height, width, 3), index * 8, np.uint8)


def number_of(frame: np.ndarray) -> int:
    return round(float(frame.mean()) / 8)


def numbers(pictures) -> list[int]:
    return [number_of(frame) for frame in pictures]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    """The same 30 frames as a video with few key frames, an animation of each kind and a folder."""
    root = tmp_path_factory.mktemp("clips")
    paths = {
        kind: root / name
        for kind, name in {"mp4": "a.mp4", "mkv": "a.mkv", "gif": "a.gif", "webp": "a.webp", "folder": "frames"}.items()
    }
    for path in paths.values():
        with VideoWriter(path, FPS, (WIDTH, HEIGHT)) as writer:
            for index in range(30):
                writer.write(numbered(index))
    return paths


KINDS = ["mp4", "mkv", "gif", "webp", "folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back_in_order(clips, kind):
    with frames(clips[kind], fps=FPS) as clip:
        assert (clip.size, clip.fps, clip.seekable) == ((WIDTH, HEIGHT), FPS, True)
        assert clip.count == (None if kind == "mkv" else 30)
        assert numbers(clip) == list(range(30)) == numbers(clip)
        first = next(iter(clip))
    assert first.dtype == np.uint8 and first.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_start_stride_and_length_choose_the_same_frames_everywhere(clips, kind):
    clip = frames(clips[kind], start=0.5, stride=3, max_seconds=1.5, fps=FPS)
    assert numbers(clip) == [5, 8, 11, 14, 17]
    assert numbers(clip.forward(2)) == [11, 14, 17]
    assert numbers(reversed(clip)) == [17, 14, 11, 8, 5] and numbers(clip.backward(1)) == [8, 5]
    assert number_of(clip[4]) == 17 and clip.count in (5, None) and clip.fps == pytest.approx(FPS / 3)
    with pytest.raises(IndexError):
        clip[5]


@pytest.mark.parametrize("kind", KINDS)
def test_any_frame_is_read_from_any_place_and_backward(clips, kind):
    clip = frames(clips[kind])
    assert [number_of(clip[index]) for index in (29, 0, 13, 12, 28)] == [29, 0, 13, 12, 28]
    assert numbers(reversed(clip)) == list(range(30))[::-1]
    with pytest.raises(IndexError):
        clip[30]


def test_seeking_among_key_frames_is_exact_and_spares_decoding(tmp_path, monkeypatch):
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options={"g": "12", "bf": "3", "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(100):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(index % 30), format="rgb24")))
        output.mux(stream.encode(None))
    clip, decoded = frames(tmp_path / "a.mp4"), []
    decode = video.Video._decoded
    monkeypatch.setattr(video.Video, "_decoded", lambda *args: (decoded.append(1) or f for f in decode(*args)))
    assert [number_of(clip[index]) for index in (99, 11, 12, 13, 60, 59)] == [9, 11, 12, 13, 0, 29]
    assert len(decoded) < 200 and numbers(clip.backward(73)) == [index % 30 for index in range(73, -1, -1)]


def test_ffmpeg_is_kept_from_logging_which_can_lock_up(clips):
    av.logging.set_level(av.logging.INFO)
    frames(clips["mp4"])
    assert av.logging.get_level() is None


def test_beyond_the_end_is_an_error_not_an_empty_result(clips):
    for kind in ("mp4", "gif", "folder"):
        with pytest.raises(MediaError, match="no frame at or after 99"):
            frames(clips[kind], start=99)
    for wrong in (
        {"stride": 0},
        {"start": -1},
        {"max_seconds": 0},
        {"start": float("nan")},
        {"start": float("inf")},
        {"max_seconds": float("inf")},
        {"max_seconds": float("nan")},
        {"stride": 10**30},
    ):
        with pytest.raises(MediaError, match="must be at least 0"):
            frames(clips["mp4"], **wrong)
    assert numbers(frames(clips["mp4"], max_seconds=1e-9)) == [0]


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_video_may_have_as_long_a_name_as_the_system_allows(suffix, tmp_path):
    path = tmp_path / ("v" * 240 + suffix)
    with VideoWriter(path, 10, (32, 16)) as writer:
        writer.write(numbered(20, 32, 16))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_video_is_h264_yuv420p_with_its_index_in_front_and_even_sides(tmp_path):
    path = tmp_path / "odd.mp4"
    with VideoWriter(path, 30000 / 1001, (33, 17)) as writer:
        writer.write(numbered(20, 33, 17))
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.width, stream.height) == ("h264", "yuv420p", 34, 18)
        assert float(stream.average_rate) == pytest.approx(30000 / 1001)


def test_colours_survive_the_video(tmp_path):
    path, colours = tmp_path / "c.mp4", np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [230, 159, 0]], np.uint8)
    frame = np.repeat(np.repeat(colours[None], 32, 0), 32, 1)
    with VideoWriter(path, 5, (128, 32)) as writer:
        writer.write(frame)
    read = frames(path)[0][16, 16::32].astype(int)
    assert np.abs(read - colours).max() <= 12


@pytest.mark.parametrize("codec,kind", [("qtrle", "argb"), ("prores_ks", "yuva444p10le"), ("png", "rgba")])
def test_transparency_of_a_video_is_laid_on_white_as_that_of_a_picture(tmp_path, codec, kind):
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[8:24, 8:24], pixels[:, :4] = (255, 0, 0, 255), (0, 0, 255, 128)
    with av.open(str(tmp_path / "a.mov"), "w") as output:
        stream = output.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, kind
        for picture in (av.VideoFrame.from_ndarray(pixels, format="rgba"), None):
            output.mux(stream.encode(picture))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    [frame] = frames(tmp_path / "a.mov")
    for row, column in ((16, 16), (28, 28), (16, 1)):
        expected = read_image(tmp_path / "a.png")[row, column].astype(int)
        assert np.abs(frame[row, column] - expected).max() <= 6


def with_sound(path: Path, codec: str, rate: int = 8000) -> Path:
    """Two seconds of numbered video with a tone of rate / 10 pi Hz."""
    with av.open(str(path), "w") as output:
        video, sound = output.add_stream("libx264", rate=FPS), output.add_stream(codec, rate=rate)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(2 * FPS):
            output.mux(video.encode(av.VideoFrame.from_ndarray(numbered(index), format="rgb24")))
        tone = av.AudioFrame.from_ndarray(
            (np.sin(np.arange(2 * rate) / 5) * 9000).astype(np.int16)[None], format="s16", layout="mono"
        )
        tone.sample_rate, tone.pts = rate, 0
        for stream, last in ((sound, tone), (sound, None), (video, None)):
            output.mux(stream.encode(last))
    return path


@pytest.mark.parametrize(
    "codec,suffix,start,seconds",
    [("aac", "mp4", 0.0, 2.0), ("aac", "mp4", 1.0, 1.0), ("aac", "mp4", 0.5, 0.5), ("pcm_s16le", "mov", 0.0, 2.0)],
)
def test_sound_is_kept_and_in_step(tmp_path, codec, suffix, start, seconds):
    source, path = with_sound(tmp_path / f"source.{suffix}", codec), tmp_path / "out.mp4"
    clip = frames(source, start=start, max_seconds=seconds)
    with VideoWriter(path, clip.fps, clip.size, audio_from=source, audio_start=start) as writer:
        for frame in clip:
            writer.write(frame)
    with av.open(str(path)) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
        sound = list(container.decode(audio=0))
    heard = np.concatenate([frame.to_ndarray()[0] for frame in sound])
    assert abs(sound[0].time) < 0.15 and abs(len(heard) / 8000 - seconds) < 0.3 and np.abs(heard).max() > 0.1


@pytest.mark.parametrize("rate", [11_000, 37_800, 192_000])
def test_sound_of_a_rate_that_aac_does_not_have_is_resampled_and_keeps_its_pitch_and_length(tmp_path, rate):
    source, path = with_sound(tmp_path / "source.mov", "pcm_s16le", rate), tmp_path / "out.mp4"
    with VideoWriter(path, FPS, (WIDTH, HEIGHT), audio_from=source) as writer:
        for frame in frames(source):
            writer.write(frame)
    with av.open(str(path)) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        assert container.streams.audio[0].codec_context.sample_rate == 48_000
    assert abs(len(heard) / 48_000 - 2) < 0.1
    loudest = np.abs(np.fft.rfft(heard)).argmax() * 48_000 / len(heard)
    assert loudest == pytest.approx(rate / (10 * np.pi), rel=0.01)


def test_sound_of_a_silent_video_is_none(clips, tmp_path):
    with VideoWriter(tmp_path / "out.mp4", FPS, (WIDTH, HEIGHT), audio_from=clips["mp4"]) as writer:
        writer.write(numbered(1))
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not container.streams.audio


def test_a_turned_video_is_read_upright(tmp_path):
    path = tmp_path / "phone.mp4"
    frame = numbered(0)
    frame[:16, :16] = 255  # a bright corner, top left
    with VideoWriter(path, FPS, (WIDTH, HEIGHT)) as writer:
        writer.write(frame)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the matrix of ISO/IEC 14496-12, 8.3.2: now a quarter turn to the right
    matrix = [0, 1 << 16, 0, (1 << 32) - (1 << 16), 0, 0, HEIGHT << 16, 0, 1 << 30]
    data[at : at + 36] = b"".join(value.to_bytes(4, "big") for value in matrix)
    path.write_bytes(data)
    clip = frames(path)
    assert clip.size == (HEIGHT, WIDTH)
    assert clip[0][8, -8].min() > 200 and clip[0][8, 8].max() < 60 and clip[0][-8, -8].max() < 60


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "folder"])
def test_no_frame_or_a_failure_leaves_no_file_and_keeps_an_older_one(tmp_path, name):
    with pytest.raises(MediaError, match="no frame was written"):
        VideoWriter(tmp_path / name, FPS, (WIDTH, HEIGHT)).close()
    if name != "folder":
        (tmp_path / name).write_bytes(b"older")
        with pytest.raises(KeyError), VideoWriter(tmp_path / name, FPS, (WIDTH, HEIGHT)) as writer:
            writer.write(numbered(1))
            raise KeyError
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_bytes() == b"older"


def test_a_place_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for name in ("a.mp4", "a.gif", "frames"):
        with pytest.raises(MediaError, match="file.*can't be written"):
            VideoWriter(tmp_path / "file" / name, FPS, (WIDTH, HEIGHT))
    with pytest.raises(MediaError, match="can't write .xyz files"):
        VideoWriter(tmp_path / "a.xyz", FPS, (WIDTH, HEIGHT))
    with VideoWriter(tmp_path / "a.gif", FPS, (WIDTH, HEIGHT)) as writer:
        writer.write(numbered(0))
        with pytest.raises(ValueError, match="a frame for"):
            writer.write(numbered(0)[:-1])


@pytest.mark.parametrize("name,tolerance", [("a.mp4", 3), ("a.gif", 8), ("a.webp", 4), ("frames", 0)])
def test_pictures_survive_writing(tmp_path, name, tolerance):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    made = [np.stack((rows * 7, columns * 5, (rows + columns) * 2 + shift), 2).astype(np.uint8) for shift in (0, 60)]
    with VideoWriter(tmp_path / name, FPS, (WIDTH, HEIGHT)) as writer:
        for frame in made:
            writer.write(frame)
    for frame, read in zip(made, frames(tmp_path / name), strict=True):
        assert np.abs(frame.astype(int) - read).mean() <= tolerance


@pytest.mark.parametrize("name, side, most", [("a.gif", 70_000, "65535"), ("a.webp", 20_000, "16383")])
def test_an_animation_too_large_for_its_format_is_refused_at_once(tmp_path, name, side, most):
    with pytest.raises(MediaError, match=f"{name}: can't be written: {side}x8 pixels, .* at most {most}"):
        VideoWriter(tmp_path / name, 10, (side, 8))
    assert not list(tmp_path.iterdir())


def test_a_webp_of_more_than_four_gibibytes_is_told(tmp_path):
    writer = VideoWriter(tmp_path / "a.webp", 30, (WIDTH, HEIGHT))
    writer.write(numbered(0))
    writer.encoder.file.seek((1 << 32) - 20)
    with pytest.raises(MediaError, match="4 GiB: write .mp4"):
        writer.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_durations_of_an_animation_add_up_to_its_rate(tmp_path, name):
    with VideoWriter(tmp_path / name, 30, (WIDTH, HEIGHT)) as writer:
        for index in range(30):
            writer.write(numbered(index))
    total = 0
    with Image.open(tmp_path / name) as image:
        for index in range(30):
            image.seek(index)
            image.load()
            total += image.info["duration"]
    assert total == 1000


def test_reading_and_writing_animations_needs_no_pyav(clips):
    program = (
        "import sys; sys.modules['av'] = None\n"
        "from minisam_glue.media import MediaError, frames; from minisam_glue.media.writer import VideoWriter\n"
        f"assert len(list(frames({str(clips['gif'])!r}))) == 30\n"
        f"for act in (lambda: frames({str(clips['mp4'])!r}), lambda: VideoWriter('x.mp4', 1, (2, 2)),\n"
        "            lambda: frames('camera:0')):\n"
        "    try: act(); print('no error')\n"
        "    except MediaError as error: assert '[cli]' in str(error), error\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def encoded(index: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    thumbnail = io.BytesIO()
    Image.new("RGB", (8, 8)).save(thumbnail, "JPEG")
    noise = np.random.default_rng(index).integers(-4, 5, (HEIGHT, WIDTH, 3))
    picture = Image.fromarray((numbered(index).astype(int) + 4 + noise).clip(0, 255).astype(np.uint8))
    options = {"comment": thumbnail.getvalue(), "progressive": index % 2 == 1, "quality": 95} if kind == "JPEG" else {}
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pipe(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(data), 100)))


def test_a_pipe_brings_png_and_jpeg_pictures_in_order(monkeypatch):
    parts = [encoded(index, "JPEG" if index % 3 else "PNG") for index in range(12)]
    for index, filled in ((1, b"\xff\xd8\xff\xff"), (2, b"\xff\xd8\xff\xff\xff\xff")):  # T.81, B.1.1.2
        parts[index] = filled + parts[index][3:]
    data = b"".join(parts)
    pipe(monkeypatch, data)
    clip = frames("-", fps=FPS)
    assert (clip.count, clip.fps, clip.size, clip.seekable) == (None, FPS, (WIDTH, HEIGHT), False)
    assert [round((float(frame.mean()) - 4) / 8) for frame in clip] == list(range(12)) and clip.damaged == 0
    with pytest.raises(MediaError, match="read only once"):
        next(iter(clip))
    with pytest.raises(MediaError, match="only read forward"):
        clip[0]
    pipe(monkeypatch, data)
    chosen = frames("-", start=0.2, stride=4, max_seconds=0.8, fps=FPS)
    assert [round((float(frame.mean()) - 4) / 8) for frame in chosen] == [2, 6]


def test_a_pipe_that_breaks_off_or_is_no_pipe_of_pictures_is_noticed(monkeypatch):
    pipe(monkeypatch, encoded(1, "JPEG") + encoded(2, "PNG")[:-9])
    clip = frames("-")
    assert len(list(clip)) == 1 and clip.damaged == 1
    for data, words in ((b"", "no picture came"), (b"hello, world", "neither PNG nor JPEG")):
        pipe(monkeypatch, data)
        with pytest.raises(MediaError, match=words):
            frames("-")


@pytest.mark.parametrize("damage", ["structure", "content", "between"])
def test_a_damaged_picture_in_a_pipe_is_counted_and_left_out_and_the_others_keep_their_times(monkeypatch, damage):
    parts = [encoded(index, "PNG" if index == 3 and damage == "content" else "JPEG") for index in range(6)]
    if damage == "structure":
        parts[3] = parts[3][:20] + bytes(400) + parts[3][420:]
    elif damage == "content":
        parts[3] = parts[3][:60] + bytes(20) + parts[3][80:]
    else:
        parts[3] = b"hello, world"
    pipe(monkeypatch, b"".join(parts))
    clip = frames("-", fps=FPS)
    seen = [round((float(frame.mean()) - 4) / 8) for frame in clip]
    assert seen == [0, 1, 2, 4, 5] and clip.damaged == 1
    assert [clip.time(number) for number in range(5)] == [index / FPS for index in seen]
    for beyond in (5, 6):
        with pytest.raises(IndexError):
            clip.time(beyond)


def test_a_pipe_that_fails_has_the_pictures_so_far_and_tells_its_end(monkeypatch):
    class Failing(io.BufferedReader):
        def read1(self, size):
            data = super().read1(size)
            if not data:
                raise OSError(5, "Input/output error")
            return data

    for count in (2, 0):
        data = io.BytesIO(b"".join(encoded(index, "JPEG") for index in range(count)))
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Failing(data)))
        told = []
        if count:
            assert len(list(frames("-", warn=told.append))) == 2
            assert told == ["standard input: the recording ends here: Input/output error"]
        else:
            with pytest.raises(MediaError, match="standard input: Input/output error"):
                frames("-", warn=told.append)


def test_pictures_of_every_kind_become_rgb(tmp_path):
    grey16 = (np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) * 42).astype(np.uint16)
    for name, picture in {
        "grey.png": Image.new("L", (WIDTH, HEIGHT), 99),
        "alpha.png": Image.new("RGBA", (9, 9)),
        "palette.gif": Image.new("P", (9, 9)),
        "cmyk.jpg": Image.new("CMYK", (9, 9)),
        "deep.png": Image.fromarray(grey16),
    }.items():
        picture.save(tmp_path / name)
        read = read_image(tmp_path / name)
        assert read.dtype == np.uint8 and read.shape == (*picture.size[::-1], 3)
    assert np.array_equal(read[..., 0], grey16 // 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (WIDTH, HEIGHT, 3)


def test_a_url_is_read_and_a_missing_one_named(tmp_path):
    Image.new("RGB", (9, 5)).save(tmp_path / "a.png")
    handler = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}), directory=tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert read_image(f"{url}/a.png").shape == (5, 9, 3)
        with pytest.raises(MediaError, match="/b.png: .*404"):
            read_image(f"{url}/b.png")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(MediaError, match="refused"):
        read_image(f"{url}/a.png")


def test_a_picture_of_enormous_dimensions_is_refused_unread(tmp_path, recwarn):
    small = io.BytesIO()
    Image.new("L", (8, 8)).save(small, "PNG")
    for side in (10_000, 60_000):
        data = bytearray(small.getvalue())
        data[16:24] = side.to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        (tmp_path / "bomb.png").write_bytes(data)
        with pytest.raises(MediaError, match="bomb.png: .*pixels"):
            read_image(tmp_path / "bomb.png")
    assert not recwarn.list


def within(seconds: float, task) -> object:
    """What `task` returns, or the exception it raises; a hang is a failure."""
    outcome = []

    def work():
        try:
            outcome.append(task())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, "still not done"
    return outcome[0]


def use(source: str) -> list[int]:
    """How many frames each input has, read forward and backward; 1 for still pictures."""
    counts = []
    for path in expand_inputs([source]):
        if not is_moving(path):
            assert read_image(path).ndim == 3
            counts.append(1)
            continue
        with frames(path) as clip:
            counts.append(len(list(clip)))
            assert len(list(clip.backward())) == counts[-1]
    return counts


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> list[damage.Case]:
    return damage.cases(tmp_path_factory.mktemp("damage"))


def test_damage_is_plentiful_and_named(damaged):
    assert len(damaged) >= 400 and len({case.name for case in damaged}) == len(damaged)
    assert all(Path(case.args[0]).exists() for case in damaged if case.name.startswith("file "))


def test_damaged_odd_and_harmful_inputs_give_frames_or_one_line(damaged, monkeypatch, recwarn):
    monkeypatch.chdir(Path(damaged[0].args[0]).parent)
    outcomes = set()
    for case in damaged:
        if not case.name.startswith(("file ", "path ")):
            continue
        outcome = within(20, partial(use, case.args[0]))
        if isinstance(outcome, list):
            outcomes.add("frames" if all(outcome) else "nothing")
        else:
            assert isinstance(outcome, MediaError) and len(str(outcome).splitlines()) == 1, (case.name, outcome)
            assert "_good_" not in case.args[0], (case.name, outcome)
            outcomes.add("error")
    assert outcomes == {"frames", "error"} and not recwarn.list and not Path("unpickled").exists()


def test_what_only_looks_like_a_video_is_not_followed_nor_painted(damaged):
    for name in ("text.txt", "letters.ans", "live.m3u8", "list.ffconcat", "list.mp4", "session.mp4", "drawing.svg"):
        [case] = [case for case in damaged if case.name.endswith(f"_{name}")]
        with pytest.raises(MediaError, match=f"{name}: not a video in a known format"):
            frames(case.args[0])


def test_pictures_are_of_the_listed_formats_so_that_no_other_program_is_run(damaged, monkeypatch):
    for name in ("endless.eps", "endless.png"):
        [case] = [case for case in damaged if case.name.endswith(f"_{name}")]
        monkeypatch.setattr(subprocess, "check_call", lambda *_: pytest.fail("Ghostscript was called"))
        with pytest.raises(MediaError, match="not a picture in a known format"):
            read_image(case.args[0])


def test_an_animation_that_claims_two_billion_frames_is_read_backward_at_once(damaged):
    [case] = [case for case in damaged if case.name.endswith("_claims.png")]
    assert within(20, lambda: len(list(reversed(frames(case.args[0]))))) == 1


def test_a_name_with_a_colon_is_a_file_and_no_address(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data:a.mp4").write_bytes(clips["mp4"].read_bytes())
    assert numbers(frames("data:a.mp4")) == list(range(30))
    for name in ("b.mp4", "data:b.mp4", "12:30/b.mp4"):
        with VideoWriter(name, FPS, (WIDTH, HEIGHT), audio_from="data:a.mp4") as writer:
            writer.write(numbered(1))
        assert numbers(frames(name)) == [1]


def test_a_video_that_is_gone_after_its_first_frame_has_no_damage_but_an_error(clips, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(clips["mp4"].read_bytes())
    clip = frames(path)
    path.unlink()
    with pytest.raises(ReadError, match="a.mp4: No such file or directory"):
        list(clip)
    assert clip.damaged == 0


def test_damaged_sound_leaves_the_video_whole(tmp_path):
    rng = np.random.default_rng(0)
    whole = with_sound(tmp_path / "source.mkv", "flac").read_bytes()
    for _ in range(12):
        data = bytearray(whole)
        for at in rng.integers(len(data) // 4, len(data), 40):
            data[at] ^= 1 << rng.integers(8)
        (tmp_path / "damaged.mkv").write_bytes(data)
        with VideoWriter(tmp_path / "out.mp4", FPS, (WIDTH, HEIGHT), audio_from=tmp_path / "damaged.mkv") as writer:
            for index in range(20):
                writer.write(numbered(index))
        assert len(list(frames(tmp_path / "out.mp4"))) == 20


@pytest.mark.parametrize("name,fps", [("a.mp4", 1e-9), ("a.gif", 1e-9), ("a.webp", 1e-9), ("a.mp4", 1e9)])
def test_rates_that_a_damaged_file_claims_can_be_written(tmp_path, name, fps):
    with VideoWriter(tmp_path / name, fps, (WIDTH, HEIGHT)) as writer:
        for index in range(3):
            writer.write(numbered(index))
    assert numbers(frames(tmp_path / name)) == [0, 1, 2]


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello")
    for name in ("text.jpg", "empty.png"):
        with pytest.raises(MediaError, match=f"{name}: not a picture"):
            read_image(tmp_path / name)
    with pytest.raises(MediaError, match="text.mp4: not a video"):
        frames(tmp_path / "text.mp4")
    with pytest.raises(MediaError, match="nowhere.mp4: no such file"):
        frames(tmp_path / "nowhere.mp4")
    with pytest.raises(MediaError, match="No such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(MediaError, match="camera"):
        frames("camera:99")


def test_frames_of_different_sizes_in_a_folder_are_named(tmp_path):
    Image.new("RGB", (9, 5)).save(tmp_path / "1.png")
    Image.new("RGB", (9, 6)).save(tmp_path / "2.png")
    with pytest.raises(MediaError, match="2.png: 9x6 pixels, but the first frame has 9x5"):
        list(frames(tmp_path))


def test_moving_sources_are_told_from_still_ones_by_content(clips, tmp_path):
    Image.new("RGB", (9, 5)).save(tmp_path / "still.gif")
    (tmp_path / "picture.mp4").write_bytes((tmp_path / "still.gif").read_bytes())
    assert all(is_moving(clips[kind]) for kind in ("mp4", "gif", "webp")) and is_moving("-") and is_moving("camera:0")
    assert not any(
        is_moving(path)
        for path in (clips["folder"], tmp_path / "still.gif", tmp_path / "picture.mp4", "http://example.org/a.mp4")
    )


def test_inputs_are_found_in_natural_order(tmp_path):
    for name in ("f10.png", "f2.png", "F1.JPG", "clip.mp4", "notes.txt", ".hidden.png", "sub/x.png", "[odd].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    root = str(tmp_path)

    def names(*args: str) -> list[str]:
        return [str(Path(found).relative_to(root)) for found in expand_inputs(args)]

    assert names(root) == ["[odd].png", "clip.mp4", "F1.JPG", "f2.png", "f10.png"]
    assert names(f"{root}/f*.png", f"{root}/notes.txt") == ["f2.png", "f10.png", "notes.txt"]
    assert names(f"{root}/[odd].png") == ["[odd].png"] and names(f"{root}/**/x.png") == ["sub/x.png"]
    assert expand_inputs(["-", "camera:0", "https://a.b/c.jpg"]) == ["-", "camera:0", "https://a.b/c.jpg"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.png").mkdir()
    assert "folder.png" not in names(root)  # a folder, whatever its name
    for wrong in (f"{root}/empty", f"{root}/nothing.png", f"{root}/*.xyz", "", "x" * 5000):
        with pytest.raises(MediaError, match="no "):
            expand_inputs([wrong])


def test_frames_are_read_only_when_asked_for(clips, monkeypatch):
    seen = []
    monkeypatch.setattr(sources, "read_image", lambda path, levels: seen.append(path) or numbered(len(seen)))
    reading = iter(frames(clips["folder"]))
    for expected in (1, 2, 3):  # one for the size
        assert len(seen) == expected
        next(reading)


def test_a_frame_beyond_the_end_is_lacked_where_only_decoding_tells(tmp_path):
    frames = [Image.fromarray(np.full((16, 16, 3), 5 * n, np.uint8)) for n in range(40)]
    path = tmp_path / "cut.png"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with media.frames(path, max_seconds=1) as film:
        assert film.lacks(30) and not film.lacks(0)


def test_the_last_frame_of_a_folder_is_shown_no_longer_than_the_folder_lasts(tmp_path):
    for number in range(10):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.png")
    with media.frames(tmp_path, stride=3, fps=1) as film:
        assert len(list(film)) == 4 and film.end == 10


def test_a_damaged_piece_is_counted_once_however_often_it_is_read(tmp_path):
    frames = [Image.fromarray(np.full((16, 16, 3), 20 * n, np.uint8)) for n in range(8)]
    frames[0].save(tmp_path / "cut.png", save_all=True, append_images=frames[1:], duration=100)
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with media.frames(tmp_path / "cut.png") as film:
        for _ in range(3):
            list(film)
        assert film.damaged == 1


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "avi"])
@pytest.mark.parametrize("sound", [0, 4])  # seconds of it, beside two of the film
def test_a_film_that_ends_before_its_stated_end_is_told_and_a_whole_one_is_not(suffix, sound, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, HEIGHT, WIDTH, 3), np.uint8)
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    with av.open(str(whole), "w", options={"movflags": "faststart"} if suffix in ("mp4", "mov") else {}) as out:
        codec, tone = {"webm": ("libvpx-vp9", "libopus"), "avi": ("mpeg4", "mp3")}.get(suffix, ("mpeg4", "aac"))
        film = out.add_stream(codec, rate=10, width=WIDTH, height=HEIGHT, pix_fmt="yuv420p")
        voice = out.add_stream(tone, rate=48000, layout="mono") if sound else None
        for number in range(10 * max(2, sound)):
            if number < 20:
                out.mux(film.encode(av.VideoFrame.from_ndarray(noise[number])))
            if voice:
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), "fltp", "mono")
                samples.sample_rate, samples.pts = 48000, 4800 * number
                out.mux(voice.encode(samples))
        for stream in filter(None, (film, voice)):
            out.mux(stream.encode())
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    with media.frames(whole) as film:
        assert len(list(film)) == 20 and film.cut_off is None
    with media.frames(cut) as film:
        for _ in range(2):
            count = len(list(film))
            stated, read = film.cut_off
            assert count < 15 and read == pytest.approx(count / 10, abs=0.11) and stated > read + 0.2


def test_threads_that_read_pictures_leave_the_warnings_as_they_were(tmp_path):
    for number in range(8):
        Image.new("RGB", (300, 300)).save(tmp_path / f"{number}.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(media.read_image, [tmp_path / f"{number % 8}.png" for number in range(60)]))
    assert warnings.filters == before


def test_urls_are_escaped_as_browsers_do_it():
    assert images.in_ascii("http://m\u00fcnchen.de:80/caf\u00e9 1.jpg?q=a b&c=%20#top") == (
        "http://xn--mnchen-3ya.de:80/caf%C3%A9%201.jpg?q=a%20b&c=%20"
    )


def test_a_mask_of_16_bits_a_colour_that_is_lost_in_8_is_refused_and_others_are_read(tmp_path):
    values = np.zeros((8, 8, 3), np.uint16)
    values[2:5, 2:5] = 1
    png_of_16_bits(values)(tmp_path / "low.png")
    png_of_16_bits(values * 65535)(tmp_path / "high.png")
    with pytest.raises(MediaError, match="low.png.*save it in 8 bits"):
        media.read_masks(tmp_path / "low.png")
    (mask,) = media.read_masks(tmp_path / "high.png")
    assert np.array_equal(mask, values[..., 0] > 0)


def test_a_transparent_level_of_a_grey_mask_of_16_bits_is_no_object(tmp_path):
    levels = np.full((8, 8, 1), 300)
    levels[2:5, 2:5] = 60000
    png_of_16_bits(levels, clear=300)(tmp_path / "mask.png")
    (mask,) = media.read_masks(tmp_path / "mask.png")
    assert np.array_equal(mask, levels[..., 0] == 60000)


def test_no_data_of_a_map_is_no_mask(tmp_path):
    values = np.full((20, 30), np.nan, np.float32)
    values[5:9, 5:9] = 1
    Image.fromarray(values).save(tmp_path / "mask.tif")
    (mask,) = media.read_masks(tmp_path / "mask.tif")
    assert mask.sum() == 16


def test_the_pixels_of_a_turned_video_are_turned_too(tmp_path):
    width, height = 64, 48
    for turned in (False, True):
        path = tmp_path / f"{turned}.mp4"
        with VideoWriter(path, 5, (width, height), pixel_aspect=Fraction(4, 3)) as writer:
            writer.write(np.zeros((height, width, 3), np.uint8))
        if turned:
            data = bytearray(path.read_bytes())
            at = data.index(b"tkhd") + 4 + 40  # the matrix of ISO/IEC 14496-12, 8.3.2: a quarter turn to the right
            matrix = [0, 1 << 16, 0, (1 << 32) - (1 << 16), 0, 0, height << 16, 0, 1 << 30]
            data[at : at + 36] = b"".join(value.to_bytes(4, "big") for value in matrix)
            path.write_bytes(data)
        with frames(path) as video:
            assert video.size == ((height, width) if turned else (width, height))
            assert video.pixel_aspect == (Fraction(3, 4) if turned else Fraction(4, 3))
