"""One data set in one folder, which grows input by input and is whole at any time.

The files of an input come first, then the list of its entries in `.parts`: an input with a list there is complete. Its
files are listed there, as begun, before they are written, so that those of a killed process can be removed. From the
lists `assemble` writes the files of the whole set, in the order of the inputs, so that several processes, or a run that
was killed and one that went on, come to the same. `.minisam.json` says which run a data set is of.
"""

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Lock

import numpy as np

from ..support.files import is_of_the_system, is_temporary, whole_file
from ..support.reading import check_regular, fields, mapping, plain, sequence, text
from ..support.text import shortened
from .annotations import Categories, Picture, Result
from .formats import FORMATS

ABOUT, PARTS, BEGUN = ".minisam.json", ".parts", ".begun"
LARGEST_ABOUT = 1 << 26  # bytes
KIND = fields(format=text, of=mapping(text, plain), categories=sequence(text), inputs=sequence(text))


def _inside(value: object, where: str) -> None:
    """A path in the data set: what is not listed so is never removed."""
    text(value, where)
    if PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts:
        raise ValueError(f"{where} leads out of the data set")


ENTRY = fields(files=sequence(_inside))
PAUSE = 1.0  # seconds, at least, between two times that the files of the whole set are written
SHARE = 20  # times as long as that takes


class DataSet:
    """A data set of one run. ValueError if the folder holds another one's, or something else; nothing is changed then.

    name: of the format, see formats.py. of: what the run is of, plain values. inputs: the names of all its inputs, in
    order: a data set may grow by some, and not lose one that it holds. Threads may add different inputs at the same
    time.
    """

    def __init__(self, folder: Path, name: str, categories: Categories, of: dict[str, object], inputs: list[str]):
        self.folder, self.how, self.categories, self.inputs = folder, FORMATS[name], categories, inputs
        self.about = {"format": name, "of": of, "categories": categories.names, "inputs": inputs}
        self.lock, self.next = Lock(), 0.0
        self.check()

    def check(self) -> None:
        """ValueError unless the folder is new, empty, or holds this data set or a smaller one of the same run."""
        mend = "move it away, or choose another --out"
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise ValueError(f"{self.folder} is no folder: {mend}")
        inside = self.folder.iterdir() if self.folder.exists() else ()
        if all(is_temporary(path.name) or is_of_the_system(path) for path in inside):
            return
        try:
            before = read_about(self.folder)
        except (ValueError, OSError, RecursionError) as error:
            raise ValueError(f"{self.folder} is no data set of this program: {mend}") from error
        then, now = before["of"], self.about["of"]
        changed = [
            f"{name.removeprefix('--')} {_shown(then.get(name))} then, {_shown(now.get(name))} now"
            for name in sorted({**then, **now})
            if then.get(name) != now.get(name)
        ]
        categories = before["categories"]  # which keep their numbers; more may follow
        changed += [] if categories == self.about["categories"][: len(categories)] else ["other categories"]
        lost = [name for name in before["inputs"] if name not in set(self.inputs) and self._part(name).exists()]
        changed += [f"it has {lost[0]!r}, which is no input now"] if lost else []
        if changed:
            raise ValueError(f"{self.folder} holds the data set of another run ({'; '.join(changed[:3])}): {mend}")

    def begin(self, alone: bool) -> None:
        """Make the folder, and say what it is of. alone: no other process writes here, so that what is half-written
        was left by one that was killed, and goes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in list(self.folder.rglob(".*.tmp")) if alone else ():
            if is_temporary(path.name):
                path.unlink()
        with whole_file(self.folder / ABOUT) as temporary:
            temporary.write_text(json.dumps(self.about) + "\n", encoding="ascii")
        (self.folder / PARTS).mkdir(exist_ok=True)
        for path in list((self.folder / PARTS).glob(f"*{BEGUN}")) if alone else ():
            self._clear_begun(path.name.removesuffix(BEGUN))

    def has(self, name: str, since: int) -> bool:
        """Whether an input is complete here, and written at `since` (nanoseconds of file times) or later."""
        with suppress(FileNotFoundError):
            return self._part(name).stat().st_mtime_ns >= since and self.entries_of(name) is not None
        return False

    @contextmanager
    def writing(self, name: str) -> Iterator[Callable[[Picture], None]]:
        """Write an input by the function that this gives, picture by picture.

        Files that only an earlier result had are removed. If writing fails, those of both are: YOLO and labelme count
        any file in the folder, and old labels do not fit a new image.
        """
        self._clear_begun(name)
        part, begun, before = self._part(name), self._begun(name), self._files_of(name)

        def put(picture: Picture) -> None:
            self._note(begun, [*(before if part.exists() else ()), *self.how.files(picture)])
            part.unlink(missing_ok=True)
            file.write(json.dumps(self.how.write(self.folder, picture, self.categories)) + "\n")

        try:
            with whole_file(part) as temporary, open(temporary, "w", encoding="ascii") as file:
                yield put
        except BaseException:
            self._clear_begun(name)
            if before and not part.exists():
                self.assemble()  # the files of the whole set speak of the earlier result
            raise
        self._clear_begun(name)

    def _note(self, begun: Path, files: list[str]) -> None:
        """Add files that are about to be written to a list of what was begun."""
        with open(begun, "a", encoding="ascii") as notes:
            notes.writelines(json.dumps(file) + "\n" for file in files)

    def _clear_begun(self, name: str) -> None:
        """Remove the files of an input that were begun, but for those that belong to what is complete; and the list."""
        with suppress(FileNotFoundError):
            lines, kept = set(self._begun(name).read_bytes().splitlines()), self._files_of(name)
            for line in lines:
                with suppress(ValueError, RecursionError):  # of a process that was killed while it wrote this line
                    file = json.loads(line)
                    _inside(file, "a file")
                    if file not in kept:
                        with suppress(NotADirectoryError, IsADirectoryError):  # something else has its name
                            (self.folder / file).unlink(missing_ok=True)
            self._begun(name).unlink()

    def _files_of(self, name: str) -> set[str]:
        """The files of an input that is complete; none if it is not."""
        return {file for entry in self.entries_of(name) or () for file in entry["files"]}

    def entries_of(self, name: str) -> list[dict] | None:
        """The entries of an input; None if it is not complete here."""
        try:
            lines = self._part(name).read_bytes().splitlines()
            entries = [json.loads(line) for line in lines]
            sequence(ENTRY)(entries, "entries")
            sequence(self.how.entry_kind(len(self.categories.names)))(entries, "entries")
        except (ValueError, OSError, RecursionError):
            return None
        return entries

    def entries(self, parts: Collection[str]) -> Iterator[tuple[str, list[dict] | None]]:
        """The entries of all inputs, in order; None for those whose part, by its name, is none of these."""
        for name in self.inputs:
            yield name, self.entries_of(name) if self._part(name).name in parts else None

    def assemble(self) -> None:
        """Write the files of the whole set, again if an input came in the meantime from another process."""
        with self.lock:
            there: dict[str, int] | None = None
            while there != (there := self._parts()):
                self.how.assemble(self.folder, partial(self.entries, there), self.categories)

    def assemble_if_due(self) -> None:
        """Assemble, unless it was done not long ago."""
        begun = time.monotonic()
        if begun >= self.next:
            self.assemble()
            self.next = time.monotonic() + max(PAUSE, SHARE * (time.monotonic() - begun))

    def _parts(self) -> dict[str, int]:
        """The names of the parts that are there, and when each was written; other processes write and remove some."""
        found = {}
        for path in (self.folder / PARTS).glob("*.jsonl"):
            with suppress(FileNotFoundError):
                found[path.name] = path.stat().st_mtime_ns
        return found

    def _part(self, name: str) -> Path:
        return self.folder / PARTS / f"{name}.jsonl"

    def _begun(self, name: str) -> Path:
        return self.folder / PARTS / f"{name}{BEGUN}"


class DataSets:
    """The data sets of one run, each in a folder of its own, named as its format. Arguments: see DataSet and begin."""

    def __init__(
        self, out: Path, names: Sequence[str], labels: Iterable[str], of: dict, inputs: list[str], alone: bool = True
    ):
        wrong = [name for name in names if name not in FORMATS]
        if isinstance(names, str) or isinstance(labels, str) or wrong:
            raise ValueError(f"names {names!r:.80}, labels {labels!r:.80}: give lists, of names {', '.join(FORMATS)}")
        if len(set(inputs)) < len(inputs):
            raise ValueError("two inputs have one name: each is a name of its own in a data set")
        out, inputs = Path(out), list(inputs)
        self.names, self.added = set(inputs), {}  # of the inputs; the folder that each of them came from
        known = next((stored for name in names if (stored := stored_categories(out / name))), [])
        self.categories = Categories([*known, *labels])
        self.sets = [DataSet(out / name, name, self.categories, of, inputs) for name in dict.fromkeys(names)]
        for held in self.sets:  # all are checked before one is begun
            held.begin(alone)

    def add(self, folder: Path, image: np.ndarray | None = None, source: str | None = None) -> None:
        """Take over the result in a folder. image: its picture, uint8 (H, W, 3), if it is at hand. source: where that
        or the video is now; by default where it was.

        ValueError or OSError as of Result, and ValueError for a result of no input, or of one that another folder was:
        the result is then in none of the data sets. An OSError while the files of a whole set are written comes when it
        is in them.
        """
        folder = Path(folder) if Path(folder).name else Path(folder).resolve()  # "." has no name
        result = Result.read(folder, source)
        if result.name not in self.names:
            raise ValueError(f"{folder} is none of the inputs of this data set: name all of them at first")
        if self.added.setdefault(result.name, folder.resolve()) != folder.resolve():
            raise ValueError(f"{folder} and {self.added[result.name]} have one name in the data set: rename one")
        with ExitStack() as stack:
            writers = [stack.enter_context(held.writing(result.name)) for held in self.sets]
            for picture in result.pictures(self.categories, image):
                for put in writers:
                    put(picture)
        self._each(DataSet.assemble_if_due)

    def has(self, folder: Path) -> bool:
        """Whether all data sets have the result that is in a folder now."""
        changed = (folder / "result.json").stat().st_mtime_ns
        return all(held.has(folder.name, changed) for held in self.sets)

    def finish(self) -> None:
        """Write the files of the whole data sets. The first error, if there are any, comes when all were tried."""
        self._each(DataSet.assemble)

    def _each(self, work: Callable[[DataSet], None]) -> None:
        errors = []
        for held in self.sets:
            try:
                work(held)
            except (ValueError, OSError) as error:
                errors.append(error)
        if errors:
            raise errors[0]


def read_about(folder: Path) -> dict:
    """Read what the data set in a folder says of itself. ValueError, OSError or RecursionError if none is whole."""
    check_regular(folder / ABOUT, LARGEST_ABOUT)
    about = json.loads((folder / ABOUT).read_bytes())
    KIND(about, ABOUT)
    return about


def is_behind(folder: Path, name: str, since: int) -> bool:
    """Whether a folder is a data set of ours that holds an input of this name as it was before `since`, nanoseconds of
    file times."""
    with suppress(ValueError, OSError, RecursionError):
        part = folder / PARTS / f"{name}.jsonl"
        return part.stat().st_mtime_ns < since and name in read_about(folder)["inputs"]
    return False


def stored_categories(folder: Path) -> list[str]:
    """The categories of the data set in a folder; none if there is no whole one."""
    with suppress(ValueError, OSError, RecursionError):
        return read_about(folder)["categories"]
    return []


def _shown(value: object) -> str:
    return shortened(json.dumps(value))
