"""The parity runner notices what is wrong, in the files of Grounding DINO."""

import numpy as np
import parity
import torch

FUSION = parity.ROOT / "golden" / "groundingdino" / "fusion.npz"


def test_the_runner_notices_a_wrong_word_and_a_wrong_number():
    golden = parity.Golden({"tolerance": {"atol": 1e-5, "rtol": 0.0}}, {}, {"answer": np.array('{"a": [1.0, "cat"]}')})
    assert parity.compare(golden, "answer", '{"a": [1.000001, "cat"]}')[1]
    for wrong in ('{"a": [1.1, "cat"]}', '{"a": [1.0, "dog"]}', '{"b": [1.0, "cat"]}', '{"a": [1.0, "cat", 2]}'):
        assert not parity.compare(golden, "answer", wrong)[1]


def test_the_runner_notices_a_changed_weight(monkeypatch):
    original = parity.formula
    monkeypatch.setattr(
        parity,
        "formula",
        lambda name, shape, salt="": (
            original(name, shape, salt) + (0.01 if name == "attn.v_proj.bias" else torch.zeros(()))
        ),
    )
    assert not parity.run_file(FUSION)[1]
