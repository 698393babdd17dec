"""Data sets for small images, decoded once into uint8 tensors that stay in memory.

`cifar10` and `cifar100` (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; archive and
checksums are torchvision's), `folder` (train/<class>/*, test/<class>/*, or class folders alone) and `shapes`, ten
classes drawn from a seed.
Left out: data sets larger than memory, and labels other than one class per image.
"""

import hashlib
import http.client
import io
import logging
import os
import re
import stat
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from minivit.files import write_atomically
from minivit.shapes import CLASSES, draw_shapes
from minivit.text import composed, name_classes, one_line

log = logging.getLogger(__name__)

NAMES = ("cifar10", "cifar100", "folder", "shapes")

# Per-channel mean and standard deviation of the training pixels in [0, 1], as published with most CIFAR recipes.
CIFAR_MEAN_STD = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
FORMATS = {"JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF"}  # their names in Pillow
SUFFIXES = {  # of files that are taken for images before they are opened
    *(".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".avif", ".avifs"),
    *(".heic", ".heif", ".hif"),
}
MAX_PIXELS = 89_478_485  # of one image: Pillow's own limit against decompression bombs
MAX_BYTES = 1 << 28  # of one image file
SPLIT_NAMES = re.compile(r"(train|test|val)(ing|id|idation)?([-_ ]?(set|data|images))?")  # in lower case
HOLD_OUTS = ("val", "valid", "validation")  # folders beside train/ that hold images to choose weights by
DEPTHS = (8, 10, 12, 14, 16)  # bits of a grey level, in files of 16 bits or of any numbers
CIFAR_ARCHIVE_BYTES = {"cifar10": 170_498_071, "cifar100": 169_001_437}


class DataError(ValueError):
    """Missing, damaged or inconsistent data: one line that names what is wrong and how to mend it."""


@dataclass
class Split:
    """Images as uint8 (N, 3, S, S) in RGB, and their class indices as int64 (N,)."""

    images: torch.Tensor
    labels: torch.Tensor

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


def load(name: str, root: str | Path = "data", image_size: int = 32, seed: int = 0, skip_bad: bool = False) -> Dataset:
    """Load `cifar10`, `cifar100`, `folder` or `shapes` at image_size x image_size pixels.

    `root` holds the CIFAR archive or the class folders; `seed` draws the shapes, and the splits of class folders that
    have none; `skip_bad` leaves unreadable images of a folder out. Raises DataError.
    """
    if image_size < 1:
        raise DataError(f"image size {image_size} is not a positive number of pixels")
    if name in CIFAR_MEAN_STD:
        return cifar(name, root, image_size)
    if name == "folder":
        return folder(root, image_size, skip_bad, seed)
    if name == "shapes":
        return shapes(seed, image_size=image_size)
    raise DataError(f"unknown data set '{name}': choose one of {', '.join(NAMES)}")


def load_test(
    name: str, root: str | Path, image_size: int, classes: list[str], seed: int = 0, skip_bad: bool = False
) -> Split:
    """The test images of a data set as `load` gives them, with labels that count through `classes`.

    Of a folder only test/ (else val/, valid/ or validation/) is read: train/ need not be there. Class folders without
    any of these are split by `seed` as in training. Raises DataError, for other classes than these too.
    """
    splits = _find_test(Path(root), classes) if name == "folder" else {}
    if splits:
        _report_missing(Path(root), splits)
        return _load_splits(Path(root), splits, classes, image_size, skip_bad)["test"]
    dataset = load(name, root, image_size, seed, skip_bad)
    _check_classes(dataset.classes, classes)
    return dataset.test


def stored_side(name: str, side: int) -> int:
    """The side in pixels at which the images of a data set are held for a model of this side.

    CIFAR stays small in memory and is enlarged on the device.
    """
    return 32 if name in CIFAR_MEAN_STD else side


def is_split_by_seed(name: str, root: str | Path) -> bool:
    """Whether these are class folders without train/ and test/, whose test images depend on the seed."""
    parts = ("train", "test", *HOLD_OUTS)
    return name == "folder" and Path(root).is_dir() and not any((Path(root) / part).is_dir() for part in parts)


def _check_classes(there: list[str], known: list[str]) -> None:
    """DataError unless the classes of the data at hand are those that a checkpoint knows."""
    if list(there) != list(known):
        raise DataError(
            f"the checkpoint knows {name_classes(known)}, the data has {name_classes(there)}: "
            "name the data it was trained on"
        )


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
    """At most `count` of the training images, drawn by class, and as many of the test images."""
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
    """Per-channel mean and std of uint8 images (N, 3, S, S), in units of [0, 1]."""
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(3)])
    share = counts.double() / counts.sum(1, keepdim=True)  # (3, 256): exact, where a float sum over all pixels is not
    level = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ level
    std = (share * (level - mean[:, None]) ** 2).sum(1).sqrt().clamp(min=1 / 255)  # one colour only: still divisible
    return tuple(mean.tolist()), tuple(std.tolist())


# ---------------------------------------------------------------------------------------------------------------------
# CIFAR


def cifar(name: str, root: str | Path, image_size: int = 32) -> Dataset:
    """CIFAR-10 or CIFAR-100 (50,000 training and 10,000 test images of 32x32 pixels), found in `root` or downloaded."""
    from torchvision import datasets  # here, because the import takes a second that other data sets need not pay

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    is_new = not Path(root).exists()
    try:
        parts = [source(root, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError, EOFError, zlib.error, tarfile.TarError, http.client.HTTPException) as error:
        if is_new and Path(root).is_dir() and not any(Path(root).iterdir()):
            Path(root).rmdir()  # torchvision makes the folder before it downloads
        raise DataError(_cifar_help(name, source, Path(root), error)) from error
    train, test = (_from_cifar(part, image_size) for part in parts)
    mean, std = CIFAR_MEAN_STD[name]
    return Dataset(train, test, list(parts[0].classes), mean, std)


def _from_cifar(part, image_size: int) -> Split:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()  # (N, 32, 32, 3) -> (N, 3, 32, 32)
    if image_size != images.shape[-1]:
        images = torch.nn.functional.interpolate(images, size=(image_size, image_size), mode="bicubic", antialias=True)
    return Split(images, torch.tensor(part.targets))


def _cifar_help(name: str, source: type, root: Path, error: Exception) -> str:
    archive, size = root / source.filename, CIFAR_ARCHIVE_BYTES[name]
    state = "missing"
    if archive.exists():
        state = f"damaged ({archive.stat().st_size:,} bytes there)"
    reason = one_line(error)
    return (
        f"{archive} is {state} and could not be downloaded ({reason}): put {source.url} ({size:,} bytes, "
        f"md5 {source.tgz_md5}) there by hand, or use --data shapes, which needs no download"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Folders of images


def folder(root: str | Path, image_size: int = 32, skip_bad: bool = False, seed: int = 0) -> Dataset:
    """Images in root/train/<class>/ and root/test/<class>/, resized and cropped to image_size squared.

    root/val/ (also valid/, validation/) is the hold-out, or stands in for a missing test/. Without any of these the
    class folders in root are split by `seed`: 80 % of each class to train, 10 % to hold out, 10 % to test. A class
    that test/ or the hold-out lacks is told in a warning. Hidden files are ignored, and files that are no images are
    left out. Decoded images are cached in $MINIVIT_CACHE, else ~/.cache/minivit, under a key made of all names and
    bytes. Raises DataError.
    """
    splits = _leave_out_others(Path(root), _find_splits(Path(root)))
    if "all" in splits:
        splits = _split(Path(root), splits["all"], seed)
    _report_missing(Path(root), splits)
    classes = sorted(splits["train"])
    loaded = _load_splits(Path(root), splits, classes, image_size, skip_bad)
    mean, std = channel_stats(loaded["train"].images)
    return Dataset(loaded["train"], loaded["test"], classes, mean, std, loaded.get("val"))


def _find_test(root: Path, classes: list[str]) -> dict[str, dict[str, list[Path]]]:
    """{"test": {class: sorted paths}} of the folder of test images, {} without one. DataError for other classes."""
    folder = next((root / name for name in ("test", *HOLD_OUTS) if (root / name).is_dir()), None)
    if folder is None:
        return {}
    found = _leave_out_others(root, {"test": _find_classes(folder)})["test"]
    if not found:
        raise DataError(f"{folder} has no images: expected {folder}/<class>/*")
    if not found.keys() <= set(classes):
        _check_classes(sorted(found), classes)
    return {"test": {name: found.get(name, []) for name in classes}}


def _load_splits(
    root: Path, splits: dict[str, dict[str, list[Path]]], classes: list[str], image_size: int, skip_bad: bool
) -> dict[str, Split]:
    """The decoded images of each split, from the cache if they are there. Raises DataError."""
    files = {split: [path for name in classes for path in found[name]] for split, found in splits.items()}
    cache = _cache_path(root, files, classes, image_size)
    stored = _read_cache(cache)
    if stored is None:
        stored = _decode_splits(root, splits, classes, image_size)
        _write_cache(cache, stored)
    _report_bad(stored["bad"], skip_bad)
    loaded = {split: Split(stored[f"{split}_images"], stored[f"{split}_labels"]) for split in splits}
    for split, part in loaded.items():
        empty = [classes[i] for i in (torch.bincount(part.labels, minlength=len(classes)) == 0).nonzero().flatten()]
        if empty and (split == "train" or not len(part)):
            raise DataError(f"no readable image is left of {split}/{empty[0]}: replace its files or remove the class")
        if empty and any(splits[split][name] for name in empty):
            log.warning("no readable image is left of %s of %s, which stay unmeasured", split, _some(empty))
    return loaded


def _find_splits(root: Path) -> dict[str, dict[str, list[Path]]]:
    """{split: {class: sorted paths}} with train and test, perhaps val; or with all, the class folders of no split.

    Checked: no class of another split is unknown to train; none is empty.
    """
    layout = f"expected {root}/train/<class>/* and {root}/test/<class>/*, or {root}/<class>/* alone"
    if not root.is_dir():
        raise DataError(f"data folder {root} does not exist: {layout}")
    found = {name: _find_classes(root / name) for name in ("train", "test") if (root / name).is_dir()}
    held_out = [name for name in HOLD_OUTS if (root / name).is_dir()]
    if len(held_out) > 1:
        raise DataError(f"{root} has more than one hold-out: keep one of {', '.join(held_out)}")
    if not found and not held_out and len(_find_classes(root)) > 1:
        _refuse_other_splits(root)
        return {"all": _find_classes(root)}
    for name in held_out:
        found["val" if "test" in found else "test"] = _find_classes(root / name)
        if "val" not in found:
            log.warning("%s has no test/: %s/ is taken for the test images", root, name)
    for split in ("train", "test"):
        if not found.get(split):
            raise DataError(f"{root} has no {split} images: {layout}")
    for split, classes in found.items():
        unknown = sorted(classes.keys() - found["train"].keys())
        if unknown:
            are = "is" if len(unknown) == 1 else "are"
            raise DataError(
                f"{', '.join(unknown[:10])} in {root} {are} among the {split} images and not in train/: "
                "add the class there, or remove it"
            )
    return {split: {name: classes.get(name, []) for name in found["train"]} for split, classes in found.items()}


def _refuse_other_splits(root: Path) -> None:
    """DataError for folders of classes whose own names are those of splits, but for case or ending: no classes."""
    for folder in sorted(root.iterdir()):
        looks = SPLIT_NAMES.fullmatch(folder.name.lower())
        if looks and folder.is_dir() and any(path.is_dir() and not _is_hidden(path.name) for path in folder.iterdir()):
            raise DataError(f"{folder} looks like a split and no class: call it {looks[1]}/ (train/, test/ or val/)")


def _split(root: Path, found: dict[str, list[Path]], seed: int) -> dict[str, dict[str, list[Path]]]:
    """80 % of each class to train, 10 % to val, 10 % to test, at least one image each, drawn by a seed; and say so."""
    few = next((name for name, files in found.items() if len(files) < 3), None)
    if few:
        raise DataError(
            f"class folder {root / few} has {len(found[few])} of the 3 images that a split needs at least: "
            f"add images, or make {root}/train and {root}/test yourself"
        )
    generator = torch.Generator().manual_seed(seed)
    splits = {"train": {}, "val": {}, "test": {}}
    for name, files in found.items():
        drawn = [files[i] for i in torch.randperm(len(files), generator=generator)]
        part = max(1, round(len(files) / 10))
        pieces = {"val": drawn[:part], "test": drawn[part : 2 * part], "train": drawn[2 * part :]}
        for split, piece in pieces.items():
            splits[split][name] = sorted(piece)
    counts = ", ".join(f"{sum(map(len, classes.values()))} {split}" for split, classes in splits.items())
    log.warning("%s has no train/ and test/: its class folders are split 80/10/10 by seed %d (%s)", root, seed, counts)
    return splits


def _report_missing(root: Path, splits: dict[str, dict[str, list[Path]]]) -> None:
    """Warn of classes that have training images and none in another split."""
    for split, found in splits.items():
        missing = [name for name, files in found.items() if not files]
        if missing:
            log.warning("%s: no %s images of %s, which stays unmeasured", root, split, _some(missing))


def _leave_out_others(root: Path, splits: dict[str, dict[str, list[Path]]]) -> dict[str, dict[str, list[Path]]]:
    """The images alone: without text files, Thumbs.db, desktop.ini and the like, which a warning counts and names."""
    kept, others = {}, []
    for split, found in splits.items():
        kept[split] = {name: [path for path in files if _looks_like_image(path)] for name, files in found.items()}
        for name, files in found.items():
            others += sorted(set(files) - set(kept[split][name]))
            if files and not kept[split][name]:
                named, folder = (
                    _some([path.name for path in files]),
                    next(p for p in files[0].parents if composed(p.name) == name),
                )
                raise DataError(f"class folder {folder} holds no images, only {named}: put images there")
    if others:
        named = _some([path.relative_to(root).as_posix() for path in others])
        log.warning(
            "left out %d %s: %s",
            len(others),
            "file that is no image" if len(others) == 1 else "files that are no images",
            named,
        )
    return kept


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignore warnings of Pillow, whose causes are refused or told in our words. For one thread: filters are global."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@_without_warnings()
def _looks_like_image(path: Path) -> bool:
    """Whether its name says that it is an image, or its content does under a name that says nothing."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with _open(path):
            return True
    except Exception:  # as in _decode
        return False


def _find_classes(split: Path) -> dict[str, list[Path]]:
    classes: dict[str, list[Path]] = {}
    for folder in sorted(split.iterdir()):
        if folder.is_dir() and not _is_hidden(folder.name):
            classes.setdefault(composed(folder.name), []).extend(_find_files(folder))
    empty = [name for name, files in classes.items() if not files]
    if empty and split.name in ("test", *HOLD_OUTS):  # which _report_missing tells
        return {name: files for name, files in classes.items() if files}
    if empty:
        raise DataError(f"class folder {split / empty[0]} is empty: put images there or remove it")
    return classes


def _find_files(directory: Path) -> list[Path]:
    """All files below a class folder, sorted; hidden files and folders left out."""
    files = []
    for parent, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        files += [Path(parent, name) for name in names if not _is_hidden(name)]
    return sorted(files)


def find_images(directory: str | Path) -> list[Path]:
    """All files below a folder that look like images, sorted; hidden files and folders left out."""
    return [path for path in _find_files(Path(directory)) if _looks_like_image(path)]


def _is_hidden(name: str) -> bool:
    """Whether a file browser hides it; __MACOSX is what macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def _decode_splits(root: Path, splits: dict[str, dict[str, list[Path]]], classes: list[str], size: int) -> dict:
    """Tensors of every split, with the names of unreadable images under `bad`: what the cache holds."""
    stored = {"bad": []}
    for split, found in splits.items():
        files = [path for name in classes for path in found[name]]
        labels = torch.tensor([label for label, name in enumerate(classes) for _ in found[name]])
        log.info("decoding %d images of %s", len(files), split)
        images, problems = _decode_files(files, size)
        several = [path.relative_to(root).as_posix() for path in files if _has_pages(path)]
        if several:
            log.warning(
                "%d files have several pages, of which only the first is read: %s", len(several), _some(several)
            )
        good = torch.tensor([problem is None for problem in problems])
        stored["bad"] += [
            f"{path.relative_to(root).as_posix()} ({problem})" for path, problem in zip(files, problems) if problem
        ]
        stored[f"{split}_images"] = images if good.all() else images[good]
        stored[f"{split}_labels"] = labels[good]
    return stored


@_without_warnings()
def _decode_files(files: list[Path], size: int) -> tuple[torch.Tensor, list[str | None]]:
    """uint8 images (N, 3, size, size), and for each file None or why it could not be decoded."""
    images = np.zeros((len(files), 3, size, size), dtype=np.uint8)

    def decode(index: int) -> str | None:
        try:
            images[index] = _decode(_read_bytes(files[index]), size)
        except DataError as error:
            return str(error)
        return None

    problems = _in_threads(decode, list(range(len(files))))
    return torch.from_numpy(images), problems


@_without_warnings()
def _has_pages(path: Path) -> bool:
    """Whether it is a TIFF of more than one page."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        with _open(path) as image:
            return image.format == "TIFF" and image.n_frames > 1
    except Exception:  # as in _decode, which has reported it
        return False


def _in_threads(function: Callable, items: list) -> list:
    """[function(item) for item in items], in chunks: a task for each small file would cost more than the file."""
    chunks = [items[start : start + 256] for start in range(0, len(items), 256)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda chunk: [function(item) for item in chunk], chunks)
        return [result for part in results for result in part]


@_without_warnings()
def read_image(path: str | Path, size: int) -> torch.Tensor:
    """One image file as uint8 (3, size, size), decoded as `folder` does. Raises DataError."""
    try:
        data = _read_bytes(Path(path))
    except DataError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    try:
        return torch.from_numpy(_decode(data, size).copy())
    except DataError as error:
        raise DataError(f"cannot decode {path}: {error}") from error


@_without_warnings()
def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels of an image file that `read_image` reads, upright."""
    with _open(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(274) in (5, 6, 7, 8) else (width, height)  # EXIF: on its side


def _open(source: str | Path | io.BytesIO) -> Image.Image:
    """An image that is not decoded yet, of a regular file or of its bytes. DataError above MAX_PIXELS.

    Only FORMATS are tried: Pillow would run Ghostscript on an EPS file, whatever its name.
    """
    if not isinstance(source, io.BytesIO):
        _check_regular(source)
    Image.init()
    too_large = f"more than {MAX_PIXELS} pixels: make it smaller"
    try:
        image = Image.open(source, formats=sorted(FORMATS & Image.OPEN.keys()))  # not every Pillow has AVIF
    except Image.DecompressionBombError as error:
        raise DataError(too_large) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise DataError(too_large)
    return image


def _decode(data: bytes, size: int) -> np.ndarray:
    """Bytes of an image file -> uint8 (3, size, size). Raises DataError with the reason in a few words."""
    try:
        with _open(io.BytesIO(data)) as image:
            image.draft(None, (2 * size, 2 * size))  # large JPEGs only: decode at a half, a quarter or an eighth
            return _resize_and_crop(_to_rgb(image), size)
    except UnidentifiedImageError as error:
        raise DataError(_unread(data)) from error
    except (MemoryError, DataError):
        raise
    except Exception as error:  # Pillow's readers raise a dozen types on damaged files
        raise DataError(one_line(error)) from error


def _unread(data: bytes) -> str:
    """The reason why Pillow does not know these bytes."""
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "a TIFF with values of a kind that Pillow does not read: save it with 8 or 16 bits a channel"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1"):
        return "HEIC is not supported: convert it to JPEG"
    return "not an image that Pillow reads"


def _to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode, just opened -> RGB: turned as EXIF says, its values scaled, its alpha laid on white."""
    high_bytes = image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in image.tile)
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # grey levels of more than 8 bits
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    clear = image.has_transparency_data
    pixels = np.asarray(image.convert("RGBA" if clear else "RGB"))
    colours = pixels[..., :3]
    if high_bytes:  # of 16 bits a colour Pillow keeps eight: of a picture that uses only twelve, four are left
        bits = next(depth - 8 for depth in DEPTHS[1:] if colours.max() < 2 ** (depth - 8))
        colours = colours.astype(np.uint32) * 255 // (2**bits - 1)
    if clear:
        alpha = pixels[..., 3:].astype(np.uint32)
        colours = (colours.astype(np.uint32) * alpha + 255 * (255 - alpha) + 127) // 255
    return Image.fromarray(colours.astype(np.uint8))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Convert numbers of any kind to uint8: floats in 0..1 are shares of white, others have the smallest of DEPTHS.

    Values below 0 or above 16 bits are stretched from the minimum to the maximum. Non-finite values become as dark as
    the minimum. Raises DataError if no value is finite.
    """
    floats = values.dtype.kind == "f"
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise DataError("none of its pixels is a finite number")
    low, high = float(finite.min()), float(finite.max())
    values = np.where(np.isfinite(values), values, low).astype(np.float64)
    if floats and 0 <= low and high <= 1:
        return np.rint(values * 255).astype(np.uint8)
    grey = 0 <= low and not (floats and high < 16)  # floats up to a small number are no grey levels of any depth
    depth = next((bits for bits in DEPTHS if grey and high < 2**bits), None)
    if depth is None:
        return np.rint((values - low) * (255 / max(high - low, 1e-300))).astype(np.uint8)
    scaled = values * 255 / (2**depth - 1)
    return (np.rint(scaled) if floats else np.floor(scaled)).clip(0, 255).astype(np.uint8)


def _resize_and_crop(image: Image.Image, size: int) -> np.ndarray:
    """An RGB image -> uint8 (3, size, size): shorter side resized, centre cropped."""
    # Pillow's bicubic widens with the scale, so it is antialiased; an image of the right size comes back untouched.
    image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)  # (S, S, 3) -> (3, S, S)


def _read_bytes(path: Path) -> bytes:
    """The content of a regular file of at most MAX_BYTES. DataError with the reason in a few words."""
    _check_regular(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(str(error.strerror or error)) from error
    if len(data) > MAX_BYTES:
        raise DataError(f"more than {MAX_BYTES} bytes")
    return data


def _check_regular(path: str | Path) -> None:
    """DataError unless it is a regular file: a pipe would be waited for, a device may never end."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise DataError(str(error.strerror or error)) from error
    if not stat.S_ISREG(mode):
        raise DataError("no regular file")


def _some(names: list[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _report_bad(bad: list[str], skip_bad: bool) -> None:
    if not bad:
        return
    named = _some(bad)
    noun = "image" if len(bad) == 1 else "images"
    if not skip_bad:
        raise DataError(f"{len(bad)} unreadable {noun}: {named}; replace or delete, or leave out with --skip-bad")
    log.warning("left out %d unreadable %s: %s", len(bad), noun, named)


# ---------------------------------------------------------------------------------------------------------------------
# The cache of decoded folders


def _cache_path(root: Path, files: dict[str, list[Path]], classes: list[str], image_size: int) -> Path:
    """One cache file per content: of every image its path below the root, byte count and hash; the classes, through
    which its labels count; and the image size."""
    paths = [path for split in files.values() for path in split]
    digests = _in_threads(_digest, paths)
    # 3 is the format of the cache: count it up when decoding or layout changes.
    key = hashlib.sha256(f"3 {classes}".encode("utf-8", "surrogateescape"))
    for path, digest in zip(paths, digests):
        key.update(f"\n{path.relative_to(root).as_posix()} {digest}".encode("utf-8", "surrogateescape"))
    try:
        home = Path(os.environ.get("MINIVIT_CACHE") or Path.home() / ".cache" / "minivit")
    except RuntimeError:
        raise DataError("there is no home folder for the cache of images: set MINIVIT_CACHE to a folder") from None
    return home / f"folder-{image_size}-{key.hexdigest()[:32]}.pt"


def _digest(path: Path) -> str:
    try:
        data = _read_bytes(path)
    except DataError as error:
        return str(error)
    return f"{len(data)} {hashlib.blake2b(data, digest_size=16).hexdigest()}"


def _read_cache(path: Path) -> dict | None:
    """Read what `_write_cache` stored; None if there is nothing, or if it is damaged."""
    if not path.exists():
        return None
    try:
        stored = torch.load(path, weights_only=True)
        if stored.pop("checksum") == _checksum(stored):  # torch.load itself does not notice a flipped bit
            return stored
        reason = "checksum differs"
    except Exception as error:  # zip, pickle and tensor readers each have their own types
        reason = type(error).__name__
    log.warning("cache %s is damaged (%s): decoding the images again", path, reason)
    return None


def _write_cache(path: Path, stored: dict) -> None:
    """Write whole or not at all, so that readers and other writers are safe."""
    stored = stored | {"checksum": _checksum(stored)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda temporary: torch.save(stored, temporary))
    except (OSError, RuntimeError) as error:  # a full or read-only disk costs the cache, not the run
        log.warning("no cache written to %s: %s", path, error)


def _checksum(stored: dict) -> int:
    crc = 0
    for name in sorted(stored):
        value = stored[name]
        crc = zlib.crc32(value.numpy() if isinstance(value, torch.Tensor) else repr(value).encode(), crc)
    return crc


# ---------------------------------------------------------------------------------------------------------------------
# Generated shapes


def shapes(seed: int = 0, n_train: int = 8000, n_test: int = 2000, image_size: int = 32) -> Dataset:
    """Ten classes, five shapes in two textures, at random place, size, tilt and colours on a cluttered background.

    No pixel tells the class on its own, so a linear model fails; a network that sees edges and repetition does not.
    The same seed gives the same images, and the test images do not depend on n_train. Raises DataError.
    """
    parts = []
    for stream, count in enumerate((n_train, n_test)):
        if count < len(CLASSES):
            raise DataError(f"{count} generated images are too few: {len(CLASSES)} classes need one each")
        generator = torch.Generator().manual_seed(2 * seed + stream)
        labels = torch.arange(count)[torch.randperm(count, generator=generator)] % len(CLASSES)
        images = [draw_shapes(chunk, image_size, generator) for chunk in labels.split(500)]  # to bound memory
        parts.append(Split(torch.cat(images), labels))
    mean, std = channel_stats(parts[0].images)
    return Dataset(parts[0], parts[1], list(CLASSES), mean, std)
