"""Distillation: a teacher's view of its student's images, and teacher and student trained in one command."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import train_cifar
from minivit import chain, checkpoint, cli, config, run
from minivit.distill import Teacher, fingerprint
from minivit.resnet import resnet18
from minivit.vit import VisionTransformer, ViTConfig

TINY = ViTConfig(image_size=8, patch=4, classes=10, dim=16, depth=1, heads=2)
HALVES, OTHERS = ((0.5,) * 3, (0.5,) * 3), ((0.4, 0.5, 0.3), (0.2, 0.25, 0.3))


def normalised(x: torch.Tensor, mean: tuple, std: tuple) -> torch.Tensor:
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_a_teacher_sees_the_students_images_under_its_own_normalisation_and_in_its_own_size():
    model, pixels = VisionTransformer(TINY), torch.rand(2, 3, 8, 8)
    view = normalised(pixels, *OTHERS)
    scores = Teacher(model, HALVES, OTHERS)(view)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(scores, model(normalised(pixels, *HALVES)))
    assert not scores.requires_grad
    same = Teacher(model, OTHERS, OTHERS)
    assert torch.equal(same(view), model(view))
    large = torch.randn(2, 3, 32, 32)
    small = torch.nn.functional.interpolate(large, (8, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(same(large), model(small))
    assert [Teacher(resnet18(), OTHERS, OTHERS).size_for(side, side) for side in (24, 224)] == [(24, 24), (32, 32)]


def test_a_teacher_is_known_by_its_running_means_too():
    model = resnet18()
    before = fingerprint(model)
    assert fingerprint(copy.deepcopy(model)) == before
    model.bn1.running_mean.add_(0.5)
    assert fingerprint(model) != before


# ---- the chain ------------------------------------------------------------------------------------------

STUDENT = ["--data", "shapes", "--preset", "distilled", "--teacher", "train:resnet18", "--teacher-epochs", "1"]
STUDENT += ["--dim", "16", "--depth", "2", "--heads", "2", "--class-attention", "1", "--epochs", "1", "--batch-size"]
STUDENT += ["50", "--amp", "off", "--device", "cpu", "--threads", "1", "--val-split", "0"]


@pytest.fixture
def small(monkeypatch):
    """A linear teacher of 4x4 pixels, few images and no report, in place of hours."""

    def linear(classes: int = 10) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, classes))

    monkeypatch.setitem(checkpoint.RESNETS, "resnet18", linear)
    monkeypatch.setattr(run, "write_report", lambda *args, **options: None)
    shapes = run.datasets.shapes
    monkeypatch.setattr(run.datasets, "shapes", lambda seed, image_size: shapes(seed, 50, 20, image_size=image_size))


def test_one_command_trains_a_teacher_keeps_it_and_teaches_with_it(small, tmp_path, capsys):
    out = tmp_path / "run"
    assert train_cifar.main([*STUDENT, "--out", str(out)]) == 0
    assert f"first the teacher, resnet18, in {out / 'teacher'}" in capsys.readouterr().out
    teacher = json.loads((out / "teacher" / "config.json").read_text())["arguments"]
    assert (teacher["preset"], teacher["epochs"], teacher["label_smoothing"]) == ("resnet18", 1, 0.0)
    student = json.loads((out / "config.json").read_text())["arguments"]
    assert student["teacher"] == "train:resnet18" and student["distill_temperature"] == 2.0
    assert (out / "result.json").exists() and (out / "teacher" / "result.json").exists()

    kept = (out / "teacher" / "best.pt").read_bytes()
    for name in ("last.pt", "best.pt", "result.json"):  # as if it had been killed before the first checkpoint
        (out / name).unlink()
    assert train_cifar.main(["--resume", str(out)]) == 0
    assert "first the teacher" not in capsys.readouterr().out and (out / "teacher" / "best.pt").read_bytes() == kept
    assert train_cifar.main([*STUDENT, "--out", str(out)]) == 2  # the student is there
    assert "holds a run already: continue it with --resume" in capsys.readouterr().err
    config = (out / "config.json").read_bytes()
    other = [word.replace("resnet18", "resnet50") for word in STUDENT]
    assert train_cifar.main([*other, "--lr", "0.1", "--out", str(out)]) == 2  # before its teacher is trained
    assert "holds a" in capsys.readouterr().err and (out / "config.json").read_bytes() == config
    shutil.rmtree(out / "teacher")
    assert train_cifar.main([*STUDENT, "--lr", "0.1", "--out", str(out)]) == 2
    assert not (out / "teacher").exists() and (out / "config.json").read_bytes() == config


def test_a_chain_stopped_in_the_teachers_run_goes_on_from_there(small, tmp_path, capsys, monkeypatch):
    out, fit = tmp_path / "run", cli.fit

    def stop(trainer) -> bool:
        trainer.stop_requested = True
        return fit(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(cli, "fit", stop)
        assert train_cifar.main([*STUDENT, "--out", str(out)]) == 143
    assert f"continue with: python train_cifar.py --resume {out}\n" in capsys.readouterr().out
    assert (out / "teacher" / "last.pt").exists() and not (out / "last.pt").exists()
    shutil.copytree(out, tmp_path / "other")
    other = [word if word != "1" or STUDENT[i - 1] != "--teacher-epochs" else "2" for i, word in enumerate(STUDENT)]
    assert train_cifar.main([*other, "--out", str(tmp_path / "other")]) == 2
    assert "holds a teacher of another --teacher-epochs: choose another --out" in capsys.readouterr().err
    moved, prepared = tmp_path / "elsewhere" / "data", []
    prepare = run.prepare_run
    monkeypatch.setattr(run, "prepare_run", lambda args, *rest: prepared.append(dict(args)) or prepare(args, *rest))
    torch.set_num_threads(2)
    assert train_cifar.main(["--resume", str(out), "--threads", "1", "--data-root", str(moved)]) == 0
    assert (out / "result.json").exists()
    assert [(args["threads"], args["data_root"]) for args in prepared] == [(1, moved)] * 2  # of teacher and student


@pytest.mark.parametrize(
    "words, message",
    [
        (["--teacher", "train:vit-b16"], "--teacher train:vit-b16: give train:resnet18 or train:resnet50, or a checkp"),
        (["--lr", "-1"], "--lr is -1.0, not above 0"),
        (["--heads", "3"], "--dim 16 does not divide into 3 heads"),
        (["--train-last", "9"], "--train-last is 9, of a model with 2 blocks"),
    ],
)
def test_what_the_student_cannot_use_is_told_before_the_teacher_is_trained(words, message, tmp_path, capsys):
    assert train_cifar.main([*STUDENT, *words, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_several_processes_are_told_to_train_the_teacher_first(tmp_path):
    args, _ = config.arguments({"preset": "distilled", "teacher": Path("train:resnet50"), "out": tmp_path / "run"})
    with pytest.raises(ValueError, match=rf"first the teacher, --preset resnet50 --out {tmp_path / 'run' / 'teacher'}"):
        chain.teacher_run(args, processes=2)


@pytest.mark.parametrize("task", [["--eval", "demo"], ["--predict", "demo", "cat.png"]])
def test_flags_of_training_beside_another_task_are_named_not_ignored(task, capsys):
    for words, named in (
        (["--epochs", "3", "--lr", "1"], "--epochs, --lr"),
        (["--dim", "64"], "--dim"),
        (["--config", "x"], "--config"),
    ):
        assert train_cifar.main([*task, *words]) == 2
        assert capsys.readouterr().err == f"error: {task[0]} trains nothing: leave out {named}\n"


@pytest.mark.parametrize(
    "words, said",
    [
        ("--predict demo cat.png --out x --data cifar10", "--predict does not need it: leave out --out, --data"),
        ("--export demo x.onnx --subset 3", "--export does not need it: leave out --subset"),
        ("--eval demo --seed 3 --out x", "--eval trains nothing: leave out --seed"),
        ("--resume x --out y", "--resume goes on in its own folder: leave out --out"),
    ],
)
def test_a_flag_that_a_task_would_not_read_is_named_not_ignored(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train_cifar.main(words.split()) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_the_teacher_is_trained_on_the_images_and_the_hold_out_of_its_student(tmp_path):
    shared = {"data": "shapes", "data_root": Path("x"), "val_split": 0.3, "subset": 40, "skip_bad": True, "seed": 5}
    shared |= {"device": "cpu", "threads": 1, "amp": "bf16"}
    student = {"preset": "distilled", "teacher": Path("train:resnet18"), "teacher_epochs": 3, "epochs": 9, "lr": 0.1}
    args = config.resolve(shared | student | {"out": tmp_path / "run"})
    own = {"preset": "resnet18", "epochs": 3, "out": tmp_path / "run" / "teacher"}
    assert chain.teacher_run(args) == shared | own
