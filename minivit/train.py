"""The training loop.

One `Trainer` holds the whole state of a run, so that a checkpoint is a copy of it and a resumed run
continues bit for bit. Random numbers come from two places, both saved: `generator` draws the order of
images and the augmentations, PyTorch's global one dropout and stochastic depth. The best epoch is chosen by
the hold-out; the trainer never reads the test images.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from minivit import checkpoint
from minivit.augment import Augment, normalise
from minivit.distill import fingerprint
from minivit.distributed import Ranks, synchronise_norms
from minivit.ema import EMA
from minivit.evaluate import Evaluator, resize_to_model
from minivit.fast import accelerate, unused_parameters
from minivit.files import Claim, write_atomically
from minivit.finetune import freeze, keep_frozen
from minivit.losses import class_weights, distillation_loss, soft_cross_entropy
from minivit.mix import mix_batch, one_hot
from minivit.muon import Muon
from minivit.optim import adamw, load_moments, one_cycle, warmup_cosine, warmup_linear
from minivit.precision import choose_precision
from minivit.reading import flag_of
from minivit.resume import check_resumable
from minivit.splits import Dataset, Split
from minivit.stem import Whitening, WhiteningStem
from minivit.text import one_line
from minivit.train_config import TrainConfig, TrainingError, check_crop, check_shares
from minivit.vit import VisionTransformer

log = logging.getLogger(__name__)
LEAST_HOLD_OUT = 100  # images: of fewer, the accuracy says too little to choose weights by
WHITENED_AT_ONCE = 10_000 * 32**2  # pixels of images that are held as numbers, 200 bytes each


@contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """Turn what a compiler raises where --compile is wanted, as without a C++ compiler, into a TrainingError."""
    try:
        yield
    except RuntimeError as error:
        of_compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor")) or "Dynamo" in str(error)
        if not (wanted and of_compiler):
            raise
        raise TrainingError(f"--compile can't be used here: leave it out ({one_line(error, 150)})") from error


def set_up_fine_tuning(model: nn.Module, config: TrainConfig, processes: int = 1) -> None:
    """Freeze blocks and switch checkpointing on as the settings say. TrainingError if the model has no such blocks."""
    if config.checkpointing and processes > 1:  # the second pass through a block would draw its dropout by itself
        raise TrainingError("--checkpointing goes with one process: leave it out, or torchrun")
    asked = {"train_last": None, "layer_decay": 1.0, "checkpointing": False}
    if not isinstance(model, VisionTransformer):
        for name, default in asked.items():
            if getattr(config, name) != default:
                raise TrainingError(f"{flag_of(name)} needs a Vision Transformer, not a {type(model).__name__}")
        return
    model.checkpointing = config.checkpointing
    if config.train_last is not None:
        try:
            freeze(model, config.train_last)
        except ValueError as error:
            raise TrainingError(error) from None


def check_sizes(sizes: tuple[int, ...], model: nn.Module) -> None:
    """Raise TrainingError if a VisionTransformer does not take images of these sides, which are those of squares."""
    config = getattr(model, "config", None)
    if sizes and config and config.size[0] != config.size[1]:
        raise TrainingError(
            f"--sizes {sizes[0]}: it is the side of a square, and the model sees {config.size}: leave it out"
        )
    wrong = [side for side in sizes if config and not config.takes(side, side)]
    if wrong:
        step, height, width = (config.patch, *config.size)
        fits = range(step, min(height, width) + 1, step) if config.smaller_images else [height]
        near = sorted(sorted(fits, key=lambda side: abs(side - wrong[0]))[:2])
        raise TrainingError(
            f"--sizes {wrong[0]}: the model takes no {wrong[0]}x{wrong[0]} images; "
            f"the nearest that it takes: {', '.join(map(str, near))}"
        )


def fit_whitening(model: nn.Module, data: Dataset) -> None:
    """Set the frozen first layer of a whitening stem from training images at equal steps, 10,000 at most.

    Filters that were set before, such as those of loaded weights, stay, and so do those that a model was trained with.
    """
    stem = getattr(model, "patch_embed", None)
    if not (isinstance(stem, WhiteningStem) and isinstance(stem.whiten, Whitening) and stem.whiten.is_random):
        return
    if stem.stages[0].down.norm.num_batches_tracked:
        log.warning("the stem is not whitened, and saw images in training mode before: its random filters stay")
        return
    height, width = model.config.size
    images = data.train.images[:: max(1, len(data.train) // 5000)]
    parts = images.split(max(1, WHITENED_AT_ONCE // (height * width)))
    stem.whiten.fit(resize_to_model(normalise(part, data.mean, data.std), model) for part in parts)


def augmentations(config: TrainConfig, data: Dataset) -> tuple[Augment, Augment]:
    """Augmentation of the clean epochs at the end, and of the ones before them, by the settings."""
    flip = config.flip and not config.alternate_flip  # which the trainer does itself
    plain = Augment(data.mean, data.std, config.crop, flip, padding=config.padding)
    strong = replace(
        plain,
        trivial_augment=config.trivial_augment,
        jitter=config.jitter,
        rotate=config.rotate,
        erasing=config.erasing,
    )
    return plain, strong


class Trainer:
    """Train `model` on `data` as `config` says, with metrics and checkpoints in the folder `run`, which is made.

    It seeds PyTorch's global random numbers. `teacher`, when given, is a module from normalised images to logits;
    its labels train the distillation head, or the only head if there is just one. `describe`: how checkpoints say
    that the model is built, for checkpoint.load_model; by default checkpoint.describe does it, for a
    VisionTransformer. `ranks`: this process among those that train together; see distributed.py. Call `fit`, then
    run.final_report. TrainingError for settings that don't fit the data or the model.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        config: TrainConfig,
        run: Path,
        device: torch.device | str,
        teacher: nn.Module | None = None,
        describe: dict | None = None,
        ranks: Ranks = Ranks(),
    ):
        if config.compile and ranks.number > 1:  # a compiled module would not average its gradients
            raise TrainingError("--compile goes with one process: leave it out, or torchrun")
        check_crop(config.crop, data.train.images.shape[-1])
        check_sizes(config.sizes, model)
        set_up_fine_tuning(model, config, ranks.number)
        fit_whitening(model, data)
        torch.manual_seed(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.config, self.run, self.device = config, Path(run), (device := torch.device(device))
        if describe is None and isinstance(model, VisionTransformer):
            describe = checkpoint.describe(model, "cifar")  # of which all settings are named
        self.teacher, self.describe, self.ranks = teacher, describe or {}, ranks
        self.taught_by = None if teacher is None else fingerprint(teacher)
        self.dtype = choose_precision(config.amp, device)
        self.model = accelerate(model.to(device, memory_format=torch.channels_last))
        if ranks.number > 1:
            synchronise_norms(self.model)
        with compiling(config.compile):
            self.forward = torch.compile(self.model) if config.compile else self.model
        self.data = data
        self.train_split, self.val_split = data.train.to(device), data.val.to(device) if data.val else None
        self.batch_size = min(config.batch_size, len(data.train))
        check_shares(self.batch_size, config.accumulate, ranks.number)
        self.steps_per_epoch = len(data.train) // self.batch_size  # what is left over waits for the next shuffle
        self.total_steps = config.epochs * self.steps_per_epoch
        self.optimizer = self.make_optimizer()
        self.ema = EMA(self.model, config.ema_start, config.ema_end, self.total_steps)
        self.evaluator = Evaluator(data.mean, data.std, device, self.dtype)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.plain, self.strong = augmentations(config, data)
        self.class_weights = class_weights(self.train_split.labels, len(data.classes))
        alternate = config.flip and config.alternate_flip
        self.mirrored = (torch.rand(len(data.train), generator=self.generator) < 0.5).to(device) if alternate else None
        self.epoch = self.batch = self.bad_steps = self.bad_in_a_row = 0
        self.order = torch.empty(0, dtype=torch.int64)
        self.sums = [0.0, 0.0, 0]  # loss, hits, images of this epoch
        self.best: dict | None = None
        self.history: list[dict] = []
        self.cpu_seconds = 0.0  # processor time of all threads up to the last count, evaluation included
        self.clock = time.process_time()
        self.stop_requested = False
        self.claim: Claim | None = None  # of the run folder; held as long as the trainer lives
        self.can_choose = self.val_split is not None and len(self.val_split) >= LEAST_HOLD_OUT

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Build the optimizer that the settings name, over the model's parameters."""
        c = self.config
        if c.optimizer == "muon":
            products = torch.float32 if self.dtype == torch.float32 else torch.bfloat16
            return Muon(self.model, c.lr, adamw_lr=c.adamw_lr, dtype=products)
        return adamw(self.model, c.lr, c.weight_decay, layer_decay=c.layer_decay)

    # ---- the loop ----------------------------------------------------------------------------------

    def fit(
        self,
        until: int | None = None,
        on_step: Callable[[], None] = lambda: None,
        on_epoch: Callable[[], None] = lambda: None,
    ) -> bool:
        """Train to the last epoch (or to `until`). Returns False when a stop was requested, even in the last epoch, and
        saved."""
        self.run.mkdir(parents=True, exist_ok=True)
        if self.forward is self.model:
            self.forward = self.ranks.parallel(self.model, self.device)
        last = self.config.epochs if until is None else min(until, self.config.epochs)
        while self.epoch < last and not self.stopped_early:
            if not self.train_epoch(on_step):
                self.count_cpu_seconds()
                self.save(self.run / "last.pt")
                return False
            self.end_epoch()
            on_epoch()
        return not self.stopping()

    @property
    def stopped_early(self) -> bool:
        """Whether the last `patience` epochs brought no better hold-out accuracy."""
        patience = self.config.patience
        return bool(patience and self.best and self.epoch - self.best["epoch"] >= patience)

    def train_epoch(self, on_step: Callable[[], None]) -> bool:
        """One pass over the training images, from where the run stands. False when a stop was requested."""
        self.forward.train()
        keep_frozen(self.model)
        if self.stopping():  # before the order is drawn, which the resumed run does
            return False
        if self.batch == 0:
            self.order = self.draw_order()
            self.sums = [0.0, 0.0, 0]
        self.started, self.first_batch = time.perf_counter(), self.batch
        while self.batch < self.steps_per_epoch:
            if self.stopping():
                return False
            index = self.order[self.batch * self.batch_size : (self.batch + 1) * self.batch_size].to(self.device)
            self.train_step(self.flipped(index), self.train_split.labels[index])
            self.batch += 1
            on_step()
        return True

    def stopping(self) -> bool:
        """Whether a stop is requested, in this process or in another one: all stop at the same step."""
        agreed = self.ranks.any(self.stop_requested)
        self.stop_requested |= agreed  # a signal may have come while the processes agreed: it counts at the next step
        return agreed

    def draw_order(self) -> Tensor:
        """The images of an epoch, as indices: each once, or drawn so that all classes are equally likely."""
        if self.config.balance != "sampler":
            return torch.randperm(len(self.train_split), generator=self.generator)
        chances = self.class_weights[self.train_split.labels].cpu()
        return torch.multinomial(chances, len(chances), replacement=True, generator=self.generator)

    def flipped(self, index: Tensor) -> Tensor:
        """The images at an index; with alternate_flip, the half of them whose turn it is in this epoch mirrored."""
        images = self.train_split.images[index]
        if self.mirrored is None:
            return images
        turn = self.mirrored[index] ^ bool(self.epoch % 2)
        return torch.where(turn[:, None, None, None], images.flip(3), images)

    @property
    def side(self) -> int | None:
        """The side in pixels of this epoch's images, None for what the model takes."""
        return self.config.side(self.epoch)

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One update from uint8 images (B, 3, H, W) and labels (B,)."""
        left = self.config.epochs - self.epoch
        clean = left <= self.config.clean_epochs
        smoothed = not clean and left > self.config.unsmoothed_epochs
        x = resize_to_model((self.plain if clean else self.strong)(images, self.generator), self.model, self.side)
        target = one_hot(labels, len(self.data.classes), self.config.label_smoothing if smoothed else 0.0)
        if not clean:
            c = self.config
            x, target = mix_batch(x, target, c.mixup, c.cutmix, c.mix_prob, self.generator)
        self.set_lr()
        before = [buffer.clone() for buffer in self.model.buffers()]
        self.optimizer.zero_grad(set_to_none=True)
        losses, hits, done = 0.0, 0, 0
        exact = torch.float32 if self.device.type == "mps" else torch.float64  # which Apple's GPUs lack
        for x_part, target_part in zip(x.chunk(self.config.accumulate), target.chunk(self.config.accumulate)):
            rows, own = len(x_part), self.ranks.share(len(x_part))
            x_part, target_part, done = x_part[own], target_part[own], done + rows
            with self.ranks.part(self.forward, rows, last=done == len(x)):
                loss, logits = self.loss(x_part, target_part)
                # The gradients are averaged over the processes, the loss is a sum over rows.
                self.scaler.scale(loss * (self.ranks.number * len(x_part) / len(x))).backward()
            losses += loss.detach().to(exact) * len(x_part)
            hits += (logits.detach().argmax(1) == target_part.argmax(1)).sum()
        losses, hits = self.ranks.sum(losses, hits)
        if self.update():
            self.sums = [self.sums[0] + losses, self.sums[1] + hits, self.sums[2] + len(x)]
        else:  # running means of batch normalisation would stay not finite
            for buffer, value in zip(self.model.buffers(), before):
                buffer.copy_(value)

    def loss(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of normalised images (B, 3, H, W) for soft targets (B, classes), and the logits (B, classes)."""
        weights = self.class_weights if self.config.balance == "weights" else None
        mixed = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with compiling(self.config.compile), mixed:
            if self.teacher is None:
                logits = self.forward(x).float()
                return soft_cross_entropy(logits, target, weights), logits
            with torch.no_grad():
                teacher = self.teacher(x).float()
            heads = self.forward(x, each_head=True) if getattr(self.model, "head_dist", None) else (self.forward(x),)
        heads = [h.float() for h in heads]
        return distillation_loss(
            heads[0], heads[-1], teacher, target, self.config.distill_weight, self.config.distill_temperature, weights
        ), heads[0]

    def update(self) -> bool:
        """Clip the gradient, step the optimizer, update the EMA. Returns whether the gradient was finite: one that is
        not changes no weights and is counted.

        TrainingError after `max_bad_steps` of them in a row.
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip or math.inf)
        finite = bool(torch.isfinite(norm))
        if finite:
            self.scaler.step(self.optimizer)
            self.ema.update(self.model, self.step)
            self.bad_in_a_row = 0
        else:
            self.bad_steps += 1
            self.bad_in_a_row += 1
        scale = self.scaler.get_scale()
        self.scaler.update()
        if self.bad_in_a_row >= self.config.max_bad_steps:
            raise TrainingError(
                f"{self.bad_in_a_row} steps in a row were not finite: step {self.step}, learning rate "
                f"{self.lr:.3g}, loss scale {scale:.3g}; lower --lr, or try --amp off"
            )
        return finite

    @property
    def step(self) -> int:
        """Steps since the start of the run."""
        return self.epoch * self.steps_per_epoch + self.batch

    @property
    def lr(self) -> float:
        """The learning rate of the current step."""
        return self.lr_at(self.step)

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from the start of the run."""
        c = self.config
        if c.schedule == "one-cycle":
            return one_cycle(step, self.total_steps, c.lr)
        if c.schedule == "linear":
            return warmup_linear(step, self.total_steps, self.warmup_steps, c.lr)
        return warmup_cosine(step, self.total_steps, self.warmup_steps, c.lr, c.min_lr)

    @property
    def warmup_steps(self) -> int:
        """Steps in which the rate of the cosine and linear schedules rises."""
        warmup = self.config.warmup
        return int(warmup * (self.total_steps if warmup < 1 else self.steps_per_epoch))

    def set_lr(self) -> None:
        """Give each parameter group the learning rate of the current step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * group.get("gain", 1.0)

    # ---- the end of an epoch ------------------------------------------------------------------------

    def end_epoch(self) -> None:
        """Evaluate on the hold-out, log, and write the checkpoints. TrainingError if the run is no longer finite."""
        self.check_finite()
        seconds = time.perf_counter() - self.started
        loss, hits, images = (float(s) for s in self.sums)
        row = {
            "epoch": self.epoch + 1,
            "lr": self.lr_at(self.step - 1),
            "train_loss": loss / images,
            "train_acc": hits / images,
            "images_per_s": (self.batch - self.first_batch) * self.batch_size / seconds,
            "bad_steps": self.bad_steps,
        }
        if self.val_split:
            row["val_acc"] = self.accuracy(self.model, self.val_split)
            row["val_acc_ema"] = self.accuracy(self.ema.module, self.val_split)
        self.count_cpu_seconds()
        row["cpu_minutes"] = self.cpu_seconds / 60
        self.epoch, self.batch = self.epoch + 1, 0
        self.history.append(row)
        self.write_metrics()
        score = max(row.get("val_acc", -1.0), row.get("val_acc_ema", -1.0))
        if self.val_split is not None and score > (self.best or {"score": -1.0})["score"]:
            self.best = {"score": score, "epoch": self.epoch}
        self.save(self.run / "last.pt")
        self.keep_best()

    def count_cpu_seconds(self) -> None:
        """Add the processor time of all processes since the last count."""
        now = time.process_time()
        self.cpu_seconds, self.clock = self.cpu_seconds + self.ranks.sum(now - self.clock)[0], now

    def keep_best(self) -> None:
        """Write best.pt if its weights are those at hand, at the end of an epoch: the best one, or any where the
        hold-out can't choose."""
        if self.batch or not self.history:
            return
        if not self.can_choose:
            self.save_best("averaged", None)
        elif self.best["epoch"] == self.epoch:
            row = self.history[-1]
            self.save_best("averaged" if row["val_acc_ema"] >= row["val_acc"] else "raw", self.best["score"])

    def accuracy(self, model: nn.Module, split: Split) -> float:
        """Share in [0, 1] of the images of `split` that `model` classifies correctly; each process measures a part."""
        part = split[self.ranks.share(len(split))]
        if self.ranks.number == 1:
            return self.evaluator.accuracy(model, split)
        hits = round(self.evaluator.accuracy(model, part) * len(part)) if len(part) else 0
        return self.ranks.sum(hits)[0] / len(split)

    def check_finite(self) -> None:
        """TrainingError if no step of the epoch had a finite gradient, or the weights hold NaN or infinity."""
        if not self.sums[2] or not all(bool(torch.isfinite(p).all()) for p in self.model.state_dict().values()):
            what = "weights are" if self.sums[2] else "loss, or its gradient, is"
            raise TrainingError(f"the {what} not finite after epoch {self.epoch + 1}: lower --lr, or try --amp off")

    def write_metrics(self) -> None:
        """Write metrics.jsonl, a line per finished epoch; a resumed run drops the lines after its checkpoint."""
        if not self.ranks.first:
            return
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in self.history)
        write_atomically(self.run / "metrics.jsonl", lambda path: path.write_text(lines))

    # ---- checkpoints -------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """Everything that a resumed run needs, and how the model is built."""
        return self.about() | {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "generator": self.generator.get_state(),
            "rng_cuda": [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else [],
            "rng_mps": torch.mps.get_rng_state() if self.device.type == "mps" else None,
            "epoch": self.epoch,
            "batch": self.batch,
            "order": self.order,
            "sums": [float(s) for s in self.sums],
            "bad_steps": self.bad_steps,
            "bad_in_a_row": self.bad_in_a_row,
            "best": self.best,
            "history": self.history,
            "cpu_seconds": self.cpu_seconds + time.process_time() - self.clock,
            "images": self.images,
            "teacher_weights": self.taught_by,
        }

    @property
    def images(self) -> list[int]:
        """The number of images that are trained on, and of those that are held out."""
        return [len(self.train_split), len(self.val_split or ())]

    def about(self) -> dict:
        """The facts in every checkpoint beside its weights: the model, the classes, how images are shown to it."""
        return {
            "config": asdict(self.config),
            "describe": self.describe,
            "classes": self.data.classes,
            "mean": list(self.data.mean),
            "std": list(self.data.std),
            "precision": str(self.dtype).removeprefix("torch."),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a checkpoint of the same run. ValueError (TrainingError) if it is of another, or damaged."""
        check_resumable(self, state)
        load_moments(self.optimizer, state["optimizer"], unused_parameters(self.model))
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"].cpu())
        self.generator.set_state(state["generator"].cpu())
        if state["rng_cuda"] and self.device.type == "cuda":
            states = state["rng_cuda"]  # older files have one for each GPU
            torch.cuda.set_rng_state(states[min(self.device.index or 0, len(states) - 1)].cpu(), self.device)
        if state.get("rng_mps") is not None and self.device.type == "mps":
            torch.mps.set_rng_state(state["rng_mps"].cpu())
        for name in ("epoch", "batch", "sums", "bad_steps", "bad_in_a_row", "best", "history"):
            setattr(self, name, state[name])
        self.cpu_seconds, self.clock = state.get("cpu_seconds", 0.0), time.process_time()
        self.order = state["order"].cpu()
        self.keep_best()  # a kill may have come after last.pt and before best.pt
        self.write_metrics()

    def save(self, path: Path) -> None:
        """Write a checkpoint that the run can be resumed from, by any number of processes."""
        if not self.ranks.first:
            return
        checkpoint.save(path, self.state_dict())

    def save_best(self, weights: Literal["raw", "averaged"], val_acc: float | None) -> None:
        """Write best.pt: one set of weights, those of the model or their average (EMA), and which they are.

        val_acc: the hold-out accuracy that chose them, a share in [0, 1]; None if they were not chosen by it.
        """
        if not self.ranks.first:
            return
        model = self.model if weights == "raw" else self.ema.module
        chosen = {"weights": weights, "epoch": self.epoch, "val_acc": val_acc, "model": model.state_dict()}
        checkpoint.save(self.run / "best.pt", self.about() | chosen)
