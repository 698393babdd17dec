"""A data set in memory: images as uint8 tensors, their labels, and the parts that they are split into.

Left out: data sets larger than memory, and labels other than one class per image.
"""

from dataclasses import dataclass, replace

import torch

from minivit.augment import check_images
from minivit.text import name_classes


class DataError(ValueError):
    """Missing, damaged or inconsistent data: one line that names what is wrong and how to mend it."""


@dataclass
class Split:
    """Images as uint8 (N, 3, S, S) in RGB, and their class indices as int64 (N,). DataError for more of one."""

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self):
        if self.labels.ndim != 1 or len(self.images) != len(self.labels):
            shape = tuple(self.labels.shape)
            raise DataError(f"{len(self.images)} images have labels of shape {shape}: give one for each, (N,)")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: torch.Tensor | slice) -> "Split":
        """The images and labels at a mask, at indices or in a slice."""
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device | str) -> "Split":
        """The same split on another device."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass
class Dataset:
    """Splits, class names, and the per-channel mean and std (of values in [0, 1]) that normalise the images."""

    train: Split
    test: Split
    classes: list[str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    val: Split | None = None


def hold_out(dataset: Dataset, amount: float, seed: int = 0) -> Dataset:
    """Move a random part of the training split to `val`, each class by its share.

    `amount` below 1 is a fraction of the training images, from 1 on a number of images. Raises DataError.
    """
    if dataset.val is not None:
        raise DataError("the data set already has a validation split: use --val-split 0")
    labels = dataset.train.labels
    count = round(amount * len(labels)) if amount < 1 else int(amount)
    held = (
        _draw_by_class(labels, count, seed) if 0 < count < len(labels) else torch.zeros(len(labels), dtype=torch.bool)
    )
    left = torch.bincount(labels[~held], minlength=len(dataset.classes))
    if not held.any() or (left == 0).any():
        raise DataError(
            f"a hold-out of {amount:g} from {len(labels)} training images leaves a split or a class empty: "
            "give another --val-split, a fraction below 1 or a number of images; 0 for none"
        )
    return replace(dataset, train=dataset.train[~held], val=dataset.train[held])


def subset(dataset: Dataset, count: int, seed: int = 0) -> Dataset:
    """At most `count` of the training images, drawn by class, and as many of the test images. DataError below 1."""
    if count < 1:
        raise DataError(f"a subset of {count} images: give at least 1")
    return replace(dataset, train=some_of(dataset.train, count, seed), test=some_of(dataset.test, count, seed))


def some_of(split: Split, count: int, seed: int = 0) -> Split:
    """At most `count` images of a split, each class by its share."""
    return split if count >= len(split) else split[_draw_by_class(split.labels, count, seed)]


def _draw_by_class(labels: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Draw `count` of the images with these labels (N,), each class by its share: bool (N,)."""
    per_class = torch.bincount(labels)
    wanted = _share(per_class, count)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    order = order[torch.argsort(labels[order], stable=True)]  # by class, in random order inside each
    rank = torch.arange(len(labels)) - (per_class.cumsum(0) - per_class)[labels[order]]  # position inside the class
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    drawn[order[rank < wanted[labels[order]]]] = True
    return drawn


def _share(per_class: torch.Tensor, count: int) -> torch.Tensor:
    """Split `count` over the classes in proportion to their sizes, by largest remainder."""
    quota = per_class.double() * count / per_class.sum()
    wanted = quota.floor().long()
    largest = torch.argsort(quota - wanted, descending=True, stable=True)
    wanted[largest[: count - int(wanted.sum())]] += 1
    return wanted


def channel_stats(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and std of uint8 images (N, 3, S, S), in units of [0, 1]. ValueError for other images."""
    check_images(images)
    if not len(images):
        raise ValueError("no images: their mean is not defined")
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(3)])
    share = counts.double() / counts.sum(1, keepdim=True)  # (3, 256): exact, where a float sum over all pixels is not
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ level
    std = (share * (level - mean[:, None]) ** 2).sum(1).sqrt().clamp(min=1 / 255)  # one colour only: still divisible
    return tuple(mean.tolist()), tuple(std.tolist())


def check_classes(there: list[str], known: list[str]) -> None:
    """DataError unless the classes of the data at hand are those that a checkpoint knows."""
    if list(there) != list(known):
        new = [name for name in there if name not in known]
        raise DataError(
            f"the checkpoint knows {name_classes(known)}, the data has {name_classes(there)}"
            + (f", and {', '.join(new[:3])} is none that it knows" if new else "")
            + ": name the data it was trained on"
        )
