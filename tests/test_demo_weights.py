"""What the demo weights can do on held-out scenes and clips, and that they can't when a part is subtly wrong.

Random weights agree with the official code whether or not the parts make sense together; trained ones do not. So each
bound is one that the intact model keeps and every fault below breaks. Figures of many scenes are in RESULTS.md.
"""

import pytest
import torch

from minisam_glue.clipseg import model as clipseg
from minisam_glue.demo import DETECTOR, FOLDER, HEAT_MAPPER, SEGMENTER, load_detector, load_heat_mapper, load_segmenter
from minisam_glue.demo.evaluate import evaluate_clips, evaluate_detector, evaluate_masks
from minisam_glue.demo.evaluate_clipseg import evaluate_heat_to_masks
from minisam_glue.demo.scenes import clip, scene
from minisam_glue.grounding_dino import deformable_attention, geometry
from minisam_glue.grounding_dino import detector as detection
from minisam_glue.grounding_dino import model as dino
from minisam_glue.sam2 import memory
from minisam_glue.sam2 import model as sam
from minisam_glue.sam2.prompt_encoder import BOTTOM_RIGHT, TOP_LEFT, PromptEncoder

FIRST_SEED = 600_000  # held out, and neither of the evaluation nor of the examples


@pytest.fixture(scope="module")
def detector():
    return load_detector(FOLDER / DETECTOR)


@pytest.fixture(scope="module")
def heat_mapper():
    return load_heat_mapper(FOLDER / HEAT_MAPPER)


@pytest.fixture(scope="module")
def segmenter():
    model = load_segmenter(FOLDER / SEGMENTER)
    model.resize(256)  # a little worse than in use, and twice as fast
    return model


def change(monkeypatch, module, name, new):
    """Replace a function by `new(old, *arguments)`."""
    old = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: new(old, *args, **kwargs))


def test_the_files_of_weights_are_small():
    sizes = {path.name: path.stat().st_size for path in FOLDER.glob("*.pt")}
    assert sizes.keys() == {DETECTOR, HEAT_MAPPER, SEGMENTER}
    assert sum(sizes.values()) < 16e6 and sizes[SEGMENTER] < 5e6


# --- A sentence to boxes --------------------------------------------------------------------------------------


def see_all_phrases(old, ids, separators):
    mask, positions = old(ids, separators)
    return torch.ones_like(mask), positions


def one_now_others_slow(faults) -> list:
    """The names of faults as parameters; all but the first belong to the slow set."""
    return [pytest.param(fault, marks=[pytest.mark.slow] if i else []) for i, fault in enumerate(faults)]


TEXT_FAULTS = {
    "phrases see each other": (dino, "phrase_masks", see_all_phrases),
    "boxes are a hundredth aside": (detection, "cxcywh_to_xyxy", lambda old, boxes: old(boxes) + 0.01),
    "cells are counted from their corner": (geometry, "cell_centres", lambda old, *args: old(*args) - 0.5),
    "samples are taken at (y, x)": (
        deformable_attention,
        "deformable_sample",
        lambda old, value, shapes, where, *rest: old(value, shapes, where.flip(-1), *rest),
    ),
}


@pytest.fixture
def fresh_caches(detector):
    """What a fault has spoiled must not stay in a cache, nor what was there before hide it."""

    def clear():
        detector.texts.clear()

    clear()
    yield
    clear()


def found_by_text(detector) -> dict[str, float]:
    return evaluate_detector(detector, map(scene, range(FIRST_SEED, FIRST_SEED + 40)))


def holds(metrics: dict[str, float]) -> bool:
    return metrics["ap"] > 0.65 and metrics["attributes"] > 0.9 and metrics["true_negative_rate"] > 0.9


def test_phrases_find_their_objects_and_no_others(detector):
    assert holds(found_by_text(detector))


@pytest.mark.parametrize("fault", one_now_others_slow(TEXT_FAULTS))
def test_a_fault_in_text_or_boxes_shows(fault, detector, monkeypatch, fresh_caches):
    change(monkeypatch, *TEXT_FAULTS[fault])
    assert not holds(found_by_text(detector))


# --- A sentence to heat maps ---------------------------------------------------------------------------------

HEAT_FAULTS = {
    "phrases are exchanged": (
        clipseg.Decoder,
        "forward",
        lambda old, self, activations, conditions, grid: old(self, activations, conditions.roll(1, 1), grid),
    ),
    "the deepest activation is taken for the first": (
        clipseg.Decoder,
        "forward",
        lambda old, self, activations, conditions, grid: old(self, activations[::-1], conditions, grid),
    ),
    "rows of patches are taken for columns": (
        clipseg.Decoder,
        "forward",
        lambda old, self, activations, conditions, grid: old(self, activations, conditions, grid).mT,
    ),
}


def found_by_heat(heat_mapper, segmenter) -> dict[str, float]:
    return evaluate_heat_to_masks(heat_mapper, segmenter, map(scene, range(FIRST_SEED, FIRST_SEED + 30)))


def heat_holds(metrics: dict[str, float]) -> bool:
    return metrics["text_iou"] > 0.6 and metrics["true_negative_rate"] > 0.9 and metrics["text_wrong"] < 0.35


def test_heat_maps_become_masks_of_the_objects_that_are_named_and_of_few_others(heat_mapper, segmenter):
    assert heat_holds(found_by_heat(heat_mapper, segmenter))


@pytest.mark.parametrize("fault", one_now_others_slow(HEAT_FAULTS))
def test_a_fault_in_heat_maps_shows(fault, heat_mapper, segmenter, monkeypatch):
    change(monkeypatch, *HEAT_FAULTS[fault])
    assert not heat_holds(found_by_heat(heat_mapper, segmenter))


# --- Boxes and clicks to masks -----------------------------------------------------------------------------


def corners_exchanged(old, self, points, labels):
    return old(self, points, torch.where(labels >= TOP_LEFT, TOP_LEFT + BOTTOM_RIGHT - labels, labels))


def rows_as_columns(old, self):
    return old(self).unflatten(1, (self.grid, self.grid)).transpose(1, 2).flatten(1, 2)


PROMPT_FAULTS = {
    "points are a cell aside": (
        PromptEncoder,
        "embed_points",
        lambda old, self, xy, kind: old(self, xy + self.image_size / 16, kind),
    ),
    "corners are exchanged": (PromptEncoder, "embed_points", corners_exchanged),
    "rows of the image are taken for columns": (PromptEncoder, "image_position", rows_as_columns),
}


def masks_of_prompts(segmenter) -> dict[str, float]:
    return evaluate_masks(segmenter, map(scene, range(FIRST_SEED, FIRST_SEED + 24)))


def test_boxes_and_clicks_become_masks(segmenter):
    metrics = masks_of_prompts(segmenter)
    assert metrics["box_iou"] > 0.79 and metrics["click_iou"] > 0.69


@pytest.mark.parametrize("fault", one_now_others_slow(PROMPT_FAULTS))
def test_a_fault_in_prompts_shows(fault, segmenter, monkeypatch):
    change(monkeypatch, *PROMPT_FAULTS[fault])
    metrics = masks_of_prompts(segmenter)
    assert metrics["box_iou"] < 0.6


# --- Masks to tracks ----------------------------------------------------------------------------------------


def forget(old, self, features, selections, pointer_count=16):
    return self.without_memory(features).expand(len(selections), -1, -1)


MEMORY_FAULTS = {
    "there is no memory": (sam.SAM2, "condition_on_memory", forget),
    "memories do not know their place": (memory, "rotate", lambda old, x, angles: x),
}


def tracked(segmenter) -> dict[str, float]:
    kinds = ("occlusion", "crossing", "leaving", "occlusion")
    return evaluate_clips(
        segmenter, (clip(FIRST_SEED + i, kind, chosen=range(0, 60, 2)) for i, kind in enumerate(kinds))
    )


def test_objects_are_followed(segmenter):
    assert tracked(segmenter)["jf"] > 0.75


@pytest.mark.parametrize("fault", one_now_others_slow(MEMORY_FAULTS))
def test_a_fault_in_memory_shows(fault, segmenter, monkeypatch):
    change(monkeypatch, *MEMORY_FAULTS[fault])
    metrics = tracked(segmenter)
    assert metrics["jf"] < 0.75
