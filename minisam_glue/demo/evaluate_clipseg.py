"""Metrics of the demo CLIPSeg on generated scenes, alone and with SAM 2 behind it; as JSON from one command.

    python -m minisam_glue.demo.evaluate_clipseg --clipseg clipseg.pt --segmenter segmenter.pt

Seeds are held out (see scenes.py). The numbers with SAM 2 are counted as those of the detector are (evaluate.py).
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from ..clipseg import HeatMapper
from ..heatmap import confidence
from ..models import Models
from ..prompts import Seeding, Thresholds
from ..sam2 import SAM2
from ..seeding import find_seeds, segment_seed
from . import load_heat_mapper, load_segmenter
from .evaluate import broadcast_iou, greedy_pairs, mean
from .scenes import Scene, scene

SURE = 0.5  # confidence from which a pixel counts as of the object


def evaluate_heat_maps(mapper: HeatMapper, scenes: Iterable[Scene]) -> dict[str, float]:
    """Heat maps alone, cut at one half.

    heat_iou: mean IoU, over the phrases that name something, with all of their objects. heat_silence: share of the
    phrases that match nothing whose map nowhere reaches one half. heat_present, heat_absent: mean of the highest
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
        "heat_silence": mean([best < SURE for best in absent]),
        "heat_present": mean(present),
        "heat_absent": mean(absent),
    }


def evaluate_heat_to_masks(
    mapper: HeatMapper, model: SAM2, scenes: Iterable[Scene], seeding: Seeding = Seeding()
) -> dict[str, float]:
    """Metrics of phrases to heat maps to masks, as evaluate_text_to_masks has them for boxes.

    text_silence: share of the scenes with absent phrases in which these yield nothing.
    """
    models = Models(None, model, demo=True, heat_mapper=mapper)  # floor and least area of the demo weights
    overlaps, extra, silent = [], 0, []
    for truth in scenes:
        names = [phrase.text for phrase in truth.phrases]
        (seeds,) = find_seeds(models, [truth.image], names, Thresholds(), seeding)
        numbers = torch.tensor([names.index(seed.label) for seed in seeds.objects], dtype=torch.long)
        encoded = models.predictor.encode([truth.image])
        masks = [segment_seed(models, seed, encoded)[0] for seed in seeds.objects]
        found = torch.from_numpy(np.array(masks, bool).reshape(-1, *truth.image.shape[:2]))
        named = [i for i, label in enumerate(truth.labels) if label >= 0]
        labels = torch.tensor([truth.labels[i] for i in named], dtype=torch.long)
        table = broadcast_iou(found[:, None], torch.from_numpy(truth.masks[named]))  # (found, objects)
        matched = greedy_pairs(table.where(numbers[:, None] == labels, 0.0))
        overlaps += matched + [0.0] * (len(named) - len(matched))
        extra += len(masks) - len(matched)
        if truth.absent:
            silent.append(not set(numbers.tolist()) & set(truth.absent))
    return {
        "text_objects": len(overlaps),
        "text_iou": mean(overlaps),
        "text_extra": extra / max(len(overlaps), 1),
        "text_silence": mean(silent),
        "silence_scenes": len(silent),
    }


def main() -> None:
    """The command line: all metrics as JSON on standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clipseg", type=Path, required=True, help="file that train_clipseg wrote")
    parser.add_argument("--segmenter", type=Path, help="file that train_segmenter wrote")
    parser.add_argument("--scenes", type=int, default=500, help="number of scenes (default 500)")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first scene (default 0)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    mapper = load_heat_mapper(args.clipseg, args.device)
    scenes = [scene(seed) for seed in range(args.first_seed, args.first_seed + args.scenes)]
    metrics = evaluate_heat_maps(mapper, scenes)
    if args.segmenter:
        metrics |= evaluate_heat_to_masks(mapper, load_segmenter(args.segmenter, args.device), scenes)
    print(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
