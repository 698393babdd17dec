"""Metrics of the demo models on generated scenes and clips, as JSON from one command.

    python -m minisam_glue.demo.evaluate    # the weights of the package
    python -m minisam_glue.demo.evaluate --detector detector.pt --segmenter segmenter.pt    # others, or one of them
    python -m minisam_glue.demo.evaluate --propagate flow    # clips alone: optical flow beside SAM 2's memory
    python -m minisam_glue.demo.evaluate --identity both --kinds pass bounce twins return --clips 100 --held-out
    python -m minisam_glue.demo.evaluate --identity both --first-seed 700010 --clips 10 --values b.json    # in pieces
    python -m minisam_glue.demo.evaluate --add a.json b.json    # the metrics of pieces together
    python -m minisam_glue.demo.evaluate --story story.png --kinds crossing --first-seed 13    # a clip as a picture

A clip of 60 frames takes some 10 seconds on one core of an AMD EPYC, by each tracker.

Seeds are held out (see scenes.py). Average precision follows COCO: 101 recall points, IoU 0.5 to 0.95 in
steps of 0.05, all phrases of all scenes pooled. Metrics of clips: clip_metrics.py. The same on drawings by another
hand: benchmarks/second_renderer.py. Left out: COCO's limits on area and number of boxes.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from ..grounding_dino import Detections, Detector
from ..models import choose_device
from ..prompts import Thresholds
from ..propagators import FLOW, MEMORY, PROPAGATORS, FlowPropagator, MemoryPropagator
from ..render.story import story
from ..sam2 import SAM2, ImagePredictor, VideoTracker, accelerate
from ..support.files import whole_file
from ..support.processes import run_program
from ..support.reading import anything, check_regular, mapping, text
from ..support.values import whole_number
from . import DETECTOR, FOLDER, SEGMENTER, load_detector, load_segmenter
from .clip_metrics import RIGHT, ClipMetrics, broadcast_iou, mean
from .clip_story import tell, track_clip
from .scenes import ALL_KINDS, HELD_OUT, KINDS, SMALLEST, TRAINING_FROM, Clip, Scene, clip, extents, scene

THRESHOLD = 0.35  # score from which a box is shown to a user
LOWEST = 0.05  # score from which a box counts towards average precision
LEVELS = [0.5 + 0.05 * i for i in range(10)]  # IoU
BATCH = 16
Tracked = Callable[[SAM2, Clip, list[int]], Tensor]  # masks, bool (T, n, H, W), of objects of a clip


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


def detections(
    detector: Detector, scenes: Iterator[Scene], nms_iou: float | None = None
) -> Iterator[tuple[Scene, Detections]]:
    """Pairs of a scene and the detections in it. nms_iou: see Detector.detect."""
    while some := list(islice(scenes, BATCH)):
        found = detector.detect(
            [s.image for s in some],
            [[p.text for p in s.phrases] for s in some],
            box_threshold=LOWEST,
            text_threshold=LOWEST,
            nms_iou=nms_iou,
            batch_size=BATCH,
        )
        yield from zip(some, found)


# --- Masks in images --------------------------------------------------------------------------------------


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
    """Metrics of phrases to boxes to masks, as text_metrics has them."""

    def found_in_scenes() -> Iterator[tuple[Scene, Tensor, Tensor]]:
        predictor = ImagePredictor(model)
        for truth, found in detections(detector, iter(scenes), Thresholds().nms):
            shown = found.scores > THRESHOLD
            predictor.set_image(truth.image)
            masks = predictor.predict(boxes=found.boxes[shown]).masks[:, 0].cpu()
            yield truth, found.indices[shown].cpu(), masks

    return text_metrics(found_in_scenes())


def text_metrics(results: Iterable[tuple[Scene, Tensor, Tensor]]) -> dict[str, float]:
    """Metrics of scenes with the masks (n, H, W) that phrases found there, and the numbers (n,) of these phrases.

    text_iou: each named object counts with the IoU of its mask. Masks and objects of a phrase are matched one to one,
    best pair first; an object without a mask counts as 0. text_wrong: the number of masks that are not on an object of
    their own, which are those without a match of an IoU of at least RIGHT, per object.
    """
    overlaps, wrong = [], 0
    for truth, phrases, masks in results:
        named = [i for i, label in enumerate(truth.labels) if label >= 0]
        labels = torch.tensor([truth.labels[i] for i in named], dtype=torch.long)
        table = broadcast_iou(masks[:, None], torch.from_numpy(truth.masks[named]))  # (found, objects)
        matched = greedy_pairs(table.where(phrases[:, None] == labels, 0.0))
        overlaps += matched + [0.0] * (len(named) - len(matched))
        wrong += len(masks) - sum(overlap >= RIGHT for overlap in matched)
    return {"text_objects": len(overlaps), "text_iou": mean(overlaps), "text_wrong": wrong / max(len(overlaps), 1)}


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
    """The objects to track: on the first frame at least SMALLEST pixels long, and not there as a twin."""
    sides = (film.boxes[0, :, 2:] - film.boxes[0, :, :2]).max(1)
    return [i for i in np.flatnonzero(sides >= SMALLEST).tolist() if i not in film.twins]


def track(model: SAM2, film: Clip, objects: list[int]) -> Tensor:
    """Masks, bool (T, n, H, W), of objects that are pointed out by their true boxes on the first frame."""
    return follow(VideoTracker(model, max_hole=0), film, objects)


def follow(tracker: VideoTracker, film: Clip, objects: list[int]) -> Tensor:
    """Track as `track` does, by a new tracker."""
    return torch.stack([result.masks().cpu() for result in track_clip(tracker, film, objects)])


def track_without_memory(model: SAM2, film: Clip, objects: list[int]) -> Tensor:
    """Track without memory: each frame is an image, and an object's prompt is the box of its last mask.

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


def evaluate_clips(model: SAM2, clips: Iterable[Clip], tracked: Tracked | None = None) -> dict[str, float]:
    """The metrics of clip_metrics.py of all clips, and of each kind under names that end with it.

    tracked: what makes the masks, by default track.
    """
    metrics = ClipMetrics()
    for film in clips:
        objects = seeded(film)
        metrics.add(film, objects, (tracked or track)(model, film, objects))
    return metrics.metrics()


def measure_trackers(
    model: SAM2, clips: Iterable[Clip], trackers: dict[str, Callable[[SAM2], VideoTracker]]
) -> dict[str, ClipMetrics]:
    """Values of all clips and the time that they took, by the name of each tracker; of all but the first one also
    whether its masks of a clip are those of the first to the bit (same_masks)."""
    found = {name: ClipMetrics() for name in trackers}
    for film in clips:
        objects, first = seeded(film), None
        for name, build in trackers.items():
            tracker, begun = build(model), time.perf_counter()
            tracker.max_hole = 0
            masks = follow(tracker, film, objects)
            found[name].seconds += time.perf_counter() - begun
            found[name].frames += len(masks)
            same = {} if first is None else {"same_masks": [torch.equal(masks, first)]}
            first = masks if first is None else first
            found[name].add(film, objects, masks, same)
    return found


def add_values(paths: Iterable[Path]) -> dict[str, ClipMetrics]:
    """Add up the values of several runs, each as --values wrote it. ValueError that begins with the name of a file
    that is damaged, OSError for one that can't be read."""
    total: dict[str, ClipMetrics] = {}
    for path in paths:
        try:
            check_regular(path)
            record = json.loads(path.read_bytes())
            mapping(text, anything)(record, "it")
            for name, found in record.items():
                total.setdefault(name, ClipMetrics()).merge(ClipMetrics.from_json(found, f"its {name}"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from error
    return total


# --- All of it --------------------------------------------------------------------------------------------


def evaluate(
    detector: Detector | None, model: SAM2 | None, scenes: Iterable[Scene], clips: Callable[[], Iterable[Clip]]
) -> dict[str, float]:
    """All metrics that the given models allow; J&F of track_without_memory begins with no_memory_."""
    scenes, metrics = list(scenes), {}
    if detector:
        metrics |= evaluate_detector(detector, scenes)
    if model:
        metrics |= evaluate_masks(model, scenes)
    if detector and model:
        metrics |= evaluate_text_to_masks(detector, model, scenes)
    if model:
        metrics |= evaluate_clips(model, clips())
        without = evaluate_clips(model, clips(), track_without_memory)
        metrics |= {f"no_memory_{name}": value for name, value in without.items() if name.startswith("jf")}
    return metrics


def arguments(doc: str) -> argparse.ArgumentParser:
    """The command line of an evaluation."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", type=Path, help="file that train_detector wrote")
    parser.add_argument("--segmenter", type=Path, help="file that train_segmenter wrote (without both: the package's)")
    count = whole_number(0)
    parser.add_argument("--scenes", type=count, default=500, help="number of scenes (default 500)")
    parser.add_argument("--clips", type=count, default=100, help="number of clips, of the kinds in turn (default 100)")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=ALL_KINDS,
        default=KINDS,
        metavar="KIND",
        help=f"kinds of clips: {', '.join(ALL_KINDS)} (default: {', '.join(KINDS)})",
    )
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--first-seed", type=count, default=0, help="seed of the first scene and clip (default 0)")
    seeds.add_argument(
        "--held-out",
        dest="first_seed",
        action="store_const",
        const=HELD_OUT.start,
        help=f"seeds from {HELD_OUT.start} on, which neither training nor the choice of a rule has seen",
    )
    parser.add_argument(
        "--propagate",
        choices=tuple(PROPAGATORS),
        default=MEMORY,
        help="flow: clips alone, by optical flow beside SAM 2's memory without rules",
    )
    parser.add_argument(
        "--identity",
        choices=("on", "off", "both"),
        help="clips alone, by SAM 2's memory with the rules that keep look-alikes apart, without them, or both ways",
    )
    parser.add_argument(
        "--story", type=Path, metavar="PNG", help="only draw key frames of the first clip here, a row for each tracker"
    )
    parser.add_argument(
        "--values", type=Path, metavar="JSON", help="with --identity or --propagate flow: also write all values here"
    )
    parser.add_argument(
        "--add", type=Path, nargs="+", metavar="JSON", help="only print the metrics of several such files together"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def models(args: argparse.Namespace) -> tuple[Detector | None, SAM2 | None]:
    """The models whose files are given; if none is, those of the package."""
    files = args.detector, args.segmenter
    detector, segmenter = files if any(files) else (FOLDER / DETECTOR, FOLDER / SEGMENTER)
    return (
        load_detector(detector, args.device) if detector else None,
        accelerate(load_segmenter(segmenter, args.device)) if segmenter else None,
    )


def trackers_of(args: argparse.Namespace) -> dict[str, Callable[[SAM2], VideoTracker]]:
    """The trackers that --propagate and --identity ask for, by the names under which their metrics are printed."""
    ways = {"off": partial(MemoryPropagator, identity=False), "on": partial(MemoryPropagator, identity=True)}
    if args.propagate == FLOW:
        return {MEMORY: ways["off"], FLOW: FlowPropagator}
    return {name: build for name, build in ways.items() if args.identity in (name, "both", None)}


def write_story(path: Path, model: SAM2, film: Clip, trackers: dict[str, Callable[[SAM2], VideoTracker]]) -> None:
    """Draw key frames of a clip, a row for each tracker, to a PNG."""
    rows = [tell(build(model), film, seeded(film), name) for name, build in trackers.items()]
    with whole_file(path) as temporary:
        Image.fromarray(story(rows)).save(temporary, "PNG", optimize=True)


def print_metrics(found: dict[str, ClipMetrics]) -> None:
    """Print the metrics of each tracker as JSON."""
    print(json.dumps({name: metrics.metrics() for name, metrics in found.items()}, indent=1))


def check_seeds(parser: argparse.ArgumentParser, first: int, number: int) -> None:
    """Leave with one line if so many seeds from the first one on reach those of training."""
    if first + number > TRAINING_FROM:
        parser.error(f"--first-seed {first}: training draws the seeds from {TRAINING_FROM} on; begin further below")


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Leave with one line where arguments contradict each other, or name a file that cannot be written. ValueError for
    a device that this machine lacks."""
    args.device = str(choose_device(args.device))
    check_seeds(parser, args.first_seed, max(args.scenes, args.clips))
    if args.values and (args.story or args.values.is_dir() or not args.values.parent.is_dir()):
        parser.error(f"--values {args.values}: give the name of a file in a folder that is there, without --story")
    if args.values and not (args.identity or args.propagate == FLOW):
        parser.error("--values is for clips: give --identity or --propagate flow")
    if args.propagate == FLOW and args.identity:
        parser.error("--identity is about SAM 2's memory: leave out --propagate flow")
    if args.story and (args.story.suffix.lower() != ".png" or not args.story.parent.is_dir()):
        parser.error(f"--story {args.story}: give a name that ends with .png, in a folder that is there")
    if args.story and args.clips < 1:
        parser.error("--story draws the first clip: give --clips 1 or more")


def run(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    draw_scene: Callable[[int], Scene],
    draw_clip: Callable[[int, str], Clip],
) -> None:
    """Print the metrics that the arguments ask for, as JSON, of scenes and clips by a renderer.

    draw_scene takes a seed, draw_clip a seed and a kind.
    """
    seeds, films = (range(args.first_seed, args.first_seed + n) for n in (args.scenes, args.clips))

    def clips() -> Iterable[Clip]:
        return (draw_clip(seed, args.kinds[seed % len(args.kinds)]) for seed in films)

    if args.add:
        try:
            print_metrics(add_values(args.add))
        except (ValueError, OSError) as error:
            parser.error(f"--add {error}")
        return
    check_arguments(parser, args)
    if args.propagate == FLOW or args.identity or args.story:
        segmenter = accelerate(load_segmenter(args.segmenter or FOLDER / SEGMENTER, args.device))
        trackers = trackers_of(args)
        if args.story:
            write_story(args.story, segmenter, next(iter(clips())), trackers)
        else:
            found = measure_trackers(segmenter, clips(), trackers)
            if args.values:
                with whole_file(args.values) as temporary:
                    temporary.write_text(json.dumps({name: metrics.as_json() for name, metrics in found.items()}))
            print_metrics(found)
        return
    print(json.dumps(evaluate(*models(args), map(draw_scene, seeds), clips), indent=1))


def main() -> None:
    """The command line: all metrics as JSON on standard output."""
    parser = arguments(__doc__)
    run(parser, parser.parse_args(), scene, clip)


if __name__ == "__main__":
    sys.exit(run_program(main))
