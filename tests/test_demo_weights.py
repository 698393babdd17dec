"""What the demo weights can do on held-out scenes and clips, and that they can't when a part is subtly wrong.

Random weights agree with the official code whether or not the parts make sense together; trained ones do not. So each
bound is one that the intact model keeps and every fault below breaks. Figures of many scenes are in RESULTS.md.
"""
import pytest
import torch

from minisam_glue.demo import FOLDER, SEGMENTER, load_segmenter
from minisam_glue.demo.evaluate import judge_clips, judge_masks
from minisam_glue.demo.scenes import clip, scene
from minisam_glue.sam2 import memory, model as sam
from minisam_glue.sam2.prompt_encoder import BOTTOM_RIGHT, TOP_LEFT, PromptEncoder

FIRST_SEED = 600_000  # held out, and neither of the evaluation nor of the examples


@pytest.fixture(scope="module")
def segmenter():
    return load_segmenter(FOLDER / SEGMENTER)


def change(monkeypatch, module, name, new):
    """Replace a function by `new(old, *arguments)`."""
    old = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: new(old, *args, **kwargs))


# --- Boxes and clicks to masks -----------------------------------------------------------------------------

def corners_exchanged(old, self, points, labels):
    return old(self, points, torch.where(labels >= TOP_LEFT, TOP_LEFT + BOTTOM_RIGHT - labels, labels))


def rows_as_columns(old, self):
    return old(self).unflatten(1, (self.grid, self.grid)).transpose(1, 2).flatten(1, 2)


PROMPT_FAULTS = {
    "points are a cell aside": (PromptEncoder, "embed_points", lambda old, self, xy, kind: old(self, xy + 16, kind)),
    "corners are exchanged": (PromptEncoder, "embed_points", corners_exchanged),
    "rows of the image are taken for columns": (PromptEncoder, "image_position", rows_as_columns),
}


def masks_of_prompts(segmenter) -> dict[str, float]:
    return judge_masks(segmenter, map(scene, range(FIRST_SEED, FIRST_SEED + 24)))


def test_boxes_and_clicks_become_masks(segmenter):
    figures = masks_of_prompts(segmenter)
    assert figures["box_iou"] > 0.7 and figures["click_iou"] > 0.6


@pytest.mark.parametrize("fault", PROMPT_FAULTS)
def test_a_fault_in_prompts_shows(fault, segmenter, monkeypatch):
    change(monkeypatch, *PROMPT_FAULTS[fault])
    figures = masks_of_prompts(segmenter)
    assert figures["box_iou"] < 0.7


# --- Masks to tracks ----------------------------------------------------------------------------------------

def forget(old, self, features, recalls, pointer_count=16):
    return (features.tokens + self.no_mem_embed).expand(len(recalls), -1, -1)


MEMORY_FAULTS = {
    "there is no memory": (sam.SAM2, "condition", forget),
    "memories do not know their place": (memory, "rotate", lambda old, x, cos, sin: x),
}


def tracked(segmenter) -> dict[str, float]:
    kinds = ("occlusion", "crossing", "leaving", "occlusion")
    return judge_clips(segmenter, (clip(FIRST_SEED + i, kind, chosen=range(0, 60, 2)) for i, kind in enumerate(kinds)))


def test_objects_are_followed(segmenter):
    assert tracked(segmenter)["jf"] > 0.57


@pytest.mark.parametrize("fault", MEMORY_FAULTS)
def test_a_fault_in_memory_shows(fault, segmenter, monkeypatch):
    change(monkeypatch, *MEMORY_FAULTS[fault])
    figures = tracked(segmenter)
    assert figures["jf"] < 0.57
