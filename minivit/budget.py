"""A training run under a time budget: the number of epochs that fit, from steps that are timed beforehand.

The time is processor time over all threads on a CPU, so that waiting for other work on the machine does not count,
and elapsed time on a GPU. Of the timed steps the lower quartile is taken: other processes also slow steps down while
they run (they share caches and memory), and a run should not be shorter because its machine was busy when it began.
On a busy machine a run therefore takes more than its budget; metrics.jsonl and the table of a study have the processor
minutes that were spent. The schedule is that of a plain run of so many epochs, so a run under a budget resumes bit for
bit. Left out: schedules that follow the clock.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from minivit import config, run
from minivit.splits import Dataset
from minivit.train import Trainer
from minivit.train_config import TrainingError

LEAST = 5.0  # seconds of measurement at each image size
FEWEST, MOST = 6, 40  # steps of it
SHARE = 0.01  # of the budget, for measurement at each size: a machine's speed can change for seconds at a time
NOT_TIMED = {"clean_epochs": 0, "unsmoothed_epochs": 0, "warmup": 0.0, "patience": 0}  # what a step takes no time for


@dataclass(frozen=True)
class Budget:
    """The time of one run: hours on an idle machine, or processor minutes over all threads. At most one is given."""

    hours: float | None = None
    cpu_minutes: float | None = None

    def __bool__(self) -> bool:
        return self.hours is not None or self.cpu_minutes is not None

    def __str__(self) -> str:
        return f"{self.cpu_minutes:g} CPU minutes" if self.hours is None else f"{self.hours:g} h"

    def seconds(self, device: torch.device) -> float:
        """Seconds on the clock of `device`. TrainingError for processor minutes of a GPU."""
        if self.hours is not None:
            return 3600 * self.hours * (torch.get_num_threads() if device.type == "cpu" else 1)
        if device.type != "cpu":
            raise TrainingError(f"--cpu-minutes counts processor time, and {device} is no CPU: give --hours")
        return 60 * self.cpu_minutes


def epochs_within(budget: Budget, arguments: dict, dataset: Dataset) -> int:
    """The number of epochs of the run of these arguments that fit into a budget; at least 1.

    Evaluation of the hold-out counts, and each epoch as its image size does.
    """
    with tempfile.TemporaryDirectory() as folder:
        sizes = config.resolve(arguments)["sizes"]
        probe = {**arguments, "out": Path(folder) / "probe", "epochs": max(1, len(sizes)), **NOT_TIMED}
        trainer, _ = run.prepare(probe, dataset=dataset)
        try:
            within = budget.seconds(trainer.device)
            first = {trainer.config.side(epoch): epoch for epoch in range(trainer.config.epochs)}
            cost = {side: epoch_seconds(trainer, epoch, SHARE * within) for side, epoch in first.items()}
        finally:
            trainer.claim.release()

    def fits(epochs: int) -> bool:
        whole = dataclasses.replace(trainer.config, epochs=epochs)
        return sum(cost[whole.side(epoch)] for epoch in range(epochs)) <= within

    epochs = max(1, int(within / max(cost.values())))  # which fit at the slowest size
    while fits(epochs + 1):
        epochs += 1
    return epochs


def epoch_seconds(trainer: Trainer, epoch: int, least: float = 0.0) -> float:
    """Seconds of an epoch of a run, its evaluation included: the lower quartile of timed steps.

    At least FEWEST steps are timed, then until they have taken LEAST seconds or are MOST, but never for less than
    `least` seconds.
    """
    trainer.epoch = epoch
    trainer.forward.train()
    step_seconds(trainer)  # the first one allocates, and may compile
    steps = []
    while len(steps) < FEWEST or (sum(steps) < LEAST and len(steps) < MOST) or sum(steps) < least:
        steps.append(step_seconds(trainer))
    step = statistics.quantiles(steps, n=4)[0] or statistics.fmean(steps)  # 0 between two ticks of a coarse clock
    return trainer.steps_per_epoch * step + evaluation_seconds(trainer)


def step_seconds(trainer: Trainer) -> float:
    """Seconds of one training step."""
    return timed(trainer, lambda: random_step(trainer))


def random_step(trainer: Trainer) -> None:
    """Take a training step on images drawn at random, which the trainer gathers and mirrors as in an epoch."""
    index = torch.randint(len(trainer.train_split), (trainer.batch_size,)).to(trainer.device)
    trainer.train_step(trainer.flipped(index), trainer.train_split.labels[index])


def evaluation_seconds(trainer: Trainer) -> float:
    """Seconds in which an epoch evaluates raw and averaged weights on the hold-out; 0 without one."""
    if not trainer.val_split:
        return 0.0
    return 2 * timed(trainer, lambda: trainer.accuracy(trainer.ema.module, trainer.val_split))


def timed(trainer: Trainer, work: Callable[[], object]) -> float:
    """Seconds that `work` takes: processor time on a CPU, elapsed time on a GPU."""
    clock = time.process_time if trainer.device.type == "cpu" else time.perf_counter
    started = clock()
    work()
    if trainer.device.type != "cpu":
        float(next(trainer.model.parameters()).sum())  # waits for the device
    return clock() - started
