"""Independence from the default device that a program gives PyTorch (torch.set_default_device)."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def with_cpu_as_default(function: Callable[P, R]) -> Callable[P, R]:
    """Let tensors that name no device be made on the CPU inside a function; others are not changed."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.get_default_device().type == "cpu":
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return inside
