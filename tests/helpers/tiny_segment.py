"""segment.py with models small enough for tests and no detector that was trained: it finds bright things.

python tests/helpers/tiny_segment.py INPUT "bright." --out DIR      # every other option is segment.py's
"""

import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.sam2_tiny import tiny_model
from minisam_glue.cli import main, video
from minisam_glue.grounding_dino import Detections
from minisam_glue.models import Models
from minisam_glue.prompts import split_phrases


class AnyWord:
    """Stands in for a tokenizer: every phrase is one word that it knows."""

    cls, sep, unknown, ids = 0, 1, 2, {".": 3}

    def pieces(self, text: str) -> list[int]:
        return [4]


class BrightDetector:
    """Stands in for the trained detector: each column block of bright pixels is a box of the first phrase."""

    tokenizer = AnyWord()

    def __init__(self):
        self.looked = 0

    def detect(
        self, images, prompts, box_threshold=0.35, text_threshold=0.25, nms_iou=None, max_area=1.0, batch_size=4
    ):
        return [self.one(image, split_phrases(prompt), max_area) for image, prompt in zip(images, prompts)]

    def one(self, image: np.ndarray, names: list[str], max_area: float) -> Detections:
        self.looked += 1
        bright = image.min(2) > 139
        columns = np.flatnonzero(bright.any(0))
        boxes = []
        for block in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1) if len(columns) else ():
            rows = np.flatnonzero(bright[:, block].any(1))
            if len(block) * (rows[-1] + 1 - rows[0]) <= max_area * bright.size:
                boxes.append([block[0], rows[0], block[-1] + 1, rows[-1] + 1])
        count = len(boxes)
        return Detections(
            torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
            torch.linspace(0.9, 0.8, count),
            torch.zeros(count, dtype=torch.long),
            [names[0]] * count,
            (names[0], 0.9 if len(columns) else 0.1),
        )


def tiny_models() -> Models:
    return Models(BrightDetector(), tiny_model())


if __name__ == "__main__":
    torch.set_num_threads(1)
    video.SAVE_EVERY = 0.0  # a state after each frame, so that a killed test has one
    sys.exit(main(sys.argv[1:], tiny_models()))
