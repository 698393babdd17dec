"""The data sets of a command (--save coco ...), and the command that makes them of results that are there already."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from ..datasets import FORMATS, DataSets, Result
from ..datasets.dataset import is_behind
from ..media import natural_key
from ..prompts import Clicks, Prompt, split_phrases
from ..render import index_page
from ..support.lock import FolderLock
from ..support.processes import Stopped, escape_unknown_letters, on_signals, rank_and_number, shell_word, stop
from .arguments import VIDEO_FLAGS
from .console import Console, count, failed
from .folders import is_unfinished, make_folder
from .parser import Parser, output_folder, split_lists
from .provenance import UNKNOWN, Facts, content

OF_ONE_RESULT = ("source", "content", "--save", "--html", "--fps", *("--" + f.replace("_", "-") for f in VIDEO_FLAGS))


def shared(of: Facts) -> Facts:
    """The facts of a result that a data set depends on: what was looked for, and by which models."""
    return {name: value for name, value in of.items() if name not in OF_ONE_RESULT}


def data_sets_of(args: Namespace, prompt: Prompt, settings: Facts, folders: dict[str, Path]) -> DataSets | None:
    """The data sets that --save asks for. ValueError as of DataSet."""
    names = [name for name in args.save if name in FORMATS]
    clicked = isinstance(prompt, Clicks)
    labels = list(dict.fromkeys(o.label for o in prompt.prompts())) if clicked else split_phrases(prompt)
    if names and args.resume:  # corrections may have added other objects
        labels += [label for folder in folders.values() for label in labels_of(folder, settings)]
    inputs = [folder.name for folder in folders.values()]
    alone = rank_and_number()[1] == 1
    return DataSets(args.out, names, labels, shared(settings), inputs, alone) if names else None


def labels_of(folder: Path, settings: Facts) -> list[str]:
    """The labels of the finished result in a folder; none if there is none, or one of another prompt or model."""
    with suppress(ValueError, OSError):
        result = Result.read(folder)
        return [] if is_unfinished(folder) or shared(result.of) != shared(settings) else result.labels()
    return []


def say_what_is_behind(folders: Iterable[Path], console: Console) -> None:
    """Tell in one line which data sets and index pages beside these results are of earlier ones."""
    behind = {}
    for folder in folders:
        with suppress(FileNotFoundError):
            since = (folder / "result.json").stat().st_mtime_ns
            index = folder.parent / index_page.NAME
            if index not in behind and index_page.is_behind(folder.parent, folder.name, since):
                behind[index] = "--resume --html"
            for name in FORMATS:
                held = folder.parent / name
                if held not in behind and is_behind(held, folder.name, since):
                    behind[held] = f"python -m minisam_glue.datasets {shell_word(folder.parent)} --to {name}"
    if behind:
        mend = "; ".join(dict.fromkeys(behind.values()))
        console.say(f"note: {', '.join(map(str, behind))}: of earlier results; remove them, then if needed: {mend}")


# --- Afterwards --------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> Namespace:
    """The command line of minisam_glue.datasets. ValueError for a malformed one."""
    parser = Parser(
        prog="python -m minisam_glue.datasets",
        description="Turn results of segment.py into training data sets. The original pictures and videos must still "
        "be there: start the command in the folder where segment.py ran.",
        allow_abbrev=False,
    )
    parser.add_argument("results", type=Path, metavar="RESULT_DIR", help="--out of segment.py, or one result in it")
    parser.add_argument(
        "--to", nargs="+", action="extend", choices=tuple(FORMATS), required=True, help="formats of the data sets"
    )
    parser.add_argument("--out", type=output_folder, metavar="DIR", help="where they go (default: --out of segment.py)")
    parser.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    words = list(sys.argv[1:] if argv is None else argv)
    return parser.parse_args(split_lists(words, {"--to": tuple(FORMATS)}))


def find_results(folder: Path, console: Console) -> list[Path]:
    """The folders of finished results, in natural order: the folder itself, or those in it. ValueError for none."""
    if (folder / "result.json").is_file():
        return [Path(os.path.abspath(folder))]  # "." has no name, under which its pictures could stand
    inside = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: natural_key(path.name))
    found = [path for path in inside if (path / "result.json").is_file() and not is_unfinished(path)]
    for path in inside:
        if is_unfinished(path):
            console.warn(f"{path}: not finished, and left out; segment.py --resume goes on with it")
    if not found:
        raise ValueError(f"{folder}: no result of segment.py is in it; give its --out, or one result there")
    return found


def check_source(result: Result) -> None:
    """ValueError if what a result was made of has changed, is gone or can't be told, unless its frames were kept."""
    if result.keeps_frames:
        return
    then = result.of.get("content")
    try:
        now = content(result.source)
    except FileNotFoundError as error:
        gone = os.path.isdir(os.path.dirname(result.source) or ".")
        mend = "bring it back, or remove this result" if gone else "start the command where segment.py ran"
        raise ValueError(f"{result.folder}: its source {result.source} is not here: {mend}") from error
    if UNKNOWN in (then, now):
        raise ValueError(
            f"{result.folder}: its source {result.source} may be another one now: "
            "a data set of it is made while it is segmented, by --save coco"
        )
    if then not in (now, None):
        raise ValueError(f"{result.folder}: its source {result.source} has changed since: segment it again")


def convert(args: Namespace, folders: list[Path], out: Path, console: Console) -> int:
    """Make the data sets of results. One that can't be taken is told, and left out. Returns the exit status."""
    results, by_source, status = [], {}, 0
    for folder in folders:
        try:
            result = Result.read(folder)
            check_source(result)
            same = by_source.setdefault(os.path.realpath(result.source), folder)
            if same != folder and os.path.exists(result.source):
                raise ValueError(f"{folder}: its source {result.source} is that of {same}, too: remove one of them")
            results.append(result)
        except (ValueError, OSError) as error:
            status = failed(error)
            say_what_stays(folder, out, args.to, console)
    if not results:
        return status
    first = shared(results[0].of)
    common = {name: first[name] for name in first if all(r.of.get(name) == first[name] for r in results)}
    if len({str(result.of.get("prompt")) for result in results}) > 1:
        console.warn(
            f"{out}: not all results are of one prompt: what only some were asked for is not marked in the others"
        )
    labels = [label for result in results for label in result.labels()]
    sets = DataSets(out, args.to, labels, common, [folder.name for folder in folders])
    taken = 0
    for result in results:
        try:
            sets.add(result.folder)
            console.say(f"{result.folder}: taken over")
            taken += 1
        except MemoryError:
            status = failed(f"{result.folder}: out of memory")
        except (ValueError, OSError) as error:
            status = failed(error)
    sets.finish()
    console.say(f"{count(taken, 'result')} -> {', '.join(str(held.folder) for held in sets.sets)}")
    return status


def say_what_stays(folder: Path, out: Path, names: Iterable[str], console: Console) -> None:
    """Tell which data sets keep an earlier state of a result that can't be taken."""
    since = (folder / "result.json").stat().st_mtime_ns
    held = [str(out / name) for name in names if is_behind(out / name, folder.name, since)]
    if held:
        console.warn(f"{folder}: what {', '.join(held)} holds of it is of an earlier result, and stays")


def run(argv: Sequence[str] | None = None) -> int:
    """The whole command. Returns its exit status: 2 for a usage or input error, which is told in one line."""
    escape_unknown_letters()
    try:
        with on_signals(stop):
            return locked(parse(argv))
    except Stopped as stopped:
        return 128 + stopped.number
    except (ValueError, OSError, MemoryError) as error:
        return failed(error)


def locked(args: Namespace) -> int:
    """Make the data sets while no run writes into their folder, or that of the results. Returns the exit status."""
    if not args.results.is_dir():
        raise ValueError(f"{args.results}: no such folder; give --out of segment.py, or one result in it")
    console = Console(args.quiet, False)
    folders = find_results(args.results, console)
    where = folders[0].parent if (args.results / "result.json").is_file() else args.results
    out = args.out or where
    make_folder(out)
    with ExitStack() as locks:
        locks.callback(FolderLock(out).release)
        if not os.path.samefile(out, where):
            with suppress(OSError):  # nobody writes into a folder that can't be written to
                locks.callback(FolderLock(where).release)
        return convert(args, folders, out, console)
