"""Images per second and peak memory of a preset, in training and in prediction, fp32 and bf16, on a CPU.

    python benchmarks/preset_speed.py --preset cifar-fast                  # batch 256, one thread
    python benchmarks/preset_speed.py --preset cifar --batch-size 64 --steps 4

Each precision runs in a process of its own, in turns, so that a machine whose speed drifts slows all alike; so does
bf16 with the memory handling of the C library as it is by default (`minivit.process.keep_freed_memory` left out). A
training step is the trainer's own: augmentation, mixing, forward, backward, optimiser, averaged weights. Images are
generated. Printed: the median of all rounds, with the slowest and the fastest.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minivit import run

SIDES = {
    "fp32": ("off", True),
    "bf16": ("bf16", True),
    "bf16, memory given back": ("bf16", False),
}  # name -> (--amp, whether freed memory is kept)


def measure(args: argparse.Namespace, amp: str, keep: bool) -> dict:
    """Images per second of each step, training and prediction, and the peak memory of this process, MiB."""
    if not keep:
        run.keep_freed_memory = lambda: None
    with tempfile.TemporaryDirectory() as folder:
        given = {"data": "shapes", "preset": args.preset, "batch_size": args.batch_size, "amp": amp, "sizes": ()}
        given |= {"device": "cpu", "threads": args.threads, "epochs": 2, "out": Path(folder)}
        trainer, _ = run.prepare(given)
        images, labels = (t[: args.batch_size] for t in (trainer.train_split.images, trainer.train_split.labels))
        training = [rate(lambda: trainer.train_step(images, labels), args.batch_size) for _ in range(args.steps + 2)]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        predict = lambda: trainer.evaluator.predict(trainer.model, images)  # noqa: E731
        prediction = [rate(predict, args.batch_size) for _ in range(args.steps + 2)]
    return {"training": training[2:], "prediction": prediction[2:], "MiB": peak}  # the first steps set up memory


def rate(step, images: int) -> float:
    start = time.perf_counter()
    step()
    return images / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar-fast")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help="in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # a process of this script's own
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args, *SIDES[args.side])))
        return
    found: dict[str, list[dict]] = {side: [] for side in SIDES}
    for _ in range(args.rounds):
        for side in SIDES:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[side].append(json.loads(answer.splitlines()[-1]))
    print(f"{args.preset}, batch {args.batch_size}, {args.threads} thread(s), torch {torch.__version__}, images/s")
    for side, rounds in found.items():
        cells = []
        for part in ("training", "prediction"):
            values = [value for each in rounds for value in each[part]]
            cells.append(f"{part} {statistics.median(values):6.0f} ({min(values):.0f} - {max(values):.0f})")
        print(f"{side:24} {'   '.join(cells)}   peak {max(each['MiB'] for each in rounds):.0f} MiB in training")


if __name__ == "__main__":
    main()
