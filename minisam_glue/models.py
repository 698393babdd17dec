"""From names to models that are ready to run: which device, which precision, which files.

models = load_models()                                   # Grounding DINO Swin-T and SAM 2.1, downloaded once
models = load_models("demo")                             # the small models of this repository
models = load_models("folder", detector="swin-b", sam="large")
"""

import pickle
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from . import demo, grounding_dino, sam2, weights
from .grounding_dino import Detector, WordPieceTokenizer
from .processes import interpreter
from .sam2 import SAM2, ImagePredictor
from .weights import Progress, WeightsError

DETECTORS = ("swin-t", "swin-b")
SAMS = ("tiny", "small", "base_plus", "large")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, ValueError, OSError)
Model = TypeVar("Model")


@dataclass
class Models:
    """A detector (None if prompts are boxes, points or masks only), SAM 2, and the seconds that each stage took.

    demo: whether these are the demo's small models, which know eight colours and eight shapes.
    """

    detector: Detector | None
    sam: SAM2
    predictor: ImagePredictor = field(init=False)
    seconds: Counter = field(default_factory=Counter)
    demo: bool = False

    def __post_init__(self):
        self.predictor = ImagePredictor(self.sam)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to `seconds[name]`."""
        start = time.perf_counter()
        yield
        if self.sam.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - start


def load_models(
    source: str | Path | None = None,
    detector: str | None = "swin-t",
    sam: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> Models:
    """Models in eval mode.

    source: None for the download cache, a folder with the official files, or one with a detector.pt and segmenter.pt
    of demo.train_detector and train_segmenter, "demo" for minisam_glue/demo itself; model names are ignored in that
    case. detector: swin-t, swin-b, or None for none. sam: tiny, small, base_plus or large, by default large on a GPU
    and small elsewhere. device: auto, cpu, cuda, cuda:1, mps. dtype: auto, float32, bfloat16 or float16; auto is
    float32 except on CUDA.
    WeightsError names a file that is missing or damaged, ValueError a name that does not exist.
    """
    place = choose_device(device)
    precision = choose_dtype(dtype, place)
    folder = demo.FOLDER if source == "demo" else source
    is_demo = folder is not None and (source == "demo" or (Path(folder) / demo.SEGMENTER).is_file())
    if is_demo:
        text, segmenter = _load_demo(Path(folder), detector is not None)
    else:
        size = sam or ("large" if place.type == "cuda" else "small")
        text, segmenter = _load_official(folder, detector, size, progress)
    if text is not None:
        text.model.to(place, precision).eval()
    return Models(text, sam2.accelerate(segmenter.to(place, precision).eval()), demo=is_demo)


def _load_official(
    folder: str | Path | None, detector: str | None, sam: str, progress: Progress | None
) -> tuple[Detector | None, SAM2]:
    for kind, name, names in (("detector", detector, DETECTORS), ("sam", sam, SAMS)):
        if name is not None and name not in names:
            raise ValueError(f"{kind} {name!r}: there is no such model, choose one of {', '.join(names)}")
    checkpoint = f"sam2.1_hiera_{sam}"
    wanted = [checkpoint] if detector is None else [detector, "bert-vocab", checkpoint]
    files = {name: weights.fetch(name, folder, progress) for name in wanted}  # all of them before any is read
    text = None
    if detector is not None:
        tokenizer = _read(WordPieceTokenizer.load, files["bert-vocab"])
        text = Detector(_read(lambda path: grounding_dino.load(path, detector), files[detector]), tokenizer)
    return text, _read(lambda path: sam2.load(path, checkpoint), files[checkpoint])


def _load_demo(folder: Path, with_detector: bool) -> tuple[Detector | None, SAM2]:
    for name in (demo.DETECTOR, demo.SEGMENTER) if with_detector else (demo.SEGMENTER,):
        if not (folder / name).is_file():
            raise WeightsError(
                f"{folder / name} is missing: "
                f"{interpreter()} -m minisam_glue.demo.train_{Path(name).stem} makes it"
                + ("; --box, --point and --mask do without" if name == demo.DETECTOR else "")
            )
    text = _read(demo.load_detector, folder / demo.DETECTOR) if with_detector else None
    return text, _read(demo.load_segmenter, folder / demo.SEGMENTER)


def _read(load: Callable[[Path], Model], path: Path) -> Model:
    """A file by its loader. WeightsError for whatever is wrong with its content."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wonders aloud about files that are none of its own
            return load(path)
    except DAMAGED as error:
        text = " ".join(str(error).split())
        if isinstance(error, pickle.UnpicklingError):  # torch's text advises to switch its protection off
            text = "it is damaged, or holds more than tensors, and is not opened for safety"
        raise WeightsError(f"{path} can't be used ({text[:300]}): delete it and download it again") from error


def choose_device(name: str) -> torch.device:
    """A device by its name; auto: CUDA, else MPS, else the CPU. ValueError for what this machine lacks."""
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    if name.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device {name!r}: there is no such device, choose auto, cpu, cuda, cuda:1 or mps")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} can't be used here: {str(error).splitlines()[0][:200]}") from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """A precision by its name; auto: float32, on CUDA bfloat16 if the hardware has it, else float16.

    ValueError for another name.
    """
    if name != "auto":
        if name not in DTYPES:
            raise ValueError(f"dtype {name!r}: there is no such precision, choose auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
