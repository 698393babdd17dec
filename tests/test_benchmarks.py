"""The scripts of benchmarks/: what they compare and refuse, and what a run that fails or comes late leaves behind."""

import gc
import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cifar_demo
import cpu_budget
import fast_cnn
import finetune_memory
import gpu_run
import numpy as np
import peak_memory
import preset_speed
import pytest
import sam2_speed
import sides
import torch
from PIL import Image

from minivit import checkpoint, config, run, study
from minivit.data import shapes
from minivit.splits import Dataset, Split, hold_out
from minivit.train import Trainer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = {"data": "shapes", "preset": "shapes-demo", "dim": 16, "depth": 1, "heads": 2, "device": "cpu", "amp": "off"}


@pytest.fixture
def tiny_gpu_run(monkeypatch):
    """gpu_run with a tiny model, on 100 generated images, for whatever preset."""
    data = hold_out(shapes(0, 200, 20), 100)
    given = {**TINY, "batch_size": 50}
    monkeypatch.setattr(
        gpu_run, "prepare", lambda preset, args, compile, **more: run.prepare(given | more, dataset=data)[0]
    )
    return gpu_run


def test_a_run_slower_than_it_was_measured_ends_in_time_with_its_report(tiny_gpu_run, tmp_path):
    row = {"start_seconds": 0.1, "epoch_seconds": 0.001, "compiled": False}
    result = tiny_gpu_run.train("tiny", row, 0.5, SimpleNamespace(out=tmp_path))
    assert 1 <= result["epochs"] < result["planned_epochs"] and 0 < result["test_acc"] < 1
    assert json.loads((tmp_path / "tiny" / "result.json").read_text())["epochs"] == result["epochs"]


def test_a_preset_is_measured_and_starts_a_second_time(tiny_gpu_run, tmp_path):
    row = tiny_gpu_run.measure("tiny", SimpleNamespace(device="cpu", compile=False, out=tmp_path, steps=2))
    assert "failed" not in row and row["images_per_s"] > 0 and row["batch_size"] == 50
    assert 0 < row["start_seconds"] and row["train_images"] == 100


def test_steps_are_measured_in_each_mode_of_the_compiler_and_what_fails_is_told(tiny_gpu_run, tmp_path, monkeypatch):
    args, modes = SimpleNamespace(device="cpu", compile=True, out=tmp_path, steps=2), []
    monkeypatch.setattr(torch, "compile", lambda model, mode: modes.append(mode) or model)
    for mode in ("default", "reduce-overhead"):
        assert tiny_gpu_run.measure_steps("tiny", args, mode=mode)["images_per_s"] > 0
    assert modes == ["default", "reduce-overhead"]
    monkeypatch.setattr(torch, "compile", lambda model, mode: 1 / 0)
    assert tiny_gpu_run.measure_steps("tiny", args)["failed"].startswith("ZeroDivisionError")


def test_a_run_on_a_gpu_that_fails_leaves_the_others(tmp_path, monkeypatch):
    tried = []

    def train(preset, *_):
        tried.append(preset)
        if preset == "cifar-fast":
            raise RuntimeError("out of memory\nof two lines")
        return {"test_acc": 0.5}

    monkeypatch.setattr(gpu_run, "measure", lambda *_: {"epoch_seconds": 1.0})
    monkeypatch.setattr(gpu_run, "measure_steps", lambda *_, **__: {"images_per_s": 1.0})
    monkeypatch.setattr(gpu_run, "train", train)
    monkeypatch.setattr(gpu_run.run, "load_data", lambda args: None)
    words = ["--data-root", "unused", "--out", str(tmp_path), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["gpu_run.py", *words])
    assert gpu_run.main() == 0 and tried == ["cifar-fast", "cifar"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["cifar-fast"] == {"failed": "RuntimeError: out of memory of two lines"}
    assert result["cifar"] == {"test_acc": 0.5}
    speed = json.loads((tmp_path / "throughput.json").read_text())
    assert {"distilled, taught by demo", "cifar-fast with CUDA graphs", "cifar with CUDA graphs"} <= speed.keys()


def test_what_finds_no_time_left_on_a_gpu_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_run, "measure", lambda *_: {"epoch_seconds": 1.0})
    monkeypatch.setattr(gpu_run, "train", lambda *_: {"test_acc": 0.5})
    monkeypatch.setattr(gpu_run.run, "load_data", lambda args: None)
    words = ["--data-root", "unused", "--out", str(tmp_path), "--device", "cpu", "--seconds", "1e-9"]
    monkeypatch.setattr(sys, "argv", ["gpu_run.py", *words])
    assert gpu_run.main() == 0  # the first preset is trained for an epoch in any case
    result, speed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("result", "throughput"))
    assert result["cifar-fast"] == {"test_acc": 0.5} and speed["cifar with CUDA graphs"] == gpu_run.NO_TIME
    assert speed["cifar"] == result["cifar"] == gpu_run.NO_TIME


@pytest.mark.skipif(not (shutil.which("timeout") and Path("/proc/self").exists()), reason="needs timeout and /proc")
def test_a_run_ends_with_the_script_that_started_it_and_leaves_no_images(tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 60\n")
    python.chmod(0o755)
    words = ["sh", str(BENCHMARKS / "gpu_run.sh"), str(tmp_path / "data"), str(tmp_path / "out")]
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "PYTHON": str(python), "TMPDIR": str(tmp_path / "temporary")}
    script = subprocess.Popen(words, env=environment)
    assert waited(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    script.terminate()
    assert script.wait(10) == 143 and not list((tmp_path / "temporary").iterdir())
    assert waited(lambda: not Path("/proc", (tmp_path / "pid").read_text().strip()).exists())


def waited(happened: Callable[[], object]) -> bool:
    """Wait up to ten seconds until something has happened, and tell whether it has."""
    deadline = time.monotonic() + 10
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(happened())


@pytest.mark.skipif(not shutil.which("sh"), reason="needs a shell")
def test_a_folder_of_a_gpu_run_is_not_used_twice(tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "log.txt").write_text("of the first run")
    words = ["sh", str(BENCHMARKS / "gpu_run.sh"), str(tmp_path / "data"), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and "holds a run already" in done.stderr
    assert (tmp_path / "log.txt").read_text() == "of the first run"


def test_the_masks_of_a_videos_last_frame_are_kept_for_the_comparison(tmp_path, monkeypatch):
    frames = torch.rand(3, 2, 4, 5).numpy() > 0.5
    side = SimpleNamespace(video=lambda folder, boxes: iter(frames))
    monkeypatch.setitem(sam2_speed.SIDES, "ours", lambda args, size, weights: side)
    torch.save({}, tmp_path / "weights.pt")
    args = SimpleNamespace(threads=torch.get_num_threads(), worker="video", side="ours", video_size=64, objects=2)
    args.weights, args.clip, args.masks = tmp_path / "weights.pt", tmp_path, tmp_path / "masks.npy"
    args.dtype, args.device = "float32", "cpu"
    assert len(sam2_speed.measure(args)["frames"]) == 3
    assert (np.load(args.masks) == frames[-1].reshape(-1)).all()


@pytest.mark.parametrize("masks, iou", [([True, False], 1.0), ([False, False], None)])
def test_masks_that_no_side_has_are_not_called_equal(masks, iou, tmp_path, monkeypatch):

    def worker(*_, **__):
        np.save(tmp_path / "masks.npy", np.array(masks))
        return SimpleNamespace(returncode=0, stdout="{}\n")

    monkeypatch.setattr(sam2_speed.subprocess, "run", worker)
    options = ("preset", "device", "dtype", "threads", "image_size", "video_size", "boxes", "repeats")
    args = SimpleNamespace(rounds=1, **dict.fromkeys(options, 1))
    if iou is not None:
        assert sam2_speed.compare(args, tmp_path, "video", tmp_path)["iou"] == iou
        return
    with pytest.raises(RuntimeError, match="video: no side has found a mask"):
        sam2_speed.compare(args, tmp_path, "video", tmp_path)
    assert sam2_speed.compare(args, tmp_path, "encoder", tmp_path)["iou"] is None  # which makes none


@pytest.mark.parametrize(
    "words, message",
    [
        (["--epochs", "5"], "--epochs does nothing here"),
        (["--tta", "flip"], "--tta does nothing here"),
        (["--eval", "best.pt"], "--eval does nothing here"),
        (["--optimizer", "sgdx"], "sgdx"),
        (["--seed", "0", "--optimiser", "muon"], "--optimiser"),
    ],
)
def test_a_budget_refuses_idle_flags(words, message, tmp_path, monkeypatch, capsys, one_thread):
    given = ["--data-root", str(tmp_path), "--side", "ours", "--threads", "1", "--out", str(tmp_path / "out"), *words]
    monkeypatch.setattr(sys, "argv", ["cpu_budget.py", *given])
    with pytest.raises(SystemExit) as stopped:
        cpu_budget.main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_the_parts_of_cifar_fast_are_variants_that_can_be_trained(tmp_path):
    variants = study.load_study(str(BENCHMARKS / "cifar_fast_parts.json"))
    runs = study.plan(variants, {"data": "shapes"}, tmp_path, seeds=1)
    assert len(runs) == len({str(arguments) for _, _, arguments in runs}) == 9
    for _, _, arguments in runs:
        run.check(config.resolve(arguments))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--side", "timm"], "does not exist"),
        (["--side", "timm", "--cpu-minutes", "nan"], "give more than 0"),
        (["--side", "ours", "--cpu-minutes", "0"], "give more than 0"),
        (["--side", "ours", "--threads", "0"], "give more than 0"),
    ],
)
def test_a_budget_of_nothing_and_of_no_data_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    given = ["--data-root", str(tmp_path / "missing"), "--out", str(tmp_path / "out"), *words]
    monkeypatch.setattr(sys, "argv", ["cpu_budget.py", *given])
    with pytest.raises(SystemExit) as stopped:
        cpu_budget.main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_textbook_run_does_not_write_over_another(tmp_path, monkeypatch, capsys):
    (tmp_path / "last.pt").write_bytes(b"of a run")
    given = ["--data-root", str(tmp_path), "--side", "timm", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["cpu_budget.py", *given])
    with pytest.raises(SystemExit):
        cpu_budget.main()
    assert "holds a run already" in capsys.readouterr().err and (tmp_path / "last.pt").read_bytes() == b"of a run"


def test_a_budget_does_not_read_a_flag_as_the_beginning_of_another(tmp_path, monkeypatch, capsys):
    words = ["--data", str(tmp_path), "--side", "ours", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["cpu_budget.py", *words])
    with pytest.raises(SystemExit):
        cpu_budget.main()
    assert "required: --data-root" in capsys.readouterr().err


def test_a_budget_goes_on_with_an_interrupted_run_and_leaves_a_finished_one(tmp_path, monkeypatch, capsys, one_thread):
    for part, number in (("train", 6), ("test", 2)):
        for label in ("bright", "dark"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = np.random.default_rng(i).integers(0, 128, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels + 127 * (label == "bright")).save(folder / f"{i}.png")
    out = tmp_path / "out"
    model = "--image-size 16 --sizes 16 --dim 16 --depth 1 --heads 1 --batch-size 4 --val-split 4 --amp off"
    words = ["--data-root", str(tmp_path), "--side", "ours", "--threads", "1", "--out", str(out), *model.split()]
    monkeypatch.setattr(sys, "argv", ["cpu_budget.py", *words])
    monkeypatch.setattr(cpu_budget.study, "epochs_within", lambda *_: 2)

    def killed(trainer):
        trainer.fit(on_epoch=lambda: setattr(trainer, "stop_requested", True))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cpu_budget.cli, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            cpu_budget.main()
    gc.collect()  # the interrupted run lets go of its folder, as the end of its process does
    rows = (out / "metrics.jsonl").read_text().splitlines()
    cpu_budget.main()
    result, after = json.loads((out / "budget.json").read_text()), (out / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 1 and len(after) == 2 and after[0] == rows[0]
    assert result["epochs"] == 2
    assert result["cpu_minutes"] == pytest.approx(json.loads(after[1])["cpu_minutes"], abs=0.05)
    assert json.loads(after[1])["cpu_minutes"] > json.loads(after[0])["cpu_minutes"]
    (out / "budget.json").unlink()  # killed before its last figure
    cpu_budget.main()
    assert json.loads((out / "budget.json").read_text())["test_acc"] == result["test_acc"]

    def refused(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["cpu_budget.py", *words, *more])
        with pytest.raises(SystemExit) as stopped:
            cpu_budget.main()
        assert stopped.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert refused().endswith(f"{out} holds a finished run: choose another --out")
    assert "was trained with another --whiten (True)" in refused("--no-whiten")
    assert "was trained with another --depth (1)" in refused("--depth", "2")
    assert "120 CPU minutes" in refused("--cpu-minutes", "40")
    (out / "config.json").unlink()  # as the textbook's side leaves its folder
    assert f"{out} holds a run already" in refused()


def test_rows_of_fine_tuning_that_are_all_killed_are_said_to_have_failed(monkeypatch, capsys):
    killed = SimpleNamespace(returncode=-9, stdout="", stderr="")
    monkeypatch.setattr(finetune_memory.subprocess, "run", lambda *_, **__: killed)
    monkeypatch.setattr(sys, "argv", ["finetune_memory.py"])
    assert finetune_memory.main() == 1
    assert capsys.readouterr().out.count("failed: exit status -9") == 4


@pytest.mark.parametrize(
    "name, words, said",
    [
        ("corrections", ["--clips", "0"], "--clips: '0' is out of range"),
        ("working_size", ["--clips", "0"], "--clips: '0' is out of range"),
        ("compare_methods", ["--device", "warp"], "device 'warp'"),
        ("fast_cnn", ["--data-root", "nowhere"], "data folder nowhere does not exist"),
        ("cifar_demo", ["--run", "nowhere"], "there is no checkpoint nowhere"),
        ("preset_speed", ["--preset", "nope"], "--preset: invalid choice: 'nope'"),
    ],
)
def test_a_benchmark_of_what_is_not_there_ends_in_one_line(name, words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]


def test_the_cnn_is_whitened_by_images_of_all_classes(monkeypatch, one_thread):
    seen = []
    labels = torch.arange(10).repeat_interleave(1000)  # folders are read class by class
    train = Split(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2), labels)
    test = Split(torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8), torch.arange(10))
    data = Dataset(train, test, [str(number) for number in range(10)], (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setattr(fast_cnn.datasets, "load", lambda name, root: data)
    monkeypatch.setattr(fast_cnn, "train", lambda *_: None)
    monkeypatch.setattr(fast_cnn.Whitening, "fit", lambda self, parts: seen.extend(parts))
    monkeypatch.setattr(sys, "argv", ["fast_cnn.py", "--data-root", ".", "--threads", "1"])
    fast_cnn.main()
    assert seen[0][:, 0, 0, 0].unique(return_counts=True)[1].tolist() == [500] * 10


@pytest.mark.parametrize("part", ["training", "prediction"])
def test_the_speed_of_a_preset_is_that_of_the_trainers_own_steps(part, monkeypatch, one_thread):
    flips = []
    flipped = Trainer.flipped
    monkeypatch.setattr(run, "load_data", lambda args: shapes(0, 40, 20))
    monkeypatch.setattr(Trainer, "flipped", lambda self, index: flips.append(len(index)) or flipped(self, index))
    args = SimpleNamespace(part=part, preset="shapes-demo", batch_size=8, threads=1, steps=1)
    found = preset_speed.measure(args, "off", keep=True)
    assert len(found["rates"]) == 1 and found["rates"][0] > 0 and found["MiB"] > 100
    assert flips == ([8] * 3 if part == "training" else [])


@pytest.mark.parametrize("platform, most", [("darwin", 2**21), ("linux", 2**11)])
def test_macos_counts_peak_memory_in_bytes_and_others_in_kib(platform, most, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    assert peak_memory.rusage_mib(SimpleNamespace(ru_maxrss=most)) == 2


def test_a_side_answers_until_it_is_gone_and_one_that_cannot_start_is_none(capfd):
    words = [sys.executable, "-c", """print('noise\\n{"torch": 2}', flush=True); print(input(), flush=True)"""]
    process = sides.start("ours", words, verbose=False)
    assert capfd.readouterr().out == "ours: ready, torch 2\n"
    assert sides.ask(process, '{"seconds": 1}') == {"seconds": 1}
    process.wait(60)
    assert sides.ask(process) is None
    assert sides.start("theirs", [sys.executable, "-c", "raise SystemExit(1)"], verbose=False) is None


def test_weights_that_ship_come_with_the_facts_of_their_run(tmp_path, monkeypatch):
    trainer, _ = run.prepare({**TINY, "out": tmp_path / "run"}, dataset=shapes(0, 20, 20))
    trainer.save_best("raw", 0.9)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"cpu_minutes": 1.5}\n{"cpu_minutes": 3.0}\n')
    monkeypatch.setattr(checkpoint, "DEMO", tmp_path / "demo" / "cifar10.pt")
    cifar_demo.export(tmp_path / "run")
    facts = json.loads((tmp_path / "demo" / "cifar10.json").read_text())
    assert checkpoint.name_weights(checkpoint.read(checkpoint.DEMO)) == facts["weights"] == "raw weights"
    assert facts["cpu_minutes"] == 3.0
    assert facts["hold_out_accuracy"] == 0.9 and facts["arguments"]["preset"] == "shapes-demo"
    assert not {"out", "data_root"} & facts["arguments"].keys()
    trainer.save(tmp_path / "run" / "last.pt")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"cpu_minutes": 3.0, "val_acc_ema": 0.8}\n')
    cifar_demo.export(tmp_path / "run", last=True)
    facts = json.loads((tmp_path / "demo" / "cifar10.json").read_text())
    assert facts["weights"] == "averaged weights" and facts["hold_out_accuracy"] == 0.8
    assert checkpoint.load_model(checkpoint.DEMO, torch.device("cpu"))[1]["classes"] == trainer.data.classes
