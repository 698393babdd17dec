"""The work of gpu_run.sh: images/s of three presets in training, then the schedules that fit into what is left.

Each measurement is written as soon as it is there, so a run that is cut off leaves what it has measured. A
preset that does not compile is measured without compilation, and that is said. `cifar-fast` is trained
first, for a third of the time that is left, then `cifar` for the rest; epochs follow from the measured
seconds of an epoch, after as many as a second start takes until its first steps (images are read and
models compiled by then), with a tenth of the time in reserve for reports. A run that takes longer all
the same ends before the epoch that would not fit, and one that fails is told and leaves the others.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minivit import cli, config, run
from minivit.budget import random_step
from minivit.files import write_json
from minivit.text import one_line
from minivit.train import Trainer

MEASURED = ("cifar-fast", "cifar", "distilled")
TRAINED = (("cifar-fast", 1 / 3), ("cifar", 1.0))  # share of the time that is left


def prepare(preset: str, args: argparse.Namespace, **changes) -> tuple[Trainer, dict]:
    """A trainer of a preset on the JPEG set."""
    given = {"data": "folder", "data_root": args.data_root, "preset": preset, "device": args.device}
    if args.batch_size:
        given["batch_size"] = args.batch_size
    return run.prepare(given | changes, dataset=args.dataset)


def time_steps(trainer: Trainer, sizes: int, steps: int) -> float:
    """Images/s of training steps, over all image sizes of the recipe; the first steps compile and are not timed.

    0 for no step but these.
    """
    seconds = 0.0
    for phase in range(sizes):
        trainer.epoch = phase * trainer.config.epochs // sizes
        trainer.forward.train()
        for _ in range(3):
            random_step(trainer)
        wait(trainer.device)
        start = time.perf_counter()
        for _ in range(steps):
            random_step(trainer)
        wait(trainer.device)
        seconds += time.perf_counter() - start
    return trainer.batch_size * steps * sizes / seconds if steps else 0.0


def time_end(trainer: Trainer) -> float:
    """Seconds that an epoch takes after its steps: for the hold-out, raw and averaged weights, and the checkpoint."""
    start, path = time.perf_counter(), trainer.run / "timed.pt"
    for model in (trainer.model, trainer.ema.module) if trainer.val_split else ():
        trainer.accuracy(model, trainer.val_split)
    trainer.save(path)
    path.unlink()
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def told(error: Exception) -> str:
    """An error of any type in one line."""
    return one_line(f"{type(error).__name__}: {error}", 200)


def peak(device: str) -> dict[str, float]:
    """The peak of the memory of a GPU since the last call, as a part of a row; nothing of a CPU."""
    if not device.startswith("cuda"):
        return {}
    mib = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return {"peak_mib": mib}


def measure(preset: str, args: argparse.Namespace) -> dict:
    """Images/s, seconds of an epoch and peak memory of one preset, compiled where that works."""
    row = {}
    for compiled in (True, False) if args.device.startswith("cuda") else (False,):
        row["compiled"], start = compiled, time.perf_counter()
        try:
            trainer, arguments = prepare(preset, args, compile=compiled, out=args.out / f"probe-{compiled}")
            row["images_per_s"] = time_steps(trainer, max(1, len(arguments["sizes"])), args.steps)
            row["first_start_seconds"] = time.perf_counter() - start  # with the compiler and the timed steps
            row["epoch_seconds"] = len(trainer.train_split) / row["images_per_s"] + time_end(trainer)
            row |= {"batch_size": trainer.batch_size, "precision": str(trainer.dtype).removeprefix("torch.")}
            row |= {"train_images": len(trainer.train_split)} | peak(args.device)
            del trainer
            start = time.perf_counter()
            again, arguments = prepare(preset, args, compile=compiled, out=args.out / f"probe-{compiled}-again")
            time_steps(again, max(1, len(arguments["sizes"])), 0)
            row["start_seconds"] = time.perf_counter() - start
            break
        except Exception as error:  # a compiler raises types of its own
            row["failed"] = told(error)
    return row


def train(preset: str, row: dict, seconds: float, args: argparse.Namespace) -> dict:
    """Train for `seconds`, or one epoch, and evaluate once. Returns run.final_report with the seconds of training."""
    deadline = time.perf_counter() + seconds
    epochs = max(1, int((0.9 * seconds - row["start_seconds"]) / row["epoch_seconds"]))
    trainer, _ = prepare(preset, args, compile=row["compiled"], epochs=epochs, out=args.out / preset)
    print(cli.first_line(trainer), flush=True)
    ends = [time.perf_counter()]

    def on_epoch() -> None:
        print(cli.epoch_line(trainer, ends[0], 0), flush=True)
        ends.append(time.perf_counter())
        done, side = trainer.epoch, trainer.config.side
        # The first epoch at a size may hold a compilation, and says nothing of the next one.
        steady = done > 1 and side(done - 1) == side(done - 2)
        forecast = ends[-1] - ends[-2] if steady else row["epoch_seconds"]
        if done < epochs and side(done) != side(done - 1):
            forecast = max(forecast, row["epoch_seconds"])
        trainer.stop_requested = ends[-1] + forecast > deadline

    trainer.fit(on_epoch=on_epoch)
    return run.final_report(trainer) | {"planned_epochs": epochs, "train_seconds": ends[-1] - ends[0]}


def main() -> int:
    """Measure, then train what fits. The exit status is 1 if nothing could be trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with train/<class> and test/<class>")
    parser.add_argument("--out", type=Path, required=True, help="folder for throughput.json, result.json and runs")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=560, help="all together, loading included (default 560)")
    parser.add_argument("--steps", type=int, default=30, help="timed steps for each image size (default 30)")
    parser.add_argument("--batch-size", type=int, default=0, help="default: the recipe's")
    args = parser.parse_args()
    start = time.perf_counter()
    args.dataset = run.load_data(config.resolve({"data": "folder", "data_root": args.data_root}))
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    facts = {"device": name, "torch": torch.__version__, "commit": config.commit()}
    speed = {}
    for preset in MEASURED:
        speed[preset] = measure(preset, args)
        write_json(args.out / "throughput.json", facts | speed)
        print(preset, speed[preset], f"after {time.perf_counter() - start:.0f} s", flush=True)
    results = {}
    for preset, share in TRAINED:
        left = args.seconds - (time.perf_counter() - start)
        if "epoch_seconds" in speed[preset] and (left > 0 or not results):
            try:
                results[preset] = train(preset, speed[preset], share * left, args)
            except Exception as error:  # the other one may still work
                results[preset] = {"failed": told(error)}
            write_json(args.out / "result.json", facts | results)
            print(preset, results[preset], f"after {time.perf_counter() - start:.0f} s", flush=True)
    return 0 if any("failed" not in result for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
