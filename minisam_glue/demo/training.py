"""The loop that trains the demo models: schedule, EMA of the weights, run folder, resuming, log, export.

The folder of a run gets metrics.jsonl (a line every LOG_EVERY steps: means since the last one), last.pt (the
whole state of the run) and, at the end, the EMA weights in fp16. A step depends on the recipe and its
number alone, so that an interrupted run goes on as if nothing had happened. As the learning rate is constant until
the cooldown, a run may also be given other --steps before it gets there, or afterwards, from the state kept in
plateau.pt (copy it to last.pt). Matrices learn by Muon, all else by AdamW without decay. What is trained is a Task:
train_detector.py, train_segmenter.py, train_clipseg.py. Several processes share a run, each with batches of its own,
by averaging their gradients: on a CPU, two of one thread each train faster than one of two threads. Left out: mixed
precision, unless the losses of a Task use it (train_clipseg.py; the other two gain nothing by it, measured on a CPU).

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m minisam_glue.demo.train_detector
"""

import argparse
import copy
import dataclasses
import json
import math
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ..models import choose_device
from ..support.files import remove_if_empty, whole_file
from ..support.lock import FolderLock
from ..support.processes import Stopped, on_signals, own_gpu, rank_and_number, run_program
from ..support.reading import (
    anything,
    check_weights,
    fields,
    load,
    load_state_dict,
    mapping,
    plain,
    refuse,
    sequence,
    tensor,
    text,
    whole,
)
from ..support.text import one_line
from ..support.values import number, whole_number
from .muon import Muon, matrices_of

LOG_EVERY, SAVE_EVERY, EVALUATE_EVERY = 50, 100, 2500  # steps


@dataclass(frozen=True)
class Recipe:
    """Settings that the result of any training depends on."""

    steps: int = 12_000
    batch_size: int = 16  # per process
    processes: int = 1
    lr: float = 6e-4
    warmup_steps: int = 500
    cooldown: float = 0.25  # share of the steps, at the end, in which the learning rate falls
    clip_norm: float = 1.0
    ema_decay: float = 0.998  # of the exponential moving average (EMA) of the weights
    seed: int = 0
    start: str | None = None  # file of weights to begin with, as `export` writes them; None: from nothing

    @property
    def plateau(self) -> int:
        """The first step of the cooldown."""
        return round((1 - self.cooldown) * self.steps)

    def lr_at(self, step: int) -> float:
        """Linear warm-up, a plateau, then linearly down to nothing (arXiv 2405.18392)."""
        left = (self.steps - step) / max(1, self.steps - self.plateau)
        return self.lr * min((step + 1) / self.warmup_steps, 1.0, left)


class Task(Protocol):
    """A model to train, its batches, losses and metrics."""

    name: str  # stem of the weights file
    recipe: Recipe

    def build(self) -> nn.Module:
        """The model as training begins."""

    def batch(self, step: int, draw: int) -> Any:
        """Examples of a process for a step. `draw` seeds the scenes: no other process or step has the same."""

    def losses(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """The parts of the loss by name, and their "total"."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The metrics of a model on a few held-out pictures."""


class Batches(Dataset):
    """The batch of a process for each step, drawn on the fly."""

    def __init__(self, task: Task, rank: int):
        self.task, self.rank = task, rank

    def __len__(self) -> int:
        return self.task.recipe.steps

    def __getitem__(self, step: int) -> Any:
        if get_worker_info():
            torch.set_num_threads(1)  # many processes share the cores
        return self.task.batch(step, step * self.task.recipe.processes + self.rank)


class Trainer:
    """One run: model, EMA of its weights, optimiser and step, in a folder. A run that is there already goes on.

    All processes of a run hold the same; the one of rank 0 writes.
    """

    def __init__(self, task: Task, out: Path, device: str, rank: int = 0):
        torch.manual_seed(task.recipe.seed)
        self.task, self.recipe, self.out, self.step, self.rank = task, task.recipe, out, 0, rank
        self.model, begun = task.build(), (out / "last.pt").exists()
        if self.recipe.start and not begun:
            begin_with(self.model, Path(self.recipe.start))
        self.model.to(device).train()
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.stopped: int | None = None  # the signal that asked for the end
        matrices = matrices_of(self.model)
        rest = [w for w in self.model.parameters() if all(w is not matrix for matrix in matrices)]
        self.optimizers = (Muon(matrices, self.recipe.lr), torch.optim.AdamW(rest, self.recipe.lr, weight_decay=0.0))
        self.recent: dict[str, list[Tensor]] = defaultdict(list)  # losses since the last line of the log
        out.mkdir(parents=True, exist_ok=True)
        if begun:
            self.resume(read_state(out / "last.pt", self))

    def resume(self, state: dict) -> None:
        """Go on from a saved state. ValueError if it is of another recipe; steps may differ while on the plateau."""
        recipe, saved = dataclasses.asdict(self.recipe), state["recipe"]
        changed = {name for name in recipe.keys() | saved.keys() if recipe.get(name) != saved.get(name)}
        if state["step"] <= min(self.recipe.plateau, dataclasses.replace(self.recipe, steps=saved["steps"]).plateau):
            changed -= {"steps"}
        if changed:
            raise ValueError(
                f"{self.out} holds a run with another {', '.join(sorted(changed))}: repeat its settings, "
                "or choose another --out"
            )
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, saved_state in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved_state)
        self.step = state["step"]
        log = self.out / "metrics.jsonl"
        if log.exists() and self.rank == 0:  # lines after the checkpoint will be written again
            lines = [line for line in log.read_bytes().splitlines() if is_line_until(line, self.step)]
            with whole_file(log) as path:
                path.write_bytes(b"".join(line + b"\n" for line in lines))

    def state(self) -> dict:
        """The whole state of the run."""
        return {
            "recipe": dataclasses.asdict(self.recipe),
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def save(self, name: str = "last.pt") -> None:
        """Write the whole state to a file of the run's folder."""
        if self.rank == 0:
            with whole_file(self.out / name) as path:
                torch.save(self.state(), path)

    def stop(self, number: int, frame: object) -> None:
        """Answer a signal: the first one ends a run of one process after the step at hand, which is saved.

        A second one, and the first one of several processes, ends it at once: it goes on from its last checkpoint.
        """
        if self.stopped is not None or self.recipe.processes > 1:
            raise Stopped(number)
        self.stopped = number

    def run(self, workers: int, minutes: float = math.inf) -> bool:
        """Train to the last step and write the weights, or stop before. Returns whether it is done. ValueError if the
        weights hold NaN or infinity by then.

        minutes: stop after so many.

        A step after which time is up is the last one of a process; with several of them each looks at its own clock, so
        that only a run of one process may be stopped.
        """
        steps = range(self.step, self.recipe.steps)
        batches = Batches(self.task, self.rank)
        loader = DataLoader(batches, None, sampler=steps, num_workers=workers, worker_init_fn=leave_signals)
        start, begun = time.perf_counter(), self.step
        for batch in loader:
            for name, value in self.update(batch).items():
                self.recent[name].append(value.detach())
            if self.step % LOG_EVERY == 0 or self.step == self.recipe.steps:
                rate = (self.step - begun) / (time.perf_counter() - start)
                means = {name: float(torch.stack(values).mean()) for name, values in self.recent.items()}
                self.recent.clear()
                self.log(means | {"steps_per_s": rate})
            if self.step % EVALUATE_EVERY == 0 and self.rank == 0:
                self.log(self.task.evaluate(self.ema))
            if self.step % SAVE_EVERY == 0:
                self.save()
            if self.step == self.recipe.plateau:
                self.save("plateau.pt")
            is_time_up = time.perf_counter() - start > 60 * minutes
            if (is_time_up or self.stopped is not None) and self.step < self.recipe.steps:
                self.save()
                return False
        self.save()
        if self.rank == 0:
            try:
                check_weights(self.ema.state_dict(), self.ema.state_dict())
            except ValueError as error:
                raise ValueError(f"{self.out}: the training diverged ({error}): lower --lr, another --out") from None
            export(self.ema, self.out / f"{self.task.name}.pt")
        return True

    def update(self, batch: Any) -> dict[str, Tensor]:
        """One step of the optimiser: the losses before it."""
        losses = self.task.losses(self.model, batch)
        self.model.zero_grad()
        losses["total"].backward()
        if self.recipe.processes > 1:
            average_gradients(self.model)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.lr_at(self.step)
            optimizer.step()
        self.step += 1
        decay = min(self.recipe.ema_decay, self.step / (self.step + 10))
        with torch.no_grad():
            for ema, weight in zip(self.ema.parameters(), self.model.parameters()):
                ema.lerp_(weight, 1 - decay)
        return losses

    def log(self, values: dict[str, float]) -> None:
        """A line on the screen and in metrics.jsonl."""
        if self.rank > 0:
            return
        line = {"step": self.step} | {name: round(value, 5) for name, value in values.items()}
        with open(self.out / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        left = (self.recipe.steps - self.step) / values["steps_per_s"] if "steps_per_s" in values else None
        print(json.dumps(line), f"{left / 3600:.2f} h left" if left is not None else "", flush=True)


def leave_signals(worker: int) -> None:
    """Let a process that draws batches go on at Ctrl-C, until the one that trains ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def read_state(path: Path, trainer: Trainer) -> dict:
    """The state of a run as it was saved. ValueError, which names the file, if it is damaged or of another model.

    trainer: the run that would go on.
    """
    try:
        state = load(path)
        optimizers = sequence(anything, len(trainer.optimizers))
        fields(recipe=mapping(text, plain), step=whole(), model=anything, ema=anything, optimizers=optimizers)(
            state, "its content"
        )
        fields(steps=whole(max(1, state["step"])))(state["recipe"], "its recipe")
        for name in ("model", "ema"):
            check_weights(state[name], trainer.model.state_dict())
        state["optimizers"] = [moments(*both) for both in zip(trainer.optimizers, state["optimizers"])]
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error)}; choose another --out, or remove it to begin anew") from None
    return state


def moments(optimizer: torch.optim.Optimizer, saved: object) -> dict:
    """Moments of a saved state_dict() in the form that `optimizer` loads; rates and settings stay its own.

    ValueError if the moments are not of its weights, or would make a step fail.
    """
    (group,), own = optimizer.param_groups, optimizer.state_dict()["param_groups"]
    groups = sequence(fields(params=sequence(whole())), 1)
    fields(state=mapping(whole(0, len(group["params"]) - 1), anything), param_groups=groups)(saved, "an optimiser")
    if list(saved["param_groups"][0]["params"]) != own[0]["params"]:
        raise ValueError("its optimisers are of another model")
    kept = {}
    for place, found in saved["state"].items():
        weight = group["params"][place]
        moment = tensor(*weight.shape)
        kinds = {"step": first_or_later, "exp_avg": moment, "exp_avg_sq": moment}  # AdamW's
        if "momentum" in group:  # Muon's
            kinds = {"momentum": moment}
        fields(**kinds)(found, f"the moments of weight {place}")
        # In memory of their own: one number may stand for many in the file, and could not be written to.
        kept[place] = {name: found[name].clone(memory_format=torch.contiguous_format) for name in kinds}
    return {"state": kept, "param_groups": own}


def first_or_later(value: object, where: str) -> None:
    """The number of a step as AdamW keeps it: a tensor."""
    tensor()(value, where)
    if value < 1:
        refuse(value.item(), where, "at least 1")


def is_line_until(line: bytes, step: int) -> bool:
    """Whether this is a whole line of the log, of this step at most; the last one of a killed run may be cut."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, TypeError, KeyError):
        return False


def average_gradients(model: nn.Module) -> None:
    """Give all processes the mean of their gradients; a weight that a process did not use counts as zero in it."""
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    gradients = [weight.grad for weight in model.parameters()]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    for gradient, part in zip(gradients, together.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(part.view_as(gradient) / dist.get_world_size())


def begin_with(model: nn.Module, path: Path) -> None:
    """Give a model the weights that `export` wrote. ValueError if the file cannot be read, or is another model's."""
    try:
        state = load_state_dict(path)
        check_weights(state, model.state_dict())
    except (OSError, ValueError) as error:
        raise ValueError(f"--start {path}: {one_line(error)}") from None
    model.load_state_dict(state)


def export(model: nn.Module, path: Path) -> None:
    """The weights alone, floats in fp16; what the model holds under two names is stored once."""
    state, halves = model.state_dict(), {}
    for key, value in state.items():
        if value.is_floating_point():
            state[key] = halves.setdefault(value.data_ptr(), value.detach().cpu().half())
    with whole_file(path) as temporary:
        torch.save({"model": dict(state)}, temporary)


def command(doc: str, task: Callable[[Recipe], Task], recipe: Recipe, out: str) -> None:
    """Run the command line of a training whose recipe is `recipe` unless flags say otherwise, and end the process."""
    sys.exit(run_program(lambda: train(doc, task, recipe, out)))


def train(doc: str, task: Callable[[Recipe], Task], recipe: Recipe, out: str) -> None:
    """Train as the command line says. ValueError or OSError for what cannot be; Stopped after a signal."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag, count = parser.add_argument, whole_number(1)
    flag("--out", type=Path, default=Path(out), help="folder of the run (default %(default)s)")
    flag("--steps", type=count, default=recipe.steps, help="steps of the optimiser (default %(default)s)")
    flag("--batch-size", type=count, default=recipe.batch_size, help="scenes a step and process (default %(default)s)")
    flag("--lr", type=number(0, 1, above=True), default=recipe.lr, help="highest learning rate (default %(default)s)")
    flag("--seed", type=whole_number(0), default=recipe.seed)
    flag("--start", metavar="FILE", help="begin with these weights; default: from nothing")
    flag("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flag("--workers", type=whole_number(0), default=0, help="processes that draw scenes; with a GPU take 8 or more")
    flag(
        "--minutes",
        type=number(0, 1e6, above=True),
        default=math.inf,
        help="stop after so many minutes; the same line again goes on",
    )
    args = parser.parse_args()
    rank, processes = rank_and_number()
    if processes > 1 and args.minutes < math.inf:
        raise ValueError("--minutes stops a run of one process: leave it out, or start without torchrun")
    given = {name: getattr(args, name) for name in ("steps", "batch_size", "lr", "seed", "start")}
    recipe = dataclasses.replace(recipe, processes=processes, **given)
    if processes > 1 and args.device == "cuda":
        args.device = own_gpu(torch.cuda.device_count())
    device = choose_device(args.device)
    if processes > 1:
        # PyTorch for Windows has no NCCL.
        dist.init_process_group("nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo")
    is_new = not args.out.exists()
    args.out.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(args.out)
    try:
        trainer = Trainer(task(recipe), args.out, str(device), rank)
        with on_signals(trainer.stop):
            done = trainer.run(args.workers, args.minutes)
    finally:
        lock.release()
        if is_new:  # nothing may have come of it
            with suppress(OSError):
                remove_if_empty(args.out)
    if not done:
        print(f"stopped at step {trainer.step} of {recipe.steps}: the same line again goes on", flush=True)
    if trainer.stopped is not None and not done:
        raise Stopped(trainer.stopped)
    if processes > 1:
        dist.destroy_process_group()
