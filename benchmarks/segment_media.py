"""segment.py on real photographs and videos with the full-size models: time per stage, and peak memory.

    python benchmarks/segment_media.py photographs/*.jpg clip.mp4 --sam small --max-seconds 1
    python benchmarks/segment_media.py photographs/*.jpg clip.mp4 --method clipseg
    python benchmarks/segment_media.py clip.mp4 --method clipseg --propagate flow
    python benchmarks/segment_media.py photographs/*.jpg clip.mp4 --demo       # try it out with the small weights

Official weights are a download of a gigabyte; time and memory do not depend on their values, so both models have
the formula weights of tests/parity.py, and what is found means nothing. The threshold is put where five boxes (or
at most five regions of heat maps) pass, so that every stage has work. Each input is a process of its own, which runs
the command as a user would.
Needs Linux or macOS for the peak memory. Left out: the quality of masks.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from peak_memory import peak_mib

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
PROMPT, DEMO_PROMPT, OBJECTS = "car. dog. person.", "red circle. blue square. green star.", 5


def models(sam: str, method: str, demo: bool):
    """Grounding DINO Swin-T or CLIPSeg, and a SAM 2.1, with formula weights; or the demo's models."""
    import parity
    from parity_groundingdino import VOCABULARY
    from parity_tokenizers import MERGES

    from minisam_glue import clipseg, grounding_dino, sam2
    from minisam_glue.models import Models, load_models

    if demo:
        return load_models("demo", method=method, device="cpu")
    if method == "clipseg":
        detector = clipseg.CLIPSeg(clipseg.PRESETS["rd64-refined"]).eval()
    else:
        detector = grounding_dino.GroundingDINO(grounding_dino.PRESETS["swin-t"]).eval()
    segmenter = sam2.build(f"sam2.1_hiera_{sam}")
    for model in (detector, segmenter):
        model.load_state_dict(parity.formula_state({k: tuple(v.shape) for k, v in model.state_dict().items()}))
    # as load_models does
    sam2.accelerate(segmenter)
    if method == "clipseg":
        mapper = clipseg.HeatMapper(detector, clipseg.CLIPTokenizer.load(MERGES))
        return Models(None, segmenter, heat_mapper=mapper)
    grounding_dino.accelerate(detector)
    return Models(grounding_dino.Detector(detector, grounding_dino.WordPieceTokenizer.load(VOCABULARY)), segmenter)


def passing(loaded, prompt: str, picture: np.ndarray) -> list[str]:
    """Flags with which OBJECTS boxes of a prompt, or at most as many regions, pass on a picture."""
    from minisam_glue.heatmap import confidence
    from minisam_glue.masks import label_components, measure_components
    from minisam_glue.prompts import split_phrases

    if loaded.heat_mapper is None:
        scores = loaded.detector.detect(picture, prompt, 0.0, 0.0, nms_iou=0.7).scores
        threshold = float(scores[min(OBJECTS, len(scores) - 1)])
        return ["--box-threshold", str(threshold), "--text-threshold", "0"]
    maps = loaded.heat_mapper.heat_maps([picture], split_phrases(prompt))[0]
    threshold = float(maps.flatten().sigmoid().quantile(0.8))
    areas = [measure_components(label_components(confidence(one) > threshold)).areas for one in maps]
    largest = sorted(np.concatenate(areas), reverse=True)
    least = min(largest[0], largest[OBJECTS] + 1) if len(largest) > OBJECTS else 0
    return ["--method", "clipseg", "--heat-threshold", str(threshold), "--min-area", str(least)]


def first_picture(source: str) -> np.ndarray:
    from minisam_glue import media

    if media.is_moving(source):
        with media.frames(source) as video:
            return next(iter(video))
    return media.read_image(source)


def work(source: str, args: argparse.Namespace) -> None:
    """One input in this process: prints seconds, stages, objects and MiB as JSON."""
    import segment

    torch.set_num_threads(args.threads)
    loaded, prompt = models(args.sam, args.method, args.demo), DEMO_PROMPT if args.demo else PROMPT
    flags = ["--propagate", args.propagate] if args.propagate == "flow" else []
    flags += passing(loaded, prompt, first_picture(source))
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        status = segment.main(
            [source, prompt, "--out", out, "--quiet", *flags, "--max-seconds", str(args.max_seconds)], loaded
        )
        seconds = time.perf_counter() - start
        record = json.loads(next(Path(out).glob("*/result.json")).read_text())
    assert status == 0
    print(
        json.dumps(
            {
                "seconds": seconds,
                "stages": loaded.seconds,
                "size": record["size"],
                "frames": record.get("frames", 1),
                "objects": len(record["objects"]),
                "mib": peak_mib(),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", help="photographs and videos")
    parser.add_argument("--sam", default="small", help="tiny, small, base_plus or large (default %(default)s)")
    parser.add_argument("--method", choices=("detector", "clipseg"), default="detector")
    parser.add_argument("--propagate", choices=("memory", "flow"), default="memory", help="of a video")
    parser.add_argument("--demo", action="store_true", help="the demo's small weights instead of full-size models")
    parser.add_argument("--max-seconds", type=float, default=1.0, help="of a video (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the child process
    args = parser.parse_args()
    if args.here:
        work(args.inputs[0], args)
        return
    options = ["--sam", args.sam, "--max-seconds", str(args.max_seconds), "--threads", str(args.threads), "--here"]
    options += ["--method", args.method, "--propagate", args.propagate, *(["--demo"] if args.demo else [])]
    name = "clipseg-rd64-refined" if args.method == "clipseg" else "swin-t"
    names = f"{args.method} and segmenter of the demo" if args.demo else f"{name} and sam2.1_hiera_{args.sam}"
    print(f"{names}, {args.propagate} on videos, fp32, {args.threads} threads, torch {torch.__version__}")
    for source in args.inputs:
        done = subprocess.run([sys.executable, __file__, source, *options], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        r = json.loads(done.stdout.splitlines()[-1])
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in r["stages"].items())
        print(
            f"{Path(source).name}: {r['size'][1]}x{r['size'][0]}, {r['frames']} frames, {r['objects']} objects, "
            f"{r['seconds']:.1f} s ({stages}), {r['mib']:.0f} MiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
