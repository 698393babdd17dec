"""Metrics of the demo CLIPSeg on generated scenes, alone and with SAM 2 behind it; as JSON from one command.

    python -m minisam_glue.demo.evaluate_clipseg --clipseg clipseg.pt --segmenter segmenter.pt
    python -m minisam_glue.demo.evaluate_clipseg --clipseg clipseg.pt --segmenter segmenter.pt --floors

The second line is for the choice of HEAT_FLOOR, HEAT_MIN_AREA and HEAT_EVIDENCE in __init__.py.
Seeds are held out (see scenes.py). The numbers with SAM 2 are counted as those of the detector are (evaluate.py).
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..clipseg import HeatMapper
from ..heatmap import SURE, HeatSettings, confidence
from ..mask_proposals import first_of_repeats, masks_with_evidence, split_seeds
from ..models import Models, choose_device
from ..prompts import Seeding, Thresholds
from ..sam2 import SAM2
from ..seeding import find_seeds
from ..support.processes import run_program
from ..support.values import whole_number
from . import load_heat_mapper, load_segmenter
from .evaluate import check_seeds, mean, text_metrics
from .scenes import Scene, scene

FLOORS, AREAS, EVIDENCES = (0.5, 0.7, 0.8, 0.9), (30, 60, 120), (0.0, 0.9, 0.93, 1.0)  # that --floors tries


def evaluate_heat_maps(mapper: HeatMapper, scenes: Iterable[Scene]) -> dict[str, float]:
    """Heat maps alone, cut at one half.

    heat_iou: mean IoU, over the phrases that name something, with all of their objects. heat_true_negative_rate: share
    of the phrases that match nothing whose map nowhere reaches one half. heat_present, heat_absent: mean of the highest
    confidence of either kind.
    """
    overlaps, present, absent = [], [], []
    for truth in scenes:
        maps = mapper.heat_maps([truth.image], [phrase.text for phrase in truth.phrases])[0]
        for number, logits in enumerate(maps):
            heat = confidence(logits, truth.image.shape[:2])
            objects = [i for i, label in enumerate(truth.labels) if label == number]
            (present if objects else absent).append(float(heat.max()))
            if objects:
                mask, found = truth.masks[objects].any(0), heat > SURE
                overlaps.append((mask & found).sum() / (mask | found).sum())
    return {
        "heat_phrases": len(overlaps),
        "heat_iou": mean(overlaps),
        "heat_true_negative_rate": mean([best < SURE for best in absent]),
        "heat_present": mean(present),
        "heat_absent": mean(absent),
    }


@dataclass
class Found:
    """The n instances that phrases found in a scene, with their masks.

    labels: (n,) numbers of the phrases. scores: (n,) best confidences. evidence: (n,), see HeatSettings. masks: bool
    (n, H, W).
    """

    labels: Tensor
    scores: Tensor
    evidence: Tensor
    masks: Tensor

    def at_least(self, floor: float, evidence: float) -> "Found":
        """The instances that reach a confidence, and an evidence."""
        return self.only((self.scores >= floor) & (self.evidence >= evidence))

    def without_repeats(self) -> "Found":
        """The instances that are not the same object once more, as segment_image has them."""
        return self.only(torch.tensor(first_of_repeats(self.labels.tolist(), self.masks.numpy()), dtype=torch.long))

    def only(self, keep: Tensor) -> "Found":
        """The instances that an index picks."""
        return Found(self.labels[keep], self.scores[keep], self.evidence[keep], self.masks[keep])


def find_masks(models: Models, truth: Scene, seeding: Seeding = Seeding()) -> Found:
    """The masks that the phrases of a scene find by way of heat maps and SAM 2, repeats and those of little evidence
    included."""
    names = [phrase.text for phrase in truth.phrases]
    (seeds,) = find_seeds(models, [truth.image], names, Thresholds(), seeding)
    encoded = models.predictor.encode([truth.image])
    found = masks_with_evidence(models, split_seeds(models, seeds, encoded), encoded)
    masks = np.array([mask for _, mask, _ in found], bool).reshape(-1, *truth.image.shape[:2])
    return Found(
        torch.tensor([names.index(seed.label) for seed, _, _ in found], dtype=torch.long),
        torch.tensor([seed.score for seed, _, _ in found]),
        torch.tensor([evidence for _, _, evidence in found]),
        torch.from_numpy(masks),
    )


def found_metrics(results: Iterable[tuple[Scene, Found]]) -> dict[str, float]:
    """Metrics as text_metrics has them, and true_negative_rate: the share of the negative_scenes, those with absent
    phrases, in which these yield nothing."""
    results = list(results)
    true_negatives = [not set(found.labels.tolist()) & set(truth.absent) for truth, found in results if truth.absent]
    metrics = text_metrics((truth, found.labels, found.masks) for truth, found in results)
    return metrics | {"true_negative_rate": mean(true_negatives), "negative_scenes": len(true_negatives)}


def demo_models(mapper: HeatMapper, model: SAM2) -> Models:
    """Both models, with the settings for heat maps that suit the demo weights."""
    return Models(None, model, demo=True, heat_mapper=mapper)


def evaluate_heat_to_masks(
    mapper: HeatMapper, model: SAM2, scenes: Iterable[Scene], seeding: Seeding = Seeding()
) -> dict[str, float]:
    """Metrics of phrases to heat maps to masks: see found_metrics."""
    models = demo_models(mapper, model)
    least = models.heat_settings(seeding.heat).evidence
    results = ((truth, find_masks(models, truth, seeding).at_least(0.0, least)) for truth in scenes)
    return found_metrics((truth, found.without_repeats()) for truth, found in results)


def evaluate_floors(
    mapper: HeatMapper,
    model: SAM2,
    scenes: Iterable[Scene],
    floors: Sequence[float] = FLOORS,
    areas: Sequence[float] = AREAS,
    evidences: Sequence[float] = EVIDENCES,
) -> list[dict[str, float]]:
    """The metrics of evaluate_heat_to_masks with each floor, of SURE or more, each least area and least evidence.

    The masks of an area are made once. ValueError for a lower floor: it would change the threshold and with it the
    instances.
    """
    if min(floors) < SURE:
        raise ValueError(f"floor {min(floors)}: give {SURE} or more")
    models, scenes, rows = demo_models(mapper, model), list(scenes), []
    for area in areas:
        seeding = Seeding(heat=HeatSettings(floor=min(floors), min_area=area))
        results = [(truth, find_masks(models, truth, seeding)) for truth in scenes]
        for floor, least in product(floors, evidences):
            metrics = found_metrics((truth, found.at_least(floor, least).without_repeats()) for truth, found in results)
            rows.append({"floor": floor, "min_area": area, "evidence": least} | metrics)
    return rows


def main() -> None:
    """The command line: all metrics as JSON on standard output, of --floors a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clipseg", type=Path, required=True, help="file that train_clipseg wrote")
    parser.add_argument("--segmenter", type=Path, help="file that train_segmenter wrote")
    parser.add_argument("--scenes", type=whole_number(0), default=500, help="number of scenes (default 500)")
    parser.add_argument("--first-seed", type=whole_number(0), default=0, help="seed of the first scene (default 0)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--floors", action="store_true", help="only compare limits, with --segmenter")
    args = parser.parse_args()
    if args.floors and not args.segmenter:
        parser.error("--floors needs --segmenter: it compares masks")
    check_seeds(parser, args.first_seed, args.scenes)
    args.device = str(choose_device(args.device))
    mapper = load_heat_mapper(args.clipseg, args.device)
    scenes = [scene(seed) for seed in range(args.first_seed, args.first_seed + args.scenes)]
    segmenter = load_segmenter(args.segmenter, args.device) if args.segmenter else None
    if args.floors:
        print(*map(json.dumps, evaluate_floors(mapper, segmenter, scenes)), sep="\n")
        return
    metrics = evaluate_heat_maps(mapper, scenes)
    if segmenter:
        metrics |= evaluate_heat_to_masks(mapper, segmenter, scenes)
    print(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    sys.exit(run_program(main))
