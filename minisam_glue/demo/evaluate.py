"""How good a detector is on generated scenes: average precision, attributes, and silence about what is absent.

    python -m minisam_glue.demo.evaluate runs/demo-detector/detector.pt --scenes 500

Seeds are held out (see scenes.py). Average precision follows COCO: 101 recall points, IoU 0.5 to 0.95 in
steps of 0.05, all phrases of all scenes pooled. Left out: COCO's limits on area and number of boxes.
"""
import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_iou

from ..grounding_dino import Detections, Detector, WordPieceTokenizer, load
from .scenes import Scene, scene

VOCABULARY = Path(__file__).with_name("vocab.txt")
SIDES = (160, 320)  # shorter and longest side of what the detector sees
THRESHOLD = 0.35  # of a box that a user would be shown
LOWEST = 0.05  # of a box that still counts towards average precision
LEVELS = [0.5 + 0.05 * i for i in range(10)]  # of IoU
BATCH = 16


def load_detector(path: str | Path, device: str = "cpu") -> Detector:
    """The demo detector from its file (fp16) as fp32 on a device. ValueError if the file is another one."""
    model = load(path, "demo").float().to(device)
    return Detector(model, WordPieceTokenizer.load(VOCABULARY), SIDES)


def hits(found: Detections, truth: Scene, level: float) -> list[bool]:
    """Of each box, best first, whether it is the first on an object of its phrase with an IoU of at least `level`."""
    labels, free = torch.tensor(truth.labels), torch.ones(len(truth.labels), dtype=torch.bool)
    out = []
    for box, phrase in zip(found.boxes, found.indices):
        overlap = box_iou(box[None], torch.from_numpy(truth.boxes))[0].where((labels == phrase) & free, -1.0)
        best = int(overlap.argmax())
        out.append(bool(overlap[best] >= level))
        free[best] &= not out[-1]
    return out


def average_precision(scores: np.ndarray, hit: np.ndarray, objects: int) -> float:
    """Mean of the precision at 101 recalls, from the pooled boxes (n,) and the number of true objects."""
    hit = hit[np.argsort(-scores, kind="stable")]
    true = hit.cumsum()
    recall, precision = true / max(objects, 1), true / np.arange(1, len(hit) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # the best at this recall or a higher one
    return float(envelope[np.searchsorted(recall, np.linspace(0, 1, 101))].mean())


def attributes(found: Detections, truth: Scene) -> list[bool]:
    """Of each shown box that lies on an object (IoU 0.5), whether its phrase can be said of that object."""
    shown = found.scores > THRESHOLD
    overlap, owner = box_iou(found.boxes[shown], torch.from_numpy(truth.boxes)).max(1)
    pairs = zip(found.indices[shown].tolist(), owner.tolist(), (overlap >= 0.5).tolist())
    return [truth.phrases[phrase].matches(truth.figures[row]) for phrase, row, on_object in pairs if on_object]


def judge(detector: Detector, scenes: Iterable[Scene]) -> dict[str, float]:
    """AP50, AP, attribute accuracy, silence (share of scenes with absent phrases where these yield no box)."""
    scores, hit, right, silent, objects, number = [], [[] for _ in LEVELS], [], [], 0, 0
    for truth, found in detections(detector, iter(scenes)):
        scores += found.scores.tolist()
        for level, column in zip(LEVELS, hit):
            column += hits(found, truth, level)
        right += attributes(found, truth)
        if truth.absent:
            shown = found.indices[found.scores > THRESHOLD].tolist()
            silent.append(not set(shown) & set(truth.absent))
        objects, number = objects + sum(label >= 0 for label in truth.labels), number + 1
    precisions = [average_precision(np.array(scores), np.array(column, dtype=bool), objects) for column in hit]
    return {"scenes": number, "objects": objects, "ap50": precisions[0], "ap": float(np.mean(precisions)),
            "attributes": float(np.mean(right)) if right else 0.0, "attribute_boxes": len(right),
            "silence": float(np.mean(silent)) if silent else 0.0, "silence_scenes": len(silent)}


def detections(detector: Detector, scenes: Iterator[Scene]) -> Iterator[tuple[Scene, Detections]]:
    """Each scene with what the detector finds in it."""
    while some := list(islice(scenes, BATCH)):
        found = detector.detect([s.image for s in some], [[p.text for p in s.phrases] for s in some],
                                box_threshold=LOWEST, text_threshold=LOWEST, batch_size=BATCH)
        yield from zip(some, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="file that training wrote")
    parser.add_argument("--scenes", type=int, default=500, help="number of scenes (default 500)")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first scene (default 0)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.scenes)
    print(json.dumps(judge(load_detector(args.weights, args.device), map(scene, seeds)), indent=1))


if __name__ == "__main__":
    main()
