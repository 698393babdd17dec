"""segment.py on inputs of every kind: what comes out has the size, times, sound and format that went in."""

import errno
import glob
import io
import json
import re
import shutil
import signal
import sys
import threading
import time
import unicodedata
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.commands import command, lines, run_tiny
from helpers.squares import film, picture, save, save_crowded_tiff, save_film
from helpers.tiny_segment import tiny_models
from PIL import Image

import segment
from minisam_glue import media
from minisam_glue.cli import run
from minisam_glue.cli.arguments import expand, folders_of
from minisam_glue.cli.console import Console
from minisam_glue.cli.outputs import label_name, save_picture
from minisam_glue.cli.parser import parse_arguments
from minisam_glue.datasets import Pixels
from minisam_glue.masks import decode_rle
from minisam_glue.media import images
from minisam_glue.media.inputs import expand_inputs
from minisam_glue.prompts import split_phrases
from minisam_glue.records import Segment, Segmented
from minisam_glue.weights import CHECKPOINTS
from minisam_glue.weights.table import VOCABULARIES


def save_gif(path: Path, count: int = 4, milliseconds: int = 200) -> Path:
    first, *rest = map(Image.fromarray, film(count))
    first.save(path, save_all=True, append_images=rest, duration=milliseconds)
    return path


def save_video(path: Path, count: int, fps: int, sound: bool) -> Path:
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=fps, options={"crf": "5"})
        video.width, video.height, video.pix_fmt = 56, 40, "yuv420p"
        tone = output.add_stream("aac", rate=8000) if sound else None
        for image in film(count):
            output.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(video.encode(None))
        if sound:
            wave = np.sin(np.arange(8000 * count // fps) / 5) * 9000
            samples = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], format="s16", layout="mono")
            samples.sample_rate, samples.pts = 8000, 0
            for part in (samples, None):
                output.mux(tone.encode(part))
    return path


def test_a_video_that_is_cut_off_has_a_result_and_a_warning(tmp_path, capsys):
    data = save_video(tmp_path / "cut.mkv", 40, 10, sound=True).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    assert command(tmp_path / "cut.mkv", "bright.", "--out", tmp_path / "out", "--format", "gif", "--quiet") == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "damaged piece" not in line]
    assert re.search(r"cut\.mkv: it should last 4\.0 s and ends after [12]\.\d s: is it cut off\?$", line)
    assert json.loads((tmp_path / "out" / "cut" / "result.json").read_text())["frames"] < 30


def test_another_input_of_the_same_name_replaces_a_result_with_a_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, shift in (("mon", 0), ("tue", 3), ("copy", 3)):
        Path(folder).mkdir()
        save(picture(5 + shift), Path(folder, "a.png"))
    warned = [
        (command(f"{folder}/a.png", "bright.", "--quiet"), capsys.readouterr().err) for folder in ("mon", "tue", "copy")
    ]
    assert [status for status, _ in warned] == [0, 0, 0] and warned[0][1] == warned[2][1] == ""
    assert warned[1][1] == "warning: segmented/a: the result of mon/a.png there is replaced by that of tue/a.png\n"


def test_a_pipe_of_pictures_is_a_video(tmp_path):
    pipe = io.BytesIO()
    for image in film(4):
        Image.fromarray(image).save(pipe, "PNG")
    (tmp_path / "in").write_bytes(pipe.getvalue())
    with open(tmp_path / "in", "rb") as pictures:
        process = run_tiny(
            "-", "bright.", "--fps", 5, "--format", "gif", "--json", "-", "--out", tmp_path / "out", stdin=pictures
        )
        printed, error = process.communicate(timeout=120)
    assert process.returncode == 0 and "4 frames" in error
    records = [json.loads(line) for line in printed.splitlines()]
    assert [(r["frame"], r["time"], len(r["objects"])) for r in records] == [(t, t / 5, 1) for t in range(4)]
    saved = lines(tmp_path / "out" / "stdin" / "result.jsonl")
    assert [{"source": "-"} | record for record in saved] == records
    assert len(list(media.frames(tmp_path / "out" / "stdin" / "annotated.gif"))) == 4


def as_camera(path: Path, monkeypatch, wrap=lambda container: container) -> None:
    """Let camera:0 show a video file, by its container in PyAV as `wrap` returns it."""
    real = av.open

    def open_either(file, *args, format=None, **options):
        camera = format in ("v4l2", "avfoundation", "dshow")
        return wrap(real(str(path))) if camera else real(file, *args, format=format, **options)

    monkeypatch.setattr(av, "open", open_either)


def test_a_camera_ends_after_its_seconds_or_with_ctrl_c_and_is_complete(tmp_path, monkeypatch):
    as_camera(save_video(tmp_path / "view.mp4", 12, 5, sound=False), monkeypatch)
    assert command("camera:0", "bright.", "--max-seconds", 1, "--out", tmp_path / "a", "--format", "gif") == 0
    assert len(lines(tmp_path / "a" / "camera_0" / "result.jsonl")) == 5
    record = Console.record

    def interrupt(self, line):
        record(self, line)
        if line["frame"] == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Console, "record", interrupt)
    assert command("camera:0", "bright.", "--out", tmp_path / "b", "--format", "gif") == 0
    assert [r["frame"] for r in lines(tmp_path / "b" / "camera_0" / "result.jsonl")] == [0, 1, 2]


class Failing:
    """A container whose frame `at` raises an error each time it is decoded."""

    def __init__(self, container, at: int, error: Exception):
        self.container, self.at, self.error = container, at, error

    def __getattr__(self, name):
        return getattr(self.container, name)

    def decode(self, stream):
        for number, frame in enumerate(self.container.decode(stream)):
            if number == self.at:
                raise self.error
            yield frame


ERRORS = {
    "unplugged": (av.error.OSError(errno.ENODEV, "No such device"), 3, "the recording ends here: No such device"),
    "unknown": (av.error.UnknownError(1313558101, "Unknown error"), 3, "the recording ends here: Unknown error"),
    "external": (av.error.ExternalError(542398533, "Library error"), 3, "the recording ends here: Library error"),
    "damaged": (av.error.InvalidDataError(1094995529, "Invalid data"), 6, "2 damaged pieces left out"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_camera_that_fails_late_has_a_result_and_one_that_fails_at_once_one_line(name, tmp_path, monkeypatch, capsys):
    error, count, words = ERRORS[name]
    source = save_video(tmp_path / "view.mp4", 8, 5, sound=False)
    for at, status in ((3, 0), (0, 2)):
        as_camera(source, monkeypatch, partial(Failing, at=at, error=error))
        out = tmp_path / str(at)
        assert command("camera:0", "bright.", "--out", out, "--format", "gif", "--quiet") == status
        [line] = capsys.readouterr().err.splitlines()
        if at:
            assert line == f"warning: camera:0: {words}"
            assert len(lines(out / "camera_0" / "result.jsonl")) == count
        else:
            assert line.startswith("error: camera:0: ") and not list(out.iterdir())


@pytest.mark.parametrize("direction", ["reverse", "both"])
def test_a_camera_has_no_way_back(direction, tmp_path, monkeypatch, capsys):
    as_camera(save_video(tmp_path / "view.mp4", 3, 5, sound=False), monkeypatch)
    assert command("camera:0", "bright.", "--direction", direction, "--out", tmp_path / "out") == 2
    assert "read backward" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())


def test_sound_rate_and_times_are_those_of_the_source_from_start_on(tmp_path):
    source = save_video(tmp_path / "tone.mp4", 20, 5, sound=True)
    assert command(source, "bright.", "--start", 1, "--stride", 2, "--max-seconds", 2, "--out", tmp_path / "out") == 0
    records = lines(tmp_path / "out" / "tone" / "result.jsonl")
    assert [r["frame"] for r in records] == [0, 1, 2, 3, 4] and [r["time"] for r in records] == [1, 1.4, 1.8, 2.2, 2.6]
    with av.open(str(tmp_path / "out" / "tone" / "annotated.mp4")) as container:
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "aac"]
        assert float(container.streams.video[0].average_rate) == 2.5
        sound = list(container.decode(audio=0))
    assert abs(sum(frame.samples for frame in sound) / 8000 - 2) < 0.3
    found = media.frames(source, start=1, stride=2)[3]
    assert np.array_equal(decode_rle(records[3]["objects"][0]["mask"]).shape, found.shape[:2])


def test_a_gif_becomes_a_gif_or_what_is_asked_for(tmp_path):
    source = save_gif(tmp_path / "in.gif")
    for form in ("gif", "mp4"):
        words = [] if form == "gif" else ["--format", form]
        assert command(source, "bright.", "--out", tmp_path / form, *words) == 0
        annotated = media.frames(tmp_path / form / "in" / f"annotated.{form}")
        assert annotated.fps == pytest.approx(5) and len(list(annotated)) == 4


def test_a_turned_photograph_is_segmented_as_one_sees_it(tmp_path):
    upright, exif = picture(5, height=40, width=56), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "turned.png", exif=exif)
    save(upright, tmp_path / "upright.png")
    assert command(tmp_path / "turned.png", tmp_path / "upright.png", "bright.", "--out", tmp_path / "out") == 0
    turned, plain = (
        json.loads((tmp_path / "out" / name / "result.json").read_text()) for name in ("turned", "upright")
    )
    assert turned["size"] == [40, 56] and turned["objects"] == plain["objects"] != []
    assert media.read_image(tmp_path / "out" / "turned" / "annotated.png").shape == (40, 56, 3)


def test_a_mask_seeds_a_video(tmp_path):
    source, mask = save_film(tmp_path / "film", 4), np.zeros((40, 56), np.uint8)
    mask[10:22, 6:16] = 255
    words = [source, "--frames", "--mask", save(mask, tmp_path / "mask.png"), "--format", "gif"]
    assert command(*words, "--seed-frame", 1, "--out", tmp_path / "out") == 0
    records = lines(tmp_path / "out" / "film" / "result.jsonl")
    assert [len(r["objects"]) for r in records] == [0, 1, 1, 1] and records[1]["objects"][0]["label"] == "object"
    seeded = decode_rle(records[1]["objects"][0]["mask"])
    assert (seeded & (mask > 0)).sum() / (seeded | (mask > 0)).sum() > 0.8


def test_a_prompt_that_does_not_fit_one_of_many_pictures_names_it(tmp_path, capsys):
    small, large = save(picture(5), tmp_path / "a.png"), save(picture(5, height=60), tmp_path / "b.png")
    mask = save(np.full((40, 56), 255, np.uint8), tmp_path / "mask.png")
    assert command(small, large, "--mask", mask, "--out", tmp_path / "out", "--quiet") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {large}: --mask of (40, 56)") and error.count("\n") == 1
    assert (tmp_path / "out" / "a" / "result.json").exists() and not (tmp_path / "out" / "b").exists()


def test_a_url_longer_than_any_file_name_does_not_stop_the_others(tmp_path, capsys):
    url = f"http://127.0.0.1:9/{'x' * 5000}.png"
    assert command(url, save(picture(5), tmp_path / "a.png"), "bright.", "--out", tmp_path / "out", "--quiet") == 2
    assert "127.0.0.1" in capsys.readouterr().err and (tmp_path / "out" / "a" / "result.json").exists()


def test_options_may_stand_anywhere(tmp_path):
    source = save(picture(5), tmp_path / "one.png")
    assert command("--quiet", source, "--out", tmp_path / "out", "bright.", "--html") == 0
    assert (tmp_path / "out" / "one" / "page.html").exists()
    for words in (
        ["--save", "masks", "crops", source, "bright."],
        [source, "--save", "masks", "--save", "crops", "bright."],
    ):
        args = parse_arguments([*words, "--seed-prompt", "box", "points"])
        assert (args.words, args.save, args.seed_prompt) == ([source, "bright."], ["masks", "crops"], ["box", "points"])
    with pytest.raises(ValueError, match="--save: invalid choice: 'mask'"):
        parse_arguments([source, "--save", "mask", "bright."])


def test_patterns_with_two_stars_find_each_file_once_and_do_not_run_in_circles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/0.png", "a/b/0.png", "a/b/c/1.png", "a/.hidden/0.png", "[x]/0.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        save(picture(5), Path(name))
    for name, target in (("a/b/up", ".."), ("a/b/again", "../b"), ("z", "a/b/c")):
        Path(name).symlink_to(target)
    every = ["[x]/0.png", "a/0.png", "a/b/0.png"]
    assert expand_inputs(["**/0.png"]) == every and expand_inputs(["a/**/c/*.png"]) == ["a/b/c/1.png"]
    assert expand_inputs([f"{tmp_path}/**/0.png"]) == [f"{tmp_path}/{name}" for name in every]
    assert expand_inputs(["z/**/1.png"]) == ["z/1.png"] and expand_inputs(["./**/1.png"]) == ["./a/b/c/1.png"]
    assert expand_inputs(["a/**"]) == ["a/0.png", "a/b/0.png", "a/b/c/1.png"]
    assert expand_inputs(["**/b/**/?.png"]) == ["a/b/0.png", "a/b/c/1.png", "a/b/up/0.png"]


def test_inputs_of_one_name_get_folders_of_their_own_that_every_file_system_takes_and_no_glob_mistakes():
    sources = [
        "a/x.jpg",
        "a/x.png",
        "b/x.png",
        "b/X.PNG",
        "x_png",
        "http://h/p/y.jpg?s=1",
        "-",
        "camera:0",
        "..",
        'http://h/a:b*"<c>|.png',
        f"http://h/{'n' * 300}.png",
        f"http://h/{'n' * 300}m.png",
        "clip [dQw4w9].mp4",  # as downloaders of videos name them
        "clip _dQw4w9_.mp4",
        "v.2.mp4",
    ]
    names = [path.name for path in folders_of(sources, Path("out")).values()]
    assert len({name.lower() for name in names}) == len(sources)
    assert (
        names[:5] == ["x_jpg", "x_png", "x_png-2", "X_PNG-3", "x_png-4"]
        and names[5:9] == ["y", "stdin", "camera_0", "input"]
        and names[-1] == "v.2"
    )
    assert all(0 < len(name) < 130 and not set(name) & set('\\/:*?"<>|') for name in names)
    assert [glob.escape(name) for name in names] == names  # loaders of data sets look for files by globs


def test_names_that_differ_in_how_an_accent_is_written_get_folders_of_their_own():
    names = [path.name for path in folders_of(["a/caf\u00e9.png", "b/cafe\u0301.png", "x.png"], Path("out")).values()]
    assert len({unicodedata.normalize("NFC", name) for name in names}) == 3


def test_a_picture_that_is_too_long_for_a_jpeg_is_written_as_png_or_refused_by_name(tmp_path):
    long = np.zeros((2, 65_501, 3), np.uint8)
    save(long, tmp_path / "long.png")
    (tmp_path / "long.png").rename(tmp_path / "long.jpg")
    assert command(tmp_path / "long.jpg", "bright.", "--quiet", "--out", tmp_path / "out") == 0
    assert Image.open(tmp_path / "out" / "long" / "annotated.png").size == (65_501, 2)
    with pytest.raises(ValueError, match="65501x2 pixels are too long for a JPEG"):
        Pixels(lambda: long).save(tmp_path / "long.jpg")


def test_a_picture_from_a_server_that_sends_it_byte_by_byte_is_given_up(monkeypatch):
    class Trickle(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.02)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    monkeypatch.setattr(images, "DOWNLOAD", 0.2)
    with ThreadingHTTPServer(("127.0.0.1", 0), Trickle) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(media.MediaError, match="can't be fetched .it took more than 0 s"):
            media.read_image(f"http://127.0.0.1:{server.server_port}/a.png")
        server.shutdown()


def test_an_input_keeps_the_folder_of_its_result_when_another_of_its_name_comes(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "result.json").write_text(json.dumps({"source": "a/./x.png"}))
    sources = ["a/X.jpg", "a/x.png", "b/x.png"]
    names = [path.name for path in folders_of(sources, tmp_path).values()]
    assert names == ["X_jpg", "x", "x_png"]
    assert [path.name for path in folders_of(sources, tmp_path, ["x"]).values()] == ["X_jpg", "x_png", "x_png-2"]


def test_an_input_keeps_the_folder_of_its_result_when_the_others_of_its_name_are_gone(tmp_path):
    sources = ["a/x.jpg", "a/x.png", "b/x.png", "c/y.png"]
    first = folders_of(sources, tmp_path)
    assert [path.name for path in first.values()] == ["x_jpg", "x_png", "x_png-2", "y"]
    for source, folder in first.items():
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps({"source": source}))
    for some in (["a/x.jpg"], ["b/x.png"], ["b/x.png", "a/x.png"], ["d/x.png", "a/x.png"], sources[::-1]):
        found = folders_of(some, tmp_path)
        assert all(found[source] == first[source] for source in some if source in first)
        assert len({path.name.lower() for path in found.values()}) == len(some)


def test_results_do_not_go_into_the_input(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_film(Path("film"), 2)
    assert command("film", "bright.", "--frames", "--out", ".") == 2
    assert "another --out" in capsys.readouterr().err and len(list(Path("film").iterdir())) == 2


def test_a_wildcard_finds_no_results_of_before_unless_it_names_their_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in ("a", "b"):
        save(picture(5), Path("photos", f"{name}.png"))
    for out in ("segmented", "photos"):  # beside the pictures, and among them
        words = ["**/*.png", "bright.", "--save", "coco", "--quiet", "--out", out]
        for told in (False, True):
            assert command(*words) == 0
            error = capsys.readouterr().err
            assert error == f"warning: **/*.png: 6 left out, as results in {out}\n" * told
            assert {path.name for path in Path(out).iterdir() if path.is_dir()} == {"a", "b", "coco"}
        assert command(f"{out}/a/m*/*.png", "bright.", "--quiet", "--out", out) == 0
        assert command(f"{out}/*/masks/*.png", "bright.", "--out", out) == 2
        assert f"only results in {out} fit" in capsys.readouterr().err
        shutil.rmtree("segmented")
        Path("segmented").mkdir()


def test_labels_and_names_with_odd_characters_are_files_all_the_same(tmp_path, capsys, monkeypatch):
    source = save(picture(5), tmp_path / "naïve \n 图 #1%.png")
    for number, label in enumerate(["con", "a/b\\c:d*|<", "图" * 300, "è up"]):
        assert command(source, label, "--out", tmp_path / str(number)) == 0
        (folder,) = (tmp_path / str(number)).iterdir()
        (mask,) = (folder / "masks").iterdir()
        assert json.loads((folder / "result.json").read_text())["objects"][0]["label"] == label
        assert mask.name.startswith("001_") and len(mask.name.encode()) < 200
    assert not capsys.readouterr().err
    assert label_name(1, "größe \udcff") == "001_größe"
    with monkeypatch.context() as plain:
        plain.setattr(sys, "getfilesystemencoding", lambda: "ascii")  # as under LC_ALL=C
        assert label_name(1, "größe") == "001_gr_e"


@pytest.mark.parametrize(
    "device, expected", [("auto", "cuda:3"), ("cuda", "cuda:3"), ("cuda:0", "cuda:0"), ("cpu", "cpu")]
)
def test_each_process_takes_its_own_gpu_unless_one_is_named(device, expected, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(run, "load_models", lambda *args: taken.append(args[3]) or tiny_models())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    source = save(picture(5), tmp_path / "one.png")
    assert segment.main([source, "x", "--device", device, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert taken == [expected]


def test_a_name_that_the_terminal_can_not_show_is_no_error(tmp_path, monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, "ascii", write_through=True))
    assert command(save(picture(5), tmp_path / "naïve.png"), "bright.", "--out", tmp_path / "out") == 0
    assert b"na\\xefve.png" in shown.getvalue()


def test_a_device_that_is_not_there_is_one_line(tmp_path, capsys):
    source = save(picture(5), tmp_path / "one.png")
    for name in ("cuda:99", "tpu", "", "meta"):
        assert segment.main([source, "x", "--device", name, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and "device" in error and error.count("\n") == 1


def test_download_gets_what_is_missing_and_says_the_licence(tmp_path, publish, capsys, server):  # noqa: F811
    publish("/whole")
    for _ in range(2):
        assert segment.main(["--download", "tiny", "--weights", str(tmp_path), "--quiet"]) == 0
    assert "tiny.pt" in capsys.readouterr().out and len(server.asked) == 1
    publish("/other")
    (tmp_path / "tiny.pt").unlink()
    assert segment.main(["--download", "tiny", "--weights", str(tmp_path), "--quiet"]) == 2
    assert "sha256" in capsys.readouterr().err and not (tmp_path / "tiny.pt").exists()


def test_downloading_a_model_that_reads_phrases_brings_its_vocabulary(tmp_path, publish, capsys, monkeypatch):
    publish("/whole")
    monkeypatch.setitem(VOCABULARIES, "reader", "tiny")
    monkeypatch.setitem(CHECKPOINTS, "reader", replace(CHECKPOINTS["tiny"], file="reader.pt"))
    assert segment.main(["--download", "reader", "tiny", "--weights", str(tmp_path), "--quiet"]) == 0
    assert capsys.readouterr().out.count("tiny.pt, ") == 1
    assert (tmp_path / "reader.pt").exists() and (tmp_path / "tiny.pt").exists()


def test_profile_names_the_stages(tmp_path, capsys):
    source = save_gif(tmp_path / "in.gif")
    assert command(source, "bright.", "--profile", "--quiet", "--out", tmp_path / "out", models=tiny_models()) == 0
    stages = {line.split()[0] for line in capsys.readouterr().err.splitlines()}
    assert stages == {"read", "detect", "encode", "track", "write", "other"}


def test_an_output_folder_without_a_name_is_refused_and_a_tilde_is_the_home_folder(tmp_path, monkeypatch, capsys):
    source = save(picture(5), tmp_path / "a.png")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert command(source, "bright.", "--out", "") == 2
    assert "--out: an empty name" in capsys.readouterr().err
    assert command(source, "bright.", "--out=~/results", "--quiet") == 0
    assert (tmp_path / "home" / "results" / "a" / "result.json").exists() and not (tmp_path / "~").exists()


def test_a_phrase_that_is_given_twice_counts_once_and_points_need_one_on_the_object(tmp_path, capsys):
    assert split_phrases("car. dog, car; Car") == ["car", "dog"] and split_phrases(["a", "a"]) == ["a"]
    source = save(picture(5), tmp_path / "a.png")
    words = [source, "bright.", "--seed-prompt", "points", "--positives", "0", "--out", tmp_path / "out"]
    assert command(*words) == 2
    assert "--seed-prompt points: they show nothing without one on the object" in capsys.readouterr().err


def test_what_stands_after_two_dashes_is_no_option_and_numbers_of_a_box_are_joined_by_commas(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    save(picture(5), tmp_path / "-dash.png"), save(picture(5), tmp_path / "a.png")
    assert command("--quiet", "--out", "out", "--", "-dash.png", "bright.") == 0
    assert (tmp_path / "out" / "-dash" / "result.json").exists()
    assert parse_arguments(["--save", "masks", "--", "a.png", "--save"]).words == ["a.png", "--save"]
    assert command("a.png", "--box", "10", "20", "30", "40") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and ("such as --box 10,20,30,40" in error or "X1,Y1,X2,Y2" in error), error


def test_an_input_that_is_given_in_two_spellings_is_one(tmp_path):
    (tmp_path / "p").mkdir()
    for name in "ab":
        save(picture(5), tmp_path / "p" / f"{name}.png")
    one, again = str(tmp_path / "p" / "b.png"), f"{tmp_path}/./p/../p/b.png"
    inputs = expand([one, again, str(tmp_path / "p"), "camera:0", "camera:0"], False, tmp_path / "out", print)
    assert inputs == [one, str(tmp_path / "p" / "a.png"), "camera:0"]


def test_pillow_itself_says_nothing_beside_our_line(tmp_path, capsys, caplog):
    path = save_crowded_tiff(tmp_path / "bad.tif")
    assert segment.main([str(path), "red square.", "--out", str(tmp_path / "out")], tiny_models()) == 2
    assert "bad.tif" in capsys.readouterr().err and not caplog.records


def test_an_object_whose_mask_is_empty_is_in_no_file_of_a_picture(tmp_path):
    masks = np.zeros((2, 40, 56), bool)
    masks[1, 5:9, 5:9] = True
    objects = [Segment(number, "dot", 1.0, (4, 4, 10, 10), mask) for number, mask in enumerate(masks, 1)]
    save_picture(tmp_path / "out", Segmented(picture(), objects), "a.png", {}, ["crops"], True)
    assert sorted(path.name for path in (tmp_path / "out").glob("*/*.png")) == ["002_dot.png"] * 2
    page = (tmp_path / "out" / "page.html").read_text()
    assert page.count('type="checkbox"') == 1


def test_the_page_and_the_lines_of_a_video_have_the_times_of_the_source(tmp_path, capsys):
    words = [save_film(tmp_path / "film", 9), "bright.", "--frames", "--format", "gif", "--html", "--json", "-"]
    words += ["--fps", 10, "--start", 0.2, "--stride", 3, "--quiet", "--out", tmp_path / "out"]
    assert command(*words) == 0
    page = (tmp_path / "out" / "film" / "page.html").read_text()
    assert re.findall(r'data-title="(.*?)"', page) == ["frame 0, 0.200 s", "frame 1, 0.500 s", "frame 2, 0.800 s"]
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["frame"], line["time"]) for line in printed] == [(0, 0.2), (1, 0.5), (2, 0.8)]
