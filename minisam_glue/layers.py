"""Layers that more than one model uses, and the strict loading of their weights.

Key names are those of the official checkpoints: `layers.0`, `layers.1`, ... of an MLP.
"""

from collections.abc import Callable

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

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
