"""--export: the files for other programs give the model's scores for any batch, or there is no file."""

import json
import sys
from pathlib import Path

import pytest
import torch

import train_cifar
from minivit import checkpoint, export
from minivit.fast import accelerate
from minivit.vit import PRESETS, VisionTransformer, ViTConfig

SMALL = {"image_size": 16, "dim": 16, "heads": 2, "classes": 3}
# Together they have each part that a preset has.
FEATURES = {
    "tokens": ViTConfig(
        **SMALL,
        depth=2,
        distillation=True,
        class_attention=1,
        relative_bias="decomposed",
        stem="conv",
        mlp_conv=True,
        layer_scale=0.1,
    ),
    "mean": ViTConfig(
        **SMALL,
        depth=1,
        stem="whitening",
        relative_bias="joint",
        class_token=False,
        pool="mean",
        qk_temperature=True,
        attention_biases=False,
        activation="silu",
        smaller_images=True,
    ),
}


def compared(model: torch.nn.Module, path: Path) -> float:
    """The largest difference between the scores of a model and of its file, for a batch that was never traced."""
    size = model.config.size if hasattr(model, "config") else (32, 32)
    x = torch.randn(3, 3, *size)
    with torch.inference_mode():
        wanted = model.eval()(x)
    if path.suffix == ".pt2":
        return (torch.export.load(path).module()(x) - wanted).abs().max().item()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shapes = [value.shape for value in (*session.get_inputs(), *session.get_outputs())]
    assert shapes == [["batch", 3, *size], ["batch", wanted.shape[1]]]  # else onnxruntime warns at each other batch
    return abs(session.run(None, {"images": x.numpy()})[0] - wanted.numpy()).max()


def with_norms(model: torch.nn.Module) -> torch.nn.Module:
    """The model with running means and variances as training leaves them."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return model


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name, ending",
    [("tokens", ".onnx"), pytest.param("mean", ".onnx", marks=SLOW), pytest.param("tokens", ".pt2", marks=SLOW)],
)
def test_each_part_of_the_presets_is_exported_from_the_fast_form_too(name, ending, tmp_path):
    if ending == ".onnx":
        pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model, path = with_norms(VisionTransformer(FEATURES[name])), tmp_path / f"model{ending}"
    if ending == ".onnx" and hasattr(torch.compiler, "is_exporting"):  # PyTorch 2.6 does not tell the fast form
        accelerate(model)  # with its fused attention: ONNX's exporter fails on that
    assert export.export_model(model, path, {"classes": ["a"]})[1] < 1e-4
    assert compared(model, path) < 1e-4 and [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
@pytest.mark.parametrize("preset", [*PRESETS, *checkpoint.RESNETS])
def test_every_preset_is_exported(preset, ending, tmp_path):
    torch.manual_seed(0)
    model, path = with_norms(checkpoint.build_model(preset, 10, {})), tmp_path / f"model{ending}"
    export.export_model(model, path, {})
    assert compared(model, path) < 1e-4


def test_the_command_exports_a_checkpoint_with_its_classes_and_says_how_near_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = {"image_size": 16, "dim": 16, "heads": 2, "depth": 1}
    model = with_norms(checkpoint.build_model("cifar-fast", 2, overrides))
    about = {"preset": "cifar-fast", "overrides": overrides, "data": "shapes", "data_root": "data"}
    state = {"describe": about, "classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.2] * 3, "config": {}}
    checkpoint.save(Path("best.pt"), state | {"model": model.state_dict()})
    assert train_cifar.main(["--export", "best.pt", "model.pt2"]) == 0
    assert "MB, images (B, 3, 16, 16) -> scores (B, 2), at most" in capsys.readouterr().out
    assert compared(model, Path("model.pt2")) < 1e-4
    torch.export.load("model.pt2", extra_files=(extra := {"minivit.json": ""}))
    assert json.loads(json.loads(extra["minivit.json"])["classes"]) == ["a", "b"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["demo"], "--export needs a checkpoint and a file: --export best.pt model.onnx"),
        (["demo", "model.bin"], "--export model.bin: give a name that ends in .onnx or .pt2"),
        (["demo", "nowhere/model.pt2"], "--export nowhere/model.pt2 can't be written: name a file in a folder that is"),
        (["nowhere.pt", "model.pt2"], "there is no checkpoint nowhere.pt"),
        (["demo", "model.onnx"], "--export model.onnx needs onnxruntime: pip install 'minivit-minisam[export]'"),
    ],
)
def test_an_export_that_cannot_be_made_is_one_line_and_leaves_nothing(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else sys)
    assert train_cifar.main(["--export", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["other scores", "an exporter that fails", "a full disk"])
def test_a_file_that_is_not_the_model_gets_no_name_and_what_was_there_stays(fault, tmp_path, monkeypatch):
    model, path = VisionTransformer(FEATURES["mean"]).eval(), tmp_path / "model.pt2"
    path.write_bytes(b"before")

    def write(model, example, texts, temporary):
        temporary.write_bytes(b"half")
        if fault == "an exporter that fails":
            raise TypeError("it has\nno rule for this")
        if fault == "a full disk":
            raise OSError(28, "No space left on device")

    def load(temporary):
        return lambda x: model(x) + 2e-4 * (len(x) == 5)

    monkeypatch.setitem(export.WRITERS, ".pt2", (write, load))
    said = {
        "other scores": "differs from PyTorch's by 2.0e-04: nothing was written",
        "an exporter that fails": r"can't export this model \(it has no rule for this\)",
        "a full disk": "No space left",
    }
    with pytest.raises((export.ExportError, OSError), match=said[fault]):
        export.export_model(model, path, {})
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["model.pt2"]


def test_the_mean_and_deviation_of_the_training_go_into_the_file_as_they_are(tmp_path):
    overrides = {"image_size": 16, "dim": 16, "heads": 2, "depth": 1}
    model = checkpoint.build_model("shapes-demo", 2, overrides)
    about = {"preset": "shapes-demo", "overrides": overrides, "data": "shapes", "data_root": "data"}
    state = {"describe": about, "classes": ["a", "b"], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "config": {}}
    checkpoint.save(tmp_path / "best.pt", state | {"model": model.state_dict()})
    assert train_cifar.main(["--export", str(tmp_path / "best.pt"), str(tmp_path / "model.pt2")]) == 0
    torch.export.load(str(tmp_path / "model.pt2"), extra_files=(extra := {"minivit.json": ""}))
    found = {name: json.loads(value) for name, value in json.loads(extra["minivit.json"]).items()}
    assert found == {"classes": ["a", "b"], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
