"""Load official ViT, DeiT and CaiT checkpoints into a VisionTransformer, strictly.

timm and the published DeiT files use our names as they are. torchvision's and CaiT's are renamed by the
tables below. The image size may differ (position embeddings are resampled) and so may the number of
classes (the heads start anew); every other difference is an error that lists the keys.
"""

import json
import math
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit.reading import (
    any_tensor,
    anything,
    check_finite,
    check_regular,
    fields,
    load,
    mapping,
    sequence,
    text,
    whole,
)
from minivit.vit import VisionTransformer

# Old name -> ours, as patterns, tried in this order.
TORCHVISION = [
    (r"class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"conv_proj", "patch_embed.proj"),
    (r"encoder\.layers\.encoder_layer_(\d+)", r"blocks.\1"),
    (r"ln_([12])", r"norm\1"),
    (r"self_attention\.in_proj_", "attn.qkv."),
    (r"self_attention\.out_proj", "attn.proj"),
    (r"mlp\.(0|linear_1)\.", "mlp.fc1."),
    (r"mlp\.(3|linear_2)\.", "mlp.fc2."),
    (r"encoder\.ln", "norm"),
    (r"heads\.head", "head"),
]
CAIT = [(r"blocks_token_only\.", "class_blocks."), (r"gamma_([12])", r"ls\1.gamma")]
SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
LARGEST_TENSOR = 1 << 28  # numbers
SAFETENSORS_ENTRY = fields(dtype=text, shape=sequence(whole(1)), data_offsets=sequence(whole(), 2))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a .pth file (bare, or under "model" or "ema") or of a .safetensors file.

    Never runs code from the file. ValueError if it is missing, damaged or holds something else.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no weights file {path}")
    try:
        state = read_safetensors(path) if path.suffix == ".safetensors" else load(path)
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as weights ({error}): download it again") from None
    if isinstance(state, dict):
        averaged = state.get("ema") if "describe" in state else None  # of our last.pt the averaged weights count
        state = averaged or state.get("model", state.get("ema", state))  # weights alone, or a file that holds them
    try:
        mapping(text, any_tensor)(state, "its content")
        large = next((name for name, tensor in state.items() if tensor.numel() > LARGEST_TENSOR), None)
        if large:  # few numbers that a file repeats may be of any shape
            raise ValueError(f"{large} has {state[large].numel()} numbers")
    except ValueError as error:
        raise ValueError(
            f"{path} holds no state dict of tensors ({error}): name a .pth or .safetensors file of weights"
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


def to_our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a torchvision, timm, DeiT or CaiT state dict to our parameter names."""
    if "conv_proj.weight" in state:
        return {rename(name, TORCHVISION): tensor for name, tensor in state.items()}
    if not any(name.startswith("blocks_token_only.") for name in state):
        return dict(state)
    ours = {rename(name, CAIT): tensor for name, tensor in state.items()}
    for key in [name for name in ours if re.search(r"class_blocks\.\d+\.attn\.k\.", name)]:
        value = key.replace(".attn.k.", ".attn.v.")
        if value not in ours or ours[key].shape != ours[value].shape or not ours[key].ndim:
            raise ValueError(f"{key} and {value} of the file do not fit together")
        ours[key.replace(".attn.k.", ".attn.kv.")] = torch.cat([ours.pop(key), ours.pop(value)])
    return ours


def rename(name: str, table: list[tuple[str, str]]) -> str:
    """Apply all substitutions of a table to a name."""
    for old, new in table:
        name = re.sub(old, new, name)
    return name


def load_state(model: VisionTransformer, state: dict[str, Tensor]) -> list[str]:
    """Load weights under our names into `model`. Returns the names of heads that stay new (another number of classes).

    Position embeddings of another image size are resampled. ValueError names what does not fit.
    """
    state, ours = dict(state), model.state_dict()
    fresh = [
        name
        for name in ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
        if name in state and name in ours and state[name].ndim and len(state[name]) != len(ours[name])
    ]
    state |= {name: ours[name] for name in fresh}
    positions = state.get("pos_embed")
    known = ours.get("pos_embed")
    if positions is not None and known is not None and positions.ndim == 3 and positions.shape != known.shape:
        tokens = 0 if model.config.tokens_enter_late else model.config.tokens
        state["pos_embed"] = resize_position_embedding(positions, tokens, model.config.grid)
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


def load_pretrained(model: VisionTransformer, path: Path) -> str:
    """Initialise `model` from an official file. Returns a line that says what was loaded and what is new."""
    state = read_weights(path)
    try:
        fresh = load_state(model, to_our_names(state))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return f"loaded {path}" + (f"; new, to be trained: {', '.join(fresh)}" if fresh else "")


def resize_position_embedding(embedding: Tensor, tokens: int, grid: tuple[int, int]) -> Tensor:
    """Resample (1, T + n * n, C), learned on a square grid, to (1, T + h * w, C): bicubic and antialiased, as timm.

    tokens: T, the special tokens, which come first and stay. ValueError if the rest is no square grid.
    """
    special, patches = embedding[:, :tokens], embedding[:, tokens:]
    side = math.isqrt(patches.shape[1])
    if side * side != patches.shape[1]:
        raise ValueError(
            f"{patches.shape[1]} positions are not a square grid: cannot be resampled to {grid[0]}x{grid[1]}"
        )
    image = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()  # (1, N, C) -> (1, C, n, n)
    image = F.interpolate(image, grid, mode="bicubic", antialias=True)
    return torch.cat([special, image.flatten(2).transpose(1, 2).to(embedding.dtype)], dim=1)
