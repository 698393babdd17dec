"""Pictures in memory, of any kind that Pillow or numpy holds, as plain RGB; and as the models take them."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

Picture = Image.Image | np.ndarray
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, of pixels in 0..1
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a tag of TIFF 6.0, and its value in negatives
DEPTHS = (8, 10, 12, 14, 16)  # bits a value of cameras, scanners and microscopes
LEAST_WHITE = 16  # floats above 1 whose largest is less than this are no grey levels of any depth
JPEG_SIDE = 65_500  # pixels of a side that libjpeg writes, at most: JPEG_MAX_DIMENSION of its jmorecfg.h
TURNS = {  # of EXIF's orientation, tag 0x0112, how the picture becomes upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Levels(NamedTuple):
    """The values that become black (0) and white (255) in 8 bits."""

    black: float
    white: float


GREY_LEVELS = [Levels(0, 2**bits - 1) for bits in DEPTHS]


def to_rgb(image: Picture, levels: Levels | None = None) -> np.ndarray:
    """An image -> uint8 (H, W, 3), turned as its EXIF says, alpha laid on white, of an animation the current frame.

    Arrays: uint8 or uint16, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), RGB, in any byte order and memory layout. Values
    of more than 8 bits are scaled by `eight_bits`; levels: those of the video that the image is of. ValueError for
    anything else.
    """
    if isinstance(image, Image.Image):
        return _from_pillow(image, levels)
    if not isinstance(image, np.ndarray) or image.dtype.kind != "u" or image.dtype.itemsize > 2:
        kind = f"an array of {image.dtype}" if isinstance(image, np.ndarray) else f"a {type(image).__name__}"
        raise ValueError(f"an image is a PIL image or an array of uint8 or uint16, not {kind}{hint_for(image)}")
    grey = image[..., None] if image.ndim == 2 else image
    if grey.ndim != 3 or grey.shape[2] not in (1, 3, 4) or not grey.size:
        hint = "; image.transpose(1, 2, 0) puts the channels last" if image.ndim == 3 and len(image) in (3, 4) else ""
        raise ValueError(
            f"an image array is (H, W), (H, W, 3) or (H, W, 4) and not empty, but this is {image.shape}{hint}"
        )
    pixels = eight_bits(grey, levels) if grey.dtype.itemsize == 2 else grey
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


def is_picture(value: object) -> bool:
    """Whether a value is one picture, where a list of them may be meant."""
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray) and value.ndim in (2, 3))


def check_list(images: object, hint: str = "") -> None:
    """TypeError for what is no list of pictures: None, a path, one picture. hint: what else to do with one picture."""
    if is_picture(images):
        raise TypeError(f"images is one picture: give a list of pictures{hint}")
    if isinstance(images, (str, bytes, Path)) or not hasattr(images, "__len__"):
        raise TypeError(f"images is a {type(images).__name__}: give a list of pictures")


def own_rgb(image: Picture, levels: Levels | None = None) -> np.ndarray:
    """The picture as to_rgb gives it, in an array that may be written to and that the caller's picture does not share.

    A program that reads each frame of a video into the same array thus leaves earlier results as they are.
    """
    pixels = to_rgb(image, levels)
    shared = isinstance(image, np.ndarray) and np.may_share_memory(pixels, image)
    return pixels.copy() if shared or not pixels.flags.writeable else pixels


def _from_pillow(image: Image.Image, levels: Levels | None) -> np.ndarray:
    """Modes I and F hold any numbers; an RGB picture of 16 bits a channel is read by Pillow as its high bytes."""
    high_bytes, levels = is_deep_colour(image), levels or declared_levels(image)
    image = upright(image)
    alpha = alpha_of(image)
    if image.mode[0] in "IF":
        colours = np.repeat(eight_bits(np.asarray(image), levels)[..., None], 3, 2)
    else:
        colours = np.asarray(image.convert("RGB" if alpha is None else "RGBA"))[..., :3]
    if high_bytes:
        white = max(int((levels or _levels_of_high_bytes(colours)).white), GREY_LEVELS[1].white) >> 8
        colours = (np.minimum(colours, white).astype(np.uint16) * 255 // white).astype(np.uint8)
    return np.ascontiguousarray(colours) if alpha is None else on_white(np.dstack((colours, alpha)))


def orientation(image: Image.Image) -> int:
    """EXIF's orientation of an image, 1 to 8; 1, upright, where its EXIF can't be read: its pixels may be good."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF makes Pillow raise half a dozen types
        return 1
    return value if value in TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """The image, decoded and turned as its EXIF says, and with what Pillow leaves undone.

    ImageOps.exif_transpose would write all EXIF anew, and fail at odd values. Pillow does not turn the values of a TIFF
    of 16 bits in which 0 is white, nor scale the transparent level of a PNG of 2 or 4 bits as it scales its pixels.
    """
    negative = image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    packed = next((bits for bits in (2, 4) for tile in getattr(image, "tile", ()) if tile[3] == f"L;{bits}"), None)
    image.load()  # what is wrong with the pixels must be heard here: for the EXIF of a PNG Pillow reads them, too
    if packed and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= 255 // (2**packed - 1)
    turn = TURNS.get(orientation(image))
    image = image if turn is None else image.transpose(turn)
    return Image.fromarray(65535 - np.asarray(image)) if negative else image


def alpha_of(image: Image.Image) -> np.ndarray | None:
    """The alpha (H, W), uint8, of a decoded picture; None if it has none."""
    if not image.has_transparency_data:
        return None
    if image.mode[0] in "IF":
        return np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8)
    return np.asarray(image.convert("RGBA"))[..., 3]


def is_deep_colour(image: Image.Image) -> bool:
    """Whether a colour picture that is not yet decoded has 16 bits a channel in its file."""
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def declared_levels(image: Image.Image) -> Levels | None:
    """The levels that a picture's file states, if it does: a PGM names its white, by which Pillow scales to 16 bits."""
    return GREY_LEVELS[-1] if (image.format, image.mode) == ("PPM", "I") else None


def levels_of(image: Picture) -> Levels | None:
    """The levels by which to_rgb makes 8 bits of a picture's values; None if they are of 8 bits."""
    if not isinstance(image, Image.Image):
        is_deep = isinstance(image, np.ndarray) and image.dtype.kind == "u" and image.dtype.itemsize == 2
        return _levels_of_values(image) if is_deep and image.size else None
    if is_deep_colour(image):
        return _levels_of_high_bytes(np.asarray(image.convert("RGB")))
    if image.mode[0] not in "IF":
        return None
    return declared_levels(image) or _levels_of_values(_finite(np.asarray(upright(image))))


def join_levels(found: Iterable[Levels | None]) -> Levels | None:
    """The levels that hold the values of several pictures; None if all have 8 bits."""
    deep = [levels for levels in found if levels is not None]
    return Levels(min(one.black for one in deep), max(one.white for one in deep)) if deep else None


def eight_bits(values: np.ndarray, levels: Levels | None = None) -> np.ndarray:
    """Numbers of any kind -> uint8, scaled by what they hold, or by `levels`: what is beyond them is clipped.

    Floats in 0..1 are shares of white. Other numbers from 0 on are grey levels of the least of DEPTHS that holds the
    largest: 12 bits in a file of 16 are 12 bits. Negative ones and what is above 16 bits are stretched from the least
    to the greatest. Values that are not finite are as dark as the least. ValueError if none is finite.
    """
    values = _finite(values)
    black, white = levels = levels or _levels_of_values(values)
    if levels not in GREY_LEVELS:
        scaled = (values.astype(np.float64) - black) * (255 / max(white - black, 1e-300))
    elif values.dtype.kind == "f":
        scaled = values * 255 / white
    else:
        return (values.clip(0, white).astype(np.uint32) * 255 // white).astype(np.uint8)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def _finite(values: np.ndarray) -> np.ndarray:
    """Floats in double precision, with the least in place of what is not finite; other numbers as they are."""
    if values.dtype.kind != "f":
        return values
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("none of its pixels is a finite number")
    return np.where(finite, values, values[finite].min()).astype(np.float64)


def _levels_of_values(values: np.ndarray) -> Levels:
    """The levels of finite numbers, see eight_bits."""
    floats, low, high = values.dtype.kind == "f", values.min().item(), values.max().item()
    if floats and 0 <= low and high <= 1:
        return Levels(0, 1)
    grey = low >= 0 and (not floats or high >= LEAST_WHITE)
    return next((levels for levels in GREY_LEVELS if grey and high < levels.white + 1), Levels(low, high))


def _levels_of_high_bytes(colours: np.ndarray) -> Levels:
    """The levels of 16 bits a channel, of which the high bytes are known."""
    return next(levels for levels in GREY_LEVELS[1:] if colours.max() <= levels.white >> 8)


def on_white(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 4), colours and alpha -> uint8 (H, W, 3), as on a white page."""
    alpha = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def normalise(pixels: Tensor) -> Tensor:
    """RGB (..., 3, H, W) in 0..1 -> zero mean and unit deviation per channel, by the statistics of ImageNet."""
    mean, std = (pixels.new_tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std
