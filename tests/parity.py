"""Compare our models with the numbers of the official implementations.

    python tests/parity.py tests/golden/vit/*.npz tests/golden/tokenizers/*.json
    python tests/parity.py FILE.npz --device cuda --dtype bfloat16      # what a GPU or bf16 costs in accuracy
    python tests/parity.py FILE.npz --forms plain                       # the papers' formulas alone

Each golden file holds a configuration, a formula for the weights and the official outputs. The model
is built from the configuration inside the file, so files with other seeds and sizes need no change
here. A tokenizer's file is JSON: strings and their ids. A family whose models have a fast.py runs both
ways, as the papers' formulas ("plain") and after accelerate(model) ("fast"). For every output the largest
absolute and relative difference is printed; the exit status is 0 only when all are within the file's tolerance.
"""

import argparse
import importlib
import json
import sys
import zlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]

# How much wider than the file's fp32 tolerance a lower precision is allowed to be: the ratio of the rounding steps.
DTYPES = {"float32": (torch.float32, 1.0), "bfloat16": (torch.bfloat16, 2.0**10), "float16": (torch.float16, 2.0**7)}


@dataclass
class Golden:
    """One golden file: its meta data, the stored inputs and the (sub-sampled) official outputs."""

    meta: dict
    stored: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    @classmethod
    def load(cls, path: Path) -> "Golden":
        if path.suffix == ".json":
            return cls.load_tokenizer(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop("meta")))
        return cls(
            meta,
            {k[3:]: v for k, v in arrays.items() if k.startswith("in_")},
            {k[4:]: v for k, v in arrays.items() if k.startswith("out_")},
        )

    @classmethod
    def load_tokenizer(cls, path: Path) -> "Golden":
        """Strings and the token ids that a tokenizer gives for them, as one JSON output."""
        cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
        meta = {
            "family": path.parent.name,
            "case": path.stem,
            "tolerance": {"atol": 0, "rtol": 0},
            "texts": [case["text"] for case in cases],
        }
        return cls(meta, {}, {"ids": np.array(json.dumps([case["ids"] for case in cases]))})

    @property
    def config(self) -> dict:
        return self.meta["config"]

    def input(self, name: str) -> torch.Tensor:
        """A stored input, or the standard normal array that its seed and shape describe."""
        if name in self.stored:
            return torch.from_numpy(self.stored[name])
        spec = self.meta["inputs"][name]
        seed = spec["seed"] + self.meta.get("seed_offset", 0)
        if spec.get("kind", "standard_normal") != "standard_normal":
            raise ValueError(f"input {name} is of kind {spec['kind']!r}: its family module has to draw it")
        values = np.random.RandomState(seed).standard_normal(tuple(spec["shape"]))
        return torch.from_numpy(values.astype(np.float32))

    def formula(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The weight of one official state-dict entry, with the file's salt."""
        return formula(name, tuple(shape), self.meta.get("salt", ""))

    def tolerance(self, name: str) -> tuple[float, float, float]:
        """Absolute and relative tolerance, and the share of values that has to keep it.

        tolerance_by_output may hold patterns such as "masks_*".
        """
        special = self.meta.get("tolerance_by_output", {})
        key = name if name in special else next((pattern for pattern in special if fnmatchcase(name, pattern)), None)
        spec = special[key] if key else self.meta["tolerance"]
        if not isinstance(spec, dict):
            return float(spec), self.meta["tolerance"].get("rtol", 0.0), 1.0
        return spec.get("atol", 0.0), spec.get("rtol", 0.0), spec.get("fraction", 1.0)


def formula(name: str, shape: tuple[int, ...], salt: str = "") -> torch.Tensor:
    """The weight of one official state-dict entry, as golden/README.md defines it."""
    rng = np.random.RandomState(zlib.crc32((salt + name).encode("utf-8")))
    noise = rng.standard_normal(shape)
    if name.endswith("running_var"):
        value = 1 + 0.1 * np.abs(noise)
    elif len(shape) >= 2:
        value = noise / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        value = 1 + 0.1 * noise
    else:
        value = 0.1 * noise
    return torch.from_numpy(np.asarray(value).astype(np.float32))


def formula_state(shapes: dict[str, tuple[int, ...]], salt: str = "") -> dict[str, torch.Tensor]:
    """A whole state dict of formula weights from official names and shapes."""
    return {name: formula(name, tuple(shape), salt) for name, shape in shapes.items()}


def manifest_state(path: Path) -> dict[str, torch.Tensor]:
    """Zeros with the keys, shapes and dtypes of a published checkpoint's manifest, without taking its memory."""
    entries = json.loads(path.read_text())["entries"]
    return {
        name: torch.zeros((), dtype=getattr(torch, dtype)).expand(shape) for name, (shape, dtype) in entries.items()
    }


def compare(golden: Golden, name: str, got, widen: float = 1.0) -> tuple[str, bool]:
    """One printed row for an output, and whether it is within tolerance."""
    want = np.asarray(golden.outputs[name])
    if got is None:
        return f"  {name:<38} not produced                            off", False
    if want.dtype.kind == "U":  # JSON: the words must be equal, the numbers close
        want_words, want = split_json(json.loads(str(want)))
        got_words, got = split_json(json.loads(got))
        if got_words != want_words:
            row = next(i for i, pair in enumerate(zip_longest(got_words, want_words)) if pair[0] != pair[1])
            return f"  {name:<38} item {row}: {got_words[row : row + 3]}, not {want_words[row : row + 3]}   off", False
    got = got.detach().float().cpu().numpy() if torch.is_tensor(got) and got.is_floating_point() else np.asarray(got)
    sampling = golden.meta.get("subsample", {}).get(name)
    step = sampling["k"] if isinstance(sampling, dict) else sampling or 1
    full, got = got.shape, got.reshape(-1)[::step] if step > 1 else got
    if got.size != want.size:
        return f"  {name:<38} shape {full} does not fit {want.shape}   off", False
    a, b = got.reshape(-1).astype(np.float64), want.reshape(-1).astype(np.float64)
    finite = np.isfinite(b)
    same_elsewhere = np.array_equal(a[~finite], b[~finite], equal_nan=True)
    diff = np.abs(a[finite] - b[finite])
    atol, rtol, share = golden.tolerance(name)
    within = diff <= widen * (atol + rtol * np.abs(b[finite]))
    ok = same_elsewhere and bool(within.mean() >= share if within.size else True)
    relative = diff.max() / max(np.abs(b[finite]).max(), 1e-12) if diff.size else 0.0
    largest, verdict = diff.max() if diff.size else 0, "ok" if ok else "off"
    return f"  {name:<38} {str(tuple(full)):<20} abs {largest:.2e}  rel {relative:.2e}  {verdict}", ok


def split_json(value) -> tuple[list, np.ndarray]:
    """All that is no number, brackets and keys included, in order; and the numbers."""
    words, numbers, stack = [], [], [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            item = sorted(item.items())
        if isinstance(item, (list, tuple)):
            words += ["list", len(item)]
            stack += reversed(item)
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            numbers.append(item)
        else:
            words.append(item)
    return words, np.array(numbers, dtype=np.float64)


def forms_of(family: str, case: str) -> tuple[str, ...]:
    """The forms a case runs in: FORMS of its family's module, ("plain", "fast") where it has a fast.py, else only
    "plain". ONE_FORM of the module names cases that no fast form takes part in."""
    module = importlib.import_module(f"parity_{family}")
    return ("plain",) if case in getattr(module, "ONE_FORM", ()) else getattr(module, "FORMS", ("plain",))


def run_file(path: Path, device: str = "cpu", dtype: str = "float32", form: str = "plain") -> tuple[list[str], bool]:
    """Run our model on one golden file. Returns the printed rows and whether all are within tolerance.

    The family named in the file has a module parity_<family>.py beside this one with
    run(golden, device, dtype) -> {output name: tensor}; where it has fast forms, run(..., fast=True) uses them.
    """
    golden = Golden.load(Path(path))
    torch_dtype, widen = DTYPES[dtype]
    family = importlib.import_module(f"parity_{golden.meta['family']}")
    with torch.no_grad():
        got = family.run(golden, device, torch_dtype, **({"fast": True} if form == "fast" else {}))
    rows = [compare(golden, name, got.get(name), widen) for name in golden.outputs]
    return [row for row, _ in rows], all(ok for _, ok in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument(
        "--forms",
        default="both",
        choices=("plain", "fast", "both"),
        help="the papers' formulas, what accelerate(model) makes of them, or both (default; where a family has both)",
    )
    args = parser.parse_args()
    bad = 0
    for path in args.files:
        meta = Golden.load(path).meta
        forms = [form for form in forms_of(meta["family"], meta["case"]) if args.forms in (form, "both")]
        results = {form: run_file(path, args.device, args.dtype, form) for form in forms}
        for form, (rows, ok) in results.items():
            print(f"{path.parent.name}/{path.stem} ({form}): {'ok' if ok else 'OFF'}", *rows, sep="\n")
        if not forms:
            print(f"{path.parent.name}/{path.stem}: has no {args.forms} form")
        bad += not all(ok for _, ok in results.values())
    print(f"{len(args.files) - bad} of {len(args.files)} files within tolerance")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
