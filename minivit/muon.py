"""Muon: momentum whose update of each matrix is made orthogonal (Jordan et al., kellerjordan.github.io/posts/muon).

A gradient is mostly a few strong directions, and AdamW leaves the weak ones to last. Muon replaces the singular
values of the momentum by numbers near 1, so that all directions learn alike. Here each weight is also brought back to
the Frobenius norm sqrt(rows) before each step, as in airbench94_muon.py (github.com/KellerJordan/cifar10-airbench),
which also takes three steps of Newton-Schulz in place of the usual five. Ours, not theirs: the update is brought to
that norm, too. The learning rate is then the relative size of a step, and weight decay has nothing left to do.
AdamW (arXiv 1711.05101) trains all other weights.
"""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

# Coefficients of the polynomial a x + b x^3 + c x^5, from zeropower_via_newtonschulz5 of KellerJordan/Muon: small
# singular values grow fast, and in return large ones end near 1, not at it.
A, B, C = 3.4445, -4.7750, 2.0315
LEAST = 1e-7  # norm by which a matrix is divided


def newton_schulz(matrices: Tensor, steps: int = 3) -> Tensor:
    """Matrices (n, rows, columns) U S V^T -> about U V^T, by Newton-Schulz steps on the singular values.

    Three steps bring those above 1/50 of the Frobenius norm between 0.68 and 1.21, five steps those above 1/600.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=LEAST)
    for _ in range(steps):
        square = x @ x.mT
        x = A * x + (B * square + C * square @ square) @ x
    return x if wide is matrices else x.mT


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of linear layers and full convolutions, without heads, frozen and depth-wise ones.

    Heads are modules whose name begins with "head", or "fc" as in a ResNet, also inside of a wrapper: DDP,
    torch.compile, a model of yours.
    """
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        and not any(part.startswith("head") or part == "fc" for part in name.split("."))
        and getattr(module, "groups", 1) == 1
        and module.weight.requires_grad
    ]


class Muon(torch.optim.Optimizer):
    """Muon for hidden_matrices(model), AdamW without decay for all other parameters.

    lr: relative change of a matrix in one step. steps: of Newton-Schulz. adamw_lr: AdamW's rate; `gain` in its group is
    adamw_lr / lr, so that one schedule of `lr` drives both. dtype: of the Newton-Schulz products. A matrix whose
    gradients were all 0 so far has no direction to go, and its update is 0. ValueError for what is no module, or has
    nothing that learns.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.03,
        momentum: float = 0.85,
        steps: int = 3,
        adamw_lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        dtype: torch.dtype = torch.float32,
    ):
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"Muon takes the model, whose layers tell which weights are whose, not a {type(model).__name__}"
            )
        matrices = hidden_matrices(model)
        chosen = {id(weight) for weight in matrices}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
        groups = [
            {"params": matrices, "lr": lr, "gain": 1.0, "momentum": momentum, "steps": steps},
            {"params": others, "lr": adamw_lr, "gain": adamw_lr / lr, "betas": betas, "eps": 1e-8},
        ]
        self.dtype = dtype
        super().__init__([group for group in groups if group["params"]], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of all parameters that have a gradient. closure: computes these, and gives the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if "momentum" in group:
                self.step_matrices(weights, group)
            else:
                self.step_others(weights, group)
        return loss

    def step_matrices(self, weights: list[nn.Parameter], group: dict) -> None:
        """w <- w sqrt(rows) / |w| - lr * update, the update of norm sqrt(rows); weights of one shape go together."""
        alike = defaultdict(list)
        for weight in weights:
            alike[weight.flatten(1).shape].append(weight)
        for shape, same in alike.items():
            updates = torch.stack([self.nesterov(weight, group["momentum"]).flatten(1) for weight in same])
            updates = newton_schulz(updates.to(self.dtype), group["steps"]).to(same[0].dtype)
            for weight, update in zip(same, updates):
                weight.mul_(shape[0] ** 0.5 / weight.norm().clamp(min=LEAST))
                weight.sub_(update.view_as(weight) * (group["lr"] * shape[0] ** 0.5 / update.norm().clamp(min=LEAST)))

    def nesterov(self, weight: nn.Parameter, momentum: float) -> Tensor:
        """The momentum, an average of gradients, after this one, a step ahead (Nesterov); see KellerJordan/Muon."""
        average = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
        average.lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(average, momentum)

    def step_others(self, weights: list[nn.Parameter], group: dict) -> None:
        """AdamW without decay: w <- w - lr * m / (sqrt(v) + eps), m and v corrected for their start at 0."""
        (beta1, beta2), lr, eps = group["betas"], group["lr"], group["eps"]
        for weight in weights:
            state = self.state[weight]
            if not state:
                state |= {"step": 0, "mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
            state["step"] += 1
            state["mean"].lerp_(weight.grad, 1 - beta1)
            state["square"].lerp_(weight.grad.square(), 1 - beta2)
            mean = state["mean"] / (1 - beta1 ** state["step"])
            square = state["square"] / (1 - beta2 ** state["step"])
            weight.sub_(lr * mean / (square.sqrt() + eps))
