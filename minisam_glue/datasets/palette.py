"""Masks of several objects in one picture: PNG whose pixels are numbers of objects, with a palette of colours.

The colours are those of PASCAL VOC's development kit, which DAVIS has too: the bits of a number, three at a time, are
the highest bits of red, green and blue.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from ..support.files import whole_file
from .annotations import Annotation

MOST = 254  # numbers; 0 is the background, 255 what VOC calls void


def colours() -> list[int]:
    """Red, green and blue of 256 numbers, one after another."""
    numbers, table = np.arange(256), np.zeros((256, 3), int)
    for bit in range(8):
        for channel in range(3):
            table[:, channel] |= (numbers >> (3 * bit + channel) & 1) << (7 - bit)
    return table.ravel().tolist()


def number_map(size: tuple[int, int], annotations: list[Annotation], numbers: list[int]) -> np.ndarray:
    """uint8 (H, W) with the number of the object at each pixel; where several overlap, of the smallest."""
    canvas = np.zeros(size, np.uint8)
    for annotation, number in sorted(zip(annotations, numbers), key=lambda pair: -pair[0].area):
        canvas[annotation.mask] = number
    return canvas


def save(path: Path, numbers: np.ndarray) -> None:
    """Write uint8 (H, W) as a palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(numbers, "L")
    picture.putpalette(colours())
    with whole_file(path) as temporary:
        picture.save(temporary, "PNG")
