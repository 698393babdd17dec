"""Data sets by name: `cifar10`, `cifar100`, `folder` (train/<class>/*, test/<class>/*) and `shapes`.

CIFAR is Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; archive and checksums are
torchvision's. `shapes` are ten classes drawn from a seed.
"""

import http.client
import socket
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from minivit import folder
from minivit.files import Claim
from minivit.shapes import CLASSES, draw_shapes
from minivit.splits import DataError, Dataset, Split, channel_stats, check_classes
from minivit.text import one_line, say

LOCK = ".download.lock"  # the name of a file in the folder of CIFAR
PATIENCE = 60.0  # seconds for a server to send something
NAMES = ("cifar10", "cifar100", "folder", "shapes")

# Per-channel mean and standard deviation of the training pixels in [0, 1], as published with most CIFAR recipes.
CIFAR_MEAN_STD = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
CIFAR_ARCHIVE_BYTES = {"cifar10": 170_498_071, "cifar100": 169_001_437}


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
        return folder.load(root, image_size, skip_bad, seed)
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
    alone = folder.load_test(Path(root), image_size, classes, skip_bad) if name == "folder" else None
    if alone is not None:
        return alone
    dataset = load(name, root, image_size, seed, skip_bad)
    check_classes(dataset.classes, classes)
    return dataset.test


def stored_side(name: str, side: int) -> int:
    """The side in pixels at which the images of a data set are held for a model of this side.

    CIFAR stays small in memory and is enlarged on the device.
    """
    return 32 if name in CIFAR_MEAN_STD else side


def cifar(name: str, root: str | Path, image_size: int = 32) -> Dataset:
    """CIFAR-10 or CIFAR-100 (50,000 training and 10,000 test images of 32x32 pixels), found in `root` or downloaded."""
    from torchvision import datasets  # here, because the import takes a second that other data sets need not pay

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    is_new = not Path(root).exists()
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        with _alone(Path(root)):
            parts = [source(root, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError, EOFError, zlib.error, tarfile.TarError, http.client.HTTPException) as error:
        if is_new and Path(root).is_dir() and {path.name for path in Path(root).iterdir()} <= {LOCK}:
            Path(root, LOCK).unlink(missing_ok=True)
            Path(root).rmdir()
        raise DataError(_cifar_help(name, source, Path(root), error)) from error
    train, test = (_from_cifar(part, image_size) for part in parts)
    mean, std = CIFAR_MEAN_STD[name]
    return Dataset(train, test, list(parts[0].classes), mean, std)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process at a time downloads and unpacks into a folder, from a server that answers: torchvision sees to
    neither."""
    claim, before = None, socket.getdefaulttimeout()
    with suppress(PermissionError, FileNotFoundError):  # nothing can be downloaded into what can't be written to
        (root / LOCK).touch()
        try:
            claim = Claim(root / LOCK)
        except BlockingIOError:
            say(f"another process downloads into {root}: waiting for it")
            claim = Claim(root / LOCK, wait=True)
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
        if claim is not None:
            claim.release()


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
