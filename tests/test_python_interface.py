"""minivit from Python: what the command line would have refused is refused here too, and never a wrong number."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import train_cifar
from minivit import checkpoint, config
from minivit.augment import Augment, crop, normalise
from minivit.distill import Teacher
from minivit.evaluate import Evaluator, top1
from minivit.export import ExportError, export_model
from minivit.finetune import freeze
from minivit.losses import class_weights, soft_distillation
from minivit.mix import mix_batch, one_hot
from minivit.muon import Muon
from minivit.optim import adamw, load_moments, one_cycle
from minivit.position_bias import DecomposedPositionBias, RelativePositionBias
from minivit.pretrained import load_pretrained
from minivit.report import expected_calibration_error, top_k
from minivit.resnet import resnet18
from minivit.splits import DataError, Dataset, Split, channel_stats, subset
from minivit.stem import Whitening
from minivit.study import load_study
from minivit.train import Trainer
from minivit.train_config import TrainConfig
from minivit.vit import VisionTransformer, ViTConfig

TINY = ViTConfig(image_size=8, patch=4, classes=3, dim=16, depth=2, heads=2)
HALF = (0.5,) * 3
UINT8 = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
LABELS = torch.tensor([0, 1])
SPLIT = Split(UINT8, LABELS)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_layer_decay_acts_without_a_schedule():
    torch.manual_seed(0)
    model = VisionTransformer(TINY)
    before = copy.deepcopy(model)
    optimizer = adamw(model, 1e-3, 0.0, layer_decay=0.1)
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    moved = {
        name: (p - q).abs().max().item()
        for (name, p), q in zip(model.named_parameters(), before.parameters())
        if name in ("head.weight", "blocks.1.mlp.fc1.weight", "blocks.0.mlp.fc1.weight")
    }
    # The first step of AdamW is the rate itself: that of the head, a tenth for the last block, a hundredth before it.
    assert moved == pytest.approx(
        {"head.weight": 1e-3, "blocks.1.mlp.fc1.weight": 1e-4, "blocks.0.mlp.fc1.weight": 1e-5}, rel=0.05
    )


def test_a_teacher_in_a_model_that_trains_stays_as_it_was():
    torch.manual_seed(0)
    student = nn.Module()
    student.teacher = Teacher(resnet18(3), (HALF, HALF), (HALF, HALF))
    x = torch.randn(4, 3, 8, 8)
    before = student.teacher(x)
    student.train()
    student.teacher(3 * x + 1)
    assert torch.equal(student.teacher(x), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_keep_their_numbers_under_another_default_precision_of_pytorch(dtype):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    want, _ = checkpoint.load_model(checkpoint.DEMO, "cpu")
    torch.set_default_dtype(dtype)
    try:
        got, _ = checkpoint.load_model(checkpoint.DEMO, "cpu")
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(got.state_dict().values(), want.state_dict().values(), strict=True))
    with torch.inference_mode():
        assert torch.equal(got(images), want(images))


def test_exporting_changes_neither_the_model_nor_random_numbers(tmp_path):
    model, state = VisionTransformer(TINY).bfloat16().train(), torch.get_rng_state()
    export_model(model, str(tmp_path / "model.pt2"), {})
    assert model.training and next(model.parameters()).dtype == torch.bfloat16
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ExportError, match="model.pth: give a name that ends in"):
        export_model(model, tmp_path / "model.pth", {})


def test_a_trainer_makes_its_folder_and_checkpoints_that_are_read_back(tmp_path):
    split = Split(torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8), torch.arange(12) % 3)
    data = Dataset(split, split, ["a", "b", "c"], HALF, HALF)
    trainer = Trainer(
        VisionTransformer(TINY), data, TrainConfig(epochs=1, batch_size=4, amp="off"), tmp_path / "new", "cpu"
    )
    assert trainer.fit()
    trainer.save(tmp_path / "new" / "last.pt")
    model, _ = checkpoint.load_model(tmp_path / "new" / "last.pt", "cpu")
    assert model.config == TINY


def test_a_model_of_a_loop_of_ones_own_is_saved_for_every_flag_that_takes_a_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        for split in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (80 * "abc".index(name), 9 * i, 0)).save(tmp_path / split / name / f"{i}.png")
    torch.manual_seed(0)
    model = VisionTransformer(TINY)
    checkpoint.save_model("mine.pt", model, ["a", "b", "c"], HALF, np.array(HALF))
    loaded, _ = checkpoint.load_model("mine.pt", "cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values()))
    data, quick = ["--data", "folder", "--data-root", "."], ["--epochs", "1", "--val-split", "0", "--device", "cpu"]
    for words in (
        ["--predict", "mine.pt", "test/a/0.png"],
        ["--eval", "mine.pt", *data],
        ["--export", "mine.pt", "mine.pt2"],
        [*data, *quick, "--preset", "cifar", "--pretrained", "mine.pt", "--image-size", "8", "--out", "tuned"],
        [*data, *quick, "--preset", "shapes-demo", "--image-size", "8", "--teacher", "mine.pt", "--out", "taught"],
    ):
        assert train_cifar.main(words) == 0, capsys.readouterr().err


def test_moments_and_studies_are_taken_over_as_copies():
    model = VisionTransformer(TINY)
    optimizer = adamw(model, 1e-3)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    saved, other = optimizer.state_dict(), adamw(model, 1e-3)
    load_moments(other, saved)
    other.step()
    assert {float(moments["step"]) for moments in saved["state"].values()} == {1.0}
    load_study("ladder")["mine"] = {}
    assert "mine" not in load_study("ladder")


def test_demo_is_a_file_of_weights_here_too():
    model = checkpoint.build_model("cifar-fast", 10, {})
    assert "loaded" in load_pretrained(model, "demo").line


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: top1(torch.eye(4), torch.tensor([[0], [1], [2], [3]])), r"labels \(4, 1\): give"),
        (lambda: top1(torch.eye(4), torch.tensor([1])), r"labels \(1,\): give"),
        (lambda: soft_distillation(torch.eye(3), torch.ones(3), 2.0), "targets have shape"),
        (lambda: soft_distillation(torch.eye(3), torch.eye(3), -1.0), "temperature is -1.0: give one above 0"),
        (lambda: Split(UINT8, LABELS[:1]), "2 images have labels"),
        (lambda: Split(UINT8, one_hot(LABELS, 3)), "2 images have labels"),
        (lambda: class_weights(torch.tensor([0, 5]), 3), "labels go from 0 to 5, of 3 classes"),
        (lambda: mix_batch(UINT8.float(), one_hot(torch.tensor([0]), 3), 1, 1, 1, generator()), "give float images"),
        (lambda: one_hot(LABELS[:, None], 3), r"labels are torch.int64 \(2, 1\): give"),
        (lambda: one_hot(LABELS.byte(), 3), "labels are torch.uint8"),
        (lambda: channel_stats(UINT8.permute(0, 2, 3, 1)), r"images are torch.uint8 \(2, 8, 8, 3\)"),
        (lambda: normalise(UINT8.permute(0, 2, 3, 1), HALF, HALF), r"images are \(2, 8, 8, 3\): give"),
        (lambda: normalise(UINT8.numpy(), HALF, HALF), "images are ndarray: give"),
        (lambda: Evaluator(HALF, HALF, "cpu").predict(None, UINT8.numpy(), "flip"), "images are ndarray: give"),
        (lambda: Evaluator((125.0,) * 3, HALF, "cpu"), "the mean of pixels from 0 to 1"),
        (lambda: Augment(HALF, (0.0,) * 3), "the std of pixels from 0 to 1"),
        (lambda: Augment(HALF, HALF, padding="zeros"), "padding"),
        (lambda: Augment(HALF, HALF, erasing=2), "erasing"),
        (lambda: Augment(HALF, HALF, jitter=-1), "jitter"),
        (lambda: Augment(HALF, HALF)(UINT8.numpy(), generator()), "images are ndarray: give"),
        (lambda: crop(UINT8, 1, torch.zeros(2, 2, dtype=torch.int64), "zeros"), "the padding is 'zeros'"),
        (lambda: top_k(torch.eye(4), torch.tensor([[0], [1], [2], [3]]), 1), r"classes \(4, 1\)"),
        (lambda: top_k(torch.eye(4)[:1], LABELS, 1), r"logits are \(1, 4\)"),
        (lambda: top_k(torch.eye(2), LABELS + 9, 1), "classes go from 9 to 10, of 2"),
        (lambda: top_k(torch.eye(2) * torch.nan, LABELS, 1), "not finite"),
        (lambda: expected_calibration_error(torch.eye(2), LABELS[:1]), r"classes \(1,\)"),
        (lambda: expected_calibration_error(torch.eye(2), LABELS, 0), "in 0 bins is undefined"),
        (lambda: RelativePositionBias((3, 4), 2)((2, 5)), r"a grid of \(2, 5\) patches is larger"),
        (lambda: DecomposedPositionBias((3, 4), 2)((4, 4)), r"a grid of \(4, 4\) patches is larger"),
        (lambda: Whitening().fit([torch.randn(2, 1, 4, 4)]), "give normalised images"),
        (lambda: Whitening().fit([UINT8]), "give normalised images"),
        (lambda: Whitening().fit([]), "no images"),
        (lambda: one_cycle(3, 10, 1.0, pct_start=2.0), "pct_start is 2.0"),
        (lambda: channel_stats(UINT8[:0]), "no images"),
        (lambda: subset(Dataset(SPLIT, SPLIT, ["a", "b"], HALF, HALF), 0), "a subset of 0 images"),
        (lambda: freeze(VisionTransformer(TINY), 1.5), "is 1.5"),
        (lambda: config.arguments({"epohcs": 5}), "there is no argument 'epohcs'"),
        (lambda: Muon(VisionTransformer(TINY), lr=0.0), "learning rate is 0.0"),
        (lambda: VisionTransformer("cifar"), "give a ViTConfig"),
        (lambda: freeze(nn.Linear(2, 2), 1), "give a VisionTransformer"),
        (lambda: checkpoint.save_model("x.pt", nn.Linear(2, 2), ["a"], HALF, HALF), "give a VisionTransformer"),
        (lambda: checkpoint.save_model("x.pt", VisionTransformer(TINY), ["a"], HALF, HALF), "1 names of classes, of a"),
        (lambda: checkpoint.save_model("x.pt", VisionTransformer(TINY), ["a", "b", "c"], [120] * 3, HALF), "mean"),
        (lambda: checkpoint.build_model("nope", 5, {}), "there is no preset 'nope': "),
    ],
)
def test_a_wrong_call_is_told_what_to_give(call, words):
    with pytest.raises((ValueError, TypeError, DataError), match=words):
        call()
