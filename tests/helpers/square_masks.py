"""Masks of one square."""

import torch


def square(top: int, left: int, size: int = 10, frame: int = 40) -> torch.Tensor:
    """A mask of one frame, bool (1, frame, frame)."""
    mask = torch.zeros(1, frame, frame, dtype=torch.bool)
    mask[:, top : top + size, left : left + size] = True
    return mask
