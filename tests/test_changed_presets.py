"""A preset may change in a later version: what was trained with it before stays the model that it was."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train_cifar
from minivit import checkpoint, config, run
from minivit.vit import PRESETS

CPU = torch.device("cpu")
SMALL = ["--data", "shapes", "--subset", "40", "--val-split", "8", "--epochs", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a finished run by the preset as it was, of which --epochs and two settings were given."""
    out = tmp_path_factory.mktemp("before") / "run"
    assert train_cifar.main([*SMALL, "--preset", "shapes-demo", "--depth", "1", "--dim", "16", "--out", str(out)]) == 0
    return out


@pytest.fixture
def changed(monkeypatch):
    """The preset as it is now: wider, with patches of 8 pixels, and another activation."""
    now = replace(PRESETS["shapes-demo"], dim=128, patch=8, activation="silu", mlp_conv=False)
    monkeypatch.setitem(PRESETS, "shapes-demo", now)


def test_a_checkpoint_is_the_model_it_was(trained, monkeypatch):
    x = torch.rand(2, 3, 32, 32)
    before, _ = checkpoint.load_model(trained / "best.pt", CPU)
    monkeypatch.setitem(PRESETS, "shapes-demo", replace(PRESETS["shapes-demo"], patch=8, activation="silu"))
    after, _ = checkpoint.load_model(trained / "best.pt", CPU)
    assert after.config == before.config and torch.equal(after(x), before(x))


def test_a_run_goes_on_and_is_repeated_with_the_settings_it_was_begun_with(trained, changed, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    assert train_cifar.main(["--resume", str(tmp_path / "run")]) == 0
    args, _ = config.arguments({"config": trained, "out": tmp_path / "again"})
    assert {name: args[name] for name in ("dim", "depth", "patch", "activation", "mlp_conv")} == {
        "dim": 16,
        "depth": 1,
        "patch": 4,
        "activation": "gelu",
        "mlp_conv": True,
    }
    again, _ = run.prepare({"config": trained, "out": tmp_path / "again"})
    assert again.model.config == checkpoint.load_model(trained / "best.pt", CPU)[0].config


def test_what_is_given_beside_earlier_settings_wins(trained, changed, tmp_path):
    args, _ = config.arguments({"config": trained, "out": tmp_path / "again", "patch": 16, "activation": "silu"})
    assert (args["patch"], args["activation"], args["mlp_conv"]) == (16, "silu", True)


def test_weights_to_start_from_bring_the_settings_of_their_preset_as_it_was(trained, changed, tmp_path, capsys):
    words = [*SMALL, "--pretrained", str(trained / "best.pt"), "--out", str(tmp_path / "tuned")]
    assert train_cifar.main(words) == 0
    assert "as best.pt was trained: --activation gelu, --depth 1, --dim 16" in capsys.readouterr().out
    assert checkpoint.load_model(tmp_path / "tuned" / "best.pt", CPU)[0].config.patch == 4


@pytest.mark.parametrize("patch", [4, 8])
def test_cifar_fast_of_before_has_the_patch_of_its_weights(patch, tmp_path):
    # Descriptions named only what differed from the preset then, whose patches had 4 pixels until 2026-11-30.
    torch.manual_seed(0)
    model = checkpoint.build_model("cifar-fast", 2, {"patch": patch, "dim": 24, "smaller_images": True})
    state = {
        "describe": {"preset": "cifar-fast", "overrides": {"dim": 24, "smaller_images": True}},
        "classes": ["cat", "dog"],
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "config": {"seed": 0},
        "model": model.state_dict(),
    }
    checkpoint.save(tmp_path / "best.pt", state)
    loaded, read = checkpoint.load_model(tmp_path / "best.pt", CPU)
    assert loaded.config.patch == patch and read["describe"]["preset"] == "cifar-fast"
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(x), model.eval()(x), rtol=1e-4, atol=1e-4)


def test_a_run_of_cifar_fast_of_before_goes_on(tmp_path):
    # Its config.json names no patch among its arguments, and its checkpoint none either.
    small = [*SMALL, "--preset", "cifar-fast", "--dim", "24", "--heads", "2", "--depth", "1"]
    assert train_cifar.main([*small, "--patch", "4", "--out", str(tmp_path / "run")]) == 0
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    del saved["arguments"]["patch"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(saved))
    for name in ("best.pt", "last.pt"):
        state = torch.load(tmp_path / "run" / name, weights_only=True)
        kept = ("dim", "heads", "depth", "smaller_images")
        state["describe"]["overrides"] = {key: state["describe"]["overrides"][key] for key in kept}
        torch.save(state, tmp_path / "run" / name)
    assert train_cifar.main(["--resume", str(tmp_path / "run")]) == 0
    assert checkpoint.load_model(tmp_path / "run" / "best.pt", CPU)[0].config.patch == 4
