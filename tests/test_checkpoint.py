"""minivit/checkpoint.py: what is read back, and what is refused."""

import pytest
import torch

from minivit import checkpoint
from minivit.checkpoint import CheckpointError
from minivit.fast import HeadTokensTransformer
from minivit.vit import PRESETS

OVERRIDES = {"dim": 16, "depth": 2, "heads": 2, "image_size": 8}
CPU = torch.device("cpu")


@pytest.fixture
def state() -> dict:
    model, average = (checkpoint.build_model("vit-d128-l6", 2, OVERRIDES) for _ in range(2))
    return {
        "describe": {"preset": "vit-d128-l6", "overrides": OVERRIDES},
        "classes": ["cat", "dog"],
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "config": {"seed": 0},
        "model": model.state_dict(),
        "ema": average.state_dict(),
    }


def test_a_checkpoint_gives_the_ema_weights_in_evaluation_mode_and_the_fast_forms(tmp_path, state):
    checkpoint.save(tmp_path / "a.pt", state)
    model, read = checkpoint.load_model(tmp_path / "a.pt", CPU)
    assert not model.training and isinstance(model, HeadTokensTransformer)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state["ema"].items())
    assert read["classes"] == ["cat", "dog"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_model_is_its_preset_with_some_settings_changed():
    config = checkpoint.build_model("cifar-small", 7, {"depth": 1}).config
    assert (config.depth, config.classes, config.dim) == (1, 7, PRESETS["cifar-small"].dim)
    with pytest.raises(ValueError, match="--patch does not apply"):
        checkpoint.build_model("resnet18", 10, {"patch": 4})


@pytest.mark.parametrize(
    "name, value",
    [
        ("describe", ["vit"]),
        ("describe", {"data": "folder", "data_root": 3}),
        ("classes", []),
        ("classes", [1, 2]),
        ("mean", [0.5, 0.5]),
        ("std", None),
        ("config", 3),
        ("model", {"head.weight": [1.0]}),
        ("ema", [1.0]),
        ("precision", "float8"),
        ("weights", "some"),
    ],
)
def test_each_part_of_another_kind_is_named(tmp_path, state, name, value):
    torch.save(state | {name: value}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=f"a.pt is damaged: {name} missing or of another kind"):
        checkpoint.read(tmp_path / "a.pt")


def test_two_classes_of_one_name_are_refused(tmp_path, state):
    path = tmp_path / "twice.pt"
    checkpoint.save(path, state | {"classes": ["e\u0301", "\u00e9"]})  # one name in two spellings
    with pytest.raises(CheckpointError, match="damaged: classes .* different names"):
        checkpoint.read(path)


def test_one_set_of_weights_is_what_the_file_stands_for(tmp_path, state):
    chosen = {k: v for k, v in state.items() if k != "ema"} | {"weights": "raw", "epoch": 3}
    checkpoint.save(tmp_path / "best.pt", chosen)
    model, read = checkpoint.load_model(tmp_path / "best.pt", CPU)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state["model"].items())
    assert checkpoint.name_weights(read) == "raw weights of epoch 3"
    torch.save({k: v for k, v in chosen.items() if k != "model"}, tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="none.pt is damaged: it holds no weights"):
        checkpoint.read(tmp_path / "none.pt")


def test_a_disk_that_is_full_is_one_line_and_the_checkpoint_before_stays(tmp_path, state):
    resource = pytest.importorskip("resource")
    checkpoint.save(tmp_path / "a.pt", state)
    content, before = (tmp_path / "a.pt").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(CheckpointError, match="a.pt can't be written .*: make room") as error:
            checkpoint.save(tmp_path / "a.pt", state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value) and (tmp_path / "a.pt").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_another_error_of_pytorch_while_saving_is_not_taken_for_a_full_disk(tmp_path, state, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        checkpoint.save(tmp_path / "a.pt", state)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="can't be written"):
        checkpoint.save(tmp_path / "away" / "a.pt", state)


@pytest.mark.parametrize(
    "change",
    [
        {"describe": {}},
        {"describe": {"preset": "vit-z", "overrides": {}}},
        {"describe": {"preset": "vit-d128-l6", "overrides": {"colour": 3}}},
        {"describe": {"preset": "vit-d128-l6", "overrides": OVERRIDES | {"depth": 3}}},
        {"describe": {"preset": "vit-d128-l6", "overrides": OVERRIDES | {"heads": 3}}},
        {"describe": {"preset": "vit-d128-l6", "overrides": OVERRIDES | {"dim": "wide"}}},
        {"classes": ["cat", "dog", "ship"]},
    ],
)
def test_weights_that_do_not_fit_their_description_are_refused_in_one_line(tmp_path, state, change):
    torch.save(state | change, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="a.pt does not fit the model it describes") as error:
        checkpoint.load_model(tmp_path / "a.pt", CPU)
    assert "\n" not in str(error.value)


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch, state):
    monkeypatch.chdir(tmp_path)
    torch.save(state | {"ema": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        checkpoint.read(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


def test_weights_are_averaged_ones_unless_a_file_says_otherwise():
    names = [checkpoint.name_weights(state) for state in ({"epoch": 12}, {"weights": "raw", "epoch": 3}, {"ema": {}})]
    assert names == ["averaged weights of epoch 12", "raw weights of epoch 3", "averaged weights"]
