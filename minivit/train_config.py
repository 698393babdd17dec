"""The settings of training, and their ranges."""

from dataclasses import dataclass, fields
from typing import Literal

import torch

from minivit import reading
from minivit.vit import MOST_BLOCKS, MOST_OTHERS


class TrainingError(ValueError):
    """A run that cannot start or continue. The message is one line and says what to change."""


@dataclass(frozen=True)
class TrainConfig:
    """Training settings. Learning rates are for a whole batch; `accumulate` does not change them.

    An epoch is one pass over the training images, less the last batch if it is not whole.

    TrainingError (a ValueError) names the setting that is out of range.
    """

    epochs: int = 300
    batch_size: int = 192
    accumulate: int = 1  # gradient accumulation: parts in which a batch goes through the model
    optimizer: Literal["adamw", "muon"] = "adamw"
    schedule: Literal["cosine", "one-cycle", "linear"] = "cosine"
    lr: float = 1e-3
    adamw_lr: float = 3e-3  # with Muon: of what it leaves to AdamW: biases, norms, positions, heads
    min_lr: float = 1e-5  # of cosine
    warmup: float = 0.04  # of cosine and linear: below 1 a share of all steps, from 1 on epochs
    weight_decay: float = 0.05  # of AdamW alone; with Muon nothing decays
    layer_decay: float = 1.0  # factor on the rate of each layer, from the head down to the embedding
    train_last: int | None = None  # only the last blocks learn, with the final norm and the heads; None for all
    checkpointing: bool = False  # gradient checkpointing: blocks are computed again in the backward pass
    balance: Literal["none", "weights", "sampler"] = "none"  # classes of unequal size: weighted loss, or drawn equally
    clip: float = 1.0  # gradient clipping: largest norm, 0 for none
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    compile: bool = False
    patience: int = 0  # early stopping: epochs without a better hold-out accuracy, 0 for never
    max_bad_steps: int = 20  # non-finite steps in a row
    ema_start: float = 0.995  # decay of the averaged weights where its ramp begins (ema.py); the first steps have less
    ema_end: float = 0.9995  # decay at the last step
    sizes: tuple[int, ...] = ()  # image sides, each for an equal share of the epochs; () for the model's own
    crop: int = 4  # pixels of padding around an image, from which a window of its size is cut
    padding: Literal["zero", "reflect"] = "zero"
    flip: bool = True
    alternate_flip: bool = False  # mirror half of the images in one epoch, the other half in the next (2404.00498)
    trivial_augment: bool = True
    jitter: float = 0.0  # largest relative change of brightness, contrast and saturation; a quarter of it for hue
    rotate: float = 0.0  # largest turn, in degrees
    # DeiT's training has the same probability, alphas and smoothing, but fills boxes with noise and mixes each batch.
    erasing: float = 0.25  # probability that a box of an image is erased
    mixup: float = 0.8  # alpha of Beta(alpha, alpha), from which lambda is drawn; 0 for none
    cutmix: float = 1.0  # alpha of CutMix's Beta(alpha, alpha); 0 for none
    mix_prob: float = 0.5  # probability that a batch is mixed, by one or the other
    label_smoothing: float = 0.1
    unsmoothed_epochs: int = 0  # last epochs without label smoothing, if more than the clean ones
    clean_epochs: int = 10  # last epochs without strong augmentation, mixing and label smoothing
    distill_weight: float = 0.5  # alpha of losses.distillation_loss
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

    def side(self, epoch: int) -> int | None:
        """The side in pixels of the images of an epoch, which counts from 0; None for what the model takes."""
        sizes = self.sizes[-self.epochs :]  # a run of fewer epochs has the last ones
        return sizes[epoch * len(sizes) // self.epochs] if sizes else None


TRAIN_DEFAULTS = {field.name: field.default for field in fields(TrainConfig)}
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
