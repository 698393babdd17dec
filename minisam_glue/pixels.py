"""Pictures in memory, of any kind that Pillow or numpy holds, as plain RGB; and as the models take them."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Picture = Image.Image | np.ndarray
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, of pixels in 0..1


def to_rgb(image: Picture) -> np.ndarray:
    """An image -> uint8 (H, W, 3), turned as its EXIF says; alpha is dropped, of an animation the current frame taken.

    Arrays: uint8 or uint16, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), RGB. ValueError for anything else.
    """
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        image = np.asarray(image if image.mode[0] in "IF" else image.convert("RGB"))
        if image.dtype == np.int32 and 0 <= image.min() and image.max() < 65536:
            image = image.astype(np.uint16)  # 16 bits a pixel, which convert() would have clipped to 255
    if not isinstance(image, np.ndarray) or image.dtype not in (np.uint8, np.uint16):
        kind = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
        raise ValueError(
            f"an image is a PIL image or an array of uint8 or uint16, not {kind}; "
            "floats in 0..1 become one by (image * 255).astype(np.uint8)"
        )
    grey = image[..., None] if image.ndim == 2 else image
    if grey.ndim != 3 or grey.shape[2] not in (1, 3, 4) or not grey.size:
        raise ValueError(f"an image array is (H, W), (H, W, 3) or (H, W, 4) and not empty, but this is {image.shape}")
    eight_bits = (grey // 257).astype(np.uint8) if grey.dtype == np.uint16 else grey
    return np.repeat(eight_bits, 3, 2) if grey.shape[2] == 1 else eight_bits[..., :3]


def normalise(pixels: Tensor) -> Tensor:
    """RGB (..., 3, H, W) in 0..1 -> zero mean and unit deviation per channel, by the statistics of ImageNet."""
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std
