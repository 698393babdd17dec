"""One image file -> uint8 (3, S, S), of whatever kind it is: turned upright, its levels scaled, its alpha on white."""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from minivit.splits import DataError
from minivit.text import one_line

FORMATS = {"JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF"}  # their names in Pillow
SUFFIXES = {  # of files that are taken for images before they are opened
    *(".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".avif", ".avifs"),
    *(".heic", ".heif", ".hif"),
}
TURNS = {  # of EXIF's orientation, tag 0x0112, how the picture becomes upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_PIXELS = 89_478_485  # of one image: Pillow's own limit against decompression bombs
MAX_BYTES = 1 << 28  # of one image file
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a tag of TIFF 6.0, and its value in negatives
DEPTHS = (8, 10, 12, 14, 16)  # bits of a grey level, in files of 16 bits or of any numbers


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore warnings of Pillow, whose causes are refused or told in our words. For one thread: filters are global."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@without_warnings()
def read_image(path: str | Path, size: int) -> torch.Tensor:
    """One image file as uint8 (3, size, size), decoded as `folder` does. Raises DataError."""
    try:
        data = read_bytes(Path(path))
    except DataError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    try:
        return torch.from_numpy(decode(data, size).copy())
    except DataError as error:
        raise DataError(f"cannot decode {path}: {error}") from error


@without_warnings()
def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels of an image file that `read_image` reads, upright."""
    with _open(path) as image:
        if image.format == "TIFF":
            image.load()  # which turns it; newer versions of Pillow have exchanged its sides before
        width, height = image.size
        return (height, width) if orientation(image) in (5, 6, 7, 8) else (width, height)  # on its side


@without_warnings()
def looks_like_image(path: Path) -> bool:
    """Whether its name says that it is an image, or its content does under a name that says nothing."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with _open(path):
            return True
    except Exception:  # as in decode
        return False


@without_warnings()
def has_pages(path: Path) -> bool:
    """Whether it is a TIFF of more than one page, or an animated GIF or WebP."""
    if path.suffix.lower() not in (".tif", ".tiff", ".gif", ".webp"):
        return False
    try:
        with _open(path) as image:
            return image.format in ("TIFF", "GIF", "WEBP") and image.n_frames > 1
    except Exception:  # as in decode, which has reported it
        return False


def decode(data: bytes, size: int) -> np.ndarray:
    """Bytes of an image file -> uint8 (3, size, size). Raises DataError with the reason in a few words."""
    try:
        with _open(io.BytesIO(data)) as image:
            image.draft(None, (2 * size, 2 * size))  # large JPEGs only: decode at a half, a quarter or an eighth
            return _resize_and_crop(_to_rgb(image), size)
    except UnidentifiedImageError as error:
        raise DataError(_unread(data)) from error
    except (MemoryError, DataError):
        raise
    except Exception as error:  # Pillow's readers raise a dozen types on damaged files
        raise DataError(one_line(error)) from error


def _open(source: str | Path | io.BytesIO) -> Image.Image:
    """An image that is not decoded yet, of a regular file or of its bytes. DataError above MAX_PIXELS.

    Only FORMATS are tried: Pillow would run Ghostscript on an EPS file, whatever its name.
    """
    if not isinstance(source, io.BytesIO):
        _check_regular(source)
    Image.init()
    too_large = f"more than {MAX_PIXELS} pixels: make it smaller"
    try:
        image = Image.open(source, formats=sorted(FORMATS & Image.OPEN.keys()))  # not every Pillow has AVIF
    except Image.DecompressionBombError as error:
        raise DataError(too_large) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise DataError(too_large)
    return image


def _unread(data: bytes) -> str:
    """The reason why Pillow does not know these bytes."""
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "a TIFF with values of a kind that Pillow does not read: save it with 8 or 16 bits a channel"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1"):
        return "HEIC is not supported: convert it to JPEG"
    return "not an image that Pillow reads"


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


def _to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode, just opened -> RGB: turned as EXIF says, its values scaled, its alpha laid on white."""
    high_bytes = image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in image.tile)
    declared = 16 if (image.format, image.mode) == ("PPM", "I") else None  # it states its white, by which Pillow scales
    image = upright(image)
    clear = image.has_transparency_data
    if image.mode[0] in "IF":  # grey levels of more than 8 bits
        values = np.asarray(image)
        colours = np.repeat(_eight_bits(values, declared)[..., None], 3, 2)
        alpha = np.where(values == image.info["transparency"], 0, 255)[..., None] if clear else None
    else:
        pixels = np.asarray(image.convert("RGBA" if clear else "RGB"))
        colours, alpha = pixels[..., :3], pixels[..., 3:]
    if high_bytes:  # of 16 bits a colour Pillow keeps eight: of a picture that uses only twelve, four are left
        bits = next(depth - 8 for depth in DEPTHS[1:] if colours.max() < 2 ** (depth - 8))
        colours = colours.astype(np.uint32) * 255 // (2**bits - 1)
    if clear:
        alpha = alpha.astype(np.uint32)
        colours = (colours.astype(np.uint32) * alpha + 255 * (255 - alpha) + 127) // 255
    return Image.fromarray(colours.astype(np.uint8))


def _eight_bits(values: np.ndarray, declared: int | None = None) -> np.ndarray:
    """Convert numbers of any kind to uint8: floats in 0..1 are shares of white, others have the smallest of DEPTHS,
    or as many bits as the file declares.

    Values below 0 or above 16 bits are stretched from the minimum to the maximum. Non-finite values become as dark as
    the minimum. Raises DataError if no value is finite.
    """
    floats = values.dtype.kind == "f"
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise DataError("none of its pixels is a finite number")
    low, high = float(finite.min()), float(finite.max())
    values = np.where(np.isfinite(values), values, low).astype(np.float64)
    if floats and 0 <= low and high <= 1:
        return np.rint(values * 255).astype(np.uint8)
    grey = 0 <= low and not (floats and high < 16)  # floats up to a small number are no grey levels of any depth
    depth = next((bits for bits in DEPTHS if grey and high < 2**bits and bits >= (declared or 0)), None)
    if depth is None:
        return np.rint((values - low) * (255 / max(high - low, 1e-300))).astype(np.uint8)
    scaled = values * 255 / (2**depth - 1)
    return (np.rint(scaled) if floats else np.floor(scaled)).clip(0, 255).astype(np.uint8)


def _resize_and_crop(image: Image.Image, size: int) -> np.ndarray:
    """An RGB image -> uint8 (3, size, size): shorter side resized, centre cropped."""
    # Pillow's bicubic widens with the scale, so it is antialiased; an image of the right size comes back untouched.
    image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)  # (S, S, 3) -> (3, S, S)


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of at most MAX_BYTES. DataError with the reason in a few words."""
    _check_regular(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(str(error.strerror or error)) from error
    if len(data) > MAX_BYTES:
        raise DataError(f"more than {MAX_BYTES} bytes")
    return data


def _check_regular(path: str | Path) -> None:
    """DataError unless it is a regular file: a pipe would be waited for, a device may never end."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise DataError(str(error.strerror or error)) from error
    if not stat.S_ISREG(mode):
        raise DataError("no regular file")
