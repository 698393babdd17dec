"""The pictures and the clip of examples/, drawn with seeds that training never saw.

python -m minisam_glue.demo.examples      # writes them again
"""

import sys
from pathlib import Path

from PIL import Image

from ..support.processes import run_program
from .scenes import clip, scene

PICTURES = {"squares.jpg": 800_016, "hexagons.jpg": 800_021}
CLIP, CLIP_SEED, FPS = "leaving.webp", 800_000, 15
SIZE = (240, 320)  # height, width


def main() -> None:
    """Write them into examples/ of the current folder."""
    folder = Path("examples")
    folder.mkdir(exist_ok=True)
    for name, seed in PICTURES.items():
        Image.fromarray(scene(seed, SIZE).image).save(folder / name, quality=92)
    first, *rest = map(Image.fromarray, clip(CLIP_SEED, "leaving", size=SIZE).frames)
    first.save(folder / CLIP, save_all=True, append_images=rest, duration=round(1000 / FPS), loop=0, quality=80)


if __name__ == "__main__":
    sys.exit(run_program(main))
