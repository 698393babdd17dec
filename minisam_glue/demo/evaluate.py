"""Metrics of the demo models on generated scenes and clips, as JSON from one command.

    python -m minisam_glue.demo.evaluate --detector detector.pt --segmenter segmenter.pt    # or one of them
    python -m minisam_glue.demo.evaluate --propagate flow    # clips alone: optical flow beside SAM 2's memory

Seeds are held out (see scenes.py). Average precision follows COCO: 101 recall points, IoU 0.5 to 0.95 in
steps of 0.05, all phrases of all scenes pooled. J and F follow DAVIS (Perazzi et al., CVPR 2016), over all
frames but the first. Left out: COCO's limits on area and number of boxes.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from ..grounding_dino import Detections, Detector
from ..propagators import FLOW, MEMORY, PROPAGATORS
from ..sam2 import SAM2, ImagePredictor, VideoTracker, accelerate
from . import FOLDER, SEGMENTER, load_detector, load_segmenter
from .scenes import KINDS, SMALLEST, Clip, Scene, clip, extents, scene

THRESHOLD = 0.35  # score from which a box is shown to a user
LOWEST = 0.05  # score from which a box counts towards average precision
LEVELS = [0.5 + 0.05 * i for i in range(10)]  # IoU
BATCH = 16


# --- Boxes ------------------------------------------------------------------------------------------------


def hits(found: Detections, truth: Scene, level: float) -> list[bool]:
    """Whether each box, best first, is the first on an object of its phrase with an IoU of at least `level`."""
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
    """Whether the phrase of each shown box that lies on an object (IoU 0.5) is true of that object."""
    shown = found.scores > THRESHOLD
    overlap, owner = box_iou(found.boxes[shown], torch.from_numpy(truth.boxes)).max(1)
    pairs = zip(found.indices[shown].tolist(), owner.tolist(), (overlap >= 0.5).tolist())
    return [truth.phrases[phrase].matches(truth.figures[row]) for phrase, row, on_object in pairs if on_object]


def evaluate_detector(detector: Detector, scenes: Iterable[Scene]) -> dict[str, float]:
    """AP50, AP, attribute accuracy, and the true-negative rate: of scenes with absent phrases the share where these
    yield no box."""
    scores, hit, right, true_negatives, objects, number = [], [[] for _ in LEVELS], [], [], 0, 0
    for truth, found in detections(detector, iter(scenes)):
        scores += found.scores.tolist()
        for level, column in zip(LEVELS, hit):
            column += hits(found, truth, level)
        right += attributes(found, truth)
        if truth.absent:
            shown = found.indices[found.scores > THRESHOLD].tolist()
            true_negatives.append(not set(shown) & set(truth.absent))
        objects, number = objects + sum(label >= 0 for label in truth.labels), number + 1
    precisions = [average_precision(np.array(scores), np.array(column, dtype=bool), objects) for column in hit]
    return {
        "scenes": number,
        "objects": objects,
        "ap50": precisions[0],
        "ap": float(np.mean(precisions)),
        "attributes": float(np.mean(right)) if right else 0.0,
        "attribute_boxes": len(right),
        "true_negative_rate": float(np.mean(true_negatives)) if true_negatives else 0.0,
        "negative_scenes": len(true_negatives),
    }


def detections(detector: Detector, scenes: Iterator[Scene]) -> Iterator[tuple[Scene, Detections]]:
    """Each scene with what the detector finds in it."""
    while some := list(islice(scenes, BATCH)):
        found = detector.detect(
            [s.image for s in some],
            [[p.text for p in s.phrases] for s in some],
            box_threshold=LOWEST,
            text_threshold=LOWEST,
            batch_size=BATCH,
        )
        yield from zip(some, found)


# --- Masks in images --------------------------------------------------------------------------------------


def broadcast_iou(found: Tensor, true: Tensor) -> Tensor:
    """IoU (...) of bool masks (..., H, W) that broadcast; 1 where both are empty."""
    union = (found | true).sum((-2, -1))
    return torch.where(union > 0, (found & true).sum((-2, -1)) / union.clamp(min=1), 1.0)


def innermost(masks: Tensor) -> Tensor:
    """A pixel (n, 2), xy, of each bool mask (n, H, W) that is as far from its edge as any; the frame's edge counts."""
    depth, inside = torch.zeros(masks.shape), masks.float()
    while inside.any():
        depth += inside
        inside = -F.max_pool2d(-F.pad(inside, (1, 1, 1, 1)), 3, stride=1)
    index = depth.flatten(1).argmax(1)
    return torch.stack((index % masks.shape[2], index // masks.shape[2]), 1)


def evaluate_masks(model: SAM2, scenes: Iterable[Scene]) -> dict[str, float]:
    """Mean IoU over objects of the masks from their true boxes, and from one click in their middle.

    Small objects: those whose longer side is less than 16 pixels.
    """
    predictor, by_box, by_click, small = ImagePredictor(model), [], [], []
    for truth in scenes:
        predictor.set_image(truth.image)
        masks = torch.from_numpy(truth.masks)
        by_box += broadcast_iou(predictor.predict(boxes=truth.boxes).masks[:, 0].cpu(), masks).tolist()
        points = innermost(masks)[:, None]
        found = predictor.predict(points=points, labels=torch.ones(points.shape[:2]), multimask=True)
        best = found.masks.cpu()[torch.arange(len(points)), found.scores.cpu().argmax(1)]
        by_click += broadcast_iou(best, masks).tolist()
        small += ((truth.boxes[:, 2:] - truth.boxes[:, :2]).max(1) < 16).tolist()
    by_box, small = np.array(by_box), np.array(small, dtype=bool)
    return {
        "mask_objects": len(by_box),
        "box_iou": mean(by_box),
        "box_iou_small": mean(by_box[small]),
        "box_iou_other": mean(by_box[~small]),
        "click_iou": mean(by_click),
    }


def evaluate_text_to_masks(detector: Detector, model: SAM2, scenes: Iterable[Scene]) -> dict[str, float]:
    """From phrases to boxes to masks: each object that a phrase names counts with the IoU of the mask found for it.

    Masks and objects of a phrase are matched one to one, best pair first; an object without a mask counts as 0.
    text_extra is the number of masks that are left over, per object.
    """
    predictor, overlaps, extra = ImagePredictor(model), [], 0
    for truth, found in detections(detector, iter(scenes)):
        shown = found.scores > THRESHOLD
        boxes, phrases = found.boxes[shown], found.indices[shown].cpu()
        predictor.set_image(truth.image)
        masks = predictor.predict(boxes=boxes).masks[:, 0].cpu()
        named = [i for i, label in enumerate(truth.labels) if label >= 0]
        labels = torch.tensor([truth.labels[i] for i in named])
        table = broadcast_iou(masks[:, None], torch.from_numpy(truth.masks[named]))  # (found, objects)
        matched = greedy_pairs(table.where(phrases[:, None] == labels, 0.0))
        overlaps += matched + [0.0] * (len(named) - len(matched))
        extra += len(masks) - len(matched)
    return {"text_objects": len(overlaps), "text_iou": mean(overlaps), "text_extra": extra / max(len(overlaps), 1)}


def greedy_pairs(table: Tensor) -> list[float]:
    """The values of pairs (row, column), best first, each row and column once and only values above 0."""
    table, out = table.clone(), []
    while table.numel() and (best := float(table.max())) > 0:
        row, column = divmod(int(table.argmax()), table.shape[1])
        table[row], table[:, column] = 0, 0
        out.append(best)
    return out


# --- Masks in clips ---------------------------------------------------------------------------------------


def seeded(film: Clip) -> list[int]:
    """The objects that can be pointed out on the first frame: at least SMALLEST pixels long there."""
    sides = (film.boxes[0, :, 2:] - film.boxes[0, :, :2]).max(1)
    return np.flatnonzero(sides >= SMALLEST).tolist()


def borders(masks: Tensor) -> Tensor:
    """The pixels of bool masks (..., H, W) that differ from their right, lower or lower right neighbour."""
    beside = F.pad(masks.float(), (0, 1, 0, 1), mode="replicate") > 0.5
    return (masks ^ beside[..., :-1, 1:]) | (masks ^ beside[..., 1:, :-1]) | (masks ^ beside[..., 1:, 1:])


def boundary_f(found: Tensor, true: Tensor) -> Tensor:
    """F measure of the borders of bool masks (n, H, W): a border pixel is right within 0.8 % of the diagonal."""
    H, W = found.shape[1:]
    reach = int(np.ceil(0.008 * np.hypot(H, W)))
    offset = torch.arange(-reach, reach + 1)
    disc = (offset**2 + offset[:, None] ** 2 <= reach**2).float()[None, None]
    one, two = borders(found), borders(true)
    near_one, near_two = (F.conv2d(b.float()[:, None], disc, padding=reach)[:, 0] > 0 for b in (one, two))
    count = [b.flatten(1).sum(1) for b in (one & near_two, one, two & near_one, two)]
    precision, recall = count[0] / count[1].clamp(min=1), count[2] / count[3].clamp(min=1)
    f = 2 * precision * recall / (precision + recall).clamp(min=1e-9)
    return torch.where((count[1] == 0) & (count[3] == 0), 1.0, f)


def track(model: SAM2, film: Clip, objects: list[int]) -> Tensor:
    """Masks, bool (T, n, H, W), of objects that are pointed out by their true boxes on the first frame."""
    return follow(VideoTracker(model, max_hole=0), film, objects)


def follow(tracker: VideoTracker, film: Clip, objects: list[int]) -> Tensor:
    """As track, by a new tracker."""
    tracker.seek(0, film.frames[0])
    for i in objects:
        tracker.prompt(i, box=film.boxes[0, i])
    return torch.stack([tracker.track().masks().cpu(), *(tracker.step(f).masks().cpu() for f in film.frames[1:])])


def track_without_memory(model: SAM2, film: Clip, objects: list[int]) -> Tensor:
    """As track, but each frame is an image of its own, and an object's prompt is the box of its last mask.

    What tracking is without memory attention, pointers and presence: an object is where it was, and nothing else
    is known of it. Where a mask is empty its box stays.
    """
    predictor, boxes, out = ImagePredictor(model), film.boxes[0, objects], []
    for frame in film.frames:
        predictor.set_image(frame)
        masks = predictor.predict(boxes=boxes).masks[:, 0].cpu()
        boxes = np.where(masks.flatten(1).any(1)[:, None], extents(masks.numpy()), boxes)
        out.append(masks)
    return torch.stack(out)


def switched(found: Tensor, true: Tensor) -> bool:
    """Whether one of two look-alikes' masks (T, 2, H, W) lies on the other one on the last frame that shows both."""
    both = true.flatten(2).any(2).all(1).nonzero()
    t = int(both[-1])
    table = broadcast_iou(found[t][:, None], true[t])  # (found, true)
    return bool((table[0, 1] > table[0, 0]) | (table[1, 0] > table[1, 1]))


def evaluate_clips(
    model: SAM2, clips: Iterable[Clip], tracked: Callable[[SAM2, Clip, list[int]], Tensor] | None = None
) -> dict[str, float]:
    """J, F and their mean over objects (each the mean over its frames), of all clips and of each kind.

    switches: share of crossings after which a mask lies on the wrong one of the look-alikes. absent_empty: share
    of the frames where an object can't be seen on which its mask is empty. tracked: what makes the masks, by
    default track.
    """
    regions, contours, switches, empty = defaultdict(list), defaultdict(list), [], []
    for film in clips:
        objects = seeded(film)
        true = torch.from_numpy(film.masks[:, objects])
        found = (tracked or track)(model, film, objects)
        for kind in ("", f"_{film.kind}"):
            regions[kind] += broadcast_iou(found, true)[1:].mean(0).tolist()
            contours[kind] += [float(boundary_f(f, t).mean()) for f, t in zip(found[1:].unbind(1), true[1:].unbind(1))]
        empty += (~found[~true.flatten(2).any(2)].flatten(1).any(1)).tolist()
        if film.kind == "crossing" and set(film.leads) <= set(objects):
            pair = [objects.index(i) for i in film.leads]
            switches.append(switched(found[:, pair], true[:, pair]))
    metrics = {f"jf{kind}": (mean(regions[kind]) + mean(contours[kind])) / 2 for kind in sorted(regions)}
    return metrics | {
        "j": mean(regions[""]),
        "f": mean(contours[""]),
        "clip_objects": len(regions[""]),
        "crossings": len(switches),
        "switches": mean(switches),
        "absent_frames": len(empty),
        "absent_empty": mean(empty),
    }


def evaluate_propagators(model: SAM2, clips: Callable[[], Iterable[Clip]]) -> dict[str, dict[str, float]]:
    """The metrics of evaluate_clips by SAM 2's memory and by optical flow, and the frames per second of each."""
    metrics = {}
    for name, propagator in PROPAGATORS.items():
        frames, seconds = 0, 0.0

        def tracked(model: SAM2, film: Clip, objects: list[int], propagator=propagator) -> Tensor:
            nonlocal frames, seconds
            tracker, begun = propagator(model), time.perf_counter()
            tracker.max_hole = 0
            masks = follow(tracker, film, objects)
            frames, seconds = frames + len(masks), seconds + time.perf_counter() - begun
            return masks

        metrics[name] = evaluate_clips(model, clips(), tracked)
        metrics[name]["frames_per_second"] = frames / max(seconds, 1e-9)
    return metrics


def mean(values: list | np.ndarray) -> float:
    """Mean of the values; 0 if there are none."""
    return float(np.mean(values)) if len(values) else 0.0


# --- All of it --------------------------------------------------------------------------------------------


def evaluate(
    detector: Detector | None, model: SAM2 | None, scenes: Iterable[Scene], clips: Callable[[], Iterable[Clip]]
) -> dict[str, float]:
    """All metrics that the given models allow; those of track_without_memory begin with no_memory_."""
    scenes, metrics = list(scenes), {}
    if detector:
        metrics |= evaluate_detector(detector, scenes)
    if model:
        metrics |= evaluate_masks(model, scenes)
    if detector and model:
        metrics |= evaluate_text_to_masks(detector, model, scenes)
    if model:
        metrics |= evaluate_clips(model, clips())
        metrics |= {
            f"no_memory_{name}": value for name, value in evaluate_clips(model, clips(), track_without_memory).items()
        }
    return metrics


def arguments(doc: str) -> argparse.ArgumentParser:
    """The command line of an evaluation."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", type=Path, help="file that train_detector wrote")
    parser.add_argument("--segmenter", type=Path, help="file that train_segmenter wrote")
    parser.add_argument("--scenes", type=int, default=500, help="number of scenes (default 500)")
    parser.add_argument("--clips", type=int, default=100, help="number of clips, of all kinds in turn (default 100)")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first scene and clip (default 0)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def models(args: argparse.Namespace) -> tuple[Detector | None, SAM2 | None]:
    """The models whose files are given."""
    return (
        load_detector(args.detector, args.device) if args.detector else None,
        accelerate(load_segmenter(args.segmenter, args.device)) if args.segmenter else None,
    )


def main() -> None:
    """The command line: all metrics as JSON on standard output."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--propagate",
        choices=tuple(PROPAGATORS),
        default=MEMORY,
        help="flow: J and F of clips by optical flow beside those by SAM 2's memory, and nothing else",
    )
    args = parser.parse_args()
    seeds, films = (range(args.first_seed, args.first_seed + n) for n in (args.scenes, args.clips))

    def clips() -> Iterable[Clip]:
        return (clip(i, KINDS[i % len(KINDS)]) for i in films)

    if args.propagate == FLOW:
        segmenter = accelerate(load_segmenter(args.segmenter or FOLDER / SEGMENTER, args.device))
        print(json.dumps(evaluate_propagators(segmenter, clips), indent=1))
        return
    if not (args.detector or args.segmenter):
        parser.error("nothing to evaluate: give --detector, --segmenter, or both")
    metrics = evaluate(*models(args), map(scene, seeds), clips)
    print(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
