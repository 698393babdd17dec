"""Whether a checkpoint can continue a run: of the same settings and data, with numbers that can be those of a run."""

import math
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import torch

from minivit import reading
from minivit.text import name_classes
from minivit.train_config import TRAIN_DEFAULTS, TrainingError
from minivit.vit import VisionTransformer

if TYPE_CHECKING:
    from minivit.train import Trainer


def check_resumable(trainer: "Trainer", state: dict) -> None:
    """ValueError unless `trainer` can continue from `state`, what its state_dict was.

    TrainingError, which is one, if settings or data differ: the schedule and the order of the images need the same.
    """
    check_same_settings(trainer, state)
    check_same_teacher(trainer, state)
    check_same_data(trainer, state)
    check_progress(trainer, state)
    for weights in ("model", "ema"):
        reading.check_weights(state[weights], trainer.model.state_dict())


def check_same_settings(trainer: "Trainer", state: dict) -> None:
    """TrainingError unless the settings of training are those of the checkpoint."""
    # A setting that is newer than the checkpoint had its default when the run began.
    saved = TRAIN_DEFAULTS | state["config"]
    ours = asdict(trainer.config)
    if state.get("precision"):  # to which "auto" came
        saved["amp"], ours["amp"] = state["precision"], trainer.about()["precision"]
    changed = [k for k, v in ours.items() if saved[k] != v]
    if "epochs" in changed:
        hint = ""
        if isinstance(trainer.model, VisionTransformer):  # others take no --pretrained
            hint = f"; train on from its weights: --pretrained {trainer.run / 'best.pt'}, another --out"
        raise TrainingError(
            f"--epochs {trainer.config.epochs}: the learning rate of this run ends with epoch {saved['epochs']}, so "
            f"it can't have another number of epochs{hint}"
        )
    if changed:
        raise TrainingError(f"this run was started with another {', '.join(changed)}: resume it with the same settings")


def check_same_teacher(trainer: "Trainer", state: dict) -> None:
    """TrainingError unless the teacher has the weights that taught this run before, if its checkpoint tells them."""
    if state.get("teacher_weights", trainer.taught_by) != trainer.taught_by:
        raise TrainingError(
            "this run was started with another --teacher, whose weights differ, or with none: resume it with the same"
        )


def check_same_data(trainer: "Trainer", state: dict) -> None:
    """TrainingError unless a checkpoint is of the data at hand: its classes, numbers of images, normalisation."""
    if state["classes"] != list(trainer.data.classes):
        known, there = map(name_classes, (state["classes"], trainer.data.classes))
        raise TrainingError(f"this run was started with {known}, the data has {there}: resume it with the same data")
    listings = [about.get("listing") for about in (state["describe"], trainer.describe)]
    if None not in listings and listings[0] != listings[1]:
        raise TrainingError(
            "images were added, removed or renamed since this run was started, and its class folders are split by the "
            "seed: resume it with the same files"
        )
    reading.optional(reading.sequence(reading.whole(), 2))(state.get("images"), "its numbers of images")
    if state.get("images") not in (None, trainer.images):
        raise TrainingError(
            "this run was started with {} training and {} hold-out images, now there are {} and {}: resume it with "
            "the same data, --subset and --val-split".format(*state["images"], *trainer.images)
        )
    for name in ("mean", "std"):
        if not all(map(partial(math.isclose, rel_tol=1e-3), state[name], getattr(trainer.data, name))):
            raise TrainingError(f"this run was started with another --{name}, or other images: resume it with the same")


def check_progress(trainer: "Trainer", state: dict) -> None:
    """ValueError unless the numbers of a checkpoint, weights and moments aside, can be those of this run."""
    r, images = reading, len(trainer.train_split)
    scaler = r.fields(
        scale=r.positive,
        growth_factor=r.positive,
        backoff_factor=r.positive,
        growth_interval=r.whole(1),
        _growth_tracker=r.whole(),
    )
    r.fields(
        model=r.mapping(r.text, r.any_tensor),
        optimizer=r.anything,
        scaler=scaler if trainer.scaler.is_enabled() else r.anything,
        rng=r.numbers(torch.get_rng_state()),
        generator=r.numbers(trainer.generator.get_state()),
        rng_cuda=r.sequence(r.any_tensor),
        epoch=r.whole(0, trainer.config.epochs),
        batch=r.whole(0, trainer.steps_per_epoch),
        order=r.any_tensor,
        sums=r.sequence(r.measured, 3),
        bad_steps=r.whole(),
        bad_in_a_row=r.whole(),
        best=r.optional(r.fields(score=r.real, epoch=r.whole(1, trainer.config.epochs))),
        history=r.sequence(r.mapping(r.text, r.optional(r.measured))),
    )(state, "the run")
    r.sequence(r.fields(epoch=r.whole(1)))(state["history"], "its history")
    if trainer.can_choose and state["epoch"] and state["best"] is None:
        raise ValueError("the run has no best epoch")
    r.real(state.get("cpu_seconds", 0.0), "its processor time")
    r.optional(r.any_tensor)(state.get("rng_mps"), "its random numbers on MPS")
    every = torch.arange(images)
    if state["batch"]:  # in the middle of an epoch
        r.numbers(every)(state["order"], "the order of the images")
        drawn = state["order"].sort().values
        if trainer.config.balance == "sampler" and not 0 <= drawn[0] <= drawn[-1] < images:
            raise ValueError("the order of the images has others than there are")
        if trainer.config.balance != "sampler" and not torch.equal(drawn, every):
            raise ValueError("the order of the images does not have each of them once")
