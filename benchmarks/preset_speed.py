"""Images per second and peak memory of a preset, in training and in prediction, on a CPU: fp32 and, where the
processor computes in it, bf16.

    python benchmarks/preset_speed.py --preset cifar-fast                  # batch 256, one thread
    python benchmarks/preset_speed.py --preset cifar --batch-size 64 --steps 4

Training and prediction run in a process of their own for each precision, in turns, so that a machine whose speed
drifts slows all alike; so does bf16 with the memory handling of the C library as it is by default
(`minivit.process.keep_freed_memory` left out). A training step is the trainer's own: images of a shuffled index, flips,
augmentation, mixing, forward, backward, optimiser, averaged weights. Images are generated. Printed: the median of all
rounds, with the slowest and the fastest, and the peak memory of the process, PyTorch and the set-up included: whitening
of a training run, no trainer in prediction.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peak_memory import peak_mib

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minisam_glue.support.processes import run_program
from minisam_glue.support.values import whole_number
from minivit import run
from minivit.budget import random_step
from minivit.checkpoint import RESNETS, build_model
from minivit.evaluate import Evaluator
from minivit.fast import accelerate
from minivit.precision import choose_precision, cpu_has_bf16
from minivit.vit import PRESETS

SIDES = {
    "fp32": ("off", True),
    "bf16": ("bf16", True),
    "bf16, memory given back": ("bf16", False),
}  # name -> (--amp, whether freed memory is kept)


def measure(args: argparse.Namespace, amp: str, keep: bool) -> dict:
    """Images per second of each step of --part, and the peak memory of this process, MiB."""
    if not keep:
        run.keep_freed_memory = lambda: None
    with tempfile.TemporaryDirectory() as folder:
        step = PARTS[args.part](args, amp, Path(folder))
        rates = [rate(step, args.batch_size) for _ in range(args.steps + 2)]
    return {"rates": rates[2:], "MiB": peak_mib()}  # the first steps set up memory


def training(args: argparse.Namespace, amp: str, folder: Path) -> Callable[[], None]:
    """A training step, with the trainer's ways to images."""
    given = {"data": "shapes", "preset": args.preset, "batch_size": args.batch_size, "amp": amp, "sizes": ()}
    given |= {"device": "cpu", "threads": args.threads, "epochs": 2, "out": folder}
    trainer, _ = run.prepare(given)
    trainer.forward.train()
    return lambda: random_step(trainer)


def prediction(args: argparse.Namespace, amp: str, folder: Path) -> Callable[[], None]:
    """A prediction of one batch, by a model alone."""
    device = run.set_up_machine({"device": "cpu", "threads": args.threads})
    model = accelerate(build_model(args.preset, 10, {}).to(memory_format=torch.channels_last))
    side = run.image_side({"data": "shapes", "preset": args.preset})
    images = torch.randint(256, (args.batch_size, 3, side, side), dtype=torch.uint8)
    evaluator = Evaluator((0.5,) * 3, (0.25,) * 3, device, choose_precision(amp, device))
    return lambda: evaluator.predict(model, images)


PARTS = {"training": training, "prediction": prediction}


def rate(step: Callable[[], None], images: int) -> float:
    start = time.perf_counter()
    step()
    return images / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar-fast", choices=[*PRESETS, *RESNETS], metavar="NAME")
    parser.add_argument("--batch-size", type=whole_number(1), default=256)
    parser.add_argument("--threads", type=whole_number(1), default=1)
    parser.add_argument("--steps", type=whole_number(1), default=8, help="in a round")
    parser.add_argument("--rounds", type=whole_number(1), default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # a process of this script's own
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args, *SIDES[args.side])))
        return
    sides = [side for side, (amp, _) in SIDES.items() if amp == "off" or cpu_has_bf16()]
    found: dict[tuple[str, str], list[dict]] = {(side, part): [] for side in sides for part in PARTS}
    for _ in range(args.rounds):
        for side, part in found:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--part", part]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[side, part].append(json.loads(answer.splitlines()[-1]))
    print(f"{args.preset}, batch {args.batch_size}, {args.threads} thread(s), torch {torch.__version__}, images/s")
    for (side, part), rounds in found.items():
        values = [value for each in rounds for value in each["rates"]]
        cells = f"{side:24} {part:10} {statistics.median(values):6.0f} ({min(values):.0f} - {max(values):.0f})"
        print(f"{cells}   peak {max(each['MiB'] for each in rounds):.0f} MiB")


if __name__ == "__main__":
    sys.exit(run_program(main))
