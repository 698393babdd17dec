"""Layers that more than one model uses, and the strict loading of their weights.

Key names are those of the official checkpoints: `layers.0`, `layers.1`, ... of an MLP.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .support.reading import check_weights


class MLP(nn.Module):
    """Linear layers with an activation between them: (..., dims[0]) -> ... -> (..., dims[-1])."""

    def __init__(self, *dims: int, activation: Callable[[Tensor], Tensor] = F.relu):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(dims, dims[1:]))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers  # a slice of a ModuleList does not export with PyTorch 2.6
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)


def as_built(*layers: nn.Module) -> bool:
    """Whether these are linear layers of PyTorch's own class, without hooks or a forward of their own.

    A form that reads their weights is equal for these alone: a layer with an adapter (LoRA), in int8, pruned or
    watched, or with a forward of its own in place of its class's, has to be called.
    """
    return all(type(layer) is nn.Linear and not has_hooks(layer) and "forward" not in vars(layer) for layer in layers)


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks run before or after a module, forward or backward."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(map(len, hooks))


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules made inside are on the meta device: shapes without numbers, for weights that are loaded at once."""
    with torch.device("meta"), NoInitialisation():
        yield


class NoInitialisation(TorchFunctionMode):
    """Pass over the functions of torch.nn.init: on the meta device they fill nothing, but to draw normal noise there
    PyTorch loads its compiler, for as long as the rest of PyTorch takes."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The precision in which autocast computes on a device now; None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


SAMPLES = 16  # numbers of a tensor that tell whether it was written to


class WeightsState:
    """Tells by a number when weights have changed, for what is kept of their results."""

    def __init__(self):
        self.number, self.weights, self.versions, self.samples = 0, [], [], torch.empty(0)

    @torch.no_grad()
    def __call__(self, weights: list[Tensor]) -> int:
        """A number that is another one if these are other tensors than the last time, or were written to since.

        PyTorch counts the writes to a tensor, but not those to its `.data`: some numbers of each are compared, too.
        """
        versions = [(w.device, 0 if w.is_inference() else w._version) for w in weights]  # Module.to keeps the tensors
        samples = torch.cat([w.detach().flatten()[:: max(1, w.numel() // SAMPLES)].float() for w in weights])
        same = len(weights) == len(self.weights) and all(a is b for a, b in zip(weights, self.weights))
        if not same or versions != self.versions or not torch.equal(samples, self.samples):
            self.number, self.weights = self.number + 1, weights
            self.versions, self.samples = versions, samples
        return self.number


def load_strictly(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put a state dict in place of the weights, which may be on the meta device.

    ValueError names the keys that do not fit, and weights that are NaN or infinite.
    """
    try:
        check_weights(state, model.state_dict())
    except ValueError as error:
        raise ValueError(
            f"the checkpoint is not of this model: {error}. Choose the preset that fits the file"
        ) from None
    model.load_state_dict(state, assign=True)
