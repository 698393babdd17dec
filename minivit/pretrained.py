"""Load published weights of ViT, DeiT and CaiT into a VisionTransformer, strictly.

layouts.py has the names of all layouts. The image size may differ where no table of relative positions has its size
(position embeddings are resampled), and so may the number of classes (the heads start anew); every other difference
is an error that lists the keys. A file also says how its images were normalised, by its layout, its name or a
description beside it.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit.checkpoint import KINDS, find, outline_model, with_patch
from minivit.layouts import UNUSED, layout_of, to_our_names
from minivit.reading import (
    DEVIATIONS,
    MEANS,
    any_tensor,
    anything,
    check_finite,
    check_regular,
    fields,
    load,
    load_npz,
    mapping,
    read_json,
    sequence,
    text,
    whole,
)
from minivit.text import composed, one_line
from minivit.vit import VisionTransformer, ViTConfig

HOLDERS = ("state_dict_ema", "model_ema", "model", "state_dict", "ema")  # of weights, averaged ones first
HEADS = ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std by channel, of values in [0, 1]
IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES: Normalisation = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
LARGEST_TENSOR = 1 << 28  # numbers
SAFETENSORS_ENTRY = fields(dtype=text, shape=sequence(whole(1)), data_offsets=sequence(whole(), 2))


@dataclass(frozen=True)
class Loaded:
    """A line that says what was loaded, and the normalisation (mean, std) of the images the weights were made with.

    checkpoint: what the file holds, if it is one of this program.
    """

    line: str
    normalisation: Normalisation
    checkpoint: dict | None


def read_content(path: Path) -> object:
    """Read a .pth, .safetensors or .npz file. Never runs code from it. ValueError if it is missing or damaged."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no weights file {path}")
    try:
        return {".safetensors": read_safetensors, ".npz": load_npz}.get(path.suffix.lower(), load)(path)
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as weights ({error}): download it again") from None


def state_dict_of(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict that a file holds, alone or under one of HOLDERS. ValueError if there is none."""
    state = content
    if isinstance(content, dict):
        ours = ("ema", "model") if "describe" in content else HOLDERS  # of our last.pt the averaged weights count
        state = next((content[name] for name in ours if isinstance(content.get(name), dict)), content)
    try:
        mapping(text, any_tensor)(state, "its content")
        large = next((name for name, tensor in state.items() if tensor.numel() > LARGEST_TENSOR), None)
        if large:  # few numbers that a file repeats may be of any shape
            raise ValueError(f"{large} has {state[large].numel()} numbers")
    except ValueError as error:
        raise ValueError(
            f"{path} holds no state dict of tensors ({error}): name a .pth, .safetensors or .npz file of weights"
        ) from None
    return state


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file: the length of a JSON header (8 bytes), the header, the raw numbers.

    ValueError, OSError or RecursionError if it is damaged.
    """
    check_regular(path)
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : min(start, len(data))])
    mapping(text, anything)(header, "its header")
    header.pop("__metadata__", None)
    state, room = {}, len(data) - start
    for name, entry in header.items():
        SAFETENSORS_ENTRY(entry, repr(name))
        dtype, shape, (begin, end) = SAFETENSORS_DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
        if dtype is None:
            raise ValueError(f"{name!r} has numbers of type {entry['dtype']!r}, not {', '.join(SAFETENSORS_DTYPES)}")
        room -= end - begin
        if math.prod(shape) * dtype.itemsize != end - begin or start + end > len(data) or room < 0:
            raise ValueError(f"{name!r} has not as many numbers as its shape {shape} says")
        state[name] = torch.frombuffer(data[start + begin : start + end], dtype=dtype).view(shape)
    return state


def load_state(model: VisionTransformer, state: dict[str, Tensor], source: ViTConfig | None = None) -> list[str]:
    """Load weights under our names into `model`. Returns the names of heads that stay new: those of another number of
    classes, and those that the file lacks.

    Position embeddings of another grid are resampled; where model and source both compute them, the model's stay.
    source: the settings of the model that the weights are of, if they are known; its grid counts as square otherwise.
    ValueError names what does not fit.
    """
    state, ours = dict(state), model.state_dict()
    headless = not any(name in state for name in HEADS)
    fresh = [
        name
        for name in HEADS
        if name in ours and (headless or (name in state and state[name].ndim and len(state[name]) != len(ours[name])))
    ]
    state |= {name: ours[name] for name in fresh}
    positions = state.get("pos_embed")
    known = ours.get("pos_embed")
    tokens = 0 if model.config.tokens_enter_late else model.config.tokens
    other_grid = source is not None and source.grid != model.config.grid
    if (
        known is not None
        and can_be_resized(positions, known, tokens)
        and (other_grid or positions.shape != known.shape)
    ):
        computed = source is not None and source.position == model.config.position == "sincos"
        grid = source and source.grid
        state["pos_embed"] = (
            known if computed else resize_position_embedding(positions, tokens, model.config.grid, grid)
        )
    problems = [
        f"{word} {', '.join(sorted(names)[:3])}{' ...' if len(names) > 3 else ''}"
        for word, names in (
            ("lacks", ours.keys() - state.keys()),
            ("has beyond the model", state.keys() - ours.keys()),
            ("has other shapes of", [k for k in ours.keys() & state.keys() if ours[k].shape != state[k].shape]),
            ("has whole numbers in", [k for k in ours.keys() & state.keys() if is_other_kind(ours[k], state[k])]),
        )
        if names
    ]
    if problems:
        raise ValueError(f"these weights are of another architecture: the file {'; it '.join(problems)}")
    for name, tensor in state.items():
        check_finite(tensor, name)
    model.load_state_dict(state)
    return fresh


def is_other_kind(ours: Tensor, theirs: Tensor) -> bool:
    """Whether one holds whole numbers and the other does not."""
    return ours.is_floating_point() != theirs.is_floating_point()


def is_checkpoint(content: object) -> bool:
    """Whether a file's content is a checkpoint of this program."""
    return isinstance(content, dict) and "describe" in content


def settings_of(checkpoint: dict) -> ViTConfig | None:
    """The settings of the model that a checkpoint is of; None if it names none that can be built."""
    try:
        about = with_patch(checkpoint)
        return getattr(outline_model(about["preset"], 1, about["overrides"]), "config", None)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError):
        return None


def knows_others(checkpoint: dict, classes: Sequence[str]) -> bool:
    """Whether a checkpoint knows other classes than these, or in another order. ValueError if it is damaged."""
    KINDS["classes"](checkpoint.get("classes"), "its classes")
    return list(map(composed, checkpoint["classes"])) != list(classes)


def load_pretrained(model: VisionTransformer, path: Path, classes: Sequence[str] | None = None) -> Loaded:
    """Initialise `model` from a file of published weights, or from a checkpoint of this program, such as `demo`.

    classes: their names, in the order of the logits: the head of a checkpoint that knows others stays new. ValueError
    names what cannot be read, or the keys that do not fit.
    """
    path = find(Path(path))
    content = read_content(path)
    try:
        state = state_dict_of(content, path)
        layout, prefix = layout_of(state)
        ours = to_our_names(state)
        unused = sorted(name for name in ours if re.match(UNUSED, name))
        others = classes is not None and is_checkpoint(content) and knows_others(content, classes)
        left_out = {*unused, *(HEADS if others else ())}
        source = settings_of(content) if is_checkpoint(content) else None
        fresh = load_state(model, {name: tensor for name, tensor in ours.items() if name not in left_out}, source)
        normalisation = normalisation_of(path, content, layout)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(str(path)) else f"{path}: {message}") from None
    line = f"loaded {path}"
    if prefix or layout != "timm":
        line += f" ({layout}'s names{f' behind {prefix!r}' if prefix else ''})"
    for words, names in (("; new, to be trained: ", fresh), ("; not used: ", unused)):
        line += words + ", ".join(names) if names else ""
    return Loaded(line, normalisation, content if is_checkpoint(content) else None)


# ---- normalisation --------------------------------------------------------------------------------------

DESCRIPTIONS = {  # of the files that the Hugging Face Hub calls by one name: Hugging Face's own, timm's
    "preprocessor_config.json": fields(image_mean=MEANS, image_std=DEVIATIONS),
    "config.json": fields(pretrained_cfg=fields(mean=MEANS, std=DEVIATIONS)),
}
HUB_NAMES = ("model.safetensors", "pytorch_model.bin")
TIMM_HALVES = re.compile(
    r"augreg|in21k|jx_vit|vit_[a-z]+_(r\d+_(s\d+_)?)?patch\d+"
)  # Google's weights, under its names
IMAGENET_NAMES = re.compile(r"(?<![a-z])(deit3?|cait|dino(v\d)?|mae)(?![a-z])")  # as words: not "ismael", "dinosaurs"


def normalisation_of(path: Path, content: object, layout: str) -> Normalisation:
    """The mean and std of the images that the weights of a file were trained on.

    A checkpoint of this program holds them, a file of the Hugging Face Hub has a description beside it. Of others the
    layout tells: torchvision's are ImageNet's, Google's 0.5, and so are timm's ports of Google's, which their name
    tells (timm's default_cfgs); of other names of timm (bamboo, test_vit) it is a guess: give --mean and --std.
    ValueError if a description is damaged.
    """
    if is_checkpoint(content):
        fields(**{name: KINDS[name] for name in ("describe", "config", "mean", "std")})(content, "the checkpoint")
        return tuple(content["mean"]), tuple(content["std"])
    described = described_normalisation(path) if path.name in HUB_NAMES else None
    if described:
        return described
    # The folder counts where the file has the name that all files of the Hub have.
    name = (f"{path.parent.name}/{path.name}" if path.name in HUB_NAMES else path.name).lower()
    imagenet = IMAGENET_NAMES.search(name)
    if layout == "timm":
        return HALVES if TIMM_HALVES.search(name) and not imagenet else IMAGENET
    return HALVES if layout in ("Google", "Hugging Face") and not imagenet else IMAGENET


def described_normalisation(path: Path) -> Normalisation | None:
    """The mean and std in a description beside a file, None without one. ValueError if it is damaged."""
    for name, kind in DESCRIPTIONS.items():
        description = path.with_name(name)
        if not description.exists():
            continue
        try:
            about = read_json(description)
            if name == "config.json" and not (isinstance(about, dict) and "pretrained_cfg" in about):
                continue
            kind(about, "its content")
        except (ValueError, RecursionError) as error:
            reason = one_line(error, 200)
            raise ValueError(f"{description} does not say how images are normalised: {reason}") from None
        keys = ("image_mean", "image_std") if "image_mean" in about else ("mean", "std")
        values = about if "image_mean" in about else about["pretrained_cfg"]
        return tuple(values[keys[0]]), tuple(values[keys[1]])
    return None


# ---- positions ------------------------------------------------------------------------------------------


def can_be_resized(positions: Tensor | None, known: Tensor, tokens: int) -> bool:
    """Whether positions may be those of another grid, with as many special tokens and channels as the model's."""
    if positions is None:
        return False
    batch, count, channels = positions.shape if positions.ndim == 3 else (0, 0, 0)
    return batch == 1 and count > tokens and channels == known.shape[2]


def resize_position_embedding(
    embedding: Tensor, tokens: int, grid: tuple[int, int], learned: tuple[int, int] | None = None
) -> Tensor:
    """Resample (1, T + n * m, C), learned on a grid of n x m, to (1, T + h * w, C): bicubic and antialiased, as timm.

    tokens: T, the special tokens, which come first and stay. learned: (n, m), by default a square. ValueError if the
    positions are not as many.
    """
    special, patches = embedding[:, :tokens], embedding[:, tokens:]
    n, m = learned or (math.isqrt(patches.shape[1]),) * 2
    if n * m != patches.shape[1]:
        kind = f"a grid of {n}x{m}" if learned else "a square grid"
        raise ValueError(f"{patches.shape[1]} positions are not {kind}: cannot be resampled to {grid[0]}x{grid[1]}")
    image = patches.reshape(1, n, m, -1).permute(0, 3, 1, 2).float()  # (1, N, C) -> (1, C, n, m)
    image = F.interpolate(image, grid, mode="bicubic", antialias=True)
    return torch.cat([special, image.flatten(2).transpose(1, 2).to(embedding.dtype)], dim=1)
