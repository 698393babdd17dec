"""Exponential moving average (EMA) of the weights, which is evaluated in their place: averaged = d * averaged +
(1 - d) * weights after each step, with a decay d near 1.

DeiT's code (arXiv 2012.12877) has a constant decay of 0.99996. Here it grows over training: early on the average
follows the fast-moving weights (0.995 remembers about 1 / (1 - 0.995) = 200 steps), late it smooths out the noise
(0.9995: 2,000 steps). In the first steps it is lower still, by the rule of TensorFlow's
ExponentialMovingAverage, so that even a short run's average has forgotten the weights it began with. Left out:
averages kept in another precision or on another device than the model.
"""

import copy

import torch
from torch import nn


def decay_ramp(step: int, start: float, end: float, ramp_steps: int) -> float:
    """EMA decay at a step: linear from `start` at step 0 to `end` at `ramp_steps`, then constant; at most
    (1 + step) / (10 + step), which is near 0.9 after 80 steps and 0.99 after 890."""
    ramp = start + (end - start) * min(step / max(ramp_steps, 1), 1.0)
    return min(ramp, (1 + step) / (10 + step))


@torch.no_grad()
def average_(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Update in place: averaged = decay * averaged + (1 - decay) * the model's. Buffers are copied, not averaged."""
    # torch has no public name for it: a few launches for all parameters instead of one for each.
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
    for ours, theirs in zip(averaged.buffers(), model.buffers()):
        ours.copy_(theirs)


class EMA:
    """EMA weights of a model, in the copy `.module` (evaluation mode, no gradients).

    Call `update` after each optimizer step. model: not wrapped by DDP or torch.compile. start, end,
    ramp_steps: see decay_ramp. ValueError for a decay outside of [0, 1].
    """

    def __init__(self, model: nn.Module, start: float = 0.995, end: float = 0.9995, ramp_steps: int = 0):
        if not (0 <= start <= 1 and 0 <= end <= 1):
            raise ValueError(f"EMA decays {start} and {end}: each must be between 0 (no average) and 1 (never moves)")
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.start, self.end, self.ramp_steps = start, end, ramp_steps

    def update(self, model: nn.Module, step: int) -> None:
        """Update the average after optimizer step `step`, counted from 0."""
        average_(self.module, model, decay_ramp(step, self.start, self.end, self.ramp_steps))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averaged weights under the model's own key names."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Load averaged weights, strictly."""
        self.module.load_state_dict(state)
