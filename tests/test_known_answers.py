"""tests/known_answers.py with stand-ins: every case comes to its comparison, and formula weights are called off."""

from dataclasses import replace

import known_answers
import numpy as np
import parity
import pytest
import torch
from helpers import clipseg_tiny, gdino_tiny, sam2_tiny
from parity_groundingdino import formula_name

from minisam_glue import media, weights
from minisam_glue.clipseg.heat_mapper import HeatMapper
from minisam_glue.grounding_dino import Detector
from minisam_glue.grounding_dino.swin import relative_position_index

GOLDEN = parity.ROOT / "golden"
MANIFESTS = {
    known_answers.SAM: "sam2/manifest_sam2.1_hiera_tiny.pt.json",
    "swin-t": "groundingdino/manifest_groundingdino_swint_ogc.json",
    "clipseg": "clipseg/manifest_clipseg-rd64-refined.json",
}


class Tiny:
    """Stands in for the files: tiny models with formula weights, pictures of noise. lacks: what can't be had."""

    def __init__(self, *lacks: str):
        self.lacks = lacks

    def model(self, name):
        if name in self.lacks:
            raise weights.WeightsError(f"{name} could not be downloaded")
        if name == known_answers.SAM:
            return sam2_tiny.tiny_model()
        if name == "swin-t":
            return Detector(gdino_tiny.tiny_model(), gdino_tiny.TOKENIZER, min_size=48, max_size=80)
        return HeatMapper(clipseg_tiny.tiny_model(), clipseg_tiny.TOKENIZER, 64)

    def picture(self, name):
        if name in self.lacks:
            raise weights.WeightsError(f"{name} could not be downloaded")
        return np.random.default_rng(0).integers(0, 255, (90, 180, 3), dtype=np.uint8)

    def frames(self, name, count):
        if name in self.lacks:
            raise media.MediaError("no PyAV")
        return [self.picture(name)] * count


def said(files) -> tuple[int, list[str]]:
    rows = []
    return known_answers.report(files, rows.append), rows


def test_every_case_is_compared_and_formula_weights_are_off():
    status, rows = said(Tiny())
    titles = [row for row in rows if row[0].isdigit() and ". " in row]
    count = len(known_answers.KNOWN["cases"])
    assert status == 1 and len(titles) == count and all(row.endswith(": off") for row in titles)
    assert rows[-1] == f"0 ok, {count} off, 0 skipped, of {count} cases"


def test_cases_without_their_files_are_said_to_be_skipped_and_none_run_is_status_2():
    status, rows = said(Tiny("swin-t", "bedroom.mp4"))
    assert status == 1 and [row.split(".")[0] for row in rows if "skipped (" in row] == ["7", "8"]
    status, rows = said(Tiny("truck.jpg", "groceries.jpg", "bedroom.mp4", "coco_39769"))
    assert status == 2 and rows[-1].startswith("0 ok, 0 off, 9 skipped")


@pytest.mark.parametrize("change, ok", [(0.0, True), (0.009, True), (0.02, False)])
def test_scores_may_differ_by_a_hundredth(change, ok):
    published = [0.9547, 0.4932]
    rows, within = known_answers.compare("scores", [v + change for v in published], published, known_answers.SCORES)
    assert within == ok and rows[0].endswith("ok" if ok else "off")


def test_the_published_numbers_themselves_are_ok(monkeypatch):
    def published(case, files):
        return {"scores": (case.get("scores", [1.0]), case.get("scores", [1.0]), known_answers.SCORES)}

    monkeypatch.setattr(known_answers, "run_case", published)
    assert said(Tiny())[0] == 0


def test_other_labels_and_another_number_of_answers_are_off():
    assert not known_answers.compare("labels", ["a cat"], ["a cat", "a cat"], known_answers.SCORES)[1]
    assert known_answers.compare("labels", ["a cat"], ["a cat"], known_answers.SCORES)[1]
    assert not known_answers.compare("scores", [0.5], [0.5, 0.4], known_answers.SCORES)[1]


def test_a_picture_of_another_content_is_refused(tmp_path):
    files = known_answers.Files(tmp_path)
    (tmp_path / "truck.jpg").write_bytes(b"another picture")
    with pytest.raises(weights.WeightsError, match="sha256"):
        files.path("truck.jpg")


@pytest.mark.parametrize("name", ["clipseg", "swin-t", known_answers.SAM])
def test_garbage_in_a_file_of_weights_is_said_with_its_name(name, tmp_path):
    path = tmp_path / weights.CHECKPOINTS[name].file
    path.write_bytes(b"garbage")
    with pytest.raises(weights.WeightsError, match=path.name):
        known_answers.Files(tmp_path).model(name)


def test_a_folder_that_is_not_there_is_one_line_and_status_2(tmp_path, capsys):
    assert known_answers.main(["--weights", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


class FormulaFiles(known_answers.Files):
    """The published models at their full size, with formula weights, in a folder; vocabularies and media of tests."""

    def __init__(self, folder):
        super().__init__(folder)
        for name, manifest in MANIFESTS.items():
            shapes = {key: tuple(value.shape) for key, value in parity.manifest_state(GOLDEN / manifest).items()}
            state = {key: parity.formula(formula_name(key), shape) for key, shape in shapes.items()}
            state |= {key: relative_position_index(7) for key in state if key.endswith("relative_position_index")}
            entry = weights.CHECKPOINTS[name] = replace(weights.CHECKPOINTS[name], bytes=None, sha256=None)
            torch.save({"model": state} if name != "clipseg" else state, folder / entry.file)

    def read(self, name, load):
        vocabularies = {"bert-vocab": gdino_tiny.TOKENIZER, "clip-bpe": clipseg_tiny.TOKENIZER}
        return vocabularies[name] if name in vocabularies else super().read(name, load)

    picture, frames = Tiny.picture, Tiny.frames
    lacks = ()


@pytest.mark.slow
def test_with_formula_weights_of_full_size_every_case_is_compared_and_off(tmp_path):
    status, rows = said(FormulaFiles(tmp_path))
    count = len(known_answers.KNOWN["cases"])
    assert status == 1 and rows[-1] == f"0 ok, {count} off, 0 skipped, of {count} cases", rows


@pytest.fixture(autouse=True)
def table_as_it_was():

    before = dict(weights.CHECKPOINTS)
    yield
    weights.CHECKPOINTS.clear()
    weights.CHECKPOINTS.update(before)
