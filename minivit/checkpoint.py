"""Checkpoints: save one, read it with checks, build its model.

A checkpoint is a dict of tensors and plain values. It says how its model is built ("describe": its preset and,
as a preset may change, all settings of its ViTConfig as "overrides"), which classes it knows and how images are
normalised, so that the file alone is enough to classify an image. Of a run, best.pt holds one set of weights
("model"), those that the run is known by, and says which they are ("weights": raw or averaged; "epoch"). last.pt
holds all that the run needs to go on: raw weights ("model"), their average ("ema", which is what it stands for
as a model), the optimizer's state.
`demo` in place of a path stands for the weights that come with this package, in fp16.

    model, state = checkpoint.load_model(Path("runs/cifar10-cifar/best.pt"), torch.device("cpu"))
    x = normalise(images, state["mean"], state["std"])  # images: uint8 (B, 3, H, W) of the model's size
    names = [state["classes"][i] for i in model(x).argmax(1)]
"""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from minivit.fast import accelerate
from minivit.files import unwritten, write_atomically
from minivit.reading import (
    DEVIATIONS,
    LARGEST,
    MEANS,
    any_tensor,
    check_weights,
    fields,
    flag_of,
    kinds_of,
    load,
    mapping,
    one_of,
    optional,
    plain,
    refuse,
    sequence,
    text,
    whole,
)
from minivit.resnet import resnet18, resnet50
from minivit.stem import Whitening
from minivit.text import composed, one_line
from minivit.vit import PRESETS, VisionTransformer, ViTConfig

DEMO = Path(__file__).parent / "demo" / "cifar10.pt"
OF_THE_WRITER = ("inline_container", "PytorchStreamWriter", "Parent directory", "cannot be opened")  # RuntimeErrors
RESNETS = {"resnet18": resnet18, "resnet50": resnet50}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: one line that names the file and what is wrong with it."""


def find(path: Path) -> Path:
    """The file that a user means: the weights that come with this package for the name `demo`, else `path`."""
    return DEMO if str(path) == "demo" else path


def save(path: Path, state: dict) -> None:
    """Write a checkpoint, whole or not at all. CheckpointError if there is no room: what was there before stays."""
    try:
        write_atomically(path, lambda temporary: torch.save(state, temporary))
    except (OSError, RuntimeError) as error:  # of a disk that is full torch makes a RuntimeError
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in OF_THE_WRITER):
            raise
        raise CheckpointError(
            f"{path} can't be written ({unwritten(error)}): make room; what was saved before is whole"
        ) from None


def read(path: Path) -> dict:
    """Read a checkpoint onto the CPU and check what it holds. Never runs code from the file. Raises CheckpointError."""
    try:
        state = load(find(path))
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except (ValueError, OSError) as error:
        if Path(path).is_dir():
            raise CheckpointError(f"{path} is a folder: name a checkpoint, such as {Path(path) / 'best.pt'}") from None
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from None
    if not isinstance(state, dict) or "describe" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of this program; official weights go to --pretrained")
    for name, kind in KINDS.items():
        try:
            kind(state.get(name), name)
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged: {name} missing or of another kind ({error})") from None
    if weights_of(state) is None:
        raise CheckpointError(f"{path} is damaged: it holds no weights")
    return state | {"classes": [composed(name) for name in state["classes"]], "describe": with_patch(state)}


def with_patch(state: dict) -> dict:
    """The description in a checkpoint, with patches of 4 pixels where they were those of cifar-fast and not named.

    Until 2026-11-30 a description named only what differs from its preset, whose patches have 8 pixels since then.
    """
    about = state["describe"]
    named, halved_thrice = about.get("overrides"), "patch_embed.stages.2.down.conv.weight" in weights_of(state)
    if about.get("preset") == "cifar-fast" and isinstance(named, dict) and "patch" not in named and not halved_thrice:
        return about | {"overrides": named | {"patch": 4}}
    return about


def described(path: Path) -> dict | None:
    """The description of the model in a checkpoint; None for a file that is no checkpoint of this program."""
    try:
        return read(path)["describe"] if find(path).suffix == ".pt" else None
    except CheckpointError:
        return None


def weights_of(state: dict) -> dict | None:
    """The weights that a checkpoint stands for: of best.pt the only ones, of last.pt the averaged ones."""
    return state.get("model") if state.get("ema") is None else state["ema"]


def name_weights(state: dict) -> str:
    """The name of these weights, in words: "averaged weights of epoch 12"."""
    epoch = state.get("epoch")
    kind = state.get("weights") or "averaged"
    return f"{kind} weights" + (f" of epoch {epoch}" if epoch else "")


def description(value: object, where: str) -> None:
    """The description of a checkpoint's model and data, as far as it is told without the model: check_fits."""
    mapping(text, plain)(value, where)
    for name in value.keys() & {"data", "data_root", "place"}:
        text(value[name], f"its {name}")


def class_names(value: object, where: str) -> None:
    """Names of classes, each once: a table of answers has a column for each."""
    sequence(text, least=1)(value, where)
    names = list(map(composed, value))
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        refuse(value, where, f"different names, and no two {twice!r}")


KINDS = {
    "describe": description,
    "classes": class_names,
    "mean": MEANS,
    "std": DEVIATIONS,
    "config": lambda value, where: (mapping(text, plain)(value, where), whole(-LARGEST)(value.get("seed", 0), "seed")),
    "model": optional(mapping(text, any_tensor)),
    "ema": optional(mapping(text, any_tensor)),
    "precision": optional(one_of(["float32", "bfloat16", "float16"])),
    "weights": optional(one_of(["raw", "averaged"])),
    "epoch": optional(whole()),
}
MOST_PARAMETERS = 1 << 31  # 8 GiB in fp32, four times that in training


def save_model(
    path: Path, model: VisionTransformer, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> None:
    """Write a checkpoint of a model that a loop of your own trained, as load_model and the command line read it.

    classes: their names, in the order of the logits. mean, std: by channel, of pixels from 0 to 1, by which images were
    normalised. TypeError for another model; ValueError for other numbers of classes or channels, or out of their range;
    CheckpointError if the file can't be written. A UserWarning for a whitening stem without whitening.
    """
    if not isinstance(model, VisionTransformer):
        raise TypeError(f"a {type(model).__name__} has no settings that describe it: give a VisionTransformer")
    if len(classes) != model.config.classes:
        raise ValueError(f"{len(classes)} names of classes, of a model with {model.config.classes}")
    state = {
        "describe": describe(model, "cifar"),  # of which all settings are named
        "classes": list(classes),
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "config": {},
        "model": {name: weights.detach().cpu() for name, weights in model.state_dict().items()},
    }
    for name, kind in KINDS.items():
        kind(state.get(name), name)
    whiten = getattr(model.patch_embed, "whiten", None)
    if isinstance(whiten, Whitening) and whiten.is_random:
        warnings.warn(
            "the stem is not whitened, its filters are random: before training call "
            "model.patch_embed.whiten.fit([images]) with some thousand normalised images",
            stacklevel=2,
        )
    save(Path(path), state)


def describe(model: nn.Module, preset: str) -> dict:
    """The description of a model for its checkpoints, with all its settings: its preset may change later."""
    settings = vars(model.config) if isinstance(model, VisionTransformer) else {}
    return {"preset": preset, "overrides": {name: value for name, value in settings.items() if name != "classes"}}


def build_model(preset: str, classes: int, overrides: dict) -> nn.Module:
    """Build a preset's model for `classes` classes, with some settings of its ViTConfig changed.

    Raises ValueError for settings that contradict each other, for a model that is too large to be meant, and for any
    change to a ResNet.
    """
    outline_model(preset, classes, overrides)
    return _build(preset, classes, overrides)


def outline_model(preset: str, classes: int, overrides: dict) -> nn.Module:
    """The model of build_model on the meta device, where it has shapes and takes no memory. ValueError as there."""
    with torch.device("meta"):
        model = _build(preset, classes, overrides)
    count = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if count > MOST_PARAMETERS:
        raise ValueError(
            f"a model of {count / 1e9:,.1f} billion parameters is too large: lower --dim, --depth or --image-size, "
            "or raise --patch"
        )
    return model


@contextmanager
def float32_by_default() -> Iterator[None]:
    """New parameters are float32 inside, whatever the program has made the default: weights keep their numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@float32_by_default()
def _build(preset: str, classes: int, overrides: dict) -> nn.Module:
    if preset in RESNETS:
        if overrides:
            raise ValueError(f"preset {preset} is a ResNet: {flag_of(next(iter(overrides)))} does not apply to it")
        return RESNETS[preset](classes)
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}: {', '.join((*PRESETS, *RESNETS))}")
    return VisionTransformer(dataclasses.replace(PRESETS[preset], classes=classes, **overrides))


def check_fits(path: Path, state: dict) -> None:
    """Raise CheckpointError unless the weights of a checkpoint fit the model that it describes.

    Nothing is allocated: a description may claim any size.
    """
    about = state["describe"]
    try:
        fields(preset=text, overrides=fields())(about, "its description")
        kinds = {name: kind for name, kind in kinds_of(ViTConfig).items() if name in about["overrides"]}
        unknown = sorted(about["overrides"].keys() - kinds.keys())
        if unknown:
            raise ValueError(f"there is no setting {unknown[0]!r}")
        fields(**kinds)(about["overrides"], "its settings")
        outline = outline_model(about["preset"], len(state["classes"]), about["overrides"])
        check_weights(weights_of(state), outline.state_dict())
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:  # settings that contradict each other
        reason = one_line(error, 200)
        raise CheckpointError(
            f"{path} does not fit the model it describes ({reason}): it comes from another "
            "architecture or another version of this program"
        ) from None


def load_model(path: Path, device: torch.device) -> tuple[nn.Module, dict]:
    """Build the model of a checkpoint with its weights, in evaluation mode on `device`; returns both.

    Raises CheckpointError if the file cannot be read or its weights do not fit the model it describes.
    """
    state = read(path)
    check_fits(path, state)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay: initial weights are replaced at once
        model = build_model(state["describe"]["preset"], len(state["classes"]), state["describe"]["overrides"])
    model.load_state_dict(weights_of(state))
    return accelerate(model.to(device, memory_format=torch.channels_last)).eval(), state
