"""Segment what a sentence names, in images, folders, videos and cameras.

    python segment.py img.jpg "car. person."                  # segmented/img/: annotated.jpg, masks/, result.json
    python segment.py photos/ "dog." --out dogs --html        # every picture and video of a folder, globs, URLs
    python segment.py clip.mp4 "car." --redetect 30           # detected on the first frame that has one, then tracked
    python segment.py clip.mp4 --box 30,40,150,130            # a box, points or a mask instead of a sentence
    python segment.py frames/ "car." --frames --fps 10        # a folder of pictures as one video
    python segment.py camera:0 "person." --max-seconds 20     # Ctrl-C ends it, too
    python segment.py examples/hexagons.jpg "green hexagon." --weights demo    # small weights that are here
    python segment.py --download all                          # get the official weights beforehand
    torchrun --nproc-per-node 2 segment.py photos/ "dog."     # the inputs are shared among processes

Each input gets a folder under --out. Nothing there is half-written; an interrupted video goes on with --resume.
Exit status: 0 also when nothing is found, 2 for what you can mend (one line says what), 130 after Ctrl-C.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from minisam_glue import media, weights
from minisam_glue.cli.run import Run, download, failed
from minisam_glue.models import DETECTORS, DTYPES, SAMS, Models
from minisam_glue.prompts import Thresholds
from minisam_glue.propagation import DIRECTIONS

FORMATS = ("mp4", "gif", "webp", "png")


class Parser(argparse.ArgumentParser):
    """Its errors are one line, as all others are, without the usage before it."""

    def error(self, message: str) -> None:
        raise ValueError(f"{message} (see python segment.py --help)")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line. ValueError for a malformed one."""
    parser = Parser(
        usage='python segment.py INPUT [INPUT ...] "PHRASE. PHRASE." [options]',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="INPUT",
        help="images, folders, globs, URLs of images, videos, "
        "GIF, camera:0, or - for pictures on standard input; then the sentence",
    )
    defaults = Thresholds()

    g = parser.add_argument_group("what to look for, besides a sentence")
    g.add_argument(
        "--box", action="append", default=[], metavar="X1,Y1,X2,Y2", help="an object by its box in pixels; repeatable"
    )
    g.add_argument(
        "--point",
        action="append",
        default=[],
        metavar="X,Y[,0]",
        help="a point on the object, or with 0 beside it; all points together are one object",
    )
    g.add_argument(
        "--mask",
        action="append",
        default=[],
        metavar="FILE",
        help="an object by a picture that is not black there; repeatable",
    )
    g.add_argument(
        "--box-threshold",
        type=float,
        default=defaults.box,
        metavar="X",
        help="least score of a detection (default %(default)s)",
    )
    g.add_argument(
        "--text-threshold",
        type=float,
        default=defaults.text,
        metavar="X",
        help="least score of its words (default %(default)s)",
    )
    g.add_argument(
        "--nms",
        type=float,
        default=defaults.nms,
        metavar="X",
        help="of boxes of a phrase that overlap more (IoU) the best stays (default %(default)s)",
    )
    g.add_argument(
        "--max-area",
        type=float,
        default=defaults.max_area,
        metavar="X",
        help="largest box, as a share of the picture (default %(default)s)",
    )

    g = parser.add_argument_group("videos")
    g.add_argument("--frames", action="store_true", help="take each folder as one video, a picture a frame")
    g.add_argument(
        "--fps",
        type=float,
        default=media.DEFAULT_FPS,
        metavar="X",
        help="rate of folders and pipes, which state none (default %(default)s)",
    )
    g.add_argument("--start", type=float, default=0.0, metavar="S", help="second to begin at")
    g.add_argument("--max-seconds", type=float, metavar="S", help="how much of the video")
    g.add_argument("--stride", type=int, default=1, metavar="N", help="take every N-th frame")
    g.add_argument(
        "--seed-frame",
        type=int,
        metavar="N",
        help="look for objects on frame N, from 0 at --start (default: the first with a detection)",
    )
    g.add_argument(
        "--redetect",
        type=int,
        default=0,
        metavar="N",
        help="look again every N frames: new objects join, lost ones return",
    )
    g.add_argument(
        "--direction",
        choices=DIRECTIONS,
        default=DIRECTIONS[0],
        help="in which way to track from there (default %(default)s)",
    )
    g.add_argument(
        "--resume", action="store_true", help="go on with interrupted videos, leave finished inputs as they are"
    )

    g = parser.add_argument_group("output")
    g.add_argument(
        "--out", type=Path, default=Path("segmented"), metavar="DIR", help="folder of the results (default %(default)s)"
    )
    g.add_argument(
        "--save",
        nargs="+",
        choices=("masks", "crops"),
        default=[],
        help="also masks of each frame (pictures have them always), or the objects cut out",
    )
    g.add_argument("--html", action="store_true", help="a page per picture to switch objects on and off in a browser")
    g.add_argument(
        "--format", choices=FORMATS, help="of annotated videos (default: gif of a GIF, else mp4, or webp without PyAV)"
    )
    g.add_argument("--json", choices=("-",), help="also a JSON line per picture or frame on standard output")
    g.add_argument("--quiet", action="store_true", help="no progress, only errors")
    g.add_argument("--profile", action="store_true", help="say at the end what the time went into")

    g = parser.add_argument_group("models")
    g.add_argument(
        "--weights",
        metavar="DIR",
        help="folder with the weights, or demo: small models for generated shapes, which ship here "
        "(default: MINISAM_HOME or the user's cache, downloaded once)",
    )
    g.add_argument(
        "--download",
        nargs="+",
        metavar="NAME",
        help="get weights and end: all, or some of " + ", ".join(weights.CHECKPOINTS),
    )
    g.add_argument(
        "--detector", choices=DETECTORS, default=DETECTORS[0], help="Grounding DINO's size (default %(default)s)"
    )
    g.add_argument("--sam", choices=SAMS, help="SAM 2.1's size (default: large on a GPU, else small)")
    g.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    g.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="precision of the models (default: float32 on a CPU, half on a GPU)",
    )
    return parser.parse_intermixed_args(argv)  # options may stand between inputs and sentence


def main(argv: list[str] | None = None, models: Models | None = None) -> int:
    """Do what the command line says, with `models` if they are loaded already. Returns the exit status."""
    if hasattr(sys.stdout, "reconfigure"):  # not in notebooks
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal's encoding lacks
    try:
        args = parse_arguments(argv)
        return download(args) if args.download else Run(args, models).all()
    except BrokenPipeError:  # the reader of --json - has gone
        return 0
    except (ValueError, OSError) as error:  # MediaError, WeightsError and what else a user can mend
        return failed(error)
    except KeyboardInterrupt:
        return 130
    except (torch.OutOfMemoryError, MemoryError):
        return failed("out of memory: take a smaller --sam, --dtype bfloat16, or smaller pictures")
    finally:
        let_go_of_output()


def let_go_of_output() -> None:
    """What standard output can't take any more must not fail again when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
