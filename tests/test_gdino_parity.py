"""Every official output, through the parity runner."""
import numpy as np
import pytest
import torch

import parity

FILES = sorted((parity.ROOT / "golden" / "groundingdino").glob("*.npz"))


SLOW = [pytest.param(f, marks=pytest.mark.slow) if "fullsize" in f.stem else f for f in FILES]


@pytest.mark.parametrize("path", SLOW, ids=lambda path: path.stem)
def test_outputs_equal_the_official_ones(path):
    rows, ok = parity.run_file(path)
    assert ok, "\n".join(rows)


def test_the_runner_notices_a_wrong_word_and_a_wrong_number():
    golden = parity.Golden({"tolerance": {"atol": 1e-5, "rtol": 0.0}}, {}, {"answer": np.array('{"a": [1.0, "cat"]}')})
    assert parity.compare(golden, "answer", '{"a": [1.000001, "cat"]}')[1]
    for wrong in ('{"a": [1.1, "cat"]}', '{"a": [1.0, "dog"]}', '{"b": [1.0, "cat"]}', '{"a": [1.0, "cat", 2]}'):
        assert not parity.compare(golden, "answer", wrong)[1]


def test_the_runner_notices_a_changed_weight(monkeypatch):
    path = next(f for f in FILES if f.stem == "fusion")
    original = parity.formula
    monkeypatch.setattr(parity, "formula", lambda name, shape, salt="": original(name, shape, salt)
                        + (0.01 if name == "attn.v_proj.bias" else torch.zeros(())))
    assert not parity.run_file(path)[1]
