"""The flags of segment.py and `minisam`."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from .. import datasets, media, weights
from ..clipseg.heat_mapper import SIZE
from ..demo import HEAT_FLOOR, HEAT_MIN_AREA, HEAT_SIZE
from ..heatmap import FLOOR, MIN_AREA, SURE, HeatSettings
from ..models import DETECTOR, DETECTORS, DTYPES, METHODS, SAMS
from ..prompts import AUTO, SEED_PROMPTS, Thresholds
from ..propagation import DIRECTIONS
from ..propagators import MEMORY, PROPAGATORS
from ..sam2.model import STRIDE, check_image_size
from ..support.values import number, whole_number

DESCRIPTION = """Segment the objects that a sentence names, in images, folders, videos and cameras.

    {program} img.jpg "car. person."                # segmented/img/: annotated.jpg, masks/, result.json
    {program} photos/ "dog." --out dogs --html      # every picture and video of a folder; also globs and URLs
    {program} img.jpg "bird." --method clipseg      # by CLIPSeg's heat map instead of Grounding DINO's boxes
    {program} clip.mp4 "car." --redetect 30         # detected on the first frame with a car, then tracked
    {program} clip.mp4 --box 30,40,150,130          # a box, points or a mask instead of a sentence
    {program} clip.mp4 --object "box=30,40,150,130 label=dog" --object "point=200,90 label=cat at=40"
    {program} --correct segmented/clip --object "id=2 at=40 point=90,60"   # object 2 from frame 40 on
    {program} frames/ "car." --frames --fps 10      # a folder of pictures as one video
    {program} camera:0 "person." --max-seconds 20   # Ctrl-C also ends it
    {program} examples/hexagons.jpg "green hexagon." --weights demo    # small weights that come with the package
    {program} --download all                        # download the official weights beforehand

Each input gets its own folder under --out. Results appear there only when they are complete; --resume continues an
interrupted video. Exit status: 0 (also if nothing is found), 2 for a usage or input error, 130 after Ctrl-C
(0 if it has ended a camera or pipe, and nothing is left), 128 + its number after another signal, 141 when the reader of
standard output has gone (| head)."""
OTSU = "otsu"
FORMATS = ("mp4", "gif", "webp", "png")
LONGEST = 1e9  # seconds and frames: 30 years
SLOWEST, FASTEST = 1e-9, 1000.0  # frames per second


def image_size(text: str) -> int:
    """A type of argument: a side of images that SAM 2 takes."""
    try:
        size = whole_number(STRIDE)(text)
        check_image_size(size)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("image_size ")) from error
    return size


def or_word(word: str, parse: Callable[[str], float]) -> Callable[[str], float | str]:
    """A type of argument: one word, or what `parse` takes."""

    def parse_or_word(text: str) -> float | str:
        if text == word:
            return word
        try:
            return parse(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}, or {word}") from None

    return parse_or_word


def output_folder(text: str) -> Path:
    """A type of argument: the name of a folder; ~ at its beginning is the home folder, also where no shell puts it."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name: name a folder")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text}: there is no such home folder") from None


def template(text: str) -> str:
    """A type of argument: text with a place for the phrase."""
    if "{}" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} has no {{}}, where the phrase goes")
    return text


SAVED = ("masks", "crops", "heatmap", "frames", *datasets.FORMATS)
LISTS = {"--save": SAVED, "--seed-prompt": SEED_PROMPTS}  # flags of one or several words, and those that they know


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are, without the usage before it."""

    def error(self, message: str) -> None:
        raise ValueError(f"{message} (see {self.prog} --help)")


def program() -> str:
    """The name by which the command was called: minisam, or python segment.py."""
    name = Path(sys.argv[0]).name
    return f"{Path(sys.executable).name or 'python'} {name}" if name == "segment.py" else "minisam"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; None for sys.argv. ValueError for a malformed one."""
    parser = Parser(
        prog=program(),
        usage='%(prog)s INPUT [INPUT ...] "PHRASE. PHRASE." [options]',
        description=DESCRIPTION.format(program=program()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="INPUT",
        help="images, folders, globs, URLs of images, videos, GIF, camera:0, or - for pictures on standard input; "
        "put the sentence last, in quotes",
    )
    add_prompt_flags(parser.add_argument_group("what to look for, besides a sentence"))
    heat_maps = parser.add_argument_group("heat maps (--method clipseg), and how SAM 2 is asked")
    add_heat_flags(heat_maps)
    add_seed_flags(heat_maps)
    videos = parser.add_argument_group("videos")
    add_frame_flags(videos)
    add_tracking_flags(videos)
    add_continuation_flags(videos)
    add_output_flags(parser.add_argument_group("output"))
    add_model_flags(parser.add_argument_group("models"))
    argv = list(sys.argv[1:] if argv is None else argv)
    end = argv.index("--") if "--" in argv else len(argv)  # after it nothing is an option, whatever it begins with
    # Options may stand between inputs and sentence.
    args = parser.parse_intermixed_args(split_lists(join_negative(argv[:end])))
    args.words += argv[end + 1 :]
    return args


def join_negative(argv: list[str]) -> list[str]:
    """--box -20,5,40,30 -> --box=-20,5,40,30: argparse would take a value that begins with a minus for a flag."""
    joined = []
    for word in argv:
        if joined and joined[-1] in ("--box", "--point") and re.match(r"-[\d.]", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def split_lists(argv: list[str], lists: dict[str, tuple[str, ...]] = LISTS) -> list[str]:
    """--save coco yolo photos/ -> --save=coco --save=yolo photos/: argparse would take every word up to a flag.

    lists: the flags, and the words that they know.
    """
    split, flag = [], None
    for word, following in zip(argv, [*argv[1:], ""]):
        if following in lists.get(word, ()):
            flag = word
        elif word in lists.get(flag, ()):
            split.append(f"{flag}={word}")
        else:
            flag = None
            split.append(word)
    return split


def add_prompt_flags(group: argparse._ArgumentGroup) -> None:
    """Boxes, points, masks and objects, and the thresholds of the detector."""
    add_object_flags(group)
    defaults = Thresholds()
    for flag, default, text in (
        ("--box-threshold", defaults.box, "score that a detection must exceed, 0 to 1"),
        ("--text-threshold", defaults.text, "a score to exceed, too; --box-threshold auto never goes below it"),
        ("--nms", defaults.nms, "IoU above which overlapping boxes of one phrase are suppressed, 0 to 1"),
        ("--max-area", defaults.max_area, "largest box, as a share of the picture, up to 1"),
    ):
        share = number(0, 1, above=flag == "--max-area")
        if flag == "--box-threshold":
            share, text = or_word(AUTO, share), f"{text}, or {AUTO}: Otsu's threshold over the scores of a picture"
        group.add_argument(flag, type=share, default=default, metavar="X", help=f"{text} (default %(default)s)")


def add_object_flags(group: argparse._ArgumentGroup) -> None:
    """Objects that are pointed at."""
    for flag, metavar, text in (
        ("--box", "X1,Y1,X2,Y2", "an object by its box, in pixels; repeatable"),
        (
            "--point",
            "X,Y[,0]",
            "X,Y on the object; X,Y,0 on the background; repeatable, all points together are one object, or "
            "correct the one --box",
        ),
        (
            "--mask",
            "FILE",
            "mask image: non-black pixels (of JPEG and the like: from 32 of 255), or its alpha, or each palette "
            "colour, are an object; repeatable",
        ),
    ):
        group.add_argument(flag, action="append", default=[], metavar=metavar, help=text)
    group.add_argument(
        "--object",
        action="append",
        default=[],
        metavar="TEXT",
        help='one of several objects, such as "box=10,20,80,90 point=50,60,0 label=dog at=40": a box, points or '
        "mask=FILE; if you like its label, its id, and the frame they are for; repeatable, also for one id on several "
        "frames, which corrects the object there, or ends it (remove); without an id an object gets one that no other "
        "--object names",
    )
    group.add_argument("--prompts", type=Path, metavar="FILE", help="objects as --object has them, in a JSON file")


def add_heat_flags(group: argparse._ArgumentGroup) -> None:
    """The method, CLIPSeg's heat maps, and what counts as an object in them."""
    defaults = HeatSettings()
    group.add_argument(
        "--method",
        choices=METHODS,
        default=DETECTOR,
        help="what finds the objects of a sentence: the detector, or CLIPSeg's heat maps (default %(default)s)",
    )
    group.add_argument(
        "--heat-size",
        type=whole_number(8),
        metavar="N",
        help=f"side of the square that CLIPSeg sees, in pixels; a larger one finds smaller objects "
        f"(default {SIZE}; of the demo weights {HEAT_SIZE})",
    )
    group.add_argument(
        "--heat-threshold",
        type=or_word(OTSU, number(0, 1)),
        default=OTSU,
        metavar="X",
        help=f"confidence above which a pixel belongs to an object, 0 to 1; or otsu: chosen for each heat map, between "
        f"{FLOOR} and {SURE} (demo weights: always {SURE}), and an object must reach {FLOOR} somewhere (demo weights: "
        f"{HEAT_FLOOR}; default %(default)s)",
    )
    group.add_argument(
        "--heat-percentile",
        type=number(0, 1),
        default=defaults.percentile,
        metavar="X",
        help="where Otsu's threshold falls inside the background, this quantile of the confidences is used instead "
        "(default %(default)s)",
    )
    group.add_argument(
        "--min-area",
        type=number(0, 1e9),
        metavar="N",
        help=f"smallest object, in pixels of a heat map of 352 x 352 (default {MIN_AREA:g}; {HEAT_MIN_AREA:g} for the "
        "demo weights)",
    )


def add_seed_flags(group: argparse._ArgumentGroup) -> None:
    """The texts that CLIPSeg gets, and the boxes and points that SAM 2 gets."""
    defaults = HeatSettings()
    group.add_argument(
        "--template",
        type=template,
        action="append",
        default=[],
        metavar="TEXT",
        help='text that a phrase is put into at {}, such as "a photo of a {}."; repeatable, as an ensemble',
    )
    group.add_argument(
        "--seed-prompt",
        nargs="+",
        action="extend",
        choices=SEED_PROMPTS,
        help="what SAM 2 is given for each object, one or several (default: its box; with clipseg box and points)",
    )
    for flag, default, text in (
        (
            "--positives",
            defaults.positives,
            "most points placed on an object (detector: one, in the middle of its box)",
        ),
        ("--negatives", defaults.negatives, "most points placed on the background around an object"),
        ("--border", defaults.border, "distance of points from an object's edge, in pixels of a heat map of 352 x 352"),
    ):
        group.add_argument(
            flag, type=whole_number(0), default=default, metavar="N", help=f"{text} (default %(default)s)"
        )


def add_frame_flags(group: argparse._ArgumentGroup) -> None:
    """The frames that are read, and their times."""
    group.add_argument(
        "--frames",
        action="store_true",
        help="read each folder, or TIFF of many pages, as one video, a picture per frame",
    )
    group.add_argument(
        "--fps",
        type=number(SLOWEST, FASTEST),
        default=media.DEFAULT_FPS,
        metavar="X",
        help="frames per second of folders, pipes and TIFF pages, which state none (default %(default)s)",
    )
    group.add_argument(
        "--start",
        type=number(0, LONGEST),
        default=0.0,
        metavar="S",
        help="begin at the first frame from this second on, counted from the first frame (default 0)",
    )
    group.add_argument(
        "--max-seconds",
        type=number(0, LONGEST, above=True),
        metavar="S",
        help="seconds of the video to read, by its time stamps (default: all)",
    )
    group.add_argument(
        "--stride", type=whole_number(1), default=1, metavar="N", help="read every N-th frame (default 1)"
    )


def add_tracking_flags(group: argparse._ArgumentGroup) -> None:
    """The frame that tracking begins with, and the way from frame to frame."""
    group.add_argument(
        "--seed-frame",
        type=whole_number(0),
        metavar="N",
        help="detect objects on frame N, counted from 0 at --start (default: the first frame with a detection)",
    )
    group.add_argument(
        "--redetect",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="detect again every N frames: new objects join, lost ones return (default 0, never)",
    )
    group.add_argument(
        "--propagate",
        choices=tuple(PROPAGATORS),
        default=MEMORY,
        help="what carries masks to the next frame: SAM 2's memory, or optical flow (default %(default)s)",
    )
    group.add_argument(
        "--refine-every",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="with --propagate flow: SAM 2 refines the masks on every N-th frame alone; more is faster and less exact "
        "(default %(default)s)",
    )
    group.add_argument(
        "--identity",
        choices=("on", "off"),
        help="keep look-alikes apart where they meet, and look for lost objects; off: SAM 2's own masks (default: on "
        "with --propagate memory; with flow there are no such rules)",
    )
    group.add_argument(
        "--direction",
        choices=DIRECTIONS,
        default=DIRECTIONS[0],
        help="direction of tracking from the seed frame (default %(default)s)",
    )


def add_continuation_flags(group: argparse._ArgumentGroup) -> None:
    """Going on from an earlier result."""
    group.add_argument(
        "--correct",
        type=Path,
        metavar="DIR",
        help='correct the result in DIR: --object "id=2 at=40 point=50,60" gives object 2 a new prompt on frame 40, '
        '"id=2 at=40 remove" ends it there, without id= an object is added; later frames are tracked again, with '
        "--direction both earlier ones, too",
    )
    group.add_argument(
        "--states",
        type=number(0, 1e6),
        default=64.0,
        metavar="MB",
        help="megabytes for snapshots of the tracking, so that --correct need not start at the first frame; 0: none "
        "(default %(default)g)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="continue interrupted videos; skip inputs with a result of the same content, prompt, flags and weights",
    )


def add_output_flags(group: argparse._ArgumentGroup) -> None:
    """The files that are written, and the lines that are printed."""
    group.add_argument(
        "--out",
        type=output_folder,
        default=Path("segmented"),
        metavar="DIR",
        help="output folder (default %(default)s)",
    )
    group.add_argument(
        "--save",
        nargs="+",
        action="extend",
        choices=SAVED,
        default=[],
        help="also save: masks (of each frame of a video; pictures always have them), crops (objects cut out), "
        "heatmap, frames (unmarked ones of a video), or one training data set of all inputs: "
        f"{', '.join(datasets.FORMATS)}",
    )
    group.add_argument(
        "--html",
        action="store_true",
        help="a web page per input, to switch objects on and off (key frames of a video); an index of several inputs",
    )
    group.add_argument(
        "--story",
        action="store_true",
        help="story.png of a video: key frames with masks, and the boxes, scores and words of the rules of --identity; "
        "result.jsonl then has them, too, for each frame",
    )
    group.add_argument(
        "--format",
        choices=FORMATS,
        help="format of annotated videos (default: gif for a GIF, webp for a WebP, else mp4, or webp without PyAV)",
    )
    group.add_argument(
        "--batch",
        type=whole_number(1),
        metavar="N",
        help="pictures that go through the models together (default: 1; for a sentence on a GPU 4)",
    )
    told = "also print a JSON line to standard output for each picture or frame as it is segmented"
    group.add_argument("--json", choices=("-",), help=told)
    group.add_argument("--quiet", action="store_true", help="print errors and warnings only")
    group.add_argument("--profile", action="store_true", help="print the time of each stage at the end")


def add_model_flags(group: argparse._ArgumentGroup) -> None:
    """The models, their weights, and the device and precision that they run in."""
    group.add_argument(
        "--weights",
        metavar="DIR",
        help="folder with the weights, or demo: small models for generated shapes that come with the package "
        "(default: MINISAM_HOME or the user's cache; downloaded once)",
    )
    group.add_argument(
        "--download",
        nargs="+",
        metavar="NAME",
        help="download weights and exit: all, or some of " + ", ".join(weights.CHECKPOINTS),
    )
    group.add_argument("--detector", choices=DETECTORS, help=f"size of Grounding DINO (default {DETECTORS[0]})")
    group.add_argument("--sam", choices=SAMS, help="size of SAM 2.1 (default: large on an NVIDIA GPU, else small)")
    group.add_argument(
        "--size",
        type=image_size,
        metavar="N",
        help="side of the square that SAM 2 sees, in pixels, a multiple of 32: less is faster and coarser "
        "(default: 1024; of the demo weights 384)",
    )
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    group.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="precision of the models (default: 16 bits on an NVIDIA GPU, else float32)",
    )
