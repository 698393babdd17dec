"""Files from elsewhere: read without running code, and checked before they are used.

`load` reads what torch.save wrote. Its weights_only stops code; the checks here bound memory by the size of the file
and let only plain tensors through. A kind says what a value must be: it is a function of a value and of where it
stands, and raises ValueError in a few words. Left out: TorchScript, safetensors.
"""

import dataclasses
import io
import json
import math
import os
import reprlib
import stat
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

import numpy as np
import torch
from torch import Tensor

Kind = Callable[[object, str], None]  # a value, and where it stands

DEEPEST = 20  # dictionaries and lists inside each other
ROOM = 4  # times a file's size that its content may take
LARGEST, MOST = 2**53, 1e300  # of whole numbers, of all others
REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # types of tensors that are read
REAL += (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
UNREADABLE = "it is damaged, or holds more than tensors, and is not opened for safety"


# --- Files ------------------------------------------------------------------------------------------------


def check_regular(path: str | Path, most: int | None = None) -> None:
    """ValueError unless it is a regular file, of at most so many bytes if that is given. OSError if there is none.

    A pipe would be waited for, a device may never end.
    """
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("it is no regular file")
    if most is not None and about.st_size > most:
        raise ValueError(f"it has {about.st_size} bytes, more than {most}")


def read_json(path: str | Path, most: int = 1 << 20) -> object:
    """The content of a JSON file in UTF-8, -16 or -32. most: bytes.

    ValueError if it has more or is no JSON, RecursionError if it is nested too deeply, OSError if there is none.
    """
    check_regular(path, most)
    try:
        return json.loads(Path(path).read_bytes())
    except UnicodeDecodeError:
        raise ValueError("no JSON, which is text in UTF-8") from None


def load(path: str | Path) -> object:
    """The content of a file that torch.save wrote, with its tensors in memory of their own on the CPU.

    ValueError if it is damaged, or holds other tensors than dense real ones; the message does not name the file.
    """
    check_regular(path)
    with open(path, "rb") as file:
        is_zip = check_zip(file)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, about files that it did not write
                # Mapped: a tensor that claims more numbers than there are is refused, not read beyond the end.
                content = torch.load(_as_text(path, file), map_location="cpu", weights_only=True, mmap=is_zip)
        except MemoryError:
            raise
        except Exception as error:  # damaged files make torch raise nearly anything
            raise ValueError(UNREADABLE) from error
        return _Copier(ROOM * os.fstat(file.fileno()).st_size).copy(content)


def check_zip(file) -> bool:
    """Whether torch reads an open file as a zip archive. ValueError if entries would grow when they are unpacked."""
    if file.read(4) != b"PK\3\4":
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except Exception as error:  # damaged files make zipfile raise half a dozen types
        raise ValueError(UNREADABLE) from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, which torch.save never does")
    return True


def _as_text(path: str | Path, file) -> str:
    """A name for torch, which takes no bytes that are not UTF-8."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return f"/dev/fd/{file.fileno()}"
    return os.fspath(path)


class _Copier:
    """Copies dictionaries, lists and tensors; ValueError if they take more than `room` bytes, one for each item.

    Tensors keep their strides, and share numbers as before: one that repeats few numbers may be of any shape.
    """

    def __init__(self, room: int):
        self.room, self.storages = room, {}

    def copy(self, value: object, depth: int = 0) -> object:
        self.take(1)  # lists that hold one list many times would grow without end
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        if isinstance(value, dict):
            return {key: self.copy(item, depth + 1) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)([self.copy(item, depth + 1) for item in value])
        return self.tensor(value) if isinstance(value, Tensor) else value

    def take(self, size: int) -> None:
        self.room -= size
        if self.room < 0:
            raise ValueError("its content claims to be larger than the file")

    def tensor(self, tensor: Tensor) -> Tensor:
        dense = tensor.layout == torch.strided and not tensor.is_nested
        if not dense or tensor.device.type != "cpu" or tensor.dtype not in REAL:
            raise ValueError(f"it holds {describe(tensor)} where dense real ones on the CPU are expected")
        storage = tensor.untyped_storage()
        place = storage.data_ptr(), storage.nbytes()
        if place not in self.storages:
            self.take(storage.nbytes())
            self.storages[place] = storage.clone()
        copy = torch.empty(0, dtype=tensor.dtype, device="cpu")
        return copy.set_(self.storages[place], tensor.storage_offset(), tensor.size(), tensor.stride())


def load_npz(path: str | Path) -> dict[str, Tensor]:
    """The arrays of a numpy archive (.npz) by name. Objects, which numpy would unpickle, are refused.

    ValueError if it is damaged or holds other than numbers; the message does not name the file.
    """
    check_regular(path)
    with open(path, "rb") as file:
        room = ROOM * os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                if sum(entry.file_size for entry in archive.infolist()) <= room:
                    contents = {entry.filename: archive.read(entry) for entry in archive.infolist()}
                else:
                    contents = None
        except MemoryError:
            raise
        except Exception as error:  # damaged files make zipfile raise half a dozen types
            raise ValueError(UNREADABLE) from error
    if contents is None:
        raise ValueError("its content claims to be larger than the file")
    return {name.removesuffix(".npy"): read_npy(content, name) for name, content in contents.items()}


NUMBERS = {"f2", "f4", "f8", "i4", "i8"}  # types of numbers, by numpy's kind and size in bytes
BFLOAT16 = "V2"  # as which numpy, which has no such type, keeps it


def read_npy(content: bytes, name: str) -> Tensor:
    """The array of a file of numpy's (.npy), whose content this is. ValueError if it holds other than numbers."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = read_header[version](file)
    except Exception as error:  # a header is Python's notation of values, and a damaged one raises what that raises
        raise ValueError(f"{name!r} is no array of numpy's") from error
    kind = dtype.kind + str(dtype.itemsize)
    if dtype.hasobject or kind not in {*NUMBERS, BFLOAT16} or dtype.fields:
        raise ValueError(f"{name!r} is an array of {dtype}, not of numbers")
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"{name!r} has not as many numbers as its shape {shape} says")
    stored = np.dtype("<i2") if kind == BFLOAT16 else dtype
    array = np.frombuffer(content, stored, offset=file.tell()).reshape(shape, order="F" if by_columns else "C")
    tensor = torch.from_numpy(np.ascontiguousarray(array.astype(stored.newbyteorder("="))))
    return tensor.view(torch.bfloat16) if kind == BFLOAT16 else tensor


# --- Kinds of values --------------------------------------------------------------------------------------


def describe(value: object) -> str:
    """A value in a few words, however large it is."""
    if isinstance(value, Tensor):
        form = str(value.layout) if value.layout != torch.strided else str(value.dtype)
        place = "" if value.device.type == "cpu" else f" on the device {value.device}"
        shape = "nested tensor" if value.is_nested else f"tensor of shape {tuple(value.shape)}"
        return f"a {form.removeprefix('torch.')} {shape}{place}"
    if isinstance(value, (dict, list, tuple, set, bytes, bytearray)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"a number of {value.bit_length()} bits"
    return reprlib.repr(value)


def refuse(value: object, where: str, expected: str) -> None:
    """Raise the ValueError of a value that is not what is expected."""
    raise ValueError(f"{where} is {describe(value)}, not {expected}")


def text(value: object, where: str) -> None:
    """ValueError unless it is a str."""
    if not isinstance(value, str):
        refuse(value, where, "a text")


def flag(value: object, where: str) -> None:
    """ValueError unless it is a bool."""
    if not isinstance(value, bool):
        refuse(value, where, "true or false")


def anything(value: object, where: str) -> None:
    """Any value; it is checked elsewhere."""


def plain(value: object, where: str) -> None:
    """Numbers, texts, true, false and None, and lists and dictionaries of them."""
    if isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            plain(item, where)
    elif not isinstance(value, (str, int, float, type(None))):
        refuse(value, where, "a plain value")


def whole(low: int = 0, high: int = LARGEST) -> Kind:
    """A whole number within bounds."""
    expected = "a whole number" + (f" from {low}" if low > -LARGEST else "") + (f" to {high}" if high < LARGEST else "")

    def check(value: object, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            refuse(value, where, expected)

    return check


def real(value: object, where: str) -> None:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MOST:
        refuse(value, where, "a finite number")


def positive(value: object, where: str) -> None:
    """A finite number above 0."""
    real(value, where)
    if value <= 0:
        refuse(value, where, "above 0")


def within(low: float, high: float = MOST, ends: str = "[]") -> Kind:
    """A finite number of a range; ends: as in mathematics, "[" and "]" belong to it, "(" and ")" do not."""
    expected = f"a number {'above' if ends[0] == '(' else 'from'} {low}"
    if high < MOST:
        expected += f" {'to' if ends[1] == ']' else 'to below'} {high}"

    def check(value: object, where: str) -> None:
        real(value, where)
        if not low <= value <= high or (value == low and ends[0] == "(") or (value == high and ends[1] == ")"):
            refuse(value, where, expected)

    return check


def measured(value: object, where: str) -> None:
    """Any number, NaN and infinity too."""
    if not isinstance(value, float) and (type(value) is not int or abs(value) > LARGEST):
        refuse(value, where, "a number")


def optional(kind: Kind) -> Kind:
    """The kind, or None."""
    return lambda value, where: None if value is None else kind(value, where)


def sequence(kind: Kind, length: int | None = None, least: int = 0) -> Kind:
    """A list or tuple of one kind, of a length if that is given, or of at least so many."""

    def check(value: object, where: str) -> None:
        if not isinstance(value, (list, tuple)) or length not in (None, len(value)) or len(value) < least:
            refuse(value, where, "a list" + (f" of {length}" if length else f" of at least {least}" if least else ""))
        for index, item in enumerate(value):
            kind(item, f"{where}[{index}]")

    return check


MEANS, DEVIATIONS = sequence(within(0, 1), 3), sequence(within(1e-6, 1), 3)  # of pixels from 0 to 1, by channel


def mapping(keys: Kind, values: Kind, least: int = 0) -> Kind:
    """A dictionary with at least so many keys, all of one kind, and values of another."""

    def check(value: object, where: str) -> None:
        if not isinstance(value, dict) or len(value) < least:
            refuse(value, where, "a dictionary" + (f" of at least {least}" if least else ""))
        for key, item in value.items():
            keys(key, f"a key of {where}")
            values(item, f"{where}[{describe(key)}]")

    return check


def fields(**kinds: Kind) -> Kind:
    """A dictionary with these keys; others are ignored."""

    def check(value: object, where: str) -> None:
        if not isinstance(value, dict):
            refuse(value, where, "a dictionary")
        for name, kind in kinds.items():
            if name not in value:
                raise ValueError(f"{where} lacks {name!r}")
            kind(value[name], f"{where}[{name!r}]")

    return check


def kinds_of(config: type) -> dict[str, Kind]:
    """The kind of each field of a dataclass, by name."""
    return {field.name: kind_of(field.type) for field in dataclasses.fields(config)}


def check_config(config: object, kinds: Mapping[str, Kind], names: Mapping[str, str]) -> None:
    """ValueError unless each field of a dataclass is of its kind, or, without one, of what its annotation says.

    Lists become tuples, and numbers of NumPy Python's own, so that a frozen configuration is hashable and goes into
    JSON. names: how the message calls a field, where that is not its name.
    """
    for name, kind in {**kinds_of(type(config)), **kinds}.items():
        value = as_plain(getattr(config, name))
        kind(value, names.get(name, name))
        object.__setattr__(config, name, value)  # also of a frozen one


def as_plain(value: object) -> object:
    """A list or torch.Size as a tuple, a number of NumPy as Python's; anything else as it is."""
    if isinstance(value, (list, tuple)):
        return tuple(map(as_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def flag_of(name: str) -> str:
    """The flag of a setting: "batch_size" -> "--batch-size"."""
    return "--" + name.replace("_", "-")


def kind_of(annotation: object) -> Kind:
    """Kind of an annotation: int, float, bool, str, None, a tuple, or one of several, such as Literal["a"] | None."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        return sequence(kind_of(inside[0]), None if inside[-1] is ... else len(inside))
    if origin is Literal:
        return one_of(inside)
    if inside:
        return any_of(*map(kind_of, inside))
    return {int: whole(-LARGEST), float: real, bool: flag, str: text, type(None): one_of([None])}[annotation]


def one_of(values: Sequence) -> Kind:
    """One of a few values, of the same type."""

    def check(value: object, where: str) -> None:
        if not any(type(value) is type(other) and value == other for other in values):
            refuse(value, where, f"one of {', '.join(map(str, values))}")

    return check


def any_of(*kinds: Kind) -> Kind:
    """A value of one of several kinds; the first one words the error."""

    def check(value: object, where: str) -> None:
        errors = []
        for kind in kinds:
            try:
                return kind(value, where)
            except ValueError as error:
                errors.append(error)
        raise errors[0]

    return check


def any_tensor(value: object, where: str) -> None:
    """Refuse what is no tensor."""
    if not isinstance(value, Tensor):
        refuse(value, where, "a tensor")


def tensor(*shape: int) -> Kind:
    """Finite floating-point numbers of a shape."""

    def check(value: object, where: str) -> None:
        if not isinstance(value, Tensor) or not value.is_floating_point() or tuple(value.shape) != shape:
            refuse(value, where, f"a tensor of shape {shape}")
        check_finite(value, where)

    return check


def numbers(like: Tensor) -> Kind:
    """A tensor of the shape and type of another one."""

    def check(value: object, where: str) -> None:
        if not isinstance(value, Tensor) or (value.shape, value.dtype) != (like.shape, like.dtype):
            refuse(value, where, describe(like))

    return check


def check_weights(state: object, wanted: Mapping[str, Tensor]) -> None:
    """ValueError unless it is a state dict with the names and shapes of a model's, without NaN and infinity.

    wanted: the state dict of the model, which may be on the meta device. The precision may be another one.
    """
    mapping(text, any_tensor)(state, "the state dict")
    both = wanted.keys() & state.keys()
    wrong = {
        "missing": wanted.keys() - state.keys(),
        "not known": state.keys() - wanted.keys(),
        "of another shape": {k for k in both if wanted[k].shape != state[k].shape},
        "of another type": {k for k in both if wanted[k].is_floating_point() != state[k].is_floating_point()},
    }
    if any(wrong.values()):
        raise ValueError("; ".join(f"{len(keys)} {what}, such as {min(keys)}" for what, keys in wrong.items() if keys))
    for name, value in state.items():
        check_finite(value, name)


def check_finite(value: Tensor, where: str) -> None:
    """ValueError if a tensor holds NaN or infinity, or would in float32."""
    # Their sum tells nearly always, in a fifth of the time.
    if not value.sum(dtype=torch.float32).isfinite() and not value.float().isfinite().all():
        raise ValueError(f"{where} holds NaN or infinity")
