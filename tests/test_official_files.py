"""From a folder of the official files to masks: names, layouts and models are the published ones, the numbers are not.

The files hold formula weights (parity.py) and made-up vocabularies, as the published ones are not at hand.
"""

import gzip
import json
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
from helpers.squares import picture, save

from minisam_glue import clipseg, grounding_dino, load_models, sam2
from minisam_glue.cli import main
from minisam_glue.weights import table

VISIBLE = [chr(code) for code in range(33, 127)]


def formula_weights(build) -> dict[str, torch.Tensor]:
    """A state dict of formula weights for the model that `build` returns."""
    with torch.device("meta"):
        shapes = build().state_dict()
    return {
        name: parity.formula(name, tuple(value.shape))
        if value.is_floating_point()
        else torch.zeros_like(value, device="cpu")
        for name, value in shapes.items()
    }


def write(name: str, path: Path) -> None:
    """A file of this name of the table, in the layout of its publisher."""
    if name.startswith("sam2"):
        torch.save({"model": formula_weights(lambda: sam2.SAM2(sam2.PRESETS[name]))}, path)
    elif name.startswith("swin"):
        state = formula_weights(lambda: grounding_dino.GroundingDINO(grounding_dino.PRESETS[name]))
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, path)
    elif name == "clipseg":
        torch.save(formula_weights(lambda: clipseg.CLIPSeg(clipseg.PRESETS["rd64-refined"])), path)
    elif name == "bert-vocab":
        words = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *VISIBLE]
        words += [f"##{sign}" for sign in VISIBLE]
        path.write_text("\n".join(words + [f"word{i}" for i in range(30_522 - len(words))]))
    else:
        merges = islice((f"{a} {b}" for a, b in product(VISIBLE, [c + "</w>" for c in VISIBLE] * 6)), 48_894)
        path.write_bytes(gzip.compress("\n".join(["#version", *merges]).encode()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("official")


@pytest.fixture
def files(folder, monkeypatch):
    """A function that puts files into the folder, once, and lets the table have their sizes. It returns the folder."""

    def put(*names: str) -> Path:
        for name in names:
            entry = table.CHECKPOINTS[name]
            if not (folder / entry.file).exists():
                write(name, folder / entry.file)
            monkeypatch.setitem(table.CHECKPOINTS, name, replace(entry, bytes=(folder / entry.file).stat().st_size))
        return folder

    return put


def test_a_box_and_the_official_sam_2_give_a_mask_at_its_own_size_and_at_another(files, tmp_path):
    weights = files("sam2.1_hiera_tiny")
    assert load_models(weights, None, "tiny", device="cpu").sam.config.image_size == 1024
    source = save(picture(5), tmp_path / "a.png")
    words = [source, "--box", "10,10,40,40", "--weights", weights, "--sam", "tiny", "--size", "256", "--device", "cpu"]
    assert main([*map(str, words), "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "a" / "result.json").read_text())
    assert result["of"]["--size"] == 256 and len(result["objects"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, names",
    [([], ["swin-t", "bert-vocab"]), (["--method", "clipseg", "--heat-threshold", "0.01"], ["clipseg", "clip-bpe"])],
)
def test_a_sentence_and_the_official_files_of_either_method_give_an_answer(flags, names, files, tmp_path):
    weights, source = files(*names, "sam2.1_hiera_tiny"), save(picture(5), tmp_path / "a.png")
    words = [source, "a car.", "--weights", weights, "--sam", "tiny", "--size", "256", "--device", "cpu", *flags]
    assert main([*map(str, words), "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "a" / "result.json").read_text())
    assert result["objects"] if "clipseg" in names else np.isfinite(result["best"]["score"])
