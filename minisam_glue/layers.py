"""Layers that more than one model uses.

Key names are those of the official checkpoints: `layers.0`, `layers.1`, ... of an MLP.
"""

from collections.abc import Callable

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class MLP(nn.Module):
    """Linear layers with an activation between them: (..., dims[0]) -> ... -> (..., dims[-1])."""

    def __init__(self, *dims: int, activation: Callable[[Tensor], Tensor] = F.relu):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(dims, dims[1:]))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)
