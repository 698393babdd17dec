"""CLIPSeg (rd64-refined), ours against transformers: seconds per image and peak memory, for 1 and for 10 phrases.

Both sides get the same weights (the formula of tests/parity.py, no download), image and token ids. Each runs in a
process of its own, in turns, so that a busy machine disturbs both alike. Needs the bench extra.

    python benchmarks/clipseg_speed.py                            # 352 x 352, 2 threads
    python benchmarks/clipseg_speed.py --size 176 --rounds 1      # a quick look

The text is encoded anew at each run on both sides, although HeatMapper would cache it. transformers wants a copy of
the image for each phrase; that is how its documentation has it, and part of what is compared. Aims: at least 1.1
times as fast for one phrase, and 1.5 times for ten.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import sides
import torch
from peak_memory import forget_peak, peak_mib

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
MANIFEST = ROOT / "tests" / "golden" / "clipseg" / "manifest_clipseg-rd64-refined.json"
AIMS = {1: 1.1, 10: 1.5}  # phrases -> how many times as fast
START, END = 49406, 49407


# --- The sides: each returns a function (image (1, 3, S, S), ids (P, L)) -> logits (P, S, S) ----------------


def ours(weights: dict):
    from minisam_glue.clipseg.model import PRESETS, CLIPSeg, load_official

    with torch.device("meta"):
        model = CLIPSeg(PRESETS["rd64-refined"]).eval()
    load_official(model, weights)
    return lambda image, ids: model(image, model.clip.encode_text(ids))[0]


def transformers_side(weights: dict):
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    config = CLIPSegConfig(use_complex_transposed_convolution=True)
    config.vision_config.patch_size = 16
    model = CLIPSegForImageSegmentation(config).eval()
    model.load_state_dict(weights)

    def run(image, ids):
        out = model(
            pixel_values=image.expand(len(ids), -1, -1, -1), input_ids=ids, attention_mask=torch.ones_like(ids),
            interpolate_pos_encoding=True,
        )  # fmt: skip
        return out.logits.view(len(ids), *image.shape[-2:])

    return run


SIDES = {"ours": ours, "transformers": transformers_side}


# --- One process per side ----------------------------------------------------------------------------------


def worker(args) -> None:
    """Load, then answer each line on standard input, a number of phrases, with one timed run as a line of JSON."""
    torch.set_num_threads(args.threads)
    folder = Path(args.folder)
    inputs = torch.load(folder / "inputs.pth")
    run = SIDES[args.worker](torch.load(folder / "weights.pth"))
    print(json.dumps({"ready": args.worker, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        phrases = int(line)
        forget_peak()
        start = time.perf_counter()
        with torch.inference_mode():
            logits = run(inputs["image"], inputs["ids"][:phrases])
        seconds = time.perf_counter() - start
        torch.save(logits, folder / f"{args.worker}_{phrases}.pth")
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}), flush=True)


def start(side: str, args, folder: str) -> subprocess.Popen:
    """The process of a side, once it is ready. ValueError if it can't start."""
    command = [sys.executable, __file__, "--worker", side, "--folder", folder, "--threads", str(args.threads)]
    process = sides.start(side, command, args.verbose)
    if process is None:
        raise ValueError(f"{side} could not start: pip install 'minivit-minisam[bench]' (--verbose shows why)")
    return process


def measure(args, folder: str) -> dict[str, dict[int, list[dict]]]:
    """The runs of each side and number of phrases; one of each is not counted."""
    workers = {side: start(side, args, folder) for side in SIDES}
    runs = {side: {phrases: [] for phrases in AIMS} for side in SIDES}
    for counted in [False] + [True] * args.rounds:
        for phrases in AIMS:
            for side, process in workers.items():
                run = sides.ask(process, phrases)
                if run is None:
                    raise ValueError(f"{side} died (--verbose shows why)")
                if counted:
                    runs[side][phrases].append(run)
    for process in workers.values():
        sides.end(process)
    return runs


def write_inputs(folder: Path, size: int) -> None:
    """Formula weights under their official names, an image and ten phrases of 3 to 7 tokens."""
    import parity

    torch.save(parity.formula_state({k: v.shape for k, v in parity.manifest_state(MANIFEST).items()}),
               folder / "weights.pth")  # fmt: skip
    rng = np.random.RandomState(91)
    ids = torch.full((10, 9), END)
    for row, length in zip(ids, rng.randint(3, 8, 10)):
        row[0] = START
        row[1 : 1 + length] = torch.from_numpy(rng.randint(0, START, length))
    image = torch.from_numpy(rng.standard_normal((1, 3, size, size)).astype(np.float32))
    torch.save({"image": image, "ids": ids}, folder / "inputs.pth")


def print_report(runs: dict, folder: Path) -> dict:
    """A line for each side and number of phrases, ratio and difference. Returns the numbers."""
    report = {}
    for phrases, aim in AIMS.items():
        for side in SIDES:
            seconds = [run["seconds"] for run in runs[side][phrases]]
            peak = max(run["peak_mib"] for run in runs[side][phrases])
            report[f"{side} {phrases}"] = {"seconds": seconds, "peak_mib": peak}
            print(f"{phrases:>2} phrases, {side:<12} {statistics.median(seconds):7.3f} s ({min(seconds):.3f})"
                  f"  {peak:6.0f} MiB")  # fmt: skip
        both = zip(report[f"ours {phrases}"]["seconds"], report[f"transformers {phrases}"]["seconds"])
        ratio = statistics.median(theirs / mine for mine, theirs in both)
        mine, theirs = (torch.load(folder / f"{side}_{phrases}.pth") for side in SIDES)
        difference = float((mine - theirs).abs().max())
        report[f"ratio {phrases}"], report[f"difference {phrases}"] = ratio, difference
        print(f"           {ratio:.2f}x as fast, aim {aim}x: {'reached' if ratio >= aim else 'MISSED'}; "
              f"largest difference of the logits {difference:.1e} of {float(theirs.abs().max()):.1e}")  # fmt: skip
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=352)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each, after one that is not timed")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--verbose", action="store_true", help="show the warnings of both sides")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    with tempfile.TemporaryDirectory() as name:
        write_inputs(Path(name), args.size)
        runs = measure(args, name)
        machine = platform.processor() or platform.machine()
        print(f"\n{machine}, {args.threads} threads, {args.size} x {args.size}, {args.rounds} rounds, median (least)")
        report = print_report(runs, Path(name))
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            arguments = vars(args) | {"out": str(args.out)}
            args.out.write_text(json.dumps({"arguments": arguments, "torch": torch.__version__, "results": report}))


if __name__ == "__main__":
    from minisam_glue.support.processes import run_program

    sys.exit(run_program(main))
