"""Bright squares over noise, in memory and as files. BrightDetector of tiny_segment.py finds them."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image

H, W = 40, 56


def picture(*lefts: int, seed: int = 0, height: int = H, width: int = W) -> np.ndarray:
    """Noise with a bright square at each of `lefts`, uint8 (height, width, 3)."""
    image = np.random.default_rng(seed).integers(0, 90, (height, width, 3), dtype=np.uint8)
    for left in lefts:
        image[10:22, left : left + 10] += 140
    return image


def film(count: int, empty: int = 0) -> list[np.ndarray]:
    """A square that moves to the right; on the first `empty` frames there is none."""
    return [picture(*[4 + 2 * t] if t >= empty else [], seed=t) for t in range(count)]


def save(image: np.ndarray, path: Path) -> str:
    Image.fromarray(image).save(path)
    return str(path)


def save_film(folder: Path, count: int, empty: int = 0) -> str:
    """`film` as a new folder of numbered PNG files."""
    folder.mkdir()
    for t, image in enumerate(film(count, empty)):
        save(image, folder / f"{t}.png")
    return str(folder)


def save_crowded_tiff(path: Path) -> Path:
    """A TIFF that says to have 999 values a pixel, which Pillow's log complains of."""
    Image.new("RGB", (4, 4)).save(path)
    values = struct.pack("<HHI", 277, 3, 1)  # SamplesPerPixel, one number of 16 bits
    path.write_bytes(path.read_bytes().replace(values + struct.pack("<H", 3), values + struct.pack("<H", 999)))
    return path
