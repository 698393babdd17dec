"""Models by name, ready to run: which device, which precision, which files.

models = load_models()                                   # Grounding DINO Swin-T and SAM 2.1, downloaded once
models = load_models("demo")                             # the small models of this repository
models = load_models("folder", detector="swin-b", sam="large")
models = load_models(method="clipseg")                   # CLIPSeg's heat maps in place of Grounding DINO
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import TypeVar

import torch

from . import clipseg, demo, grounding_dino, sam2, weights
from .clipseg import CLIPTokenizer, HeatMapper
from .clipseg.heat_mapper import SIZE, check_size
from .grounding_dino import Detector, WordPieceTokenizer
from .heatmap import FLOOR, MIN_AREA, HeatSettings
from .sam2 import SAM2, ImagePredictor
from .sam2.model import check_image_size
from .support.devices import with_cpu_as_default
from .support.processes import interpreter
from .weights import Progress, WeightsError

DETECTOR, CLIPSEG = METHODS = ("detector", "clipseg")  # from a sentence to where its objects are
DETECTORS = ("swin-t", "swin-b")
SAMS = ("tiny", "small", "base_plus", "large")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ADDING = Lock()  # of one thread at a time to the seconds of a Models
Model = TypeVar("Model")


@dataclass(repr=False)
class Models:
    """A detector (None if prompts are boxes, points or masks only), SAM 2, and the seconds that each stage took.

    heat_mapper: CLIPSeg, which takes the detector's place if it is there. files: what the weights were read from.
    demo: whether these are the demo's small models, which know eight colours and eight shapes.

    Threads: several may use the same Models at once, and get the masks that each gets alone. What belongs to a picture
    or a video is kept by the call; caches of encoded phrases have locks. predictor.set_image and set_images are the
    exception, as their docstring says. Whoever changes weights, precision, device or SAM 2's image size must be alone.
    copy.deepcopy and pickle give models of their own, for another process.
    """

    detector: Detector | None
    sam: SAM2
    predictor: ImagePredictor = field(init=False)
    seconds: Counter = field(default_factory=Counter)
    demo: bool = False
    heat_mapper: HeatMapper | None = None
    files: tuple[Path, ...] = ()
    ended: Event = field(default_factory=Event)  # set: threads raise KeyboardInterrupt where their next stage begins

    def __post_init__(self):
        self.predictor = ImagePredictor(self.sam)

    def __repr__(self) -> str:
        parts = [type(part).__name__ for part in (self.detector, self.heat_mapper, self.sam) if part is not None]
        return f"Models({', '.join(parts)}, {self.sam.config.image_size} pixels, {self.sam.device})"

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "ended"}  # whose lock can't be copied

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, ended=Event())

    def heat_settings(self, settings: HeatSettings) -> HeatSettings:
        """The settings, with what suits these weights where they leave it open."""
        if self.demo:
            return settings.filled(demo.HEAT_FLOOR, demo.HEAT_MIN_AREA, True, demo.HEAT_EVIDENCE)
        return settings.filled(FLOOR, MIN_AREA)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to `seconds[name]`."""
        if self.ended.is_set():
            raise KeyboardInterrupt
        start = time.perf_counter()
        yield
        synchronise(self.sam.device)
        with ADDING:
            self.seconds[name] += time.perf_counter() - start


@with_cpu_as_default
def load_models(
    source: str | Path | None = None,
    detector: str | None = "swin-t",
    sam: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
    method: str = DETECTOR,
    heat_size: int | None = None,
    templates: Sequence[str] = ("{}",),
    size: int | None = None,
) -> Models:
    """Models in eval mode.

    source: None for the download cache, a folder with the official files, or one with a detector.pt and segmenter.pt
    of demo.train_detector and train_segmenter, "demo" for minisam_glue/demo itself; model names are ignored in that
    case. detector: swin-t, swin-b, or None for none. sam: tiny, small, base_plus or large, by default large on CUDA
    and small elsewhere. device: auto, cpu, cuda, cuda:1, mps. dtype: auto, float32, bfloat16 or float16; auto is
    float32 except on CUDA. method: detector, or clipseg for CLIPSeg's heat maps in its place, of heat_size x heat_size
    pixels (default: 352, or what the demo was trained for), with phrases put into `templates`. size: side of the
    square that SAM 2 sees, in pixels, a multiple of 32 (default: 1,024, or what the demo was trained for); no weight
    depends on it, and half of it takes about a quarter of the time or less, for coarser masks.
    WeightsError names a file that is missing or damaged, ValueError a name that does not exist,
    or a detector other than the default one beside clipseg.
    """
    place = choose_device(device)
    precision = choose_dtype(dtype, place)
    if method not in METHODS:
        raise ValueError(f"method {method!r}: there is no such method, choose one of {', '.join(METHODS)}")
    for kind, name, names in (("detector", detector, DETECTORS), ("sam", sam, SAMS)):
        if name is not None and name not in names:
            raise ValueError(f"{kind} {name!r}: there is no such model, choose one of {', '.join(names)}")
    if method == CLIPSEG and detector not in (None, DETECTORS[0]):
        raise ValueError(f"detector {detector!r}: method {CLIPSEG} has none; leave one of them out")
    if size is not None:
        check_image_size(size, "size")  # before the long loading
    folder = demo.FOLDER if source == "demo" else source
    is_demo = folder is not None and (source == "demo" or (Path(folder) / demo.SEGMENTER).is_file())
    detector = CLIPSEG if method == CLIPSEG else detector
    if is_demo:
        text, segmenter, files = _load_demo(Path(folder), detector, heat_size, templates)
    else:
        name = sam or ("large" if place.type == "cuda" else "small")
        text, segmenter, files = _load_official(folder, detector, name, progress, heat_size or SIZE, templates)
    if text is not None:
        grounding_dino.accelerate(text.model.to(place, precision)).eval()  # leaves CLIPSeg as it is
    segmenter = sam2.accelerate(in_precision(segmenter.to(place), precision).eval())
    if size is not None:
        segmenter.resize(size)
    if method == CLIPSEG:
        return Models(None, segmenter, demo=is_demo, heat_mapper=text, files=files)
    return Models(text, segmenter, demo=is_demo, files=files)


def _load_official(
    folder: str | Path | None,
    detector: str | None,
    sam: str,
    progress: Progress | None,
    heat_size: int,
    templates: Sequence[str],
) -> tuple[Detector | HeatMapper | None, SAM2, tuple[Path, ...]]:
    """Load what finds the objects of a sentence (detector: its name, or "clipseg"), SAM 2, and the files of both."""
    checkpoint = f"sam2.1_hiera_{sam}"
    wanted = weights.with_vocabularies([detector] if detector else [])
    if detector == CLIPSEG:
        check_size(heat_size, clipseg.PRESETS["rd64-refined"].clip.vision.patch_size)
    files = {name: weights.fetch(name, folder, progress) for name in (*wanted, checkpoint)}  # before any is read
    text = None
    if detector == CLIPSEG:
        model = _read(clipseg.load, files["clipseg"])
        text = HeatMapper(model, _read(CLIPTokenizer.load, files["clip-bpe"]), heat_size, templates)
    elif detector is not None:
        tokenizer = _read(WordPieceTokenizer.load, files["bert-vocab"])
        text = Detector(_read(lambda path: grounding_dino.load(path, detector), files[detector]), tokenizer)
    return text, _read(lambda path: sam2.load(path, checkpoint), files[checkpoint]), tuple(files.values())


def _load_demo(
    folder: Path, detector: str | None, heat_size: int | None, templates: Sequence[str]
) -> tuple[Detector | HeatMapper | None, SAM2, tuple[Path, ...]]:
    """Load as _load_official does, from the files of the demo's trainings."""
    text_file = {None: None, CLIPSEG: demo.HEAT_MAPPER}.get(detector, demo.DETECTOR)
    names = [name for name in (text_file, demo.SEGMENTER) if name]
    for name in names:
        if not (folder / name).is_file():
            without = "; --box, --point and --mask do without" if name == text_file else ""
            raise WeightsError(f"{folder / name} is missing: {_training(name)}{without}")
    text = None
    if detector == CLIPSEG:
        text = _read(demo.load_heat_mapper, folder / text_file, _training(text_file))
        text = HeatMapper(text.model, text.tokenizer, heat_size or text.size, templates)
    elif detector is not None:
        text = _read(demo.load_detector, folder / text_file, _training(text_file))
    segmenter = _read(demo.load_segmenter, folder / demo.SEGMENTER, _training(demo.SEGMENTER))
    return text, segmenter, tuple(folder / name for name in names)


def _training(name: str) -> str:
    """The command that makes a file of the demo, in words."""
    return f"{interpreter()} -m minisam_glue.demo.train_{Path(name).stem} makes it"


def _read(load: Callable[[Path], Model], path: Path, remedy: str = "delete it and download it again") -> Model:
    """A file by its loader. WeightsError for whatever is wrong with its content; it says the remedy."""
    try:
        return load(path)
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split())
        raise WeightsError(f"{path} can't be used ({text[:300]}): {remedy}") from error


def in_precision(model: SAM2, precision: torch.dtype) -> SAM2:
    """SAM 2 in a precision, in place.

    On a CPU only the large matrix products are lowered: those of the trunk's blocks and of the memory. What costs
    little beside them stays in float32: the sums and norms of the blocks, the patch embedding, the neck, the prompt
    encoder and the mask decoder. Rounding the sums would cost most of the accuracy, and the scores by which the decoder
    chooses a mask are close to each other. A model in two precisions needs the fast forms (sam2.accelerate).
    """
    if model.device.type != "cpu" or precision == torch.float32:
        return model.to(precision)
    trunk, neck = model.image_encoder.trunk, model.image_encoder.neck
    norms = [norm for block in trunk.blocks for norm in (block.norm1, block.norm2)]
    parts = (trunk.patch_embed, *norms, neck, model.sam_prompt_encoder, model.sam_mask_decoder, model.obj_ptr_proj)
    kept = {id(weight) for part in parts for weight in part.parameters()}
    kept |= {id(trunk.pos_embed), id(trunk.pos_embed_window)}
    for weight in model.parameters():
        weight.data = weight.data.to(torch.float32 if id(weight) in kept else precision)
    return model


def choose_device(name: str | torch.device | None) -> torch.device:
    """A device by its name; auto, or None: CUDA, else MPS, else the CPU. ValueError for what this machine lacks."""
    name = "auto" if name is None else str(name)
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
        reason = str(error).splitlines()[0][:200]
        reason = "this PyTorch has no such device" if reason.startswith("Could not run") else reason
        raise ValueError(f"device {name!r} can't be used here: {reason}") from error
    return device


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


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
