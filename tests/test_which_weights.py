"""Whatever a run is like, one number holds: the report's, that of --eval, and the model's as a teacher."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_cifar
from minivit import checkpoint, run
from minivit.predict import evaluator_of
from minivit.report import percent

SLOW = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20)]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three classes that differ a little, so that accuracies are neither 0 nor 1."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 60), ("test", 27)):
        for number in range(3):
            (root / split / f"class{number}").mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(100 + 12 * number, 40, (8, 8, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / f"class{number}" / f"{i}.png")
    return root


def words_of(seed: int) -> list[str]:
    """The flags of a run that a seed draws."""
    rng = np.random.default_rng(seed)
    choices = {
        "--preset": ["cifar-small", "distilled", "vit-d128-l6"],
        "--val-split": ["0", "6", "102"],
        "--amp": ["off", "bf16"],
        "--optimizer": ["adamw", "muon"],
        "--epochs": ["1", "2", "3"],
        "--batch-size": ["16", "50"],
        "--lr": ["1e-3", "1e-2"],
        "--ema-end": ["0.5", "0.99"],
    }
    drawn = [word for flag, values in choices.items() for word in (flag, str(rng.choice(values)))]
    if "0" != drawn[drawn.index("--val-split") + 1] and rng.random() < 0.5:
        drawn += ["--patience", "1"]
    size = "--dim 16 --depth 2 --heads 2 --image-size 8 --patch 4 --ema-start 0.3 --clean-epochs 0"
    return [*drawn, *size.split(), *(["--class-attention", "1"] if "distilled" in drawn else [])]


@pytest.mark.parametrize("seed", [0, 1, *SLOW])
def test_the_report_eval_and_the_teacher_agree(seed, images, tmp_path, capsys):
    data = ["--data", "folder", "--data-root", str(images), "--device", "cpu", "--threads", "1"]
    assert train_cifar.main([*data, "--out", str(tmp_path), "--seed", str(seed), *words_of(seed)]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    shown = f"{percent(result['test_acc'])} %"
    assert f"{shown}  <- chosen" in printed and shown in (tmp_path / "report" / "report.md").read_text()
    assert train_cifar.main(["--eval", str(tmp_path / "best.pt"), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert f": {shown} of 81 test images" in told
    assert f"{result['weights']} weights of epoch {result['epoch']}" in told
    trainer, _ = run.prepare({"resume": tmp_path})
    teacher = run.load_teacher(
        tmp_path / "best.pt", trainer.data, torch.device("cpu"), {"data": "folder", "data_root": images}
    )
    evaluator = evaluator_of(checkpoint.read(tmp_path / "best.pt"), torch.device("cpu"))
    assert evaluator.accuracy(teacher, trainer.data.test) == result["test_acc"]
