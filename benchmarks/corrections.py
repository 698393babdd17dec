"""A correction on a later frame, over whole clips: is the object then followed as well as a new one would be?

    python benchmarks/corrections.py                  # 20 clips of held-out seeds, the demo weights
    python benchmarks/corrections.py --identity off   # without the rules that keep look-alikes apart

All objects are tracked from their true boxes on the first frame to frame AT. There the one whose mask is worst gets a
prompt, its true box or a click in its middle, and all are tracked on to the end. Beside it stand the same object
without the prompt, and a new object of a tracker of its own that gets the same prompt on frame AT. Printed: mean IoU
with the true masks after frame AT, and whether the masks of the other objects changed. As JSON.
"""

import argparse
import copy
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minisam_glue.demo import FOLDER, SEGMENTER, load_segmenter
from minisam_glue.demo.clip_metrics import broadcast_iou, mean
from minisam_glue.demo.evaluate import check_seeds, innermost, seeded
from minisam_glue.demo.scenes import ALL_KINDS, HELD_OUT, SMALLEST, Clip, clip
from minisam_glue.propagators import MemoryPropagator
from minisam_glue.sam2 import SAM2, accelerate
from minisam_glue.support.processes import run_program
from minisam_glue.support.values import whole_number

AT = 30  # frame of the prompt
PROMPTS = ("box", "click")


def tracked_to(model: SAM2, film: Clip, objects: list[int], identity: bool) -> MemoryPropagator:
    """A tracker of these objects, pointed out by their true boxes on the first frame, on frame AT."""
    tracker = MemoryPropagator(model, identity)
    tracker.seek(0, film.frames[0])
    for number in objects:
        tracker.prompt(number, box=film.boxes[0, number])
    tracker.track()
    for frame in film.frames[1 : AT + 1]:
        tracker.step(frame)
    return tracker


def branch(tracker: MemoryPropagator) -> MemoryPropagator:
    """A tracker that goes on from where this one stands; they share the model alone."""
    return copy.deepcopy(tracker, {id(tracker.model): tracker.model})


def rest(tracker: MemoryPropagator, film: Clip) -> dict[int, Tensor]:
    """The masks of each object on the frames after AT, bool (frames, H, W)."""
    results = [tracker.step(frame) for frame in film.frames[AT + 1 :]]
    return dict(zip(results[0].ids, torch.stack([result.masks().cpu() for result in results], 1)))


def worst(tracker: MemoryPropagator, film: Clip, objects: list[int]) -> int | None:
    """The object whose mask on frame AT is worst, of those that are seen there; None if there are none."""
    true = torch.from_numpy(film.masks[AT, objects])
    ious = broadcast_iou(tracker.result().masks().cpu(), true).tolist()
    sides = (film.boxes[AT, objects, 2:] - film.boxes[AT, objects, :2]).max(1)
    seen = [(iou, number) for iou, number, side in zip(ious, objects, sides) if side >= SMALLEST]
    return min(seen)[1] if seen else None


def measure(model: SAM2, film: Clip, identity: bool) -> dict[str, list[float]]:
    """The values of one clip by their names; empty where nothing is seen on frame AT."""
    objects = seeded(film)
    tracker = tracked_to(model, film, objects, identity)
    number = worst(tracker, film, objects)
    if number is None:
        return {}
    true = torch.from_numpy(film.masks[:, number])
    before = broadcast_iou(tracker.result().masks().cpu()[objects.index(number)], true[AT])
    alone = rest(branch(tracker), film)
    values = {"before": [float(before)], "without": [float(broadcast_iou(alone[number], true[AT + 1 :]).mean())]}
    for kind in PROMPTS:
        middle = innermost(true[AT : AT + 1]).numpy()
        prompt = {"box": film.boxes[AT, number]} if kind == "box" else {"points": middle, "labels": [1]}
        corrected, fresh = branch(tracker), MemoryPropagator(model, identity)
        fresh.seek(AT, film.frames[AT])
        for each in (corrected, fresh):
            each.prompt(number, **prompt)
        masks, anew = rest(corrected, film), rest(fresh, film)
        values[f"{kind}, corrected"] = [float(broadcast_iou(masks[number], true[AT + 1 :]).mean())]
        values[f"{kind}, new object"] = [float(broadcast_iou(anew[number], true[AT + 1 :]).mean())]
        others = [each for each in objects if each != number]
        values[f"{kind}, others the same"] = [float(torch.equal(masks[each], alone[each])) for each in others]
        values[f"{kind}, others, IoU"] = [float(broadcast_iou(masks[each], alone[each]).mean()) for each in others]
    return values


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--clips", type=whole_number(1), default=20, help="clips, of all kinds in turn (default %(default)s)"
    )
    parser.add_argument("--first-seed", type=whole_number(0), default=HELD_OUT.start, help="(default %(default)s)")
    parser.add_argument("--identity", choices=("on", "off"), default="on")
    args = parser.parse_args()
    check_seeds(parser, args.first_seed, args.clips)
    model, found = accelerate(load_segmenter(FOLDER / SEGMENTER)), {}
    for seed in range(args.first_seed, args.first_seed + args.clips):
        values = measure(model, clip(seed, ALL_KINDS[seed % len(ALL_KINDS)]), args.identity == "on")
        for name, some in values.items():
            found.setdefault(name, []).extend(some)
        print(seed, json.dumps(values), file=sys.stderr, flush=True)
    clips = len(found.get("before", []))  # those that show something on frame AT
    print(json.dumps({"clips": clips} | {name: mean(some) for name, some in found.items()}, indent=1))


if __name__ == "__main__":
    sys.exit(run_program(main))
