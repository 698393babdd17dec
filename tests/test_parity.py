"""Every golden file of the official implementations, through the same code as `python tests/parity.py`."""

import json
from pathlib import Path

import numpy as np
import parity
import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted([*GOLDEN.glob("*/*.npz"), *GOLDEN.glob("tokenizers/*.json")])
CASES = [
    pytest.param(
        path,
        form,
        id=f"{path.parent.name}-{path.stem}-{form}",
        marks=[pytest.mark.slow] if "fullsize" in path.stem else [],  # models at their real size
    )
    for path in FILES
    for form in parity.forms_of(path.parent.name)
]


@pytest.mark.parametrize("path, form", CASES)
def test_our_model_reproduces_the_official_numbers(path, form):
    rows, ok = parity.run_file(path, form=form)
    assert ok, "\n".join(row for row in rows if not row.endswith("ok"))


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
