"""The folder of one result: which files in it runs have made, and how new ones take their place.

result.json lists them. Nothing else is ever removed: a file, a folder or a link of the user's own where results go is
refused. A result of a version that listed nothing counts as made where the names are ones that this program gives. What
a file manager put into a folder (.DS_Store, Thumbs.db) is nobody's, and goes with the folder.

What is not complete lies in `.unfinished`. When it is, `publish` moves the earlier files there, result.json first, and
the new ones to their place, result.json last: a kill in between leaves lists of all of them, and `complete` does the
rest.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ..records import LARGEST_RESULT
from ..support.files import is_of_the_system, is_temporary, remove_if_empty, replace
from ..support.reading import check_regular, sequence, text

UNFINISHED, EARLIER, ASIDE = ".unfinished", "earlier.json", "aside"
CORRECTION = "correction"  # a file that says so of what is unfinished: the result beside it is whole
RESULTS = (
    *("result.json", "result.jsonl", "annotated", "annotated.*", "masks", "crops", "heatmaps", "frames"),
    *("page.html", "thumbnail.jpg", "story.png", "states"),
)
IN_UNFINISHED = ("results", "state.pt", "journal.jsonl", EARLIER, ASIDE, CORRECTION)
UNLISTED = re.compile(  # names in a result without a list
    r"result\.jsonl?|page\.html|annotated\.(png|jpg|mp4|gif|webp)|(annotated|frames)/\d+\.png|(masks|crops|heatmaps)/([^/]+/)?"
    r"|(masks|crops)/\d{3,}[^/]*(/\d+)?\.png|heatmaps/\d{3,}[^/]*(/\d+)?(_mask|_overlay)?\.png"
)


def read_result(path: Path) -> dict:
    """A result.json; empty if there is none, or it is damaged."""
    try:
        check_regular(path, LARGEST_RESULT)
        content = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def is_unfinished(folder: Path) -> bool:
    """Whether a folder holds an interrupted run; an interrupted correction has left the result as it was."""
    corrected = (folder / UNFINISHED / CORRECTION).exists() and (folder / "result.json").is_file()
    return (folder / UNFINISHED).exists() and not corrected


def make_folder(out: Path) -> None:
    """--out. ValueError if it can't be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: can't be made a folder: {error.strerror or error}") from error


def list_files(folder: Path) -> list[str]:
    """Files and empty folders of results, by names such as masks/001_car.png; an empty folder ends in /.

    ValueError for a link among them.
    """
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if any(fnmatchcase(entry.name, pattern) for pattern in RESULTS)]
    return sorted(name for entry in found for name in _walk(entry, entry.name))


def _walk(entry: os.DirEntry, name: str) -> Iterator[str]:
    if entry.is_symlink():
        raise ValueError(f"{entry.path} is a link, and links are not followed: move it away, or choose another --out")
    if not entry.is_dir():
        yield name
        return
    with os.scandir(entry.path) as entries:
        inside = [entry for entry in entries if not is_of_the_system(entry)]
    if not inside:
        yield name + "/"
    for child in inside:
        yield from _walk(child, f"{name}/{child.name}")


def files_of(result: dict) -> list[str] | None:
    """The files that a result.json lists; None if it has no list."""
    with suppress(ValueError):
        sequence(text)(result.get("files"), "files")
        return result["files"]
    return None


def own_files(folder: Path) -> list[str]:
    """The files of list_files that runs have made."""
    there, own = list_files(folder), set()
    for path in ("result.json", f"{UNFINISHED}/{EARLIER}", f"{UNFINISHED}/results/result.json"):
        result = read_result(folder / path)
        listed = files_of(result)
        if listed is not None:
            own.update(listed, (f"{parent.as_posix()}/" for name in listed for parent in PurePosixPath(name).parents))
        elif "prompt" in result and "objects" in result:
            own.update(filter(UNLISTED.fullmatch, there))
    return [name for name in there if name in own]


def check_own(folder: Path) -> None:
    """ValueError that names what stands where results go, and was not made by a run."""
    mend = "move it away, or choose another --out"
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link, and links are not followed: {mend}")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: {mend}")
    unfinished = folder / UNFINISHED
    if unfinished.is_symlink() or (unfinished.exists() and not unfinished.is_dir()):
        raise ValueError(f"{unfinished} was not made by this program: {mend}")
    entries = unfinished.iterdir() if unfinished.exists() else ()
    inside = [path.name for path in entries if not is_of_the_system(path)]
    foreign = [f"{UNFINISHED}/{name}" for name in inside if name not in IN_UNFINISHED and not is_temporary(name)]
    own = set(own_files(folder))
    foreign += [name for name in list_files(folder) if name not in own]
    if foreign:
        raise ValueError(f"{folder / min(foreign)} was not made by this program: {mend}")


def publish(new: Path, folder: Path) -> None:
    """Put results in the place of those of an earlier run.

    ValueError as of check_own. OSError for a file that can't be moved, as on Windows one that a player has open: then
    the earlier result stands as before, and `complete` can try again.
    """
    check_own(folder)
    moved: list[tuple[Path, Path]] = []

    def move(source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace(source, target)
        moved.append((source, target))

    unfinished, listed = folder / UNFINISHED, files_of(read_result(new / "result.json")) or ()
    placed = set(listed) - set(list_files(new))  # by a process that was killed here
    earlier = [name for name in own_files(folder) if name not in placed]
    try:
        if "result.json" in earlier:
            move(folder / "result.json", unfinished / EARLIER)
        for name in earlier:
            if name != "result.json" and not name.endswith("/"):
                move(folder / name, unfinished / ASIDE / name)
        remove_empty(folder, earlier)
        for path in sorted(new.iterdir(), key=lambda path: path.name == "result.json"):
            move(path, folder / path.name)
    except OSError as error:
        for source, target in reversed(moved):
            source.parent.mkdir(parents=True, exist_ok=True)
            replace(target, source)
        hint = "close it; --resume, or the next --correct, then goes on"
        raise OSError(error.errno, f"{error.strerror}; {hint}", error.filename) from error


def complete(folder: Path) -> None:
    """Finish what a kill in or just before `publish` left: all is there, and only has to be moved. ValueError as of
    check_own. The lock must be held."""
    unfinished, new = folder / UNFINISHED, folder / UNFINISHED / "results"
    if (unfinished / "state.pt").exists():
        return  # the run goes on from there
    if read_result(new / "result.json"):
        publish(new, folder)
        shutil.rmtree(unfinished, ignore_errors=True)
    elif (unfinished / EARLIER).exists() and (folder / "result.json").exists():
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_empty(folder: Path, names: Iterable[str]) -> None:
    """Remove the folders of these files, and those among the names, as far as they are empty."""
    parents = {parent for name in names for parent in Path(name).parents}
    parents |= {Path(name) for name in names if name.endswith("/")}
    for parent in sorted(parents - {Path(".")}, key=lambda path: -len(path.parts)):
        with suppress(OSError):
            remove_if_empty(folder / parent)


def remove_own(folder: Path) -> None:
    """Remove the files that runs have made, and the folders that are empty then."""
    own = own_files(folder)
    for name in own:
        if not name.endswith("/"):
            (folder / name).unlink()
    remove_empty(folder, own)


def clear(folder: Path) -> None:
    """Remove unfinished results, also such as were on the way to their place, and the folder if it is empty then."""
    with suppress(ValueError, OSError):
        if not (folder / "result.json").exists():
            remove_own(folder)
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    with suppress(OSError):
        remove_if_empty(folder)
