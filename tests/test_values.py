"""Each number and choice of train_cifar.py is checked where it enters: one line that names the flag, exit status 2."""

import dataclasses
import json
from typing import get_args

import pytest
import torch

import train_cifar
from minivit import data as datasets
from minivit import parser
from minivit.fast import accelerate
from minivit.reading import kinds_of, within
from minivit.splits import DataError, hold_out
from minivit.train import Trainer
from minivit.train_config import TRAIN_KINDS, TrainConfig, TrainingError
from minivit.vit import FLAGS, MODEL_KINDS, VisionTransformer, ViTConfig

GIVEN = ["--data", "folder", "--device", "cpu", "--preset", "cifar-small"]
NO_NUMBERS = ("nan", "inf", "-inf", "x", "")
NO_WHOLE = (*NO_NUMBERS, "1.5", "1e3")
FILE = ("", "nowhere", "train_cifar.py/nowhere")


def whole(refused: str, accepted: str, context: str = "") -> tuple:
    return (*refused.split(), *NO_WHOLE), accepted.split(), context


def number(refused: str, accepted: str, context: str = "") -> tuple:
    return (*refused.split(), *NO_NUMBERS), accepted.split(), context


def choice(accepted: str, context: str = "") -> tuple:
    return ("", "foo", "None"), accepted.split(), context


# flag: values that are refused, values that are accepted, what else is given. Values below, at and above each range.
ROWS = {
    "--resume": (FILE, (), ""),
    "--config": (FILE, (), ""),
    "--eval": (FILE, (), ""),
    "--predict": (("", "nowhere", "nowhere nowhere.png"), (), ""),
    "--export": (("", "nowhere", "nowhere x.onnx", "nowhere x.pt2"), (), ""),
    "--study": (("", "foo", "nowhere.json"), (), ""),
    "--tta": (("", "foo", "None", "flip"), (), ""),  # flip: of a training
    "--save-predictions": (("", "x.csv"), (), ""),
    "--save-attention": (("", "maps"), (), ""),
    "--seeds": (("0", "-1", "1.5", "1"), (), ""),
    "--repeat": (("", "baseline"), (), ""),
    "--cpu-minutes": (("0", "-1", "nan", "1"), (), ""),
    "--hours": (("0", "-1", "nan", "1"), (), ""),
    "--data": choice("cifar10 cifar100 folder shapes"),
    "--data-root": ((), ("anywhere",), ""),
    "--val-split": number("-1 -0.001 1.5 100.25 -inf", "0 0.0 0.999 1 100 1e3"),
    "--mean": (("0", "0 0", "0 0 x", "nan 0 0", "1e39 0 0"), ("0 0.5 1",), ""),
    "--std": (("1", "0 1 1", "1 1 -1", "inf 1 1", "1e-40 1 1"), ("0.2 0.5 1",), ""),
    "--subset": whole("-1", "0 1 1000"),
    "--skip-bad": (("=1",), (None,), ""),
    "--preset": choice("cifar vit-b16 resnet18"),
    "--image-size": whole("-8 0 65537 33 65536", "4 32 256", "--crop 3"),
    "--patch": whole("-1 0 33 64 65537 5", "1 4 32"),
    "--dim": whole("-8 0 65537 30", "8 64 512"),
    "--depth": whole("-1 1001", "0 1 12"),
    "--heads": whole("-1 0 3 65537", "1 8 128"),
    "--mlp-ratio": number("-1 0 0.001 65537", "0.01 1 8.5"),
    "--stem": choice("patch conv whitening cnn resnet18"),
    "--stem-depth": whole("-1 1001", "1"),
    "--whiten": (("=1",), (None,), ""),
    "--mlp-conv": (("=1",), (None,), ""),
    "--relative-bias": choice("none decomposed joint"),
    "--class-attention": whole("-1 13 1001", "0 1 12", "--preset distilled"),
    "--layer-scale": number("-1 -1e-9", "0 1e-5 1"),
    "--dropout": number("-0.1 1 2", "0 0.999"),
    "--head-dropout": number("-0.1 1 2", "0 0.999"),
    "--drop-path": number("-0.1 1 2", "0 0.999"),
    "--pretrained": (("anything",), ("demo",), ""),
    "--epochs": whole("-1 0", "1 1000000"),
    "--batch-size": whole("-1 0", "1 1000000"),
    "--accumulate": whole("-1 0", "1 1000"),
    "--optimizer": choice("adamw muon"),
    "--schedule": choice("cosine one-cycle linear"),
    "--lr": number("-1e-3 0 1e-9", "1e-5 10", "--schedule cosine"),
    "--adamw-lr": number("-1e-3 0", "1e-9 10"),
    "--min-lr": number("-1e-9 0.002", "0 1e-9 1e-3", "--schedule cosine --lr 1e-3"),
    "--warmup": number("-0.1 24 1e9", "0 0.999 1 3.5 23", "--schedule cosine"),
    "--weight-decay": number("-3 -1e-9", "0 10"),
    "--layer-decay": number("-1 0 1.1", "1e-3 0.75 1"),
    "--train-last": whole("-1 5 1001", "0 3 4"),
    "--balance": choice("none weights sampler"),
    "--clip": number("-1 -1e-9", "0 1e-9 10"),
    "--ema-start": number("-0.1 1 2", "0 0.9999"),
    "--ema-end": number("-0.1 1 2", "0 0.9999"),
    "--patience": whole("-1", "0 1 1000"),
    "--max-bad-steps": whole("-1 0", "1 1000"),
    "--seed": whole("-9007199254740992 9007199254740992", "-9007199254740991 0 9007199254740991"),
    "--sizes": (("0", "-24", "24 0", "65537", *NO_WHOLE), ("32", "4 32", "24 24 32"), ""),
    "--crop": whole("-3 -1 32 500 65537", "0 31"),
    "--padding": choice("zero reflect"),
    "--flip": (("=1",), (None,), ""),
    "--alternate-flip": (("=1",), (None,), ""),
    "--trivial-augment": (("=1",), (None,), ""),
    "--jitter": number("-1 -1e-9 2.1", "0 2"),
    "--rotate": number("-1 180.1", "0 15 180"),
    "--erasing": number("-0.1 1.1", "0 1"),
    "--mixup": number("-1 -1e-9 1001", "0 1e-9 1000"),
    "--cutmix": number("-1 -1e-9 1001", "0 1e-9 1000"),
    "--mix-prob": number("-0.1 1.1", "0 1"),
    "--label-smoothing": number("-0.1 1", "0 0.999"),
    "--unsmoothed-epochs": whole("-1", "0 1 1000"),
    "--clean-epochs": whole("-1", "0 1 1000"),
    "--teacher": (("train:", "train:cifar"), ("anything", "train:resnet18"), ""),
    "--teacher-epochs": whole("-1 0", "1 40"),
    "--distill-weight": number("-0.1 1.1", "0 1"),
    "--distill-temperature": number("-1 -1e-9", "0 1e-3 100"),
    "--device": (("", "warp", "meta", "cuda:99", "cpu:x"), ("auto", "cpu"), ""),
    "--threads": whole("-4 -1 1025", "0 1 1024"),
    "--amp": choice("auto bf16 fp16 off"),
    "--checkpointing": (("=1",), (None,), ""),
    "--compile": (("=1",), (None,), ""),
    "--out": (("taken", "taken/r"), ("r", "deep/er/r"), ""),
}


def flags() -> list[str]:
    actions = parser.make_parser("minivit")._actions
    return [action.option_strings[0] for action in actions if action.option_strings[0] != "-h"]


def refused() -> list:
    return [pytest.param(flag, value, id=f"{flag} {value}") for flag, row in ROWS.items() for value in row[0]]


def accepted() -> list:
    return [pytest.param(flag, value, id=f"{flag} {value}") for flag, row in ROWS.items() for value in row[1]]


@pytest.fixture
def end(tmp_path, monkeypatch, capsys):
    """Ends the command with a flag: its status and what it said, where the data would be read."""

    def no_data(*_: object) -> None:
        raise DataError("the data would be read here")

    def run_with(flag: str, value: str | None) -> tuple[int, str]:
        words = [f"{flag}={value}"] if value == "" else [f"{flag}{value}"] if (value or "").startswith("=") else [flag]
        words += value.split() if value and words == [flag] else []
        if words[1:2] and words[1].startswith("-"):
            words = [f"{flag}={words[1]}", *words[2:]]
        more = [] if flag in ("--data", "--out") else ["--out", "r"]
        status = train_cifar.main([*GIVEN, *ROWS[flag][2].split(), *more, *words])
        printed = capsys.readouterr()
        assert printed.out == ""
        return status, printed.err

    monkeypatch.setattr(datasets, "load", no_data)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    yield run_with
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_every_flag_has_a_row():
    assert flags() == list(ROWS)


@pytest.mark.parametrize("flag, value", refused())
def test_a_value_out_of_range_is_one_line_that_names_the_flag_and_nothing_is_written(flag, value, end):
    status, error = end(flag, value)
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1 and "would be read" not in error
    names = (
        [flag]
        if flag not in ("--resume", "--config", "--eval", "--predict", "--export")
        else [flag, value.split(" ")[0]]
    )
    assert any(name in error for name in names), error


@pytest.mark.parametrize("flag, value", accepted())
def test_a_value_in_range_goes_as_far_as_the_data(flag, value, end):
    assert end(flag, value) == (2, "error: the data would be read here\n")


def test_numbers_in_a_file_are_checked_as_those_of_flags_are(end, tmp_path, monkeypatch, capsys):
    path = tmp_path.parent / "config.json"
    for arguments, words in (
        ({"epochs": 1.5}, "arguments['epochs'] is 1.5, not a whole number"),
        ({"epochs": True}, "arguments['epochs'] is True, not a whole number"),
        ({"sizes": [24, 1.5]}, "arguments['sizes'][1] is 1.5, not a whole number"),
        ({"lr": "fast"}, "arguments['lr'] is 'fast', not a finite number"),
        ({"lr": float("nan")}, "arguments['lr'] is nan, not a finite number"),
        ({"clip": -1}, "--clip is -1, not a number from 0"),
        ({"dim": 0}, "--dim is 0, not a whole number from 1 to 65536"),
        ({"pool": "max"}, "arguments['pool'] is 'max', not one of cls, mean"),
        ({"val_split": 1.5}, "--val-split is 1.5, not a share from 0 to below 1, or a whole number of images"),
        ({"threads": 1025}, "--threads is 1025, not a whole number from 0 to 1024"),
        ({"data": "foo"}, "--data is 'foo', not one of cifar10, cifar100, folder, shapes"),
    ):
        path.write_text(json.dumps({"arguments": arguments}))
        assert train_cifar.main(["--config", str(path), "--out", "r"]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error


@pytest.mark.parametrize("task", [["--eval", "demo"], ["--predict", "demo", "cat.png"]])
def test_threads_and_devices_are_checked_for_each_task(task, capsys):
    for words in (["--threads", "-4"], ["--device", "warp"]):
        assert train_cifar.main([*task, *words]) == 2
        assert words[0] in capsys.readouterr().err


def test_a_file_of_arguments_is_not_taken_for_a_run_that_goes_on(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"arguments": {}}))
    assert train_cifar.main(["--resume", str(tmp_path), "--config", str(tmp_path / "config.json")]) == 2
    assert "--config does not go with --resume" in capsys.readouterr().err


# --- In Python ---------------------------------------------------------------------------------------------

TINY = ViTConfig(image_size=8, patch=4, classes=10, dim=16, depth=2, heads=2, class_token=False, pool="mean")


@pytest.mark.parametrize("config, ranges", [(TrainConfig, TRAIN_KINDS), (ViTConfig, MODEL_KINDS)])
def test_every_number_of_a_configuration_has_a_range(config, ranges):
    numbers = {f.name for f in dataclasses.fields(config) if {f.type, *get_args(f.type)} & {int, float}}
    assert numbers == set(ranges)


def test_the_settings_that_have_a_flag_are_called_by_it():
    assert {flag[2:].replace("-", "_") for flag in flags()} & set(kinds_of(ViTConfig)) == set(FLAGS)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"stem": "foo"}, "--stem is 'foo', not one of patch, conv, whitening, cnn, resnet18"),
        ({"position": "rope"}, "position is 'rope', not one of learned, sincos, none"),
        ({"pool": "max"}, "pool is 'max', not one of cls, mean"),
        ({"activation": "relu"}, "activation is 'relu', not one of gelu, silu"),
        ({"init": None}, "init is None, not one of variance, norm"),
        ({"relative_bias": True}, "--relative-bias is True, not one of"),
        ({"class_token": 1}, "class_token is 1, not true or false"),
        ({"classes": 0}, "classes is 0, not a whole number from 1"),
        ({"image_size": (8, 0)}, "--image-size is a tuple of 2"),
        ({"image_size": (8, 8, 8)}, "--image-size is a tuple of 3"),
        ({"image_size": 8.0}, "--image-size is 8.0, not a whole number"),
        ({"depth": 10**7}, "--depth is 10000000, not a whole number from 0 to 1000"),
        ({"depth": True}, "--depth is True, not a whole number"),
        ({"drop_path": 2}, "--drop-path is 2, not a number from 0 to below 1"),
        ({"drop_path": float("nan")}, "--drop-path is nan, not a finite number"),
        ({"layer_scale": -0.1}, "--layer-scale is -0.1, not a number from 0"),
        ({"norm_eps": 0}, "norm_eps is 0, not above 0"),
        ({"tail_mlp_ratio": 0}, "tail_mlp_ratio is 0, not a number above 0"),
    ],
)
def test_a_model_that_cannot_be_meant_is_refused(settings, words):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(TINY, **settings)
    assert str(error.value).startswith(words)


def test_a_range_is_said_as_it_is():
    for kind, inside, outside, words in (
        (within(0), (0, 1e9), (-1e-9, float("inf")), "a number from 0"),
        (within(0, 1), (0, 1), (-1e-9, 1.1), "a number from 0 to 1"),
        (within(0, 1, "[)"), (0, 0.9), (1, 2), "a number from 0 to below 1"),
        (within(0, 1, "(]"), (0.1, 1), (0, 2), "a number above 0 to 1"),
    ):
        for value in inside:
            kind(value, "x")
        for value in outside:
            with pytest.raises(ValueError, match=words if abs(value) < 1e9 else "finite"):
                kind(value, "x")


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 0},
        {"depth": 0, "stem": "conv", "relative_bias": "decomposed", "drop_path": 0.5},
        {"patch": 8},
        {"patch": 1},
        {"heads": 16},
        {"dim": 1, "heads": 1},
        {"dim": 4, "stem": "conv"},
        {"mlp_ratio": 1 / 16},
        {"dropout": 0.999, "drop_path": 0.999},
        {"classes": 1},
        {"layer_scale": 0},
        {"image_size": [8, 16]},
        {"class_token": True, "pool": "cls", "class_attention": 2},
        {"class_token": True, "pool": "cls", "class_attention": 2, "tokens_enter_late": True},
    ],
    ids=str,
)
def test_a_model_at_the_end_of_a_range_computes_gradients_and_depth_0_is_one_without_attention(changes):
    model = VisionTransformer(dataclasses.replace(TINY, **changes))
    loss = model(torch.randn(2, 3, *model.config.size)).square().sum()
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert (not model.blocks and not model.class_blocks) == (model.config.depth == 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop": 7, "padding": "reflect", "jitter": 2.0, "erasing": 1.0, "mix_prob": 1.0},
        {"mixup": 1000, "cutmix": 0, "mix_prob": 1, "label_smoothing": 0.999, "clean_epochs": 0},
        {"mixup": 0, "cutmix": 1e-9, "mix_prob": 1, "clean_epochs": 0, "crop": 0},
        {"warmup": 0.999, "clip": 1e-9, "weight_decay": 0, "min_lr": 0, "lr": 1e-9},
        {"schedule": "linear", "warmup": 0.999, "ema_start": 0, "ema_end": 0, "accumulate": 1000},
        {"schedule": "one-cycle", "optimizer": "muon", "batch_size": 10**9, "clip": 0, "max_bad_steps": 1},
        {"seed": 1 - 2**53, "clean_epochs": 10**6, "patience": 10**6},
        {"seed": 2**53 - 1, "trivial_augment": False},
    ],
    ids=str,
)
def test_training_at_the_ends_of_the_ranges_goes_through(changes, tmp_path):
    config = TrainConfig(**{"epochs": 1, "batch_size": 10, "amp": "off", **changes})
    data = hold_out(datasets.shapes(config.seed, 30, 10, image_size=8), 10, config.seed)
    trainer = Trainer(VisionTransformer(TINY), data, config, tmp_path, torch.device("cpu"))
    assert trainer.fit() and trainer.bad_steps == 0


def test_a_crop_that_may_leave_nothing_of_an_image_is_refused_in_python_too(tmp_path):
    data = datasets.shapes(0, 30, 10, image_size=8)
    with pytest.raises(TrainingError, match="--crop is 8, of 8x8 images: give a number of pixels from 0 to 7"):
        Trainer(VisionTransformer(TINY), data, TrainConfig(epochs=1, crop=8), tmp_path, torch.device("cpu"))


# --- Images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [VisionTransformer, "fast"])
@pytest.mark.parametrize(
    "images, words",
    [
        (torch.randn(3, 8, 8), r"shape \(B, 3, 8, 8\), not \(3, 8, 8\): x\[None\] is a batch of one image"),
        (torch.randn(2, 1, 8, 8), r"not \(2, 1, 8, 8\): x.expand\(-1, 3, -1, -1\) makes grey ones RGB"),
        (torch.randn(2, 8, 8, 3), r"not \(2, 8, 8, 3\): x.permute\(0, 3, 1, 2\) puts the channels first"),
        (torch.randn(2, 4, 8, 8), r"RGB images of shape \(B, 3, 8, 8\), not \(2, 4, 8, 8\)$"),
        (torch.randn(8, 8), r"RGB images of shape \(B, 3, 8, 8\), not \(8, 8\)$"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "not torch.uint8: minivit.augment.normalise"),
        (torch.zeros(2, 3, 8, 8).bool(), "not torch.bool"),
        (torch.zeros(2, 3, 8, 8).numpy(), "a tensor of floating-point numbers, not a ndarray"),
        (torch.randn(2, 3, 8, 12), "takes 8x8 images, not 8x12: resize them"),
    ],
    ids=lambda value: str(tuple(value.shape)) if hasattr(value, "shape") else "",
)
def test_what_is_no_batch_of_images_is_told_what_is_expected(form, images, words):
    model = VisionTransformer(dataclasses.replace(TINY, class_token=True, pool="cls"))
    with pytest.raises(ValueError, match=words):
        (accelerate(model) if form == "fast" else model)(images)


def test_a_model_that_checks_its_images_is_still_compiled_as_one_graph_and_exported_for_any_batch():
    model = accelerate(VisionTransformer(dataclasses.replace(TINY, class_token=True, pool="cls", depth=1))).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
    exported = torch.export.export(
        model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", max=1 << 20)},), strict=False
    )
    more = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(exported.module()(more), model(more))
