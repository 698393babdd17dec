"""What runs on a CPU runs on Apple's and NVIDIA's GPUs too, as far as a pretended one can tell (pretended_gpu.py)."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gpu_run
import pytest
import torch
from helpers.sam2_tiny import tiny_model

from minisam_glue.models import Models
from minisam_glue.sam2 import SAM2
from minivit import run

TINY = {"data": "shapes", "preset": "shapes-demo", "dim": 16, "depth": 1, "heads": 2, "device": "cpu", "amp": "off"}
HELPER = Path(__file__).parent / "helpers" / "pretended_gpu.py"


@pytest.mark.parametrize(
    "device, package",
    [("mps", "minivit"), ("mps", "minisam_glue"), pytest.param("cuda:1", "minisam_glue", marks=pytest.mark.slow)],
)
def test_nothing_is_asked_of_a_gpu_that_it_refuses(device, package):
    done = subprocess.run([sys.executable, HELPER, device, package], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("device, waits", [("cpu", []), ("cuda:1", ["cuda:1"]), ("mps", ["mps"])])
def test_the_seconds_of_a_stage_are_those_until_the_device_is_done(device, waits, monkeypatch):
    models, waited = Models(None, tiny_model()), []
    monkeypatch.setattr(SAM2, "device", torch.device(device))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(str(device)))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    with models.stage("track"):
        assert not waited
    assert waited == waits and models.seconds["track"] > 0


def test_a_preset_that_does_not_compile_is_measured_without(tmp_path, monkeypatch):
    tried = []

    def prepare(preset, args, compile, out):
        trainer, _ = run.prepare({**TINY, "out": out})
        tried.append((compile, trainer))  # a failed one is still alive, as in a traceback, and holds its folder
        return trainer

    def time_steps(trainer, steps):
        if tried[-1][0]:
            raise RuntimeError("a compiler's error\nof two lines")
        return 100.0

    monkeypatch.setattr(gpu_run, "prepare", prepare)
    monkeypatch.setattr(gpu_run, "time_steps", time_steps)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    row = gpu_run.measure("cifar", SimpleNamespace(device="cuda", compile=True, out=tmp_path, steps=1))
    assert [compiled for compiled, _ in tried] == [True, False, False] and row["images_per_s"] == 100.0
    assert row["failed"] == "RuntimeError: a compiler's error of two lines" and row["train_images"] > 0
    assert row["start_seconds"] > 0 and row["epoch_seconds"] > row["train_images"] / 100.0  # its end counts, too
    assert not list(tmp_path.rglob("*.pt"))
