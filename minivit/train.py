"""The training loop.

One `Trainer` holds the whole state of a run, so that a checkpoint is a copy of it and a resumed run
continues bit for bit. Random numbers come from two places, both saved: `generator` draws the order of
images and the augmentations, PyTorch's global one the dropout. The best epoch is chosen by the hold-out;
the trainer never reads the test images.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from minivit import checkpoint, files, reading
from minivit.augment import Augment
from minivit.distributed import Ranks, synchronise_norms
from minivit.ema import EMA
from minivit.evaluate import Evaluator, resize_to_model
from minivit.fast import accelerate
from minivit.files import Claim, write_atomically
from minivit.finetune import freeze, keep_frozen
from minivit.losses import class_weights, distillation_loss, soft_cross_entropy
from minivit.mix import mix_batch, one_hot
from minivit.muon import Muon
from minivit.optim import adamw, load_moments, one_cycle, warmup_cosine, warmup_linear
from minivit.splits import Dataset, Split
from minivit.text import name_classes, one_line
from minivit.vit import MOST_BLOCKS, MOST_OTHERS, VisionTransformer

NEXT = "best.next.pt"  # best.pt of an epoch whose last.pt is still to be written
LEAST_HOLD_OUT = 100  # images: of fewer, the accuracy says too little to choose weights by
NARROW = 128  # channels: narrower models may lose more by conversion to bf16 than its products gain


class TrainingError(ValueError):
    """A run that cannot start or continue. The message is one line and says what to change."""


@dataclass(frozen=True)
class TrainConfig:
    """Training settings. Learning rates are per step of a whole batch; an epoch is one pass over the training images.

    TrainingError (a ValueError) names the setting that is out of range.
    """

    epochs: int = 300
    batch_size: int = 192
    accumulate: int = 1  # gradient accumulation: parts in which a batch goes through the model
    optimizer: Literal["adamw", "muon"] = "adamw"
    schedule: Literal["cosine", "one-cycle", "linear"] = "cosine"
    lr: float = 1e-3
    adamw_lr: float = 3e-3  # of what Muon leaves to AdamW: biases, norms, positions, heads
    min_lr: float = 1e-5
    warmup: float = 0.04  # of cosine and linear: below 1 a share of all steps, from 1 on epochs
    weight_decay: float = 0.05
    layer_decay: float = 1.0  # factor on the rate of each layer, from the head down to the embedding
    train_last: int | None = None  # only the last blocks learn, with the final norm and the heads; None for all
    checkpointing: bool = False  # gradient checkpointing: blocks are computed again in the backward pass
    balance: Literal["none", "weights", "sampler"] = "none"  # classes of unequal size: weighted loss, or drawn equally
    clip: float = 1.0  # gradient clipping: largest norm, 0 for none
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    compile: bool = False
    patience: int = 0  # early stopping: epochs without a better hold-out accuracy, 0 for never
    max_bad_steps: int = 20  # non-finite steps in a row
    ema_start: float = 0.995
    ema_end: float = 0.9995
    sizes: tuple[int, ...] = ()  # image sides, each for an equal share of the epochs; () for the model's own
    crop: int = 4
    padding: Literal["zero", "reflect"] = "zero"
    flip: bool = True
    alternate_flip: bool = False  # mirror half of the images in one epoch and the other half in the next
    trivial_augment: bool = True
    jitter: float = 0.0
    rotate: float = 0.0  # largest turn, in degrees
    erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    mix_prob: float = 0.5
    label_smoothing: float = 0.1
    unsmoothed_epochs: int = 0  # last epochs without label smoothing, if more than the clean ones
    clean_epochs: int = 10
    distill_weight: float = 0.5
    distill_temperature: float | None = None  # None or 0: the teacher's hard labels
    seed: int = 0

    def __post_init__(self):
        try:
            reading.check_config(self, TRAIN_KINDS, {field.name: reading.flag_of(field.name) for field in fields(self)})
        except ValueError as error:
            raise TrainingError(error) from None
        if self.schedule == "cosine" and self.min_lr > self.lr:
            raise TrainingError(f"--min-lr is {self.min_lr:g}, above --lr {self.lr:g}: lower --min-lr, or raise --lr")
        if self.schedule != "one-cycle" and 1 <= self.warmup and self.warmup >= self.epochs:
            raise TrainingError(
                f"--warmup is {self.warmup:g} epochs, of --epochs {self.epochs}: give fewer, or a share below 1"
            )
        if self.layer_decay != 1 and self.optimizer == "muon":
            raise TrainingError(f"--layer-decay {self.layer_decay:g} goes with --optimizer adamw, not with muon")


# The ranges of those settings; of the others, the annotation says what they may be.
TRAIN_KINDS: dict[str, reading.Kind] = {
    **dict.fromkeys(("epochs", "batch_size", "accumulate", "max_bad_steps"), reading.whole(1)),
    **dict.fromkeys(("patience", "clean_epochs", "unsmoothed_epochs"), reading.whole()),
    **dict.fromkeys(("lr", "adamw_lr"), reading.positive),
    **dict.fromkeys(("min_lr", "weight_decay", "clip", "warmup"), reading.within(0)),
    **dict.fromkeys(("ema_start", "ema_end", "label_smoothing"), reading.within(0, 1, "[)")),
    **dict.fromkeys(("erasing", "mix_prob", "distill_weight"), reading.within(0, 1)),
    **dict.fromkeys(("mixup", "cutmix"), reading.within(0, 1000)),
    "jitter": reading.within(0, 2),  # beyond, factors are cut at 0 and hues turn in full
    "sizes": reading.sequence(reading.whole(1, MOST_OTHERS)),
    "crop": reading.whole(0, MOST_OTHERS),  # below the side of the images: check_crop
    "rotate": reading.within(0, 180),
    "layer_decay": reading.within(0, 1, "(]"),
    "train_last": reading.optional(reading.whole(0, MOST_BLOCKS)),
    "distill_temperature": reading.optional(reading.within(0)),
    "seed": reading.whole(1 - reading.LARGEST, reading.LARGEST - 1),
}


def check_crop(crop: int, side: int) -> None:
    """TrainingError if a random crop may leave nothing of images of this side."""
    if crop >= side:
        raise TrainingError(f"--crop is {crop}, of {side}x{side} images: give a number of pixels from 0 to {side - 1}")


def check_shares(batch_size: int, accumulate: int, processes: int) -> None:
    """TrainingError if a part of a batch has fewer images than there are processes to share it."""
    smallest = min(len(part) for part in torch.empty(batch_size).chunk(accumulate))
    if smallest < processes:
        raise TrainingError(
            f"{processes} processes can't share a batch of {batch_size} images in {accumulate} parts, one of which has "
            f"{smallest}: raise --batch-size, or lower --accumulate or --nproc-per-node"
        )


def choose_precision(amp: str, device: torch.device) -> torch.dtype:
    """Choose the dtype of autocast: for "auto" bf16 if the hardware computes in it, else fp16 on a GPU, else fp32."""
    if amp != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}[amp]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else torch.float32


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 natively; where it does not, bf16 is far slower than fp32."""
    try:
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    except (AttributeError, RuntimeError):  # a PyTorch without this call
        return False


def bf16_is_faster(model: nn.Module, images: Tensor, rounds: int = 3) -> bool:
    """Whether a training step of `model` takes less time in bf16 than in fp32 on this CPU.

    images: (B, 3, H, W), normalised. A copy of the model makes passes forward and backward, in turns; the fastest of
    each kind counts.
    """
    model = accelerate(copy.deepcopy(model).to(memory_format=torch.channels_last)).train()
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    for _ in range(rounds):
        for dtype in seconds:
            started = time.perf_counter()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                scores = model(images)
            scores.float().square().mean().backward()
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - started)
    return seconds[torch.bfloat16] < seconds[torch.float32]


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
                raise TrainingError(f"{reading.flag_of(name)} needs a Vision Transformer, not a {type(model).__name__}")
        return
    model.checkpointing = config.checkpointing
    if config.train_last is not None:
        try:
            freeze(model, config.train_last)
        except ValueError as error:
            raise TrainingError(error) from None


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
    """Train `model` on `data` as `config` says, with metrics and checkpoints in the folder `run`.

    `teacher`, when given, is a module from normalised images to scores; its labels train the
    distillation head, or the only head if there is just one. `ranks`: this process among those that train
    together; see distributed.py. Call `fit`, then run.final_report.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        config: TrainConfig,
        run: Path,
        device: torch.device,
        teacher: nn.Module | None = None,
        describe: dict | None = None,
        ranks: Ranks = Ranks(),
    ):
        if config.compile and ranks.number > 1:  # a compiled module would not average its gradients
            raise TrainingError("--compile goes with one process: leave it out, or torchrun")
        check_crop(config.crop, data.train.images.shape[-1])
        set_up_fine_tuning(model, config, ranks.number)
        torch.manual_seed(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.config, self.run, self.device = config, Path(run), device
        self.teacher, self.describe, self.ranks = teacher, describe or {}, ranks
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
        self.mirrored = torch.rand(len(data.train), generator=self.generator) < 0.5 if alternate else None
        self.epoch = self.batch = self.bad_steps = self.bad_in_a_row = 0
        self.order = torch.empty(0, dtype=torch.int64)
        self.sums = [0.0, 0.0, 0]  # loss, hits, images of this epoch
        self.best: dict | None = None
        self.history: list[dict] = []
        self.cpu_seconds = 0.0  # processor time of all threads up to the last finished epoch, evaluation included
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
        """Train to the last epoch (or to `until`). Returns False when a stop was requested and saved."""
        if self.forward is self.model:
            self.forward = self.ranks.parallel(self.model, self.device)
        while self.epoch < min(until or self.config.epochs, self.config.epochs) and not self.stopped_early:
            if not self.train_epoch(on_step):
                self.save(self.run / "last.pt")
                return False
            self.end_epoch()
            on_epoch()
        return True

    @property
    def stopped_early(self) -> bool:
        """Whether the last `patience` epochs brought no better hold-out accuracy."""
        patience = self.config.patience
        return bool(patience and self.best and self.epoch - self.best["epoch"] >= patience)

    def train_epoch(self, on_step: Callable[[], None]) -> bool:
        """One pass over the training images, from where the run stands. False when a stop was requested."""
        self.forward.train()
        if self.config.train_last is not None:
            keep_frozen(self.model)
        if self.stopping():  # before the order is drawn, which the resumed run does
            return False
        if self.batch == 0:
            self.order = self.draw_order()
            self.sums = [0.0, 0.0, 0]
        self.started, self.begun = time.perf_counter(), self.batch
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
        self.stop_requested = self.ranks.any(self.stop_requested)
        return self.stop_requested

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
        turn = (self.mirrored[index.cpu()] ^ bool(self.epoch % 2)).to(self.device)
        return torch.where(turn[:, None, None, None], images.flip(3), images)

    @property
    def side(self) -> int | None:
        """The side in pixels of this epoch's images, None for what the model takes."""
        sizes = self.config.sizes
        return sizes[self.epoch * len(sizes) // self.config.epochs] if sizes else None

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

    def loss(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of normalised images (B, 3, H, W) for soft targets (B, classes), and the scores (B, classes)."""
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
        not changes nothing and is counted.

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
        c = self.config
        if c.schedule == "one-cycle":
            return one_cycle(self.step, self.total_steps, c.lr)
        if c.schedule == "linear":
            return warmup_linear(self.step, self.total_steps, self.warmup_steps, c.lr)
        return warmup_cosine(self.step, self.total_steps, self.warmup_steps, c.lr, c.min_lr)

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
            "lr": self.lr,
            "train_loss": loss / images,
            "train_acc": hits / images,
            "images_per_s": (self.batch - self.begun) * self.batch_size / seconds,
            "bad_steps": self.bad_steps,
        }
        if self.val_split:
            row["val_acc"] = self.accuracy(self.model, self.val_split)
            row["val_acc_ema"] = self.accuracy(self.ema.module, self.val_split)
        now = time.process_time()
        self.cpu_seconds, self.clock = self.cpu_seconds + self.ranks.sum(now - self.clock)[0], now
        row["cpu_minutes"] = self.cpu_seconds / 60
        self.epoch, self.batch = self.epoch + 1, 0
        self.history.append(row)
        self.write_metrics()
        score = max(row.get("val_acc", -1.0), row.get("val_acc_ema", -1.0))
        better = self.val_split is not None and score > (self.best or {"score": -1.0})["score"]
        if better:
            self.best = {"score": score, "epoch": self.epoch}
        if better or not self.can_choose:
            averaged = not self.can_choose or row["val_acc_ema"] >= row["val_acc"]
            self.save_best("averaged" if averaged else "raw", score if self.can_choose else None, NEXT)
        self.save(self.run / "last.pt")
        if self.ranks.first and (self.run / NEXT).exists():
            files.replace(self.run / NEXT, self.run / "best.pt")

    def settle_best(self) -> None:
        """Give the best weights of the epoch that last.pt has their name, where a kill kept them from it. Those of an
        epoch that it took away, which is trained again, go."""
        waiting = self.run / NEXT
        if not self.ranks.first or not waiting.exists():
            return
        if checkpoint.read(waiting).get("epoch") == self.epoch:
            files.replace(waiting, self.run / "best.pt")
        else:
            waiting.unlink()

    def accuracy(self, model: nn.Module, split: Split) -> float:
        """Share in [0, 1] of the images of `split` that `model` classifies correctly; each process measures a part."""
        part = split[self.ranks.share(len(split))]
        if self.ranks.number == 1:
            return self.evaluator.accuracy(model, split)
        hits = round(self.evaluator.accuracy(model, part) * len(part)) if len(part) else 0
        return self.ranks.sum(hits)[0] / len(split)

    def check_finite(self) -> None:
        """TrainingError if no step of the epoch had a finite loss, or the weights hold NaN or infinity."""
        if not self.sums[2] or not all(bool(torch.isfinite(p).all()) for p in self.model.state_dict().values()):
            raise TrainingError(
                f"the {'weights are' if self.sums[2] else 'loss is'} not finite after epoch {self.epoch + 1}: "
                "lower --lr, or try --amp off"
            )

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
        """Continue from a checkpoint of the same run. TrainingError if its settings differ: the schedule needs them."""
        # A setting that is newer than the checkpoint had its default when the run began.
        saved = {field.name: field.default for field in fields(TrainConfig)} | state["config"]
        changed = [k for k, v in asdict(self.config).items() if saved[k] != v]
        if "epochs" in changed:
            raise TrainingError(
                f"--epochs {self.config.epochs}: the learning rate of this run ends with epoch {saved['epochs']}, so "
                f"it can't be longer; train on from its weights: --pretrained {self.run / 'best.pt'}, another --out"
            )
        if changed:
            raise TrainingError(
                f"this run was started with another {', '.join(changed)}: resume it with the same settings"
            )
        self.check_progress(state)
        for weights in ("model", "ema"):
            reading.check_weights(state[weights], self.model.state_dict())
        load_moments(self.optimizer, state["optimizer"])
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"].cpu())
        self.generator.set_state(state["generator"].cpu())
        if state["rng_cuda"] and self.device.type == "cuda":
            states = state["rng_cuda"]  # older files have one for each GPU
            torch.cuda.set_rng_state(states[min(self.device.index or 0, len(states) - 1)].cpu(), self.device)
        for name in ("epoch", "batch", "sums", "bad_steps", "bad_in_a_row", "best", "history"):
            setattr(self, name, state[name])
        self.cpu_seconds, self.clock = state.get("cpu_seconds", 0.0), time.process_time()
        self.order = state["order"].cpu()
        self.settle_best()
        self.write_metrics()

    def check_same_data(self, state: dict) -> None:
        """TrainingError unless a checkpoint is of the data at hand: its classes, numbers of images, normalisation."""
        if state["classes"] != list(self.data.classes):
            known, there = map(name_classes, (state["classes"], self.data.classes))
            raise TrainingError(
                f"this run was started with {known}, the data has {there}: resume it with the same data"
            )
        reading.optional(reading.sequence(reading.whole(), 2))(state.get("images"), "its numbers of images")
        if state.get("images") not in (None, self.images):
            raise TrainingError(
                "this run was started with {} training and {} hold-out images, now there are {} and {}: resume it with "
                "the same data, --subset and --val-split".format(*state["images"], *self.images)
            )
        for name in ("mean", "std"):
            if not all(map(partial(math.isclose, rel_tol=1e-3), state[name], getattr(self.data, name))):
                raise TrainingError(
                    f"this run was started with another --{name}, or other images: resume it with the same"
                )

    def check_progress(self, state: dict) -> None:
        """ValueError unless the numbers of a checkpoint, weights and moments aside, can be those of this run."""
        r, images = reading, len(self.train_split)
        self.check_same_data(state)
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
            scaler=scaler if self.scaler.is_enabled() else r.anything,
            rng=r.numbers(torch.get_rng_state()),
            generator=r.numbers(self.generator.get_state()),
            rng_cuda=r.sequence(r.any_tensor),
            epoch=r.whole(0, self.config.epochs),
            batch=r.whole(0, self.steps_per_epoch),
            order=r.any_tensor,
            sums=r.sequence(r.measured, 3),
            bad_steps=r.whole(),
            bad_in_a_row=r.whole(),
            best=r.optional(r.fields(score=r.real, epoch=r.whole(1, self.config.epochs))),
            history=r.sequence(r.mapping(r.text, r.optional(r.measured))),
        )(state, "the run")
        r.sequence(r.fields(epoch=r.whole(1)))(state["history"], "its history")
        r.real(state.get("cpu_seconds", 0.0), "its processor time")
        every = torch.arange(images)
        if state["batch"]:  # in the middle of an epoch
            r.numbers(every)(state["order"], "the order of the images")
            drawn = state["order"].sort().values
            if self.config.balance == "sampler" and not 0 <= drawn[0] <= drawn[-1] < images:
                raise ValueError("the order of the images has others than there are")
            if self.config.balance != "sampler" and not torch.equal(drawn, every):
                raise ValueError("the order of the images does not have each of them once")

    def save(self, path: Path) -> None:
        """Write a checkpoint that the run can be resumed from, by any number of processes."""
        if not self.ranks.first:
            return
        checkpoint.save(path, self.state_dict())

    def save_best(self, weights: Literal["raw", "averaged"], val_acc: float | None, name: str = "best.pt") -> None:
        """Write best.pt, or it under another name: one set of weights, those of the model or their average (EMA), and
        which they are.

        val_acc: the hold-out accuracy that chose them, a share in [0, 1]; None if they were not chosen by it.
        """
        if not self.ranks.first:
            return
        model = self.model if weights == "raw" else self.ema.module
        chosen = {"weights": weights, "epoch": self.epoch, "val_acc": val_acc, "model": model.state_dict()}
        checkpoint.save(self.run / name, self.about() | chosen)
