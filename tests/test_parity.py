"""Every golden file of the official implementations, through the same code as `python tests/parity.py`."""

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import parity
import PIL
import pytest
import torch
import torchvision

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted([*GOLDEN.glob("*/*.npz"), *GOLDEN.glob("tokenizers/*.json")])
CASES = [
    pytest.param(
        path,
        form,
        id=f"{path.parent.name}-{path.stem}-{form}",
        marks=[pytest.mark.slow] if "full" in path.stem else [],  # models at their real size
    )
    for path in FILES
    for form in parity.forms_of(path.parent.name, path.stem)
]


def older_than(module, *version: int) -> bool:
    return tuple(int(part) for part in module.__version__.split("+")[0].split(".")[: len(version)]) < version


@pytest.mark.parametrize("path, form", CASES)
def test_our_model_reproduces_the_official_numbers(path, form):
    if path.stem.startswith("preprocess_") and (older_than(PIL, 13) or older_than(torchvision, 0, 29)):
        pytest.skip("before Pillow 13 and torchvision 0.29 some resized pixels were rounded to the next grey level")
    rows, ok = parity.run_file(path, form=form)
    assert ok, "\n".join(row for row in rows if not row.endswith("ok"))


def test_the_forms_flag_runs_the_plain_form_the_fast_form_or_both(capsys, monkeypatch):
    path = GOLDEN / "vit" / "timm_cait_tiny.npz"
    for forms in ("plain", "fast", "both"):
        monkeypatch.setattr("sys.argv", ["parity.py", str(path), "--forms", forms])
        assert parity.main() == 0
        heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("vit/")]
        ran = [form for form in ("plain", "fast") if f"vit/timm_cait_tiny ({form}): ok" in heads]
        assert len(ran) == len(heads) and ran == [form for form in ("plain", "fast") if forms in (form, "both")]


def test_a_salt_changes_the_weights_and_a_seed_offset_the_drawn_inputs():
    golden = parity.Golden.load(GOLDEN / "vit" / "timm_vit_tiny.npz")
    weight, x = golden.formula("head.weight", (4, 3)), golden.input("x")
    salted = dataclasses.replace(golden, meta=golden.meta | {"salt": "s"})
    assert not torch.allclose(salted.formula("head.weight", (4, 3)), weight)
    assert torch.equal(salted.formula("head.weight", (4, 3)), golden.formula("shead.weight", (4, 3)))
    assert torch.equal(salted.input("x"), x)
    shifted = dataclasses.replace(golden, meta=golden.meta | {"seed_offset": 7})
    want = np.random.RandomState(7 + golden.meta["inputs"]["x"]["seed"]).standard_normal(x.shape).astype(np.float32)
    assert np.array_equal(shifted.input("x").numpy(), want) and not torch.allclose(shifted.input("x"), x)
    assert torch.equal(shifted.formula("head.weight", (4, 3)), weight)


SALTED = [path for path in FILES if path.parent.name == "vit" and path.stem.startswith(("timm_", "tv_"))]
SALTED = [path for path in SALTED if path.stem != "timm_droppath"]  # the one without weights


@pytest.mark.parametrize("path", SALTED, ids=[path.stem for path in SALTED])
def test_every_vit_case_takes_its_weights_from_the_salted_formula(path):
    golden = parity.Golden.load(path)
    salted = dataclasses.replace(golden, meta=golden.meta | {"salt": "s"})
    with torch.no_grad():
        got = importlib.import_module("parity_vit").run(salted, "cpu", torch.float32)
    off = [name for name in golden.outputs if not parity.compare(golden, name, got[name])[1]]
    fixed = {"timm_layerscale": ["init_gamma"]}.get(path.stem, [])  # a constant
    assert off == [name for name in golden.outputs if name not in fixed and not name.endswith("_index")]


def test_the_parity_script_prints_each_output_and_fails_on_a_wrong_number(tmp_path, capsys, monkeypatch):
    good = GOLDEN / "vit" / "timm_layerscale.npz"
    with np.load(good) as file:
        arrays = dict(file)
    arrays["out_y"] = arrays["out_y"] + 1e-3
    np.savez(tmp_path / "wrong.npz", **arrays)
    monkeypatch.setattr("sys.argv", ["parity.py", str(good)])
    assert parity.main() == 0
    monkeypatch.setattr("sys.argv", ["parity.py", str(tmp_path / "wrong.npz")])
    assert parity.main() == 1
    printed = capsys.readouterr().out
    assert "y " in printed and "abs 1.00e-03" in printed and "1 of 1 files" in printed and "0 of 1 files" in printed


def test_an_output_that_is_not_produced_counts_as_off():
    meta = {"tolerance": {"atol": 1, "rtol": 1}}
    golden = parity.Golden(json.loads(json.dumps(meta)), {}, {"y": np.zeros(3)})
    assert not parity.compare(golden, "y", None)[1]
    assert not parity.compare(golden, "y", torch.zeros(4))[1]
    assert not parity.compare(golden, "y", torch.tensor([0, 0, float("nan")]))[1]
    assert parity.compare(golden, "y", torch.zeros(3))[1]
