"""The gain and the cost of SAM 2's working size and of bfloat16: J&F, mask IoU and seconds a frame, on generated clips.

    python benchmarks/working_size.py                                       # the demo weights: half, full and 1.5 times
    python benchmarks/working_size.py --sizes 256 384 --clips 4 --scenes 8
    python benchmarks/working_size.py --sam tiny --sizes 512 1024           # seconds alone, with the official shape

The demo weights see 384 pixels, and were trained at 256 to 320, on flat shapes: their figures say nothing of the
official weights.
Each size is measured in float32 and in bfloat16; the IoU between the two is over all pixels of all masks. With --sam
the model has an official shape and formula weights, whose values mean nothing: measured are the seconds of a frame of
one object when the memory is full, sizes and precisions in turns. The machine must be idle for the seconds to count.
"""

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minisam_glue import load_models, sam2
from minisam_glue.demo.evaluate import evaluate_clips, evaluate_masks, seeded, track
from minisam_glue.demo.scenes import clip, scene
from minisam_glue.models import in_precision
from minisam_glue.sam2 import VideoTracker
from minisam_glue.support.processes import run_program
from minisam_glue.support.values import whole_number

FULL = 384  # pixels that the demo sees
FIRST_SEED = 5000  # held out
DTYPES = ("float32", "bfloat16")
MEMORY = 8  # frames after which the memory of SAM 2 is full


def measure(size: int, dtype: str, args: argparse.Namespace) -> tuple[list[float], list[torch.Tensor]]:
    """J&F, J, F, mask IoU and seconds a frame; and the masks (T, n, H, W) of each clip."""
    model = load_models("demo", detector=None, device="cpu", dtype=dtype, size=size).sam
    masks, seconds, frames = [], 0.0, 0

    def tracked(model, film, objects):
        nonlocal seconds, frames
        begun = time.perf_counter()
        masks.append(track(model, film, objects))
        seconds, frames = seconds + time.perf_counter() - begun, frames + len(film.frames)
        return masks[-1]

    films = [clip(FIRST_SEED + i, frames=args.frames) for i in range(args.clips)]
    track(model, films[0], seeded(films[0])[:1])  # warm
    metrics = evaluate_clips(model, films, tracked)
    pictures = evaluate_masks(model, (scene(FIRST_SEED + i) for i in range(args.scenes)))
    return [metrics["jf"], metrics["j"], metrics["f"], pictures["box_iou"], seconds / frames], masks


def frame_seconds(sam: str, args: argparse.Namespace) -> dict[tuple[int, str], list[float]]:
    """Seconds of each frame with a full memory, by size and precision, of an official shape of SAM 2."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from parity import formula_state

    state = formula_state({name: tuple(value.shape) for name, value in sam2.build(sam).state_dict().items()})
    film, found = clip(FIRST_SEED, frames=MEMORY + args.frames), {}
    for _ in range(args.rounds):
        for size in args.sizes:
            for dtype in DTYPES:
                model = sam2.build(sam)
                model.load_state_dict(state)
                model = sam2.accelerate(in_precision(model, getattr(torch, dtype)).eval())
                model.resize(size)
                tracker = VideoTracker(model)
                tracker.seek(0, film.frames[0])
                tracker.prompt(0, box=film.boxes[0, seeded(film)[0]])
                tracker.track()
                for number, frame in enumerate(film.frames[1:], 1):
                    begun = time.perf_counter()
                    tracker.step(frame)
                    if number >= MEMORY:
                        found.setdefault((size, dtype), []).append(time.perf_counter() - begun)
    return found


def show_seconds(args: argparse.Namespace) -> None:
    """Print the table of --sam."""
    print(f"{args.sam}, formula weights, one object, {args.rounds} rounds of {args.frames} frames; median (range)")
    print("| size | dtype | s a frame | of float32 at the largest size |")
    print("|---|---|---|---|")
    found = frame_seconds(args.sam, args)
    whole = statistics.median(found[max(args.sizes), DTYPES[0]])
    for (size, dtype), seconds in found.items():
        middle = statistics.median(seconds)
        print(f"| {size} | {dtype} | {middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | {middle / whole:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count = whole_number(1)
    parser.add_argument("--sizes", type=count, nargs="+", default=[FULL // 2, FULL, FULL * 3 // 2])
    parser.add_argument("--clips", type=count, default=16)
    parser.add_argument("--frames", type=count, help="frames of a clip (default 60), or with --sam measured ones (4)")
    parser.add_argument("--scenes", type=whole_number(0), default=64)
    parser.add_argument("--sam", choices=("tiny", "small", "base_plus", "large"), help="seconds of an official shape")
    parser.add_argument("--rounds", type=count, default=3, help="with --sam")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    args.frames = args.frames or (4 if args.sam else 60)
    if args.sam:
        args.sam = f"sam2.1_hiera_{args.sam}"
        show_seconds(args)
        return
    print(f"{args.clips} clips of {args.frames} frames, {args.scenes} scenes, seeds from {FIRST_SEED}, demo weights")
    print("| size | dtype | J&F | J | F | IoU of boxes' masks | s a frame | IoU to float32 |")
    print("|---|---|---|---|---|---|---|---|")
    for size in args.sizes:
        plain = None
        for dtype in DTYPES:
            values, masks = measure(size, dtype, args)
            plain = plain or masks
            both = sum(int((a & b).sum()) for a, b in zip(plain, masks))
            either = sum(int((a | b).sum()) for a, b in zip(plain, masks))
            shown = " | ".join(f"{value:.4f}" for value in values)
            print(f"| {size} | {dtype} | {shown} | {both / max(either, 1):.4f} |", flush=True)


if __name__ == "__main__":
    sys.exit(run_program(main))
