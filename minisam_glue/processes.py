"""The processes that torchrun starts: which of them this one is, and the GPU that it takes."""

import os


def rank_and_number() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are: 0 and 1 without torchrun."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def own_gpu() -> str:
    """The device of this process among those of its machine."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
