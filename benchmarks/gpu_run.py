"""The work of gpu_run.sh: images/s of three presets in training, and the longest schedules that fit.

`cifar-fast` is measured and trained first, for a third of the time, then `cifar` for the rest; epochs follow from the
measured seconds of an epoch, after as many as a second start takes until its first steps (images are read and models
compiled by then), with a tenth of the time in reserve for reports. At the end `distilled` is measured, which is not
trained, and how fast the others are with CUDA graphs; a part of the time is kept for that.

All is written as soon as it is there, so a run that is cut off leaves what it has. A preset that does not compile is
measured without compilation. A run that takes longer than planned ends before the epoch that would not fit. What fails,
or finds no time left, is told and leaves the others.
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

TRAINED = (("cifar-fast", 1 / 3), ("cifar", 1.0))  # share of the time that is left
LAST = 0.15  # share of all time that is kept for what is measured at the end
NO_TIME = {"skipped": "no time left"}


def prepare(preset: str, args: argparse.Namespace, **changes) -> Trainer:
    """A trainer of a preset on the JPEG set."""
    given = {"data": "folder", "data_root": args.data_root, "preset": preset, "device": args.device}
    if args.batch_size:
        given["batch_size"] = args.batch_size
    return run.prepare(given | changes, dataset=args.dataset)[0]


def time_steps(trainer: Trainer, steps: int) -> float:
    """Images/s of training steps, over all image sizes of the recipe; the first steps compile and are not timed.

    0 for no step but these.
    """
    seconds, sizes = 0.0, max(1, len(trainer.config.sizes))
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
    """Seconds that an epoch takes after its steps: for the hold-out, raw and averaged weights, and the checkpoint.

    The second time, as the first one loads what later ones have.
    """
    end_epoch(trainer)
    start = time.perf_counter()
    end_epoch(trainer)
    return time.perf_counter() - start


def end_epoch(trainer: Trainer) -> None:
    """What a trainer does after the steps of an epoch."""
    path = trainer.run / "timed.pt"
    for model in (trainer.model, trainer.ema.module) if trainer.val_split else ():
        trainer.accuracy(model, trainer.val_split)
    trainer.save(path)
    path.unlink()
    wait(trainer.device)


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
    """Images/s, seconds of an epoch and of a start, and peak memory of one preset, compiled where that works."""
    row = {}
    for compiled in (True, False) if args.compile else (False,):
        row["compiled"], start = compiled, time.perf_counter()
        peak(args.device)  # of this row alone, not of what ran before
        try:
            trainer = prepare(preset, args, compile=compiled, out=args.out / f"probe-{compiled}")
            row["images_per_s"] = time_steps(trainer, args.steps)
            row["first_start_seconds"] = time.perf_counter() - start  # with the compiler and the timed steps
            row["epoch_seconds"] = len(trainer.train_split) / row["images_per_s"] + time_end(trainer)
            row |= {"batch_size": trainer.batch_size, "precision": str(trainer.dtype).removeprefix("torch.")}
            row |= {"train_images": len(trainer.train_split)} | peak(args.device)
            del trainer
            start = time.perf_counter()
            time_steps(prepare(preset, args, compile=compiled, out=args.out / f"probe-{compiled}-again"), 0)
            row["start_seconds"] = time.perf_counter() - start
            break
        except Exception as error:  # a compiler raises types of its own
            row["failed"] = told(error)
    return row


def measure_steps(preset: str, args: argparse.Namespace, mode: str = "default", **changes) -> dict:
    """Images/s of the steps of one preset, compiled in a mode of torch.compile."""
    peak(args.device)
    try:
        out = args.out / f"probe-{mode}-{preset}"
        trainer = prepare(preset, args, compile=False, out=out, **changes)
        trainer.forward = torch.compile(trainer.model, mode=mode) if args.compile else trainer.model
        return {"images_per_s": time_steps(trainer, args.steps), "batch_size": trainer.batch_size} | peak(args.device)
    except Exception as error:
        return {"failed": told(error)}


def train(preset: str, row: dict, seconds: float, args: argparse.Namespace) -> dict:
    """Train for `seconds`, or one epoch, and evaluate once. Returns run.final_report with the seconds of training."""
    deadline = time.perf_counter() + seconds
    epochs = max(1, int((0.9 * seconds - row["start_seconds"]) / row["epoch_seconds"]))
    trainer = prepare(preset, args, compile=row["compiled"], epochs=epochs, out=args.out / preset)
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
    parser.add_argument("--compile", action="store_true", help="compile on a CPU, too, as on a GPU")
    parser.add_argument("--seconds", type=float, default=560, help="all together, loading included (default 560)")
    parser.add_argument("--steps", type=int, default=30, help="timed steps for each image size (default 30)")
    parser.add_argument("--batch-size", type=int, default=0, help="default: the recipe's")
    args = parser.parse_args()
    args.compile = args.compile or args.device.startswith("cuda")
    start = time.perf_counter()
    args.dataset = run.load_data(config.resolve({"data": "folder", "data_root": args.data_root}))
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    facts = {"device": name, "torch": torch.__version__, "commit": config.commit()}
    speed, results = {}, {}

    def left() -> float:
        return args.seconds - (time.perf_counter() - start)

    def note(rows: dict, file: str, name: str, row: dict) -> None:
        rows[name] = row
        write_json(args.out / file, facts | rows)
        print(name, row, f"after {time.perf_counter() - start:.0f} s", flush=True)

    for preset, share in TRAINED:
        note(speed, "throughput.json", preset, measure(preset, args) if left() > 0 or not speed else NO_TIME)
        seconds = share * (left() - LAST * args.seconds)
        if speed[preset] is NO_TIME or (seconds <= 0 and results):
            result = NO_TIME
        elif "epoch_seconds" not in speed[preset]:
            result = {"failed": "it could not be measured: see throughput.json"}
        else:
            try:
                result = train(preset, speed[preset], seconds, args)
            except Exception as error:  # the other one may still work
                result = {"failed": told(error)}
        note(results, "result.json", preset, result)
    further = [("distilled, taught by demo", "distilled", {"teacher": Path("demo")})]
    further += [(f"{preset} with CUDA graphs", preset, {"mode": "reduce-overhead"}) for preset, _ in TRAINED]
    for name, preset, changes in further:
        note(speed, "throughput.json", name, measure_steps(preset, args, **changes) if left() > 0 else NO_TIME)
    return 0 if any("test_acc" in result for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
