"""Files that somebody changed: each ends in a result or one line, within bounds of time and memory, in one process."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import tamper
from helpers.commands import command
from helpers.demo_training import TINY_SEGMENTER
from helpers.squares import save_film
from helpers.tiny_segment import tiny_models
from PIL import Image

from minisam_glue import demo, load_models
from minisam_glue.cli.console import Console, failed
from minisam_glue.demo import training
from minisam_glue.demo.curriculum import Recipe
from minisam_glue.demo.train_segmenter import SegmenterTask
from minivit import cli, parser, run
from minivit.pretrained import load_pretrained
from minivit.vit import VisionTransformer, ViTConfig

Cases = Iterator[tuple[str, bytes]]


def problems(path: Path, cases: Cases, run: Callable[[], int], capsys) -> dict[str, str]:
    """Run with each content of a file. What went wrong, by case: no status 0 or 2, several lines, no memory or time."""
    wrong = {}
    for name, content in cases:
        path.write_bytes(content)
        capsys.readouterr()
        try:
            with tamper.bounded():
                status = run()
        except (Exception, tamper.TooSlow) as error:
            wrong[name] = repr(error)[:200]
            continue
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if not line.startswith("warning: ")]
        if status not in (0, 2) or (status == 2) != (len(lines) == 1) or "memory" in said or "\x1b" in said:
            wrong[name] = f"status {status}: {said[:300]!r}"
    return wrong


def told(work: Callable[[], object]) -> int:
    """The exit status of a command that does this work."""
    try:
        work()
    except ValueError as error:
        return failed(error)
    return 0


# --- An interrupted video ----------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> tuple[Path, list]:
    """The folder of an interrupted run, and the command that continues it."""
    words = [save_film(tmp_path / "film", 4), "bright.", "--frames", "--format", "gif", "--out", tmp_path / "out"]
    with monkeypatch.context() as patch:
        frames = []
        patch.setattr(
            Console, "record", lambda *_: frames.append(1) or len(frames) == 2 and signal.raise_signal(signal.SIGINT)
        )
        assert command(*words) == 130
    return tmp_path / "out" / "film" / ".unfinished", [*words, "--resume", "--quiet"]


def resume(stopped: tuple[Path, list], name: str, cases: Cases, capsys) -> dict[str, str]:
    folder, words = stopped
    shutil.copytree(folder, folder.parent.parent / "kept")

    def each() -> Cases:
        for case in cases:
            shutil.rmtree(folder.parent)
            shutil.copytree(folder.parent.parent / "kept", folder)
            yield case

    models = tiny_models()
    return problems(folder / name, each(), lambda: command(*words, models=models), capsys)


def journal_cases(path: Path) -> Cases:
    lines = path.read_bytes().splitlines(keepends=True)
    for name, content in tamper.variants(json.loads(lines[0]), json=True):
        line = json.dumps(content).encode() + b"\n"
        yield name, line + b"".join(lines[1:])
        yield f"{name} of the same length", line[: len(lines[0]) - 1].ljust(len(lines[0]) - 1) + b"\n" + lines[1]
    yield "deep", tamper.deep()
    yield "empty", b""
    yield "longer", b"".join(lines) * 2
    yield "once", lines[0]


def archives(path: Path, step: int) -> Cases:
    """Each step-th of the ways in which a file of torch.save may be changed."""
    return tamper.files(torch.load(path, weights_only=True), path.read_bytes(), step)


def part(cases: Cases, step: int) -> Cases:
    """Each step-th case."""
    return (case for number, case in enumerate(cases) if number % step == 0)


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_a_changed_state_of_a_video_is_refused_in_one_line_or_continued(step, stopped, capsys):
    assert resume(stopped, "state.pt", archives(stopped[0] / "state.pt", step), capsys) == {}


@pytest.mark.parametrize("size", [2**40, 10**400, -1, 5, True, None])
def test_a_journal_is_never_made_as_long_as_a_state_says(size, stopped, capsys):
    folder, words = stopped
    before = (folder / "journal.jsonl").read_bytes()
    torch.save(torch.load(folder / "state.pt", weights_only=True) | {"journal": size}, folder / "state.pt")
    with tamper.bounded(5):
        assert command(*words) == 2
    error = capsys.readouterr().err
    assert "can't be continued" in error and "leave out --resume" in error and error.count("\n") == 1
    assert (folder / "journal.jsonl").read_bytes() == before


def test_states_of_another_version_are_told_as_such(stopped, capsys):
    folder, words = stopped
    state = torch.load(folder / "state.pt", weights_only=True)
    torch.save(state | {"version": 0}, folder / "state.pt")
    assert command(*words) == 2 and "of another version of this program" in capsys.readouterr().err
    torch.save({name: value for name, value in state.items() if name != "version"}, folder / "state.pt")
    assert command(*words) == 0


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_a_changed_journal_of_a_video_is_refused_in_one_line_or_continued(step, stopped, capsys):
    cases = part(list(journal_cases(stopped[0] / "journal.jsonl")), step)
    assert resume(stopped, "journal.jsonl", cases, capsys) == {}


# --- Trainings ---------------------------------------------------------------------------------------------

TINY = "--preset shapes-demo --dim 8 --depth 1 --heads 1 --image-size 8 --device cpu --threads 1 --amp off"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A data set of two classes, bright and dark."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 6), ("test", 2)):
        for name, level in (("bright", 200), ("dark", 20)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (level, level, 10 * number)).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module", params=["adamw", "muon"])
def unfinished(request, pictures, tmp_path_factory) -> Path:
    """The folder of a training that was stopped in the middle of its second epoch."""
    out = tmp_path_factory.mktemp("training") / "run"
    words = f"--data folder --data-root {pictures} --out {out} --epochs 2 --batch-size 4 --val-split 4 {TINY}"
    words = f"{words} --optimizer {request.param}"
    trainer, _ = run.prepare(vars(parser.parse_arguments(words.split(), "minivit")))

    def stop() -> None:
        trainer.stop_requested = trainer.step == 3

    assert not trainer.fit(on_step=stop)
    return out


@pytest.fixture
def no_report(monkeypatch):
    """Its tables and pictures take longer than all else."""
    monkeypatch.setattr(
        run, "final_report", lambda trainer: {"val_acc": None, "chosen": "final", "stopped_early": False}
    )


def retrain(folder: Path, name: str, cases: Cases, capsys, tmp_path) -> dict[str, str]:
    """Continue a training with each content of one of its files."""
    place = tmp_path / "run"

    def each() -> Cases:
        for case in cases:
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(folder, place)
            yield case

    return problems(place / name, each(), lambda: cli.main(["--resume", str(place)]), capsys)


@pytest.mark.parametrize("step", [61, pytest.param(3, marks=pytest.mark.slow)])
def test_a_changed_last_checkpoint_is_refused_in_one_line_or_continued(step, unfinished, tmp_path, capsys, no_report):
    assert retrain(unfinished, "last.pt", archives(unfinished / "last.pt", step), capsys, tmp_path) == {}


@pytest.mark.parametrize("step", [31, pytest.param(3, marks=pytest.mark.slow)])
def test_a_changed_configuration_is_refused_in_one_line_or_continued(step, unfinished, tmp_path, capsys, no_report):
    content = json.loads((unfinished / "config.json").read_text())
    cases = [(name, json.dumps(new).encode()) for name, new in tamper.variants(content, json=True)]
    cases += [
        ("deep", tamper.deep()),
        ("empty", b""),
        ("bytes", b"\xff\xfe"),
        ("long", b" " * (1 << 22) + b"{}"),
        ("list", b"[]"),
    ]
    assert retrain(unfinished, "config.json", part(cases, step), capsys, tmp_path) == {}


@pytest.mark.parametrize("step", [61, pytest.param(3, marks=pytest.mark.slow)])
def test_a_changed_best_checkpoint_is_refused_in_one_line_or_classifies(step, unfinished, pictures, tmp_path, capsys):
    path, picture = tmp_path / "best.pt", str(pictures / "test" / "dark" / "0.png")
    cases = archives(unfinished / "best.pt", step)
    assert problems(path, cases, lambda: cli.main(["--predict", str(path), picture]), capsys) == {}


@pytest.mark.parametrize(
    "name, value",
    [("depth", 10**7), ("dim", 30_000), ("dim", 2**40), ("image_size", 2**40), ("mlp_ratio", 1e300), ("heads", 10**9)]
    + [("patch", 10**9), ("depth", 99), ("class_attention", 10**7), ("threads", 10**9)],
)
def test_a_model_too_large_to_be_meant_is_refused_before_it_is_built(name, value, pictures, tmp_path, capsys):
    arguments = {"data": "folder", "data_root": str(pictures), "preset": "vit-d256-l6", name: value}
    if value == 99:
        arguments |= {"dim": 4096}
    (tmp_path / "config.json").write_text(json.dumps({"arguments": arguments}))
    with tamper.bounded(10, 1 << 30):
        assert cli.main(["--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and name.split("_")[0] in error.replace("-", "_")
    assert not (tmp_path / "run").exists()


DEMO = Recipe(steps=3, batch_size=1, warmup_steps=1, early_side=64, objects=1, corrections=0)


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory) -> Path:
    """The folder of a training of a tiny demo segmenter, two of whose three steps are done."""
    out = tmp_path_factory.mktemp("demo")
    trainer = training.Trainer(SegmenterTask(DEMO, TINY_SEGMENTER), out, "cpu")
    for step in range(2):
        trainer.update(trainer.task.batch(step, step))
    trainer.save()
    return out


WRONG = [
    (("recipe",), {}),
    (("recipe", "steps"), "x"),
    (("recipe", "steps"), None),
    (("recipe", "lr"), torch.zeros(3)),
    (("step",), 4),
    (("optimizers",), 5),
    (("optimizers", 0), {"param_groups": []}),
    (("optimizers", 0, "state"), 5),
    (("optimizers", 0, "state", 0, "momentum"), "x"),
    (("optimizers", 0, "state", 0, "momentum"), torch.zeros(3)),
    (("optimizers", 1, "state", 1, "exp_avg"), torch.zeros(3)),
    (("optimizers", 1, "state", 1, "step"), torch.tensor(-1.0)),
    (("optimizers", 1, "state", 1), {}),
    (("optimizers", 1, "param_groups", 0, "params"), [0]),
]


def test_what_would_end_a_demo_training_later_is_refused_before_it_goes_on(demo_run, tmp_path):
    good = torch.load(demo_run / "last.pt", weights_only=True)
    trainer, path = training.Trainer(SegmenterTask(DEMO, TINY_SEGMENTER), tmp_path, "cpu"), tmp_path / "last.pt"
    for place, wrong in WRONG:
        assert tamper.at(good, place) is not wrong  # there is such a place
        torch.save(tamper.changed(good, place, wrong), path)
        with pytest.raises(ValueError) as refused:
            training.read_state(path, trainer)
        assert str(refused.value).startswith(f"{path}: ") and "choose another --out" in str(refused.value), place


@pytest.mark.parametrize("step", [131, pytest.param(3, marks=pytest.mark.slow)])
def test_a_changed_state_of_a_demo_training_is_refused_in_one_line_or_continued(step, demo_run, tmp_path, capsys):
    def go_on() -> int:
        return told(lambda: training.Trainer(SegmenterTask(DEMO, TINY_SEGMENTER), tmp_path, "cpu").run(0))

    assert problems(tmp_path / "last.pt", archives(demo_run / "last.pt", step), go_on, capsys) == {}


# --- Weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_changed_weights_of_the_demo_are_refused_in_one_line_or_loaded(step, tmp_path, capsys):
    path = tmp_path / demo.SEGMENTER
    cases = archives(demo.FOLDER / path.name, step)
    assert problems(path, cases, lambda: told(lambda: load_models(tmp_path, None)), capsys) == {}


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_changed_safetensors_are_refused_in_one_line_or_loaded(step, tmp_path, capsys):
    model = VisionTransformer(ViTConfig(image_size=8, dim=8, depth=1, heads=2))
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in model.state_dict().items():
        raw = tensor.numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": [*tensor.shape], "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    good = packed_safetensors(header, body)
    cases = [(name, packed_safetensors(new, body)) for name, new in tamper.variants(header, json=True)]
    cases += [(f"cut at {length}", good[:length]) for length in (0, 5, 8, 100, len(good) - 1)]
    cases += [(f"length {size}", size.to_bytes(8, "little") + good[8:]) for size in (0, 2**40, 2**64 - 1)]
    cases += [("whole", good), ("deep", packed_safetensors(None, body, tamper.deep()))]
    cases += [("nan", packed_safetensors(header, torch.full((len(body) // 4,), float("nan")).numpy().tobytes()))]
    path = tmp_path / "weights.safetensors"
    assert problems(path, part(cases, step), lambda: told(lambda: load_pretrained(model, path)), capsys) == {}


def packed_safetensors(header: object, body: bytes, text: bytes | None = None) -> bytes:
    text = json.dumps(header).encode() if text is None else text
    return len(text).to_bytes(8, "little") + text + body
