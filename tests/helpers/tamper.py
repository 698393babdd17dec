"""Other people's files, made from good ones: each value missing, of another type, or extreme; tensors of other forms.

`variants` works on what a file holds, `broken_archives` on the bytes of a file of torch.save. Nothing here is random
but the places of flipped bits.
"""

import io
import pickle
import re
import signal
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

try:
    import resource
except ImportError:  # on Windows, where nothing limits a process from inside
    resource = None

MANY = 12  # values in a dictionary, from where on they are much alike
SECONDS = 20  # that one case may take
MEMORY = 3 << 30  # bytes that one case may ask for


class TooSlow(Exception):
    """A case took longer than SECONDS."""


@contextmanager
def bounded(seconds: int = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """TooSlow after so many seconds; MemoryError, or torch's RuntimeError, above so much more memory than now.

    Memory is bounded on Linux, time on Unix.
    """
    if resource is None:
        yield
        return

    def stop(signum: int, frame: object) -> None:
        raise TooSlow

    previous, limits = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    used = Path("/proc/self/statm")
    if used.exists():
        now = int(used.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, limits[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The keys and indices that lead to each value inside a value; of a list or large dictionary the first three."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    inside = list(inside)
    alike = path and (isinstance(value, list) or len(inside) > MANY)
    for key, item in inside[:3] if alike else inside:
        yield (*path, key)
        yield from places(item, (*path, key))


def at(value: object, path: tuple) -> object:
    for key in path:
        value = value[key]
    return value


def changed(content: object, path: tuple, new: object) -> object:
    """A copy of the content with another value in a place."""
    if not path:
        return new
    key, *rest = path
    if isinstance(content, dict):
        return {k: changed(v, tuple(rest), new) if k == key else v for k, v in content.items()}
    return type(content)(changed(v, tuple(rest), new) if k == key else v for k, v in enumerate(content))


def without(content: object, path: tuple) -> object:
    """A copy of the content that lacks a place."""
    *parent, key = path
    inside = at(content, tuple(parent))
    if isinstance(inside, dict):
        return changed(content, tuple(parent), {k: v for k, v in inside.items() if k != key})
    return changed(content, tuple(parent), type(inside)(v for k, v in enumerate(inside) if k != key))


def other_tensors(tensor: Tensor) -> Iterator[tuple[str, object]]:
    """A tensor in other shapes, types, layouts, on another device, with values that are no numbers."""
    plain = tensor.detach()
    yield "a number more", torch.cat([plain.flatten(), plain.flatten()[:1]])
    yield "a dimension more", plain[None]
    yield "empty", plain.new_zeros(0)
    yield "half", plain[: len(plain) // 2] if plain.ndim and len(plain) > 1 else plain.new_zeros(2)
    yield "expanded", plain.new_zeros(1).expand(2**40)
    yield "meta", torch.empty(plain.shape, dtype=plain.dtype, device="meta")
    yield "huge meta", torch.empty(2**40, dtype=plain.dtype, device="meta")
    yield "sparse", plain.to_sparse() if plain.ndim else torch.zeros(2).to_sparse()
    yield "complex", plain.to(torch.complex64)
    yield "integer", plain.to(torch.int32)
    yield "bool", plain.to(torch.bool)
    yield "nested", torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    yield "eight bits", torch.zeros(2, dtype=torch.uint8).view(torch.float8_e5m2)
    if hasattr(torch, "float4_e2m1fn_x2"):
        yield "four bits", torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    if plain.is_floating_point():
        yield "nan", torch.full_like(plain, float("nan"))
        yield "inf", torch.full_like(plain, float("inf"))
        yield "double", plain.double()
        yield "list", plain.flatten()[:3].tolist()


SCALARS = {
    "none": None,
    "text": "\x1b[2Jtext",
    "number": 7,
    "fraction": 0.5,
    "zero": 0,
    "minus": -1,
    "big": 2**40,
    "bigger": 2**63,
    "biggest": 10**400,
    "nan": float("nan"),
    "inf": float("inf"),
    "flag": True,
    "list": [1, 2],
    "dictionary": {"a": 1},
    "tensor": torch.zeros(3),
}


def variants(content: object, json: bool = False) -> Iterator[tuple[str, object]]:
    """(name, content) with one thing changed. json: without what JSON can't hold."""
    for path in places(content):
        value, name = at(content, path), "/".join(map(str, path))
        yield f"{name} missing", without(content, path)
        others = other_tensors(value) if isinstance(value, Tensor) else SCALARS.items()
        for kind, new in others:
            if json and isinstance(new, Tensor):
                continue
            yield f"{name} {kind}", changed(content, path, new)


def files(content: object, data: bytes, step: int = 1) -> Iterator[tuple[str, bytes]]:
    """Each step-th variant of what a file of torch.save holds, and of the ways in which its bytes are broken."""
    for name, changed_content in islice(variants(content), 0, None, step):
        yield name, saved(changed_content)
    yield from islice(broken_archives(data), 0, None, step)


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class Runs:
    """Runs a function if it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


def broken_archives(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The bytes of a file of torch.save: cut, flipped, compressed, with other sizes than its tensors have."""
    rng = np.random.default_rng(0)
    for length in np.linspace(0, len(data) - 1, 8, dtype=int):
        yield f"cut at {length}", data[:length]
    for trial in range(8):
        flipped = bytearray(data)
        for place in rng.integers(0, len(data), 1 + 4 * trial):
            flipped[place] ^= 1 << rng.integers(8)
        yield f"flipped {trial}", bytes(flipped)
    yield "twice", data + data
    yield "text", b"no tensors\n" * 50
    yield "a pickle that runs code", pickle.dumps({"model": Runs()})
    yield "code in an archive", saved({"model": Runs()})
    yield "an older format", legacy({"model": {"weight": torch.zeros(2)}})
    yield "a list in itself", saved(_endless())
    yield "a list of lists of lists", saved(_exponential())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    pickled = next(name for name in files if name.endswith("/data.pkl"))
    yield "compressed", packed(files, zipfile.ZIP_DEFLATED)
    yield "zeros", packed(files | {next(n for n in files if "/data/" in n): bytes(1 << 26)}, zipfile.ZIP_DEFLATED)
    for name in [name for name in files if name != pickled][:6]:
        yield f"without {name}", packed({n: d for n, d in files.items() if n != name})
    yield "no byte order", packed({n: b"middle" if n.endswith("byteorder") else d for n, d in files.items()})
    for count, (old, new) in enumerate(claims(files[pickled])):
        yield f"claim {count}", packed(files | {pickled: files[pickled].replace(old, new, 1)})


def claims(pickled: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The part of a pickle that states how many numbers the first tensor has, and other numbers in its place."""
    found = re.search(rb"(cpuq.)(K.|M..|J....)(?=t)", pickled, re.DOTALL)
    for number in (0, -1, 2**31, 2**62):
        yield found[0], found[1] + b"\x8a\x09" + number.to_bytes(9, "little", signed=True)


def packed(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def legacy(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _endless() -> dict:
    inner = []
    inner.append(inner)
    return {"model": inner}


def _exponential() -> dict:
    inner = [1] * 10
    for _ in range(15):
        inner = [inner] * 10
    return {"model": inner}


def deep(levels: int = 100_000) -> bytes:
    """JSON that is nested so deeply that parsers give up."""
    return b"[" * levels + b"]" * levels
