"""Still pictures, in: files and URLs -> uint8 RGB, through Pillow, and HEIC by heif.py; masks; what a folder holds.

Only the formats below are tried: Pillow would run Ghostscript on an EPS file, whatever its name. Whatever a damaged
file makes a decoder raise ends in one MediaError of one line.
"""

import io
import logging
import os
import re
import struct
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPResponse
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import Disposal

from ..pixels import Levels, alpha_of, is_deep_colour, levels_of, own_rgb, upright
from ..support.quiet import without_warnings
from ..support.reading import check_regular
from .heif import is_heif, read_heif
from .limits import MAX_BYTES, MAX_PIXELS, MediaError, ReadError, is_read_error

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".avif", ".avifs"),
    *(".heic", ".heif", ".hif"),
}
FORMATS = {"JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF"}  # their names in Pillow
VIDEO_SUFFIXES = {
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mkv", ".webm", ".avi", ".divx", ".wmv", ".asf"),
    *(".flv", ".ogv", ".ogm", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".m2t"),
    *(".mxf", ".nut", ".rm", ".rmvb", ".dv", ".ivf", ".obu", ".h264", ".264", ".avc", ".h265", ".265", ".hevc"),
    *(".mjpeg", ".mjpg", ".y4m"),
}
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
HEAD = 128  # bytes that tell a HEIC picture
OPAQUE = 128  # alpha from which a mask counts
LOSSY = {"JPEG", "MPO", "WEBP", "AVIF", "JPEG2000", None}  # Pillow's names, None for HEIC: black has noise in them
LEAST_LIGHT = 32  # value of a channel from which a pixel of a lossy mask is not black
MOST_COLOURS = 64  # objects that a palette mask may hold
VOID = (255, (224, 224, 192))  # index and colour of what belongs to no object in PASCAL VOC's masks
DOWNLOAD = 600.0  # seconds that a picture may come from a server
NAMED = 5  # files that are left out, of which a message gives the name


def read_image(
    source: str | Path, warn: Callable[[str], None] = log.warning, levels: Levels | None = None
) -> np.ndarray:
    """A file or http(s) URL -> uint8 RGB (H, W, 3). MediaError if there is no picture or one above MAX_PIXELS.

    TypeError for what is neither a path nor a URL.

    warn: is told in one line if a TIFF has more pages than the first, which is the one that is read. levels: see
    pixels.to_rgb.
    """
    if not isinstance(source, (str, Path)):
        raise TypeError(f"source is a {type(source).__name__}: give a path or URL; what is read already is a picture")
    return decode(_download(str(source)) if is_url(source) else source, str(source), warn, levels)


def read_masks(source: str | Path) -> list[np.ndarray]:
    """A file or URL -> masks bool (H, W) of the objects in it. MediaError, as of read_image.

    A palette picture has an object for each colour but black, in the order of its palette. The alpha of a picture that
    has some is the shape of one object. Of any other picture, what is not black is one object; in formats that compress
    with loss, what has a channel of at least LEAST_LIGHT.
    """
    name = str(source)
    try:
        with _open_mask(_download(name) if is_url(source) else source) as opened:
            is_deep, image = is_deep_colour(opened), upright(opened)
            if image.mode == "P":
                return _of_palette(image, name)
            alpha = alpha_of(image)
            if alpha is not None and alpha.min() < 255:
                return [alpha >= OPAQUE]
            if image.mode[0] in "IF":
                values = np.asarray(image)
                return [(values != 0) & np.isfinite(values)]  # NaN is "no data" of maps
            mask = np.asarray(image.convert("RGB")).max(2) >= (LEAST_LIGHT if opened.format in LOSSY else 1)
            if is_deep and not mask.any():
                raise MediaError(
                    "of 16 bits a colour Pillow reads the high ones alone, and all are 0: save it in 8 bits"
                )
            return [mask]
    except Exception as error:  # as in decode
        raise _error(name, error) from error


def _open_mask(source: str | Path | io.BytesIO) -> Image.Image:
    return Image.fromarray(decode(source, "")) if is_heic(source) else open_picture(source)


def _of_palette(image: Image.Image, name: str) -> list[np.ndarray]:
    """The masks of a palette picture; entries of the same colour are one object, transparent ones none."""
    numbers, pixels = np.asarray(image), np.asarray(image.convert("RGBA"))
    numbers, places = np.unique(numbers, return_index=True)
    colours = {}
    for number, (*colour, alpha) in zip(numbers.tolist(), pixels.reshape(-1, 4)[places].tolist()):
        if any(colour) and alpha >= OPAQUE and (number, tuple(colour)) != VOID:
            colours.setdefault(tuple(colour), []).append(number)
    if len(colours) > MOST_COLOURS:
        raise MediaError(f"{len(colours)} colours: a mask has one for each object, {MOST_COLOURS} at most")
    picture = np.asarray(image)
    return [np.isin(picture, own) for own in colours.values()] or [np.zeros(picture.shape, bool)]


def is_url(source: str | Path) -> bool:
    """Whether it begins with http:// or https://."""
    return str(source).lower().startswith(("http://", "https://"))


def natural_key(path: str | Path) -> list[tuple[int, str]]:
    """Sort key by which frame2 comes before frame10."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", str(path))]
    return [*parts, (-2, str(path))]  # a1 and a01, A and a: in the same order on every machine


def list_folder(
    folder: str | Path, takes: Callable[[Path], bool], kind: str, warn: Callable[[str], None] = log.warning
) -> list[Path]:
    """The files in a folder that `takes` accepts, in natural order, without hidden ones. MediaError if there are none.

    kind: what these are called. warn: is told in one line how many others, subfolders too, are left out, and which.
    """
    try:
        entries = sorted(
            (path for path in Path(folder).iterdir() if path.name[0] != "."), key=lambda path: natural_key(path.name)
        )
    except OSError as error:
        raise MediaError(f"{folder}: {error.strerror}") from error
    found, others = [], []
    for path in entries:
        taken = os.path.isfile(path) and takes(path)  # a pipe would be waited for
        (found if taken else others).append(path)
    names = [f"{path.name}/" if os.path.isdir(path) else path.name for path in others]
    listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    if not found:
        raise MediaError(f"{folder}: no {kind} in this folder" + (f", only {listed}" if names else ""))
    if names:
        warn(f"{folder}: {len(names)} left out, as no {kind}: {listed}")
    return found


def _download(url: str) -> io.BytesIO:
    try:
        request = urllib.request.Request(in_ascii(url), headers={"User-Agent": "minisam_glue"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            data = _read(answer, time.monotonic() + DOWNLOAD)
    except Exception as error:  # urllib raises OSError, HTTPException and, for odd URLs, ValueError
        cause = getattr(error, "reason", None)  # of URLError the exception below it, of HTTPError a text
        why = reason(cause) if isinstance(cause, Exception) else str(error)
        raise MediaError(f"{url}: can't be fetched ({why})") from error
    if len(data) > MAX_BYTES:
        raise MediaError(f"{url}: more than {MAX_BYTES} bytes")
    return io.BytesIO(data)


def in_ascii(url: str) -> str:
    """A URL as it goes over the wire: blanks and letters beyond ASCII escaped, as browsers do. ValueError for none."""
    parts, safe = urllib.parse.urlsplit(url), "%/:=&?~#+!$,;'@()*[]"
    path, query = urllib.parse.quote(parts.path, safe), urllib.parse.quote(parts.query, safe)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.encode("idna").decode(), path, query, ""))


def _read(answer: HTTPResponse, until: float) -> bytes:
    """The body of an answer, at most a byte more than MAX_BYTES. TimeoutError if it is still coming at `until`."""
    parts, size = [], 0
    while size <= MAX_BYTES and (part := answer.read1(1 << 20)):
        parts.append(part)
        size += len(part)
        if time.monotonic() > until:
            raise TimeoutError(f"it took more than {DOWNLOAD:.0f} s")
    return b"".join(parts)[: MAX_BYTES + 1]


def open_picture(source: str | Path | io.BytesIO) -> Image.Image:
    """The picture, not yet decoded, to be closed by the caller. MediaError above MAX_PIXELS; else Pillow's errors."""
    if not isinstance(source, io.BytesIO):
        check_regular(source)
    Image.init()
    with without_warnings():  # we refuse what Pillow only warns of
        image = Image.open(source, formats=sorted(FORMATS & Image.OPEN.keys()))  # not every Pillow has AVIF
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise MediaError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}: make it smaller first")
    return image


def frame_of(image: Image.Image, index: int = 0, levels: Levels | None = None) -> np.ndarray:
    """Frame `index` of an open picture as RGB. Any exception if it is damaged, but no warning on standard error.

    levels: see pixels.to_rgb.
    """
    # Pillow takes memory piece by piece and leaves other threads none before it fails; one piece fails at once.
    np.empty((image.height, image.width, 4), np.uint8)
    with without_warnings():
        if index or image.tell():
            image.seek(index)
        # Pillow draws a frame of an APNG into the canvas that it has to restore after it: that is given back.
        restored = getattr(image, "dispose_op", None) == Disposal.OP_PREVIOUS
        canvas = image._prev_im.copy() if restored else None
        pixels = own_rgb(image, levels)
        if restored:
            image._prev_im = canvas
        return pixels


def levels_of_frame(source: str | Path | io.BytesIO, index: int = 0) -> Levels | None:
    """The levels of frame `index` of a picture file, see pixels.levels_of; None for 8 bits, and for damage."""
    try:
        with open_picture(source) as image, without_warnings():
            image.seek(index)
            return levels_of(image)
    except Exception:  # as in decode, where it is told; Pillow does not open HEIC
        return None


def page_count(source: str | Path | Image.Image) -> int:
    """The number of pages of a TIFF; 1 for anything else."""
    if isinstance(source, Image.Image):
        return getattr(source, "n_frames", 1) if source.format == "TIFF" else 1
    try:
        with open_picture(source) as image:
            return page_count(image)
    except Exception:  # damaged headers make Pillow raise nearly anything
        return 1


def decode(
    source: str | Path | io.BytesIO, name: str, warn: Callable[[str], None] = log.warning, levels: Levels | None = None
) -> np.ndarray:
    """A file or its bytes -> uint8 RGB (H, W, 3). MediaError, which begins with `name`, if that can't be."""
    try:
        if is_heic(source):
            return read_heif(_content(source))
        with open_picture(source) as image:
            pages = page_count(image)
            picture = frame_of(image, 0, levels)
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise _error(name, error, source) from error
    if pages > 1:
        warn(f"{name}: the first of {pages} pages is read, {pages - 1} left out; with --frames each page is a frame")
    return picture


def is_heic(source: str | Path | io.BytesIO) -> bool:
    """Whether it is a HEIC picture, whatever its name ends in. OSError if it can't be read."""
    return is_heif(_content(source, HEAD))


def _content(source: str | Path | io.BytesIO, size: int = MAX_BYTES) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()[:size]
    check_regular(source)
    with open(source, "rb") as file:
        return file.read(size)


def _error(name: str, error: Exception, source: str | Path | io.BytesIO | None = None) -> MediaError:
    """One line that names the picture and says what an exception of a decoder means."""
    if isinstance(error, MediaError) and str(error).startswith(name):
        return error
    text = reason(error)
    if isinstance(error, Image.UnidentifiedImageError) and source is not None and _content(source, 4) in TIFF_MAGIC:
        text = "a TIFF with values of a kind that Pillow does not read: save it with 8 or 16 bits a channel"
    return (ReadError if is_read_error(error) else MediaError)(f"{name}: {text}")


def reason(error: Exception) -> str:
    """The message of a decoder's exception, in one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture in a known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS} pixels: make it smaller first"
    if isinstance(error, MemoryError):
        return "out of memory, unless it is damaged: make it smaller first"
    text = getattr(error, "strerror", None) or str(error)
    in_words_about_the_program = isinstance(error, (LookupError, TypeError, AttributeError, struct.error))
    if in_words_about_the_program or text == "could not create decoder object":  # of libwebp
        text = ""
    return " ".join(text.split()) or f"damaged ({type(error).__name__})"


def is_picture(path: str | Path) -> bool:
    """Whether the format is known, whatever the name ends in."""
    try:
        if is_heic(path):
            return True
        with open_picture(path):
            return True
    except Exception:  # damaged headers make Pillow raise nearly anything
        return False


def looks_like_picture(path: Path) -> bool:
    """Whether its name says that it is a picture, or its content does under a name that says nothing."""
    suffix = path.suffix.lower()
    return suffix in IMAGE_SUFFIXES or (suffix not in VIDEO_SUFFIXES and is_picture(path))
