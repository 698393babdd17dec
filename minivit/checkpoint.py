"""Checkpoints: save one, read it with checks, build its model.

A checkpoint is the state of a `Trainer` (see Trainer.state_dict), a dict of tensors and plain values.
It says how its model is built ("describe": preset and overrides), which classes it knows and how images
are normalised, so that the file alone is enough to classify an image. `demo` in place of a path stands
for the weights that come with this package, in fp16 and without the state of their training.
"""

import dataclasses
from pathlib import Path

import torch
from torch import nn

from minivit.fast import accelerate
from minivit.files import write_atomically
from minivit.resnet import resnet18, resnet50
from minivit.vit import PRESETS, VisionTransformer

DEMO = Path(__file__).parent / "demo" / "cifar10.pt"
RESNETS = {"resnet18": resnet18, "resnet50": resnet50}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: one line that names the file and what is wrong with it."""


def find(path: Path) -> Path:
    """The file that a user means: the weights that come with this package for the name `demo`, else `path`."""
    return DEMO if str(path) == "demo" else path


def save(path: Path, state: dict) -> None:
    """Write a checkpoint, whole or not at all."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def read(path: Path) -> dict:
    """Read a checkpoint onto the CPU and check what it holds. Never runs code from the file. Raises CheckpointError."""
    try:
        state = torch.load(find(path), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except Exception:  # zip, pickle and tensor readers each raise their own types
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged, or another kind of file"
        ) from None
    if not isinstance(state, dict) or "describe" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of this program; official weights go to --pretrained")
    wrong = [name for name, is_right in CHECKS.items() if not is_right(state.get(name))]
    if wrong:
        raise CheckpointError(f"{path} is damaged: {', '.join(wrong)} missing or of another kind")
    return state


def is_state_dict(value: object) -> bool:
    """Whether `value` maps names to tensors."""
    return isinstance(value, dict) and all(isinstance(k, str) and torch.is_tensor(v) for k, v in value.items())


def name_classes(classes: list[str]) -> str:
    """The number of classes and the first three of them, for a message."""
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"


def is_per_channel(value: object) -> bool:
    """Whether `value` is three numbers."""
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(isinstance(v, float | int) for v in value)


CHECKS = {
    "describe": lambda value: isinstance(value, dict),
    "classes": lambda value: isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value),
    "mean": is_per_channel,
    "std": is_per_channel,
    "config": lambda value: isinstance(value, dict),
    "model": lambda value: value is None or is_state_dict(value),  # needed only to resume
    "ema": is_state_dict,
}


def build_model(preset: str, classes: int, overrides: dict) -> nn.Module:
    """Build a preset's model for `classes` classes, with some settings of its ViTConfig changed.

    Raises ValueError for settings that contradict each other, and for any change to a ResNet.
    """
    if preset in RESNETS:
        if overrides:
            flag = next(iter(overrides)).replace("_", "-")
            raise ValueError(f"preset {preset} is a ResNet: --{flag} does not apply to it")
        return RESNETS[preset](classes)
    return VisionTransformer(dataclasses.replace(PRESETS[preset], classes=classes, **overrides))


def load_model(path: Path, device: torch.device) -> tuple[nn.Module, dict]:
    """Build the model of a checkpoint with its EMA weights, in evaluation mode on `device`; returns both.

    Raises CheckpointError if the file cannot be read or its weights do not fit the model it describes.
    """
    state = read(path)
    about = state["describe"]
    try:
        model = build_model(about["preset"], len(state["classes"]), about["overrides"])
        model.load_state_dict(state["ema"])
    except (RuntimeError, TypeError, ValueError, KeyError):  # settings and weights that contradict each other
        raise CheckpointError(
            f"{path} does not fit the model it describes ({about.get('preset')}): it comes from another "
            "architecture or another version of this program"
        ) from None
    return accelerate(model.to(device)).eval(), state
