"""A GPU that is not there: its tensors say that they lie on it, are computed on the CPU, and refuse what it refuses.

    python tests/helpers/pretended_gpu.py mps minisam_glue        # or minivit; or cuda:1

So a machine without a GPU shows what a program gets wrong on one: tensors of two devices in one operation, numpy() of
what is not on the CPU and, on Apple's GPUs (mps), float64 and the operations that MPS lacks in some PyTorch from 2.6
on. Speed, memory and rounding are those of the CPU. Left out: gradients through operations that PyTorch makes of
several.
"""

import importlib
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

MIXED = ("aten::copy_", "aten::_to_copy", "aten::_copy_from")  # move tensors between devices
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
WHOLE = {  # functions that PyTorch chooses an implementation of by the device: computed as one
    *(F.scaled_dot_product_attention, F.grid_sample, F.embedding_bag, F.conv2d, F.conv_transpose2d),
    *(torch.cdist, F.batch_norm, torch.where, torch.Tensor.where),
}
DEVICE, IS_CUDA, IS_MPS = (getattr(torch.Tensor, name).__get__ for name in ("device", "is_cuda", "is_mps"))
NEVER = [getattr(torch.Tensor, name).__get__ for name in ("is_meta", "is_cpu")]


class There(torch.Tensor):
    """A tensor of the GPU. inner: its numbers, on the CPU. place: its device."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor, place: torch.device):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",
        )
        made.inner, made.place = inner, place
        return made

    def __init__(self, *_): ...

    def __repr__(self, **_) -> str:
        return f"There({tuple(self.inner.shape)}, {self.inner.dtype}, {self.place})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return operate(func, args, kwargs or {})


def inner(value):
    """The numbers of a tensor of the GPU; any other value as it is."""
    return value.inner if isinstance(value, There) else value


def put(tensor: torch.Tensor, place: torch.device) -> There:
    """A tensor on the GPU. TypeError for float64 on Apple's."""
    if place.type == "mps" and tensor.dtype in (torch.float64, torch.complex128):
        raise TypeError("Cannot convert a MPS Tensor to float64")
    return There(tensor, place)


def written(arguments, args, kwargs):
    """The tensor of the GPU that an operation writes into, if any: it is what the operation returns."""
    for number, argument in enumerate(arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name) if argument.kwarg_only else args[number] if number < len(args) else None
            if isinstance(value, There):
                return value
    return None


def operate(func, args, kwargs):
    """One operation: on the inner tensors, if all are on one device."""
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, There)]
    if not there:
        return func(*args, **kwargs)
    name, place, first = func._schema.name, there[0].place, args[0] if args else None
    if name not in MIXED:
        indexed = name in INDEXING and isinstance(first, There)
        strangers = [
            t for t in tensors if not isinstance(t, There) and t.dim() and not (indexed and t.dtype != first.dtype)
        ]
        if strangers or any(t.place != place for t in there) or (name in INDEXING and not indexed):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, {place} and another one")
    target = place
    if name == "aten::copy_" and not isinstance(first, There):
        target = None
    if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu":
        target = None
    given = {
        key: torch.device("cpu") if key == "device" and value is not None else value for key, value in kwargs.items()
    }
    out = func(*tree_map(inner, args), **tree_map(inner, given))
    into = written(func._schema.arguments, args, kwargs)
    if into is not None and isinstance(out, torch.Tensor):
        return into
    if target is None:
        return out
    return tree_map(lambda t: put(t, target) if isinstance(t, torch.Tensor) and not isinstance(t, There) else t, out)


class Operations(TorchDispatchMode):
    """Every operation while it is on, those that make new tensors too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return operate(func, args, kwargs or {})


class Functions(TorchFunctionMode):
    """The functions of PyTorch that ask for a device, or that a GPU refuses, while it is on."""

    def __init__(self, place: str):
        super().__init__()
        self.place = torch.device(place)

    def is_there(self, device) -> bool:
        """Whether a device, or its name, is the GPU."""
        return device is not None and torch.device(device).type == self.place.type

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, There):
            if func in (DEVICE, IS_CUDA, IS_MPS, *NEVER):
                answers = {DEVICE: first.place, IS_CUDA: first.place.type == "cuda", IS_MPS: first.place.type == "mps"}
                return answers.get(func, False)
            if func in (torch.Tensor.numpy, torch.Tensor.__array__):
                raise TypeError(f"can't convert {first.place} device type tensor to numpy: use Tensor.cpu()")
            if func is torch.Tensor.new_tensor:
                return put(torch.tensor(args[1], dtype=kwargs.get("dtype", first.dtype)), first.place)
            if func in (torch.Tensor.tolist, torch.Tensor.data_ptr, torch.Tensor.untyped_storage):
                return func(first.inner)
        if func is torch.Tensor.to:
            return self.move(*args, **kwargs)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            return self.index(func, *args)
        if self.is_there(kwargs.get("device")):
            return self.make(func, args, kwargs)
        if self.place.type == "mps":
            refuse_on_mps(func, args, kwargs)
        if func in WHOLE:
            there = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, There)]
            if there and not any(t.requires_grad for t in there):
                if any(
                    isinstance(t, torch.Tensor) and not isinstance(t, There) and t.dim()
                    for t in tree_flatten((args, kwargs))[0]
                ):
                    raise RuntimeError(f"{func.__name__}: a tensor of the CPU among those of {self.place}")
                return put(func(*tree_map(inner, args), **tree_map(inner, kwargs)), self.place)
        return func(*args, **kwargs)

    def make(self, func, args, kwargs):
        """A new tensor on the GPU: torch.zeros, torch.tensor, zeros_like and others."""
        if args and isinstance(args[0], There):
            return func(*args, **{key: value for key, value in kwargs.items() if key != "device"})
        made = func(*args, **kwargs | {"device": torch.device("cpu")})
        shared = func in (torch.as_tensor, torch.asarray)
        return put(made.clone() if shared else made, self.place)

    def index(self, func, tensor, index, *value):
        """tensor[index], or tensor[index] = value."""
        parts = index if isinstance(index, tuple) else (index,)
        masks = [t for t in parts if isinstance(t, torch.Tensor)]
        if not isinstance(tensor, There) and any(isinstance(t, There) and t.dim() for t in masks):
            raise RuntimeError("indices should be on the CPU, as the indexed tensor is")
        if not value:
            if not isinstance(tensor, There) or tensor.requires_grad:
                return func(tensor, index)
            with torch._C.DisableTorchFunction():
                return put(tensor.inner[tree_map(inner, index)], tensor.place)
        if not isinstance(tensor, There) and not isinstance(value[0], There):
            return func(tensor, index, *value)
        if (
            masks
            and isinstance(value[0], torch.Tensor)
            and value[0].dim()
            and isinstance(tensor, There) != isinstance(value[0], There)
        ):
            raise RuntimeError("a value of another device at indices that are tensors")
        with torch._C.DisableTorchFunction():
            inner(tensor)[tree_map(inner, index)] = inner(value[0])
        return None

    def move(self, tensor, *args, device=None, dtype=None, **kwargs):
        """tensor.to(...)."""
        for value in args:
            if isinstance(value, torch.Tensor):
                device, dtype = value.place if isinstance(value, There) else value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, (str, torch.device)):
                device = value
        if device is not None and torch.device(device).type == "meta":
            return torch.Tensor.to(tensor, device=device)
        old = tensor.place if isinstance(tensor, There) else None
        new = old if device is None else self.place if self.is_there(device) else None
        if old is not None and old.type == "mps" and new is None and dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64: move it, then convert it")
        layout = {"memory_format": kwargs["memory_format"]} if kwargs.get("memory_format") is not None else {}
        if tensor.requires_grad and torch.is_grad_enabled() and new == old:
            with torch._C.DisableTorchFunction():
                return torch.Tensor.to(tensor, dtype=dtype or tensor.dtype, **layout)
        with torch._C.DisableTorchFunction():
            numbers = inner(tensor)
            out = numbers.detach().to(dtype=dtype or numbers.dtype, **layout)
        same = out.data_ptr() == numbers.data_ptr()
        if new == old and same:
            return tensor
        out = out.clone(memory_format=torch.preserve_format) if same else out
        return out if new is None else put(out, new)


def refuse_on_mps(func, args, kwargs) -> None:
    """Raise for what MPS lacks in some PyTorch from 2.6 on."""
    if not args or not isinstance(args[0] if not isinstance(args[0], (list, tuple)) else None, There):
        return
    if func is F.interpolate and kwargs.get("antialias"):
        raise NotImplementedError("antialiased interpolation is not implemented for MPS")
    if func is F.embedding_bag:
        raise NotImplementedError("aten::_embedding_bag is not implemented for MPS")
    if func is F.grid_sample and "border" in (*args[1:], *kwargs.values()):
        raise RuntimeError("MPS: unsupported border padding mode")
    if func is F.adaptive_avg_pool2d:
        side = args[1] if isinstance(args[1], int) else args[1][0]
        if any(length % side for length in args[0].shape[-2:]):
            raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes")


def install(place: str) -> None:
    """Let PyTorch say that the GPU is there."""
    no_grad, grad = torch.no_grad, torch.enable_grad
    torch.inference_mode = lambda mode=True: no_grad() if mode else grad()  # which wrapped tensors can't be under
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    if place == "mps":
        importlib.import_module("torch._dynamo")  # it looks into the function that is replaced here
        torch.backends.mps.is_available = lambda: True
        torch.mps.synchronize = lambda: None
        return
    torch.cuda._lazy_init = lambda: None
    torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 2
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    torch.cuda.get_device_name = lambda device=None: "a pretended GPU"

    def on_own_device(device=None) -> None:
        if torch.device(device or "cuda:0") != torch.device(place):
            raise RuntimeError(f"waits for {device}, where {place} works")

    torch.cuda.synchronize = on_own_device


def use_minisam_glue(place: str) -> None:
    """Pictures and videos with the demo weights, small."""
    import numpy as np

    from minisam_glue import Clicks, frames, load_models, read_image, segment_image, segment_images, segment_video
    from minisam_glue.prompts import Seeding, Thresholds

    examples = Path(__file__).parents[2] / "examples"
    picture, sentence = read_image(str(examples / "hexagons.jpg")), "green hexagon. blue square."
    mask = np.zeros(picture.shape[:2], bool)
    mask[50:100, 60:130] = True
    for method in ("detector", "clipseg"):
        models = load_models("demo", device=place, method=method, size=128)
        assert models.sam.device == torch.device(place)
        assert segment_image(models, picture, sentence, Thresholds(box="auto")).objects
        assert (
            len(segment_images(models, [picture, picture[:200]], sentence, seeding=Seeding(("box", "points", "mask"))))
            == 2
        )
    clicks = Clicks([(50.0, 40.0, 150.0, 130.0)], [(60.0, 70.0, 1)], [mask])
    assert segment_image(models, picture, clicks).objects
    models = load_models("demo", device=place, size=128)
    film = [frame for _, frame in zip(range(4), frames(str(examples / "leaving.webp")))]
    words = "black circle. green heart."
    for options in ({"direction": "both", "seed_frame": 2}, {"propagate": "flow", "refine_every": 2}):
        results = list(segment_video(models, film, words, redetect=2, **options))
        assert {result.frame for result in results} == {0, 1, 2, 3} and any(result.seen for result in results), options
    large = [np.kron(frame, np.ones((4, 4, 1), np.uint8)) for frame in film[:2]]
    assert len(list(segment_video(models, large, words, propagate="flow"))) == 2


def use_minivit(place: str) -> None:
    """A step of training with all augmentations, and an evaluation."""
    from minivit import data, run
    from minivit.evaluate import Evaluator

    with tempfile.TemporaryDirectory() as folder:
        given = {
            "data": "shapes",
            "preset": "cifar-small",
            "device": place,
            "amp": "off",
            "epochs": 2,
            "batch_size": 20,
        }
        given |= {"dim": 32, "depth": 1, "heads": 2, "val_split": 0.0, "clean_epochs": 0, "jitter": 0.4, "rotate": 15.0}
        trainer, _ = run.prepare(
            {**given, "trivial_augment": True, "out": Path(folder) / "run"}, dataset=data.shapes(0, 60, 40)
        )
        trainer.forward.train()
        for index in trainer.draw_order().to(trainer.device).split(20):
            trainer.train_step(trainer.flipped(index), trainer.train_split.labels[index])
        assert trainer.sums[2] == 60 and float(trainer.sums[0]) > 0
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)).to(place)
        evaluator = Evaluator((0.5,) * 3, (0.2,) * 3, torch.device(place))
        assert evaluator.predict(model, trainer.train_split.images, "crops").cpu().shape == (60, 10)
        assert 0 <= evaluator.accuracy(model, trainer.train_split) <= 1
        trainer.claim.release()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    gpu, package = sys.argv[1:]
    torch.set_num_threads(1)
    install(gpu)
    with Operations(), Functions(gpu):
        {"minisam_glue": use_minisam_glue, "minivit": use_minivit}[package](gpu)
