"""This program's own numbers, with weights given by a formula: what no official number covers does not change unseen.

    python tests/own_numbers.py   # writes tests/own_numbers.json again; say in the commit why a number has changed

own_numbers.json was made by this line, on torch 2.14.1, a CPU, in fp32. Of minivit each preset is there, with two
blocks (ImageNet's with one) and at most one of the tail, all else as the preset says; of Grounding DINO the way from
pixels to boxes, with the tiny model of the tests and with the windows, heads and widths of Swin-B.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import torch
from helpers.gdino_tiny import CONFIG, TOKENIZER
from parity import formula_state
from torch import nn

from minisam_glue.grounding_dino import model as grounding_dino
from minisam_glue.grounding_dino.detector import Detector
from minivit.fast import accelerate
from minivit.vit import PRESETS, VisionTransformer

FILE = Path(__file__).with_suffix(".json")
SAME = "vit-b16-last3"  # vit-b16 with another recipe
SWINS = {
    "tiny": CONFIG.swin,
    "swin-b": replace(grounding_dino.PRESETS["swin-b"].swin, depths=(2, 2, 1, 1)),  # the third stage has 18
}


def with_formula_weights(model: nn.Module) -> nn.Module:
    """The model in evaluation mode; its weights are those of golden/README.md."""
    state = model.state_dict()
    floats = {name: tuple(tensor.shape) for name, tensor in state.items() if tensor.is_floating_point()}
    model.load_state_dict(state | formula_state(floats))
    return model.eval()


def picture(height: int, width: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)


@torch.no_grad()
def vit_scores(preset: str) -> tuple[list[float], list[float]]:
    """Three scores of each of two images, and the length of all: of the plain form, and of the fast one."""
    config = PRESETS[preset]
    config = replace(config, depth=2 if config.dim < 512 else 1, class_attention=min(config.class_attention, 1))
    model = with_formula_weights(VisionTransformer(config))
    x = torch.from_numpy(np.random.RandomState(1).standard_normal((2, 3, *config.size)).astype(np.float32))
    both = model(x), accelerate(model)(x)
    return tuple([*scores[:, :3].flatten().tolist(), float(scores.norm())] for scores in both)


def detections(swin: str) -> dict:
    """The three best boxes of a picture: labels, scores, pixels."""
    model = with_formula_weights(grounding_dino.GroundingDINO(replace(CONFIG, swin=SWINS[swin])))
    detector = Detector(model, TOKENIZER, min_size=48, max_size=80)
    found = detector.detect(picture(40, 60), "red car. dog. traffic light.", 0.0, 0.0)
    return {"labels": found.labels[:3], "scores": found.scores[:3].tolist(), "boxes": found.boxes[:3].tolist()}


def main() -> None:
    numbers = {
        "vit": {name: vit_scores(name)[0] for name in PRESETS if name != SAME},
        "detector": {name: detections(name) for name in SWINS},
    }
    FILE.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
