"""torch's OneCycleLR in all its shapes, of the learning rate and of the momentum, for the golden files.

The package has the one that it trains with: two phases of half a cosine, the rate alone.
"""

import math


def cycle(step: int, total: int, start: float, peak: float, end: float, spec: dict) -> float:
    """start -> peak (-> start again with three phases) -> end, as a golden file's entry `spec` says."""
    climb = spec.get("pct_start", 0.3) * total - 1
    knots = [(0.0, start), (climb, peak), (total - 1.0, end)]
    if spec.get("three_phase", False):
        knots.insert(2, (2 * climb, start))
    for (begin, low), (finish, high) in zip(knots, knots[1:]):
        if step <= finish:
            share = (step - begin) / (finish - begin)
            linear = spec.get("anneal_strategy") == "linear"
            return low + (high - low) * (share if linear else (1 - math.cos(math.pi * share)) / 2)
    return end


def one_cycle_lr(step: int, total: int, spec: dict) -> float:
    start = spec["max_lr"] / spec.get("div_factor", 25.0)
    return cycle(step, total, start, spec["max_lr"], start / spec.get("final_div_factor", 1e4), spec)


def one_cycle_momentum(step: int, total: int, spec: dict) -> float:
    """The momentum that goes with the rate: 0.95, lowest (0.85) where the rate is highest."""
    return cycle(step, total, 0.95, 0.85, 0.95, spec)
