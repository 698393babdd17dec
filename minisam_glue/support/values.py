"""Types of arguments on a command line: numbers within bounds."""

import argparse
import math
import re
from collections.abc import Callable

LARGEST = 1_000_000_000  # the largest whole number that a flag takes


def number(least: float, most: float, above: bool = False) -> Callable[[str], float]:
    """A type of argument: a number from `least` (above: more than that) to `most`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or (above and value == least):
            limits = f"above {least:g} and at most {most:g}" if above else f"from {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is out of range: give a number {limits}")
        return value

    return parse


def whole_number(least: int) -> Callable[[str], int]:
    """A type of argument: a whole number from `least` on."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,10}", text) or not least <= int(text) <= LARGEST:
            raise argparse.ArgumentTypeError(f"{text!r} is out of range: give a whole number from {least}")
        return int(text)

    return parse
