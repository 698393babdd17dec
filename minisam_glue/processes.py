"""This process: its number among those that torchrun starts, its GPU, its Python."""

import os
import shlex
import sys


def rank_and_number() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are: 0 and 1 without torchrun.

    ValueError if RANK or WORLD_SIZE are no such numbers.
    """
    rank, number = (_environment(name, default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    if not 0 <= rank < number:
        raise ValueError(f"RANK={rank} and WORLD_SIZE={number}: torchrun sets ranks from 0 to WORLD_SIZE - 1")
    return rank, number


def own_gpu() -> str:
    """The device of this process among those of its machine."""
    return f"cuda:{_environment('LOCAL_RANK', 0)}"


def interpreter() -> str:
    """The Python that runs this, as one types it in a shell: for hints."""
    path = sys.executable or "python"
    return f'"{path}"' if sys.platform == "win32" and " " in path else shlex.quote(path)


def install_command(extra: str) -> str:
    """The command that installs this package with one of its extras: for hints."""
    return f'{interpreter()} -m pip install "minivit-minisam[{extra}]"'


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.strip().isdecimal():
        raise ValueError(f"{name}={text}: torchrun sets it to a whole number; unset it to run one process")
    return int(text)
