"""What differs on Windows and macOS, pretended here: files in use, names taken apart, terminals of few letters."""

import json
import os
import sys
import unicodedata
from pathlib import Path

import av
import pytest
import torch
from helpers import pretended_windows
from helpers.commands import command
from helpers.squares import picture, save, save_film
from helpers.tiny_segment import tiny_models
from PIL import Image

import minivit.files
from minisam_glue.cli.data_sets import run as data_sets
from minisam_glue.support import files, processes
from minivit import checkpoint, data, text
from minivit.cli import main as train_cifar

FILM = ["a square.", "--frames", "--format", "gif", "--save", "masks", "--quiet"]


@pytest.fixture(scope="module")
def models():
    return tiny_models()


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".minisam.lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


# --- Windows -----------------------------------------------------------------------------------------------


def test_on_windows_a_result_takes_the_place_of_an_earlier_one(tmp_path, monkeypatch, models):
    save_film(tmp_path / "film", 3)
    words = [tmp_path / "film", *FILM, "--out", tmp_path / "out"]
    assert command(*words, models=models) == 0
    before = content(tmp_path / "out")
    pretended_windows.pretend(monkeypatch)
    assert command(*words, models=models) == 0
    assert content(tmp_path / "out").keys() == before.keys()


def test_on_windows_a_finished_video_can_be_corrected(tmp_path, monkeypatch, models):
    save_film(tmp_path / "film", 3)
    words = [tmp_path / "film", *FILM[1:], "--out", tmp_path / "out", "--object", "box=5,10,15,22 label=dog"]
    assert command(*words, models=models) == 0
    pretended_windows.pretend(monkeypatch)
    assert command("--correct", tmp_path / "out" / "film", "--object", "id=1 at=2 remove", models=models) == 0
    result = json.loads((tmp_path / "out" / "film" / "result.json").read_text())
    assert [(record["id"], record["at"]) for record in result["corrections"]] == [(1, 2)]


@pytest.mark.parametrize("name", ["annotated.gif", "masks/001_dog/000001.png", "result.jsonl"])
def test_a_result_of_which_a_file_is_open_elsewhere_stays_whole_and_the_line_names_the_file(
    name, tmp_path, monkeypatch, capsys, models
):
    save_film(tmp_path / "film", 3)
    words = [tmp_path / "film", *FILM[1:], "--out", tmp_path / "out", "--object", "box=5,10,15,22 label=dog"]
    assert command(*words, models=models) == 0
    before = content(tmp_path / "out")
    pretended_windows.pretend(monkeypatch)
    capsys.readouterr()
    with open(tmp_path / "out" / "film" / name, "rb"):
        assert command(*words, "--seed-prompt", "points", models=models) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and Path(name).name in line
    after = content(tmp_path / "out")
    assert {path: after[path] for path in after if ".unfinished" not in path} == before
    assert command(*words, "--seed-prompt", "points", "--resume", models=models) == 0
    replaced = content(tmp_path / "out")
    assert replaced.keys() == before.keys() and replaced["film/result.json"] != before["film/result.json"]


@pytest.mark.parametrize("module", [files, minivit.files])
def test_on_windows_a_file_that_another_process_holds_for_a_moment_is_replaced_after_it(module, tmp_path, monkeypatch):
    tries, real = [], os.replace

    def busy(*paths):
        tries.append(paths)
        if len(tries) < 4:
            raise PermissionError(13, "used by another process")
        real(*paths)

    (tmp_path / "new").write_text("new")
    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    with pytest.raises(PermissionError):  # elsewhere no patience helps
        module.replace(tmp_path / "new", tmp_path / "old")
    monkeypatch.setattr(sys, "platform", "win32")
    module.replace(tmp_path / "new", tmp_path / "old")
    assert len(tries) == 4 and (tmp_path / "old").read_text() == "new"


def test_a_checkpoint_that_torch_still_holds_on_a_full_disk_hides_no_reason(tmp_path, monkeypatch):
    def hold(path):
        hold.file = open(path, "wb")  # noqa: SIM115
        raise OSError(28, "No space left on device")

    pretended_windows.pretend(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        minivit.files.write_atomically(tmp_path / "last.pt", hold)
    hold.file.close()
    minivit.files.clear_temporaries(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shell_word", [processes.shell_word, text.shell_word])
def test_paths_in_hints_can_be_pasted_into_a_shell(shell_word, monkeypatch):
    assert [shell_word(Path(p)) for p in ("runs/a", "my runs/a")] == ["runs/a", "'my runs/a'"]
    monkeypatch.setattr(sys, "platform", "win32")
    assert [shell_word(p) for p in (r"C:\runs", r"C:\my runs")] == [r"C:\runs", r'"C:\my runs"']


def test_the_command_that_continues_a_run_names_its_folder_as_a_shell_reads_it(tmp_path, capsys):
    out = tmp_path / "my run"
    words = ["--data", "shapes", "--preset", "shapes-demo", "--subset", "64", "--epochs", "1", "--out", str(out)]
    assert train_cifar(words) == 0
    capsys.readouterr()
    assert train_cifar(words) == 2
    assert f"--resume '{out}'" in capsys.readouterr().err


def test_data_sets_are_made_where_the_terminal_lacks_letters_of_their_names(tmp_path, monkeypatch, models):
    save(picture(10, 10), tmp_path / "Łódź.png")
    assert command(tmp_path / "Łódź.png", "a square.", "--out", tmp_path / "out", "--quiet", models=models) == 0
    with open(tmp_path / "printed", "w", encoding="cp1252") as printed:
        monkeypatch.setattr(sys, "stdout", printed)
        assert data_sets([str(tmp_path / "out"), "--to", "coco"]) == 0
    assert (tmp_path / "printed").read_bytes()


# --- macOS -------------------------------------------------------------------------------------------------


def test_class_folders_with_accents_taken_apart_are_those_with_whole_letters(tmp_path):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        for name in ("café", "thé"):
            folder = tmp_path / split / unicodedata.normalize(form, name)
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (len(name) * 40, 0, 0)).save(folder / "a.png")
    dataset = data.load("folder", tmp_path, image_size=8)
    assert dataset.classes == ["café", "thé"]
    assert dataset.test.labels.tolist() == [0, 1]


def test_a_checkpoint_of_class_names_taken_apart_fits_data_of_whole_letters(tmp_path):
    state = torch.load(checkpoint.DEMO, weights_only=True)
    torch.save(state | {"classes": [unicodedata.normalize("NFD", f"é{n}") for n in range(10)]}, tmp_path / "a.pt")
    assert checkpoint.read(tmp_path / "a.pt")["classes"] == [unicodedata.normalize("NFC", f"é{n}") for n in range(10)]


def test_a_camera_that_has_no_frame_yet_is_asked_again(tmp_path, monkeypatch):
    film = Path(__file__).parent / "cases" / "time" / "vfr.mp4"
    real, asked = av.open, []

    class Container:
        def __init__(self):
            self.container, self.frames = real(str(film)), None
            self.streams, self.close = self.container.streams, self.container.close

        def decode(self, stream):
            self.frames = self.frames or self.container.decode(stream)
            asked.append(stream)
            if len(asked) in (1, 3, 4):
                raise BlockingIOError(35, "Resource temporarily unavailable")
            for count, frame in enumerate(self.frames):
                yield frame
                if count == 2 and len(asked) < 5:
                    raise BlockingIOError(35, "Resource temporarily unavailable")

    monkeypatch.setattr(av, "open", lambda *args, **kwargs: Container())
    from minisam_glue import frames

    with frames("camera:0") as camera:
        taken = sum(1 for _ in camera.forward(0))
    with real(str(film)) as container:
        assert taken == sum(1 for _ in container.decode(video=0)) and len(asked) == 5


# --- No compiler -------------------------------------------------------------------------------------------


def test_compile_where_nothing_compiles_is_one_line(tmp_path, monkeypatch, capsys):
    class Uncompilable(torch.nn.Module):
        def forward(self, *args, **kwargs):
            raise torch._dynamo.exc.TorchDynamoException("No working C++ compiler found")

    words = ["--data", "shapes", "--preset", "shapes-demo", "--subset", "64", "--epochs", "1", "--compile"]
    monkeypatch.setattr(torch, "compile", lambda model: Uncompilable())
    assert train_cifar([*words, "--out", str(tmp_path / "a")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: --compile can't be used here: leave it out (No working C++ compiler found")

    def unsupported(model):
        raise RuntimeError("Dynamo is not supported on Python 3.99+")

    monkeypatch.setattr(torch, "compile", unsupported)
    assert train_cifar([*words, "--out", str(tmp_path / "b")]) == 2
    assert "leave it out (Dynamo is not supported" in capsys.readouterr().err
