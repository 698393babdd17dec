"""A folder of images by class: train/<class>/* and test/<class>/*, or class folders alone, which are split by a seed.

What was decoded once is kept in a cache, under a key made of all names and bytes.
"""

import glob
import hashlib
import logging
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from minivit.files import unwritten, write_atomically
from minivit.images import decode, has_pages, looks_like_image, read_bytes, without_warnings
from minivit.splits import DataError, Dataset, Split, channel_stats, check_classes
from minivit.text import composed, some_of

log = logging.getLogger(__name__)

SPLIT_NAMES = re.compile(r"(train|test|val)(ing|id|idation)?([-_ ]?(set|data|images))?")  # in lower case
OF_RESULTS = ({"config.json", "metrics.jsonl"}, {"study.json", "table.md"})  # files that a run has, and a study
HOLD_OUTS = ("val", "valid", "validation")  # folders beside train/ that hold images to choose weights by
SPLITS = ("train", "test", *HOLD_OUTS)  # names of folders that are no classes


def load(root: str | Path, image_size: int = 32, skip_bad: bool = False, seed: int = 0) -> Dataset:
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
    if len(classes) == 1:
        raise DataError(f"{root} has one class, {classes[0]}: add a folder of images of what it is to be told from")
    loaded = _load_splits(Path(root), splits, classes, image_size, skip_bad)
    mean, std = channel_stats(loaded["train"].images)
    return Dataset(loaded["train"], loaded["test"], classes, mean, std, loaded.get("val"))


def is_split_by_seed(name: str, root: str | Path) -> bool:
    """Whether these are class folders without train/ and test/, whose test images depend on the seed."""
    return name == "folder" and Path(root).is_dir() and not any((Path(root) / part).is_dir() for part in SPLITS)


def listing(name: str, root: str | Path) -> str | None:
    """A digest of the names of the images in class folders that are split by a seed, on which their split depends, too;
    None for other data."""
    if not is_split_by_seed(name, root):
        return None
    folders = [folder for folder in Path(root).iterdir() if folder.is_dir() and not _is_hidden(folder.name)]
    images = [path for folder in folders for path in find_images(folder)]
    names = sorted(path.relative_to(root).as_posix() for path in images)
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def load_test(root: Path, image_size: int, classes: list[str], skip_bad: bool = False) -> Split | None:
    """The images in root/test/ (else val/, valid/ or validation/), with labels that count through `classes`.

    train/ need not be there. None without any of these folders. Raises DataError, for other classes than these too.
    """
    splits = _find_test(root, classes)
    if not splits:
        return None
    _report_missing(root, splits)
    return _load_splits(root, splits, classes, image_size, skip_bad)["test"]


def _find_test(root: Path, classes: list[str]) -> dict[str, dict[str, list[Path]]]:
    """The files of the folder of test images, {"test": {class: sorted paths}}; {} without one. DataError for other
    classes."""
    folder = next((root / name for name in ("test", *HOLD_OUTS) if (root / name).is_dir()), None)
    if folder is None:
        return {}
    found = _leave_out_others(root, {"test": _find_classes(folder)})["test"]
    if not found:
        raise DataError(f"{folder} has no images: expected {folder}/<class>/*")
    if folder.name != "test":
        _say_val_is_test(root, folder.name)
    if not found.keys() <= set(classes):
        check_classes(sorted(found), classes)
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
    _report_several(stored["several"])
    loaded = {split: Split(stored[f"{split}_images"], stored[f"{split}_labels"]) for split in splits}
    for split, part in loaded.items():
        empty = [classes[i] for i in (torch.bincount(part.labels, minlength=len(classes)) == 0).nonzero().flatten()]
        if empty and (split == "train" or not len(part)):
            raise DataError(f"no readable image is left of {split}/{empty[0]}: replace its files or remove the class")
        if empty and any(splits[split][name] for name in empty):
            log.warning("no readable image is left of %s of %s, which stay unmeasured", split, some_of(empty))
    return loaded


def _find_splits(root: Path) -> dict[str, dict[str, list[Path]]]:
    """The files of train and test, perhaps of val, {split: {class: sorted paths}}; or of "all", class folders alone.

    Checked: no class of another split is unknown to train; none is empty.
    """
    layout = f"expected {root}/train/<class>/* and {root}/test/<class>/*, or {root}/<class>/* alone"
    if not root.is_dir():
        raise DataError(f"data folder {root} does not exist: {layout}")
    found = {name: _find_classes(root / name) for name in ("train", "test") if (root / name).is_dir()}
    held_out = [name for name in HOLD_OUTS if (root / name).is_dir()]
    if len(held_out) > 1:
        raise DataError(f"{root} has more than one hold-out: keep one of {', '.join(held_out)}")
    if not found and not held_out and len(classes := _find_classes(root)) > 1:
        _refuse_other_splits(root)
        return {"all": classes}
    for name in held_out:
        split = "val" if "test" in found else "test"
        found[split] = _find_classes(root / name)
        if not found[split]:
            raise DataError(f"{root / name} has no images: put a folder of them there for each class, or remove it")
        if split == "test":
            _say_val_is_test(root, name)
    for split in ("train", "test"):
        if not found.get(split):
            raise DataError(f"{root} has no {split} images: {layout} (where none is called {', '.join(SPLITS)})")
    _refuse_other_splits(root)
    for split, classes in found.items():
        unknown = sorted(classes.keys() - found["train"].keys())
        if unknown:
            are = "is" if len(unknown) == 1 else "are"
            raise DataError(
                f"{', '.join(unknown[:10])} in {root} {are} among the {split} images and not in train/: "
                "add the class there, or remove it"
            )
    return {split: {name: classes.get(name, []) for name in found["train"]} for split, classes in found.items()}


def _say_val_is_test(root: Path, name: str) -> None:
    log.warning("%s has no test/: %s/ is taken for the test images", root, name)


def _refuse_other_splits(root: Path) -> None:
    """DataError for folders of classes whose own names are those of splits that are not there, but for case or ending:
    no classes."""
    there = {"val" if name in HOLD_OUTS else name for name in SPLITS if (root / name).is_dir()}
    for folder in sorted(root.iterdir()):
        looks = SPLIT_NAMES.fullmatch(folder.name.lower())
        if not looks or folder.name in SPLITS or looks[1] in there:
            continue
        if folder.is_dir() and any(path.is_dir() and not _is_hidden(path.name) for path in folder.iterdir()):
            raise DataError(f"{folder} looks like a split and no class: call it {looks[1]}/ (train/, test/ or val/)")


def _split(root: Path, found: dict[str, list[Path]], seed: int) -> dict[str, dict[str, list[Path]]]:
    """Draw 80 % of each class to train, 10 % to val, 10 % to test, at least one image each, by a seed; and say so."""
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
            log.warning("%s: no %s images of %s, which stays unmeasured", root, split, some_of(missing))


def _leave_out_others(root: Path, splits: dict[str, dict[str, list[Path]]]) -> dict[str, dict[str, list[Path]]]:
    """The images alone: without text files, Thumbs.db, desktop.ini and the like, which a warning counts and names."""
    kept, others = {}, []
    for split, found in splits.items():
        kept[split] = {name: [path for path in files if looks_like_image(path)] for name, files in found.items()}
        for name, files in found.items():
            others += sorted(set(files) - set(kept[split][name]))
            if files and not kept[split][name]:
                named, folder = (
                    some_of([path.name for path in files]),
                    next(p for p in files[0].parents if composed(p.name) == name),
                )
                raise DataError(f"class folder {folder} holds no images, only {named}: put images there")
    if others:
        named = some_of([path.relative_to(root).as_posix() for path in others])
        log.warning(
            "left out %d %s: %s",
            len(others),
            "file that is no image" if len(others) == 1 else "files that are no images",
            named,
        )
    return kept


def _find_classes(split: Path) -> dict[str, list[Path]]:
    """The files of each class folder; results of this program, such as the plots of a run, are left out."""
    classes: dict[str, list[Path]] = {}
    results: list[Path] = []
    shown = [path for path in sorted(split.iterdir()) if not _is_hidden(path.name)]
    loose = [path.name for path in shown if path.is_file() and looks_like_image(path)]
    if loose:
        are = "picture that lies" if len(loose) == 1 else "pictures that lie"
        log.warning("%s: left out %d %s in no class folder: %s", split, len(loose), are, some_of(loose))
    for folder in shown:
        if folder.is_dir():
            files, made = _find_files(folder)
            results += made
            if files or not made:
                classes.setdefault(composed(folder.name), []).extend(files)
    if results:
        named = some_of([str(path.relative_to(split)) for path in results])
        log.warning("%s: left out what this program made: %s", split, named)
    empty = [name for name, files in classes.items() if not files]
    if empty and split.name in ("test", *HOLD_OUTS):  # which _report_missing tells
        return {name: files for name, files in classes.items() if files}
    if empty:
        raise DataError(f"class folder {split / empty[0]} is empty: put images there or remove it")
    return classes


def _find_files(directory: Path) -> tuple[list[Path], list[Path]]:
    """All files below a class folder, sorted, without hidden files and folders; and the folders of results, which are
    left out. Raises DataError.

    Links to folders are followed, but for those to a folder that was read before, or that holds this one.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    files, results = [], []
    for parent, folders, names in walk_once(directory, refuse, map(place, directory.resolve().parents)):
        if any(marks <= set(names) for marks in OF_RESULTS):
            results.append(Path(parent))
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        files += [Path(parent, name) for name in names if not _is_hidden(name)]
    return sorted(files), results


def walk_once(
    directory: str | Path, onerror: Callable[[OSError], None] | None = None, known: Iterable[tuple[int, int]] = ()
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk as os.walk does, through links too, but into each folder once: links may lead in circles.

    known: places of folders that are not entered. The caller may change the list of folders.
    """
    known = set(known)
    for parent, folders, names in os.walk(directory, onerror=onerror, followlinks=True):
        if place(parent) in known:
            folders.clear()
        else:
            known.add(place(parent))
            yield parent, folders, names


def place(folder: str | Path) -> tuple[int, int]:
    """The device and inode of a folder, the same under all its names."""
    about = os.stat(folder)
    return about.st_dev, about.st_ino


def find_matches(pattern: str) -> list[str]:
    """Find what glob finds for a pattern; for ** by walk_once."""
    parts = pattern.replace(os.altsep or os.sep, os.sep).split(os.sep)
    if "**" not in parts:
        return glob.glob(pattern)
    at = parts.index("**")
    before, after = os.sep.join([*parts[:at], ""]), os.sep.join(parts[at + 1 :] or ["*"])
    found = {}  # in the order of finding, each name once
    for root in glob.glob(before) if before else [""]:
        for parent, folders, _ in walk_once(root or "."):
            shown = [name for name in folders if not name.startswith(".")]
            folders[:] = sorted(shown, key=lambda name: (os.path.islink(os.path.join(parent, name)), name))
            relative = parent if root else os.path.relpath(parent)
            inside = "" if relative == "." else glob.escape(relative)
            found |= dict.fromkeys(find_matches(os.path.join(inside, after)))
    return list(found)


def find_images(directory: str | Path) -> list[Path]:
    """All files below a folder that look like images, sorted; hidden files and folders left out. Raises DataError."""
    return [path for path in _find_files(Path(directory))[0] if looks_like_image(path)]


def _is_hidden(name: str) -> bool:
    """Whether a file browser hides it; __MACOSX is what macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def _decode_splits(root: Path, splits: dict[str, dict[str, list[Path]]], classes: list[str], size: int) -> dict:
    """Tensors of every split, with the names of unreadable images under `bad`, and of those with several pages under
    `several`: what the cache holds."""
    stored = {"bad": [], "several": []}
    for split, found in splits.items():
        files = [path for name in classes for path in found[name]]
        labels = torch.tensor([label for label, name in enumerate(classes) for _ in found[name]])
        log.info("decoding %d images of %s", len(files), split)
        images, problems = _decode_files(files, size)
        stored["several"] += [path.relative_to(root).as_posix() for path in files if has_pages(path)]
        good = torch.tensor([problem is None for problem in problems])
        stored["bad"] += [
            f"{path.relative_to(root).as_posix()} ({problem})" for path, problem in zip(files, problems) if problem
        ]
        stored[f"{split}_images"] = images if good.all() else images[good]
        stored[f"{split}_labels"] = labels[good]
    return stored


@without_warnings()
def _decode_files(files: list[Path], size: int) -> tuple[torch.Tensor, list[str | None]]:
    """uint8 images (N, 3, size, size), and for each file None or why it could not be decoded."""
    images = np.zeros((len(files), 3, size, size), dtype=np.uint8)

    def fill(index: int) -> str | None:
        try:
            images[index] = decode(read_bytes(files[index]), size)
        except DataError as error:
            return str(error)
        return None

    problems = _in_threads(fill, list(range(len(files))))
    return torch.from_numpy(images), problems


def _in_threads(function: Callable, items: list) -> list:
    """Call a function with each item, by threads, in chunks: a task for a small file would cost more than the file."""
    chunks = [items[start : start + 256] for start in range(0, len(items), 256)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda chunk: [function(item) for item in chunk], chunks)
        return [result for part in results for result in part]


def _report_bad(bad: list[str], skip_bad: bool) -> None:
    if not bad:
        return
    named = some_of(bad)
    noun = "image" if len(bad) == 1 else "images"
    if not skip_bad:
        raise DataError(f"{len(bad)} unreadable {noun}: {named}; replace or delete, or leave out with --skip-bad")
    log.warning("left out %d unreadable %s: %s", len(bad), noun, named)


def _report_several(several: list[str]) -> None:
    if several:
        files = "1 file has" if len(several) == 1 else f"{len(several)} files have"
        log.warning("%s several pages or frames, of which only the first is read: %s", files, some_of(several))


def _cache_path(root: Path, files: dict[str, list[Path]], classes: list[str], image_size: int) -> Path:
    """One cache file per content: of every image its path below the root, byte count and hash; the classes, through
    which its labels count; and the image size."""
    paths = [path for split in files.values() for path in split]
    digests = _in_threads(_digest, paths)
    # 4 is the format of the cache: count it up when decoding or layout changes.
    key = hashlib.sha256(f"4 {classes}".encode("utf-8", "surrogateescape"))
    for path, digest in zip(paths, digests):
        key.update(f"\n{path.relative_to(root).as_posix()} {digest}".encode("utf-8", "surrogateescape"))
    try:
        home = Path(os.environ.get("MINIVIT_CACHE") or Path.home() / ".cache" / "minivit")
    except RuntimeError:
        raise DataError("there is no home folder for the cache of images: set MINIVIT_CACHE to a folder") from None
    return home / f"folder-{image_size}-{key.hexdigest()[:32]}.pt"


def _digest(path: Path) -> str:
    try:
        data = read_bytes(path)
    except DataError as error:
        return str(error)
    return f"{len(data)} {hashlib.blake2b(data, digest_size=16).hexdigest()}"


def _read_cache(path: Path) -> dict | None:
    """Read what `_write_cache` stored; None if there is nothing, or if it is damaged."""
    try:
        stored = torch.load(path, weights_only=True)
        if stored.pop("checksum") == _checksum(stored):  # torch.load itself does not notice a flipped bit
            return stored
        reason = "checksum differs"
    except OSError:  # there is none, or it is out of reach, which _write_cache tells
        return None
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
        log.warning("no cache written to %s: %s", path, unwritten(error))


def _checksum(stored: dict) -> int:
    crc = 0
    for name in sorted(stored):
        value = stored[name]
        crc = zlib.crc32(value.numpy() if isinstance(value, torch.Tensor) else repr(value).encode(), crc)
    return crc
