"""A folder of a few drawn shapes, as users bring their pictures."""

from pathlib import Path

from PIL import Image

from minivit import data


def save_shapes(root: Path) -> Path:
    """Save drawn shapes as PNG files of 16 pixels a side: 60 to train on, 20 to test. Returns the folder."""
    drawn = data.shapes(0, 60, 20, image_size=16)
    for name, split in (("train", drawn.train), ("test", drawn.test)):
        for i, (image, label) in enumerate(zip(split.images, split.labels)):
            folder = root / name / drawn.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return root
