"""The command line: segment.py, and the command `minisam` of an installed package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..support.processes import begin_program

if TYPE_CHECKING:
    from ..models import Models


def main(argv: list[str] | None = None, models: Models | None = None) -> int:
    """Do what the command line says, with `models` if they are loaded already. Returns the exit status.

    0 also when nothing is found; 2 for a usage or input error, told in one line; 130 after Ctrl-C, 128 + its number
    after another signal, but 0 if it has ended a camera or pipe, and nothing is left; 141 when the reader of standard
    output has gone (`| head`).
    """
    if argv is None:
        begin_program()
    from .command import run_command  # torch takes seconds to import: Ctrl-C is quiet then, too

    return run_command(argv, models)
