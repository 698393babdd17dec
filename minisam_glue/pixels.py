"""Pictures in memory, of any kind that Pillow or numpy holds, as plain RGB; and as the models take them."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

Picture = Image.Image | np.ndarray
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, of pixels in 0..1
DEPTHS = (8, 10, 12, 14, 16)  # bits a value of cameras, scanners and microscopes
LEAST_WHITE = 16  # floats above 1 whose largest is less than this are no grey levels of any depth


def to_rgb(image: Picture) -> np.ndarray:
    """An image -> uint8 (H, W, 3), turned as its EXIF says, alpha laid on white, of an animation the current frame.

    Values of more than 8 bits are scaled by `eight_bits`. Arrays: uint8 or uint16, (H, W), (H, W, 1), (H, W, 3) or
    (H, W, 4), RGB, in any byte order and memory layout. ValueError for anything else.
    """
    if isinstance(image, Image.Image):
        return _from_pillow(image)
    if not isinstance(image, np.ndarray) or image.dtype.kind != "u" or image.dtype.itemsize > 2:
        kind = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
        raise ValueError(f"an image is a PIL image or an array of uint8 or uint16, not {kind}{hint_for(image)}")
    grey = image[..., None] if image.ndim == 2 else image
    if grey.ndim != 3 or grey.shape[2] not in (1, 3, 4) or not grey.size:
        hint = "; image.transpose(1, 2, 0) puts the channels last" if image.ndim == 3 and len(image) in (3, 4) else ""
        raise ValueError(
            f"an image array is (H, W), (H, W, 3) or (H, W, 4) and not empty, but this is {image.shape}{hint}"
        )
    pixels = eight_bits(grey) if grey.dtype.itemsize == 2 else grey
    if pixels.shape[2] == 4:
        pixels = on_white(pixels)
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)


def hint_for(image: object) -> str:
    """A hint that makes a picture of what is none; "" if its type tells nothing."""
    if isinstance(image, (str, Path)):
        return "; minisam_glue.read_image(path) reads a file"
    if isinstance(image, Tensor):
        return "; image.permute(1, 2, 0).cpu().numpy() is one of a uint8 tensor (3, H, W)"
    is_float = isinstance(image, np.ndarray) and image.dtype.kind == "f"
    return "; floats in 0..1 become one by (image * 255).astype(np.uint8)" if is_float else ""


def own_rgb(image: Picture) -> np.ndarray:
    """The picture as to_rgb gives it, in an array that may be written to and that the caller's picture does not share.

    A program that reads each frame of a video into the same array thus leaves earlier results as they are.
    """
    pixels = to_rgb(image)
    shared = isinstance(image, np.ndarray) and np.may_share_memory(pixels, image)
    return pixels.copy() if shared or not pixels.flags.writeable else pixels


def _from_pillow(image: Image.Image) -> np.ndarray:
    """Modes I and F hold any numbers; an RGB picture of 16 bits a channel is read by Pillow as its high bytes."""
    high_bytes = is_deep_colour(image)
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        return np.repeat(eight_bits(np.asarray(image))[..., None], 3, 2)
    if image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA"))
        colours, alpha = pixels[..., :3], pixels[..., 3:]
    else:
        colours, alpha = np.asarray(image.convert("RGB")), None
    if high_bytes:
        bits = next(depth - 8 for depth in DEPTHS[1:] if colours.max() < 2 ** (depth - 8))
        colours = (colours.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)
    return np.ascontiguousarray(colours) if alpha is None else on_white(np.concatenate((colours, alpha), 2))


def is_deep_colour(image: Image.Image) -> bool:
    """Whether a colour picture that is not yet decoded has 16 bits a channel in its file."""
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Numbers of any kind -> uint8, scaled by what they hold.

    Floats in 0..1 are shares of white. Other numbers from 0 on are grey levels of the least of DEPTHS that holds the
    largest: 12 bits in a file of 16 are 12 bits. Negative ones and what is above 16 bits are stretched from the least
    to the greatest. Values that are not finite are as dark as the least. ValueError if none is finite.
    """
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.any():
            raise ValueError("none of its pixels is a finite number")
        low, high = float(values[finite].min()), float(values[finite].max())
        values = np.where(finite, values, low).astype(np.float64)
    else:
        low, high = int(values.min()), int(values.max())
    if values.dtype.kind == "f" and 0 <= low and high <= 1:
        return np.rint(values * 255).astype(np.uint8)
    whole = values.dtype.kind != "f" or high >= LEAST_WHITE
    depth = next((bits for bits in DEPTHS if whole and 0 <= low and high < 2**bits), None)
    if depth is None:
        return np.rint((values.astype(np.float64) - low) * (255 / max(high - low, 1e-300))).astype(np.uint8)
    if values.dtype.kind == "f":
        return np.rint(values * 255 / (2**depth - 1)).clip(0, 255).astype(np.uint8)
    return (values.astype(np.uint32) * 255 // (2**depth - 1)).astype(np.uint8)


def on_white(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4), colours and alpha -> uint8 (H, W, 3), as on a white page."""
    alpha = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def normalise(pixels: Tensor) -> Tensor:
    """RGB (..., 3, H, W) in 0..1 -> zero mean and unit deviation per channel, by the statistics of ImageNet."""
    mean, std = (pixels.new_tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std
