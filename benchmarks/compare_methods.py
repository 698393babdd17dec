"""The two ways from a sentence to masks, and from a mask to the next frame, side by side with the demo weights.

    python benchmarks/compare_methods.py                       # scenes and clips of minisam_glue/demo
    python benchmarks/compare_methods.py --photos DIR          # those of second_renderer.py, on photographs
    python benchmarks/compare_methods.py --clips 0             # pictures alone
    python benchmarks/compare_methods.py --clipseg FILE        # heat maps of these weights of train_clipseg

Pictures: mean IoU of the objects that a phrase names, and the share of scenes in which phrases that match nothing
yield nothing, by the detector's boxes and by CLIPSeg's heat maps. Clips: J and F by SAM 2's memory, without and with
the rules of --identity, and by optical flow that SAM 2 refines on each frame, and on each third; objects are pointed
out by their true boxes on the first frame. Seeds are held out. As JSON; the seconds of a frame are those that tracking
takes, reading aside.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from second_renderer import photos_in, second_clip, second_scene

from minisam_glue.clipseg import HeatMapper
from minisam_glue.demo import DETECTOR, FOLDER, HEAT_MAPPER, SEGMENTER, load_detector, load_heat_mapper, load_segmenter
from minisam_glue.demo.evaluate import check_seeds, evaluate_detector, evaluate_text_to_masks, measure_trackers
from minisam_glue.demo.evaluate_clipseg import evaluate_heat_maps, evaluate_heat_to_masks
from minisam_glue.demo.scenes import HELD_OUT, KINDS, Scene, clip, scene
from minisam_glue.models import choose_device
from minisam_glue.propagators import FlowPropagator, MemoryPropagator
from minisam_glue.sam2 import SAM2, accelerate
from minisam_glue.support.processes import run_program
from minisam_glue.support.text import one_line
from minisam_glue.support.values import whole_number

TRACKERS = {
    "memory": partial(MemoryPropagator, identity=False),
    "memory, with the rules of --identity": MemoryPropagator,
    "flow": FlowPropagator,
    "flow, each third frame": partial(FlowPropagator, refine_every=3),
}


def by_sentence(segmenter: SAM2, mapper: HeatMapper, scenes: list[Scene], device: str) -> dict[str, dict[str, float]]:
    """The metrics of each method on the same scenes."""
    detector = load_detector(FOLDER / DETECTOR, device)
    boxes = evaluate_text_to_masks(detector, segmenter, scenes)
    found = evaluate_detector(detector, scenes)
    boxes |= {name: found[name] for name in ("true_negative_rate", "negative_scenes")}
    heat = evaluate_heat_to_masks(mapper, segmenter, scenes)
    return {"detector": boxes, "clipseg": heat | evaluate_heat_maps(mapper, scenes)}


def main(argv: list[str] | None = None) -> None:
    """The command line: all metrics as JSON on standard output. Exit status 2 where weights or photographs lack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count = whole_number(0)
    parser.add_argument("--scenes", type=count, default=300, help="number of scenes (default %(default)s)")
    parser.add_argument("--clips", type=count, default=24, help="number of clips, of four kinds in turn (%(default)s)")
    parser.add_argument("--first-seed", type=count, default=HELD_OUT.start, help="of scenes and clips (%(default)s)")
    parser.add_argument("--clipseg", type=Path, default=FOLDER / HEAT_MAPPER, help="weights (default: the demo's)")
    parser.add_argument("--photos", type=Path, help="folder of photographs: draw by second_renderer.py, on these")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    check_seeds(parser, args.first_seed, max(args.scenes, args.clips))
    args.device = str(choose_device(args.device))
    try:
        photos = photos_in(args.photos) if args.photos else None
        mapper = load_heat_mapper(args.clipseg, args.device) if args.scenes else None
    except (OSError, ValueError) as error:
        parser.error(one_line(error))
    draw_scene = scene if photos is None else partial(second_scene, photos=photos)
    draw_clip = clip if photos is None else partial(second_clip, photos=photos)
    segmenter = accelerate(load_segmenter(FOLDER / SEGMENTER, args.device))
    scenes = [draw_scene(seed) for seed in range(args.first_seed, args.first_seed + args.scenes)]
    metrics = by_sentence(segmenter, mapper, scenes, args.device) if mapper else {}
    films = range(args.first_seed, args.first_seed + args.clips)
    if films:
        drawn = [draw_clip(seed, kind=KINDS[seed % len(KINDS)]) for seed in films]
        metrics |= {name: found.metrics() for name, found in measure_trackers(segmenter, drawn, TRACKERS).items()}
    print(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    sys.exit(run_program(main))
