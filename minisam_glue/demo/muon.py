"""Muon: momentum whose update of each matrix is made orthogonal (Jordan et al., kellerjordan.github.io/posts/muon).

A gradient is mostly a few strong directions, and AdamW leaves the weak ones to last. Muon replaces the singular values
of the momentum by numbers near 1, by five turns of a polynomial, so that all directions learn alike.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.nn as nn
from torch import Tensor

LEAST = 8  # rows and columns: of thinner matrices nothing is gained over AdamW
STEPS = 5  # of Newton-Schulz
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the polynomial a x + b x^3 + c x^5: KellerJordan/Muon


def newton_schulz(matrices: Tensor) -> Tensor:
    """Matrices (n, rows, columns) U S V^T -> about U V^T, by Newton-Schulz steps.

    Five of them bring singular values above 1/600 of the Frobenius norm between 0.68 and 1.21.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide is matrices else x.mT


def flat(weight: Tensor) -> Tensor:
    """Weight -> matrix: outputs by all the rest; for transposed convolutions inputs by all the rest."""
    return weight.flatten(1)


def matrices_of(model: nn.Module) -> list[nn.Parameter]:
    """The weights that mix channels: of linear layers, attention and convolutions, but not of embeddings."""
    layers = (module for module in model.modules() if not isinstance(module, nn.Embedding))
    weights = (
        getattr(layer, name, None)
        for layer in layers
        for name in ("weight", "in_proj_weight")
        if getattr(layer, "groups", 1) == 1
    )
    wide = (w for w in weights if w is not None and w.dim() > 1 and min(flat(w).shape) >= LEAST)
    return list({id(w): w for w in wide}.values())


class Muon(torch.optim.Optimizer):
    """Muon for matrices_of(model).

    Updates are scaled by 0.2 sqrt(max(rows, columns)), which makes them as large as AdamW's (Liu et al., arXiv
    2502.16982), so `lr` is an AdamW's too.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """One update; weights of one shape go together."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[flat(weight).shape].append(weight)
            for shape, weights in alike.items():
                updates = torch.stack([self.nesterov(weight, group["momentum"]) for weight in weights])
                scale = group["lr"] * 0.2 * math.sqrt(max(shape))
                for weight, update in zip(weights, newton_schulz(updates)):
                    weight.sub_(update.view_as(weight), alpha=scale)

    def nesterov(self, weight: nn.Parameter, momentum: float) -> Tensor:
        """The momentum after this gradient, a step ahead (Nesterov), as a matrix."""
        kept = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
        kept.lerp_(weight.grad, 1 - momentum)
        return flat(weight.grad.lerp(kept, momentum))
