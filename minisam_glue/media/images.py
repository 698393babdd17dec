"""Still pictures, in: files and URLs -> uint8 RGB, through Pillow; and what is safe to open at all.

Only the formats below are tried: Pillow would run Ghostscript on an EPS file, whatever its name. Whatever a damaged
file makes a decoder raise ends in one MediaError of one line.
"""

import io
import os
import re
import urllib.request
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from ..pixels import to_rgb

MAX_PIXELS = 89_478_485  # of one picture: Pillow's own limit against decompression bombs
MAX_BYTES = 1 << 28  # of one picture from a URL or a pipe
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}
FORMATS = {"JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF"}  # their names in Pillow


class MediaError(ValueError):
    """A picture or video can't be read or written; the message names it and says why."""


def read_image(source: str | Path) -> np.ndarray:
    """A file or http(s) URL -> uint8 RGB (H, W, 3). MediaError if there is no picture or one above MAX_PIXELS."""
    return decode(_download(str(source)) if is_url(source) else source, str(source))


def is_url(source: str | Path) -> bool:
    """Whether it begins with http:// or https://."""
    return str(source).lower().startswith(("http://", "https://"))


def natural_key(path: str | Path) -> list[tuple[int, str]]:
    """Sort key by which frame2 comes before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", str(path))]


def list_folder(folder: str | Path, suffixes: set[str]) -> list[Path]:
    """The files in a folder that end so, in natural order, without hidden ones. MediaError if it can't be read."""
    try:
        files = [
            path
            for path in Path(folder).iterdir()
            if path.suffix.lower() in suffixes and path.name[0] != "." and not os.path.isdir(path)
        ]
    except OSError as error:
        raise MediaError(f"{folder}: {error.strerror}") from error
    return sorted(files, key=lambda path: natural_key(path.name))


def _download(url: str) -> io.BytesIO:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "minisam_glue"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            data = answer.read(MAX_BYTES + 1)
    except Exception as error:  # urllib raises OSError, HTTPException and, for odd URLs, ValueError
        raise MediaError(f"{url}: {error}") from error
    if len(data) > MAX_BYTES:
        raise MediaError(f"{url}: more than {MAX_BYTES} bytes")
    return io.BytesIO(data)


def open_picture(source: str | Path | io.BytesIO) -> Image.Image:
    """The picture, not yet decoded, to be closed by the caller. MediaError above MAX_PIXELS; else Pillow's errors."""
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # we refuse what Pillow only warns of
        image = Image.open(source, formats=sorted(FORMATS & Image.OPEN.keys()))  # not every Pillow has AVIF
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise MediaError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}: make it smaller first")
    return image


def frame_of(image: Image.Image, index: int = 0) -> np.ndarray:
    """Frame `index` of an open picture as RGB. Any exception if it is damaged, but no warning on standard error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if index or image.tell():
            image.seek(index)
        return to_rgb(image)


def decode(source: str | Path | io.BytesIO, name: str) -> np.ndarray:
    """A file or its bytes -> uint8 RGB (H, W, 3). MediaError, which begins with `name`, if that can't be."""
    try:
        with open_picture(source) as image:
            return frame_of(image)
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise MediaError(f"{name}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What an exception of a decoder says, in one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture in a known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS} pixels: make it smaller first"
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or f"damaged ({type(error).__name__})"


def is_picture(path: str | Path) -> bool:
    """Whether Pillow knows the format, whatever the name ends in."""
    try:
        with open_picture(path):
            return True
    except Exception:  # damaged headers make Pillow raise nearly anything
        return False
