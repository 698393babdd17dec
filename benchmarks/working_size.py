"""What SAM 2's working size and bfloat16 gain and cost: J&F, mask IoU and seconds a frame, on generated clips.

    python benchmarks/working_size.py                                       # the demo weights: half, full and 1.5 times
    python benchmarks/working_size.py --sizes 256 384 --clips 4 --scenes 8

The demo weights were trained for 384 pixels here, on flat shapes: their figures say nothing of the official weights.
Each size is measured in float32 and in bfloat16; the IoU between the two is over all pixels of all masks. The machine
must be idle for the seconds to count.
"""

import argparse
import platform
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minisam_glue import load_models
from minisam_glue.demo.evaluate import evaluate_clips, evaluate_masks, seeded, track
from minisam_glue.demo.scenes import clip, scene

FULL = 384  # pixels that the demo was trained for
FIRST_SEED = 5000  # held out


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[FULL // 2, FULL, FULL * 3 // 2])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=60, help="frames of a clip")
    parser.add_argument("--scenes", type=int, default=64)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    print(f"{args.clips} clips of {args.frames} frames, {args.scenes} scenes, seeds from {FIRST_SEED}, demo weights")
    print("| size | dtype | J&F | J | F | IoU of boxes' masks | s a frame | IoU to float32 |")
    print("|---|---|---|---|---|---|---|---|")
    for size in args.sizes:
        plain = None
        for dtype in ("float32", "bfloat16"):
            values, masks = measure(size, dtype, args)
            plain = plain or masks
            both = sum(int((a & b).sum()) for a, b in zip(plain, masks))
            either = sum(int((a | b).sum()) for a, b in zip(plain, masks))
            shown = " | ".join(f"{value:.4f}" for value in values)
            print(f"| {size} | {dtype} | {shown} | {both / max(either, 1):.4f} |", flush=True)


if __name__ == "__main__":
    main()
