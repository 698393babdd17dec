"""Layers that more than one model uses, and the strict loading of their weights.

Key names are those of the official checkpoints: `layers.0`, `layers.1`, ... of an MLP.
"""

from collections.abc import Callable

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .reading import check_finite


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


def load_strictly(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put a state dict in place of the weights, which may be on the meta device.

    ValueError names the keys that do not fit, and weights that are NaN or infinite.
    """
    wanted = model.state_dict()
    both = wanted.keys() & state.keys()
    wrong = {
        "missing": wanted.keys() - state.keys(),
        "not known": state.keys() - wanted.keys(),
        "of another shape": {k for k in both if wanted[k].shape != state[k].shape},
        "of another type": {k for k in both if wanted[k].is_floating_point() != state[k].is_floating_point()},
    }
    if any(wrong.values()):
        report = "; ".join(f"{len(keys)} {what}, such as {min(keys)}" for what, keys in wrong.items() if keys)
        raise ValueError(f"the checkpoint is not of this model: {report}. Choose the preset that fits the file")
    for name, value in state.items():
        check_finite(value, name)
    model.load_state_dict(state, assign=True)
