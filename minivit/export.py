"""A trained model as a file for other programs: ONNX, or PyTorch's exported program (.pt2).

Both take normalised images (B, 3, H, W) in float32, B up to 2**20, and give logits (B, classes), the output "scores"
of an .onnx. They are traced from the plain form of the model (attention.py, vit.py): the fused attention kernel of
fast.py returns heads in an order in memory that PyTorch's ONNX exporter does not keep. Classes, mean and standard
deviation go into the file as JSON texts: the metadata of an .onnx, the extra file minivit.json of a .pt2. A file gets
its name after it has been loaded again and gives the logits of the model. ONNX needs the extra `export`. Left out:
quantisation, images of several sizes.

    session = onnxruntime.InferenceSession("model.onnx")
    logits = session.run(None, {"images": x})[0]  # x: float32 (B, 3, 32, 32)
    program = torch.export.load("model.pt2").module()  # program(x): tensors of the same shapes
"""

import contextlib
import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minivit import checkpoint
from minivit.files import write_atomically
from minivit.text import one_line, say

TOLERANCE = 1e-4  # largest difference between the logits of a file and those of the model, for logits up to 1
BATCHES = (2, 1, 5)  # the first is traced, all are compared
BATCH = "batch"  # name of the first dimension
MOST_IMAGES = 1 << 20  # of a batch: PyTorch 2.6 traces none without a bound
NEEDED = ("onnx", "onnxscript", "onnxruntime")
MOST_BYTES = (1 << 31) - (1 << 20)  # of the weights in one .onnx file: protobuf's limit, and room for the graph
Scores = Callable[[Tensor], Tensor]


class ExportError(ValueError):
    """A model that cannot be exported as asked: one line that says why, and what to do."""


def export(path: Path, target: Path) -> None:
    """Export the model of a checkpoint to `target`, and print its size and its difference from PyTorch.

    Raises CheckpointError, ExportError, or OSError if the file cannot be written; `target` then stays as it was.
    """
    check_target(target)
    state = checkpoint.read(path)
    checkpoint.check_fits(path, state)
    about = state["describe"]
    model = checkpoint.build_model(about["preset"], len(state["classes"]), about["overrides"])
    model.load_state_dict(checkpoint.weights_of(state))
    metadata = {"classes": state["classes"], "mean": state["mean"], "std": state["std"]}
    size, difference = export_model(model, target, metadata)
    height, width = size
    say(
        f"{target}: {target.stat().st_size / 1e6:.1f} MB, images (B, 3, {height}, {width}) -> scores "
        f"(B, {len(state['classes'])}), at most {difference:.1e} from PyTorch's"
    )


def check_target(target: Path) -> None:
    """ExportError unless a file of this name can be made here."""
    if target.suffix.lower() not in WRITERS:
        raise ExportError(f"--export {target}: give a name that ends in {' or '.join(WRITERS)}")
    if target.is_dir() or not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise ExportError(f"--export {target} can't be written: name a file in a folder that is there and yours")
    missing = [name for name in NEEDED if find_spec(name) is None]
    if target.suffix.lower() == ".onnx" and missing:
        raise ExportError(
            f"--export {target} needs {', '.join(missing)}: pip install 'minivit-minisam[export]', or export to .pt2"
        )


def export_model(model: nn.Module, target: Path, metadata: dict) -> tuple[tuple[int, int], float]:
    """Write `model` to an .onnx or .pt2, whole or not at all; returns the images' (height, width) and the difference.

    The difference is the largest between logits of the file, loaded again, and of the model. ExportError if it is
    above TOLERANCE times the largest logit (at least 1), if PyTorch cannot export the model, or for another ending. The
    model itself stays in its precision and mode.
    """
    target = Path(target)
    if target.suffix.lower() not in WRITERS:
        raise ExportError(f"{target}: give a name that ends in {' or '.join(WRITERS)}")
    model = copy.deepcopy(model).float().cpu().eval()
    size = model.config.size if hasattr(model, "config") else (32, 32)
    write, load = WRITERS[target.suffix.lower()]
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    found = []

    def fill(temporary: Path) -> None:
        with quiet():
            write(model, torch.zeros(BATCHES[0], 3, *size), texts, temporary)
            found.append(compare(model, load(temporary), size))

    try:
        write_atomically(target, fill)
    except (ExportError, OSError, MemoryError):
        raise
    except Exception as error:  # the exporters raise a dozen types of their own
        reason = one_line(error, 200)
        hint = "; try an onnxscript as old as PyTorch, or export to .pt2" if target.suffix.lower() == ".onnx" else ""
        raise ExportError(f"PyTorch {torch.__version__} can't export this model ({reason}){hint}") from error
    return size, found[0]


def compare(model: nn.Module, scores_of: Scores, size: tuple[int, int]) -> float:
    """The largest difference between two kinds of logits, over several batches. ExportError if it is too large."""
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for batch in BATCHES:
        x = torch.randn(batch, 3, *size, generator=generator)
        with torch.inference_mode():
            wanted = model(x)
        got = scores_of(x)
        difference = (got - wanted).abs().max().item() if got.shape == wanted.shape else float("inf")
        if not difference <= TOLERANCE * max(1.0, wanted.abs().max().item()):
            raise ExportError(f"the exported model differs from PyTorch's by {difference:.1e}: nothing was written")
        worst = max(worst, difference)
    return worst


# ---- the two kinds of file ------------------------------------------------------------------------------


def trace(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The program of a model for images of this size in batches of up to MOST_IMAGES."""
    batch = torch.export.Dim(BATCH, max=MOST_IMAGES)
    return torch.export.export(model, (example,), dynamic_shapes=({0: batch},))


def write_program(model: nn.Module, example: Tensor, texts: dict[str, str], path: Path) -> None:
    """Write a .pt2."""
    content = io.BytesIO()
    torch.export.save(trace(model, example), content, extra_files={"minivit.json": json.dumps(texts)})
    path.write_bytes(content.getvalue())


def load_program(path: Path) -> Scores:
    """The function of a .pt2."""
    program = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return lambda x: program(x).detach()


def write_onnx(model: nn.Module, example: Tensor, texts: dict[str, str], path: Path) -> None:
    """Write an .onnx of one file."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if size > MOST_BYTES:
        raise ExportError(f"{size / 1e9:.1f} GB of weights are too many for one .onnx file: export to .pt2")
    names = {"input_names": ["images"], "output_names": ["scores"]}
    program = torch.onnx.export(trace(model, example), (example,), dynamo=True, verbose=False, **names)
    name_batch(program.model.graph)
    program.model.metadata_props.update(texts)
    program.save(path, external_data=False)


def name_batch(graph: Any) -> None:
    """Call the first dimension of what goes into and comes out of an onnx_ir.Graph BATCH. Shapes in between are left
    out, as readers infer them: PyTorch 2.6 states those of the traced batch, and others' names differ from ours."""
    for node in graph:
        for value in node.outputs:
            value.shape = None if value not in graph.outputs else value.shape
    for value in (*graph.inputs, *graph.outputs):
        value.shape = type(value.shape)((BATCH, *value.shape[1:]))


def load_onnx(path: Path) -> Scores:
    """The function of an .onnx on a CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["scores"], {"images": x.numpy()})[0])


WRITERS = {".onnx": (write_onnx, load_onnx), ".pt2": (write_program, load_program)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporters log, print and warn of from the terminal: the comparison tells what matters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
