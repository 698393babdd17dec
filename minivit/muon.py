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
COEFFICIENTS = 3.4445, -4.7750, 2.0315
LEAST = 1e-7  # norm by which a matrix is divided


def newton_schulz(matrices: Tensor, steps: int = 3) -> Tensor:
    """Matrices (n, rows, columns) U S V^T -> about U V^T, by Newton-Schulz steps on the singular values.

    Three steps bring those above 1/50 of the Frobenius norm between 0.68 and 1.21, five steps those above 1/600.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=LEAST)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        square = x @ x.mT
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)  # b s + c s^2, of s = x x^T
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a x + (b s + c s^2) x
    return x if wide is matrices else x.mT


def of_norm(norm: float, matrices: Tensor) -> Tensor:
    """Matrices (n, rows, columns), each multiplied so that its Frobenius norm is `norm`; zeros stay zeros."""
    return matrices * (norm / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=LEAST))


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of linear layers and full convolutions, without heads, frozen and depth-wise ones, and without the
    convolution that sees the image's three channels: the reference leaves the first layer to AdamW, too.

    Heads are modules whose name begins with "head", or is "fc" as in a ResNet, also inside of a wrapper: DDP,
    torch.compile, a model of yours.
    """
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        and not any(part.startswith("head") or part == "fc" for part in name.split("."))
        and getattr(module, "groups", 1) == 1
        and not (isinstance(module, nn.Conv2d) and module.in_channels == 3)
        and module.weight.requires_grad
    ]


class Muon(torch.optim.Optimizer):
    """Muon for hidden_matrices(model), AdamW without decay for all other parameters.

    lr: relative change of a matrix in one step. steps: of Newton-Schulz. adamw_lr: AdamW's rate; `gain` in its group is
    adamw_lr / lr, so that one schedule of `lr` drives both. dtype: of the Newton-Schulz products. A matrix whose
    gradients were all 0 so far has no direction to go, and its update is 0. ValueError for what is no module, or has
    nothing that learns, and for a rate that is not above 0.
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
        if not lr > 0:
            raise ValueError(f"the learning rate is {lr}: give one above 0")
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
            if not weights:
                continue
            if "momentum" in group:
                self.step_matrices(weights, group)
            else:
                self.step_others(weights, group)
        return loss

    def step_matrices(self, weights: list[nn.Parameter], group: dict) -> None:
        """w <- w sqrt(rows) / |w| - lr * update, the update of norm sqrt(rows).

        Its direction is the momentum, an average of gradients, a step ahead (Nesterov); see KellerJordan/Muon. Weights
        of one shape go together, and all averages: a GPU would wait for a call for each of them.
        """
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        gradients, averages = [w.grad for w in weights], [self.state[w]["momentum"] for w in weights]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, averages, group["momentum"])
        alike = defaultdict(list)
        for weight, direction in zip(weights, directions):
            alike[weight.flatten(1).shape].append((weight, direction.flatten(1)))
        for (rows, _), pairs in alike.items():
            same, updates = [weight for weight, _ in pairs], torch.stack([direction for _, direction in pairs])
            updates = newton_schulz(updates.to(self.dtype), group["steps"]).to(same[0].dtype)
            before = torch.stack([weight.flatten(1) for weight in same])
            after = of_norm(rows**0.5, before) - group["lr"] * of_norm(rows**0.5, updates)
            torch._foreach_copy_(same, [new.view_as(weight) for new, weight in zip(after, same)])

    def step_others(self, weights: list[nn.Parameter], group: dict) -> None:
        """AdamW without decay: w <- w - lr * m / (sqrt(v) + eps), m and v corrected for their start at 0.

        m and v are averages of gradients and of their squares. Each line is for all weights at once, as above.
        """
        (beta1, beta2), states = group["betas"], [self.state[weight] for weight in weights]
        for weight, state in zip(weights, states):
            if not state:
                state |= {"step": 0, "mean": torch.zeros_like(weight), "square": torch.zeros_like(weight)}
            state["step"] += 1
        gradients = [w.grad for w in weights]
        means, squares = ([state[name] for state in states] for name in ("mean", "square"))
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1 - beta2)
        mean = torch._foreach_div(means, [1 - beta1 ** s["step"] for s in states])
        square = torch._foreach_div(squares, [1 - beta2 ** s["step"] for s in states])
        denominators = torch._foreach_add(torch._foreach_sqrt(square), group["eps"])
        torch._foreach_add_(weights, torch._foreach_div(mean, denominators), alpha=-group["lr"])
