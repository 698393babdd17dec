"""The words and flags of a command, read: inputs, what to look for in them, and a folder for the results of each."""

import os
import re
import unicodedata
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import count, takewhile
from pathlib import Path

from .. import media
from ..datasets.dataset import ABOUT
from ..heatmap import HeatSettings
from ..models import CLIPSEG
from ..prompts import Clicks, Prompt, Seeding, split_phrases
from ..propagation import FORWARD
from ..propagators import FLOW
from .folders import UNFINISHED, read_result
from .objects import objects_of, parse_numbers, parse_point, read_masks
from .parser import OTSU, parse_arguments, program

LONGEST_NAME = 120  # bytes; file systems take 255, and Windows 260 letters of the whole path
ARGUMENTS = (  # names in the Python interface
    "box|point|mask|seed_frame|redetect|direction|propagate|identity|device|dtype|sam|detector|method|heat_size|seed_prompt|template|size"
)
VIDEO_FLAGS = ("start", "max_seconds", "stride", "seed_frame", "redetect", "direction", "propagate")
VIDEO_FLAGS += ("refine_every", "identity", "story", "format", "states")
SENTENCE_FLAGS = ("box_threshold", "text_threshold", "nms", "max_area", "detector", "method")
DETECTOR_FLAGS = ("box_threshold", "text_threshold", "nms")
HEAT_FLAGS = ("heat_size", "heat_threshold", "heat_percentile", "min_area", "template")
SEED_FLAGS = ("seed_prompt", "positives", "negatives", "border")
PLACE = re.compile(r"^(-|camera:.*)$|[/\\*?\[]|\.\w+$")  # a camera or pipe; a folder, a wildcard or an ending


# --- What to look for --------------------------------------------------------------------------------------


def prompt_of(args: Namespace) -> tuple[list[str], Prompt]:
    """Inputs and what to look for in them. ValueError if one is missing or malformed."""
    example = f'{program()} INPUT "what to look for."'
    if not args.words:
        raise ValueError(f"nothing to do: {example} (see --help)")
    if args.method == CLIPSEG and args.detector:
        raise ValueError(f"--detector {args.detector}: --method {CLIPSEG} has none; leave one of them out")
    if args.story:
        check_story(args)
    if args.box or args.point or args.mask or args.object or args.prompts:
        check_no_sentence(args.words)
        if args.redetect:
            raise ValueError("--redetect needs a sentence: boxes, points and masks say where an object is, not what")
        return args.words, clicks_of(args)
    *sources, sentence = args.words
    if not sources:
        lacks = "a sentence" if is_input(sentence) else "an input"
        raise ValueError(f"{sentence!r} alone is not enough, {lacks} is missing: {example}")
    if PLACE.search(sentence) and all(map(is_input, args.words)):  # a folder may be called as a sentence: car
        raise ValueError(f"{sentence!r} is an input, and a sentence is missing after it: {example}")
    split_phrases(sentence)  # an empty one is an error before models are loaded
    return sources, sentence


def check_story(args: Namespace) -> None:
    """ValueError if there are no rules that --story could tell of."""
    for flag, value in (("identity", "off"), ("propagate", FLOW)):
        if getattr(args, flag) == value:
            raise ValueError(f"--story tells what the rules of --identity did: leave out --{flag} {value}")


def seeding_of(args: Namespace) -> Seeding:
    """The prompts that SAM 2 gets for the objects of a sentence."""
    threshold = None if args.heat_threshold == OTSU else args.heat_threshold
    heat = HeatSettings(
        threshold,
        args.heat_percentile,
        min_area=args.min_area,
        positives=args.positives,
        negatives=args.negatives,
        border=args.border,
    )
    return Seeding(None if args.seed_prompt is None else tuple(args.seed_prompt), heat)


def clicks_of(args: Namespace) -> Clicks:
    """--box, --point and --mask, or --object and --prompts. ValueError that begins with the flag."""
    if args.object or args.prompts:
        if args.box or args.point or args.mask:
            raise ValueError(
                "--object and --prompts: give box=, point= or mask= there, no --box, --point or --mask beside"
            )
        return objects_of(args.object, args.prompts)
    boxes = [parse_numbers(box, "--box", 4) for box in args.box]
    points = [parse_point(point, "--point") for point in args.point]
    masks = [mask for path in args.mask for mask in read_masks(path)]
    try:
        return Clicks(boxes, points, masks)
    except ValueError as error:
        raise ValueError(with_flag(error)) from error


def with_flag(error: Exception) -> str:
    """The message of an error; where it begins with an argument of the Python functions, the flag takes its place."""
    message = str(error)
    if type(error) is not ValueError:  # a MediaError begins with the name of a file, whatever that is
        return message
    message = re.sub(r"^(?=object \d)", "--object or --prompts: ", message)
    return re.sub(rf"^({ARGUMENTS})(?=[ :])", lambda found: "--" + found[0].replace("_", "-"), message)


# --- Inputs ------------------------------------------------------------------------------------------------


def expand(sources: list[str], frames: bool, out: Path, warn: Callable[[str], None]) -> list[str]:
    """Inputs one by one; with `frames` a folder is one input. MediaError for what is not there.

    warn: is told in one line what of a folder is left out, and that results in `out`, which ** finds too, are.
    """
    inputs = []
    for source in sources:
        try:
            found = [source] if frames and os.path.isdir(source) else media.expand_inputs([source], warn)
        except media.MediaError as error:
            if os.path.exists(source) or looks_like_path(source):
                raise
            raise media.MediaError(f"{error}; put the sentence last, in quotes") from error
        results = results_among(found, source, out)
        if len(results) == len(found):
            raise media.MediaError(f"{source}: only results in {out} fit: choose another --out to segment these")
        if results:
            warn(f"{source}: {len(results)} left out, as results in {out}")
        inputs += [path for path in found if path not in results]
    unique = {}
    for path in inputs:  # ./a.jpg and a.jpg are one
        unique.setdefault(os.path.abspath(path) if os.path.exists(path) else path, path)
    return list(unique.values())


def results_among(found: list[str], source: str, out: Path) -> set[str]:
    """The files of an input that lie in a result or data set in `out`, if the input does not name that itself."""
    given, place = (os.path.join(os.path.abspath(path), "") for path in (source, out))
    inside = {path: os.path.abspath(path) for path in found}
    names = {path: full[len(place) :].split(os.sep)[0] for path, full in inside.items() if full.startswith(place)}
    made = {
        name
        for name in set(names.values())
        if any(Path(place, name, mark).exists() for mark in ("result.json", UNFINISHED, ABOUT))
        and not given.startswith(os.path.join(place, name, ""))
    }
    return {path for path, name in names.items() if name in made}


def looks_like_path(word: str) -> bool:
    """Whether a word that is no file was meant as one: it has a folder, an ending or a wildcard."""
    return bool(PLACE.search(word)) and " " not in word


def is_input(word: str) -> bool:
    """Whether a word names something to read."""
    try:
        return bool(media.expand_inputs([word], lambda _: None))
    except media.MediaError:
        return os.path.exists(word)


def check_no_sentence(words: list[str]) -> None:
    """ValueError if the last of several words is no input, and so probably a sentence."""
    if len(words) > 1 and re.fullmatch(r"-?\d+(\.\d+)?", words[-1]) and not is_input(words[-1]):
        raise ValueError(f"{words[-1]!r} is no input: numbers are joined by commas, such as --box 10,20,30,40")
    if len(words) > 1 and not is_input(words[-1]) and not looks_like_path(words[-1]):
        raise ValueError(f"{words[-1]!r} is no input: boxes, points and masks take the place of a sentence")


def idle_flags(args: Namespace, prompt: Prompt, inputs: list[str], moving: Callable[[str], bool]) -> list[str]:
    """Notes on flags that change nothing for these inputs. moving: is asked, if it matters, which are videos."""
    defaults, folders = parse_arguments([]), any(map(os.path.isdir, inputs))
    given = [name for name, value in vars(args).items() if value != getattr(defaults, name)]

    def note(names: tuple[str, ...], why: str) -> list[str]:
        flags = ["--" + name.replace("_", "-") for name in given if name in names]
        return [f"{', '.join(flags)} {'does' if len(flags) == 1 else 'do'} nothing {why}"] if flags else []

    notes = note(VIDEO_FLAGS, "for pictures")
    notes += ["--save masks does nothing for pictures, which always have masks"] if "masks" in args.save else []
    notes += ["--save frames does nothing for pictures"] if "frames" in args.save else []
    if notes and any(map(moving, inputs)):
        notes = []
        if args.direction != FORWARD:
            notes += note(("states",), f"with --direction {args.direction}, which --correct does not take")
    if args.batch and all(map(moving, inputs)):
        notes += note(("batch",), "for videos, whose frames are segmented one by one")
    if not folders and not (args.frames and any(media.page_count(source) > 1 for source in inputs)):
        notes += note(("frames",), "without a folder, or a TIFF of many pages")
        notes += [] if "-" in inputs else note(("fps",), "except for folders and pipes, which state no rate")
    if args.propagate == FLOW:
        notes += note(("identity",), f"with --propagate {FLOW}: the rules are for SAM 2's memory")
    else:
        notes += note(("refine_every",), f"without --propagate {FLOW}")
    if isinstance(prompt, Clicks):
        notes += note((*SENTENCE_FLAGS, *HEAT_FLAGS, *SEED_FLAGS), "without a sentence")
        notes += ["--save heatmap does nothing without a sentence"] if "heatmap" in args.save else []
        if prompt.objects and all(o.at is not None for o in prompt.objects):
            notes += note(("seed_frame",), "where each object has its own at=")
    elif args.method == CLIPSEG:
        notes += note(DETECTOR_FLAGS, f"with --method {CLIPSEG}")
        by_number = args.heat_threshold != OTSU
        if by_number or args.weights == "demo":  # whose floor leaves Otsu's threshold and a percentile no choice
            notes += note(("heat_percentile",), "beside a --heat-threshold" if by_number else "with --weights demo")
    else:
        notes += note(HEAT_FLAGS, f"without --method {CLIPSEG}")
        notes += [f"--save heatmap does nothing without --method {CLIPSEG}"] if "heatmap" in args.save else []
    pointed = "points" in args.seed_prompt if args.seed_prompt else args.method == CLIPSEG
    if not pointed and not isinstance(prompt, Clicks):
        notes += note(("positives", "negatives", "border"), "without --seed-prompt points")
    if args.weights == "demo":
        notes += note(("sam",) if isinstance(prompt, Clicks) else ("detector", "sam"), "with --weights demo")
    return notes


# --- Folders of the results --------------------------------------------------------------------------------


def folded(name: str) -> str:
    """A name as file systems compare names that take a and A, or an é in one letter and in two, for the same."""
    return unicodedata.normalize("NFC", name).casefold()


def folders_of(sources: list[str], out: Path, others: Iterable[str] = ()) -> dict[str, Path]:
    """A folder for each input: named as the file, with its ending or a number where two would be the same; but one
    whose result lies in such a folder already keeps that, whatever inputs have come since, or have gone.

    others: names that are taken. ValueError if that would be the input itself, a folder of frames.
    """
    stems = Counter(folded(stem(source)) for source in sources)
    folders, taken, kept = {}, {folded(name) for name in others}, {}
    for source in dict.fromkeys(sources):
        if stems[folded(stem(source))] == 1 and not (out / with_ending(source)).is_dir():
            continue  # no other folder than that of its stem, and no result has to be read
        name = earlier_folder(source, out)
        if name is not None and folded(name) not in taken:
            kept[source] = name
            taken.add(folded(name))
    for source in sources:
        name = stem(source) if stems[folded(stem(source))] == 1 else with_ending(source)
        number, unique = 1, kept.get(source, name)
        while folded(unique) in taken and source not in kept:
            number += 1
            unique = f"{name}-{number}"
        taken.add(folded(unique))
        folders[source] = out / unique
        if os.path.isdir(source) and folders[source].resolve() == Path(source).resolve():
            raise ValueError(f"the results of {source} would go into it: choose another --out")
    return folders


def earlier_folder(source: str, out: Path) -> str | None:
    """The name of the folder that holds a result of this input, of those that folders_of may have given it."""
    for name in (stem(source), with_ending(source)):
        numbered = takewhile(lambda unique: (out / unique).is_dir(), (f"{name}-{number}" for number in count(2)))
        found = next((unique for unique in (name, *numbered) if holds_result_of(out / unique, source)), None)
        if found:
            return found
    return None


def with_ending(source: str) -> str:
    """Name of the folder for this input where another input has the same stem."""
    return last_part(source).replace(".", "_")


def holds_result_of(folder: Path, source: str) -> bool:
    """Whether a result in a folder is of this input."""
    then = read_result(folder / "result.json").get("source")
    return isinstance(then, str) and os.path.abspath(then) == os.path.abspath(source)


def stem(source: str) -> str:
    """Name of the folder for this input."""
    return Path(last_part(source)).stem.strip(". ") or "input"


def last_part(source: str) -> str:
    """The name at the end of a path or URL, without what file systems do not take, and what a glob reads as a pattern:
    loaders of data sets, such as DAVIS's own, look for files by globs."""
    if source == "-":
        return "stdin"
    name = source.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    name = name.split("?")[0] if "://" in source else name
    name = re.sub(r'[\0-\x1f:*?"<>|[\]]', "_", name).encode(errors="ignore")  # Windows refuses the most
    if len(name) > LONGEST_NAME:
        name = name[: LONGEST_NAME // 2] + b"~" + name[-LONGEST_NAME // 2 :]
    return name.decode(errors="ignore").strip(". ") or "input"
