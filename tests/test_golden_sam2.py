"""SAM 2 gives the official numbers, file by file; `python tests/parity.py tests/golden/sam2/*.npz` shows them."""
from pathlib import Path

import pytest

import parity

FOLDER = Path(__file__).parent / "golden" / "sam2"
FULL_SIZE = FOLDER / "sam21_tiny_fullsize.npz"


@pytest.mark.parametrize("path", sorted(set(FOLDER.glob("*.npz")) - {FULL_SIZE}), ids=lambda p: p.stem)
def test_outputs_equal_the_official_ones(path):
    rows, ok = parity.run_file(path)
    assert ok, "\n".join(row for row in rows if not row.endswith("ok"))


@pytest.mark.slow
def test_full_size_outputs_equal_the_official_ones():
    rows, ok = parity.run_file(FULL_SIZE)
    assert ok, "\n".join(rows)
