"""One table of pictures as people have them, and the RGB that both packages must read from each, worked out by hand.

Every picture is square, so that a reader which crops to a square reads all of it.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 16
GREY = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)  # every level once
COLOURS = np.stack((GREY, GREY[::-1], GREY.T), 2)


@dataclass(frozen=True)
class Case:
    """A file, what is to be read from it as uint8 (H, W, 3), or (None) a part of the line that refuses it."""

    name: str
    suffix: str
    write: Callable[[Path], None]
    expected: np.ndarray | None
    refusal: str = ""


def grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels.astype(np.uint8)[..., None], 3, 2)


def saved(array: np.ndarray, mode: str | None = None, **options) -> Callable[[Path], None]:
    """Writes an array as Pillow does."""
    return lambda path: Image.fromarray(array, mode).save(path, **options)


def png_of_16_bits(values: np.ndarray, clear: int | None = None) -> Callable[[Path], None]:
    """Writes uint16 (H, W, C) as a PNG (RFC 2083) of 16 bits a channel, which Pillow does not; see png."""
    height, width, channels = values.shape
    return png(values.astype(">u2").reshape(height, -1).view(np.uint8), 16, width, channels, clear)


def grey_png(levels: np.ndarray, bits: int, clear: int) -> Callable[[Path], None]:
    """Writes levels (H, W) below 2 ** bits as a grey PNG of so few bits; see png."""
    each = (levels[..., None] >> np.arange(bits)[::-1]) & 1  # (H, W, bits)
    return png(np.packbits(each.reshape(len(levels), -1), 1), bits, levels.shape[1], 1, clear)


def png(rows: np.ndarray, bits: int, width: int, channels: int, clear: int | None) -> Callable[[Path], None]:
    """Writes packed rows, uint8 (H, bytes). clear: the grey level that is transparent."""
    kinds = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> colour type

    def write(path: Path) -> None:
        lines = b"".join(b"\0" + row.tobytes() for row in rows)
        head = struct.pack(">IIBBBBB", width, len(rows), bits, kinds[channels], 0, 0, 0)
        hole = () if clear is None else ((b"tRNS", struct.pack(">H", clear)),)
        chunks = ((b"IHDR", head), *hole, (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
        parts = [
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        ]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))

    return write


def pgm(values: np.ndarray) -> Callable[[Path], None]:
    """Writes uint16 (H, W) as a PGM whose white is stated to be 65535."""
    head = f"P5 {values.shape[1]} {values.shape[0]} 65535\n".encode()
    return lambda path: path.write_bytes(head + values.astype(">u2").tobytes())


def tiff(values: np.ndarray, sample_format: int, zero_is_white: bool = False) -> Callable[[Path], None]:
    """Writes an array (H, W, C) as a TIFF (revision 6.0) of one strip. sample_format: 1 whole, 2 signed, 3 float."""

    def write(path: Path) -> None:
        height, width, channels = values.shape
        bits, order = values.dtype.itemsize * 8, values.dtype.byteorder
        big = order == ">"
        sign = ">" if big else "<"
        tags = [  # number, type (3: short, 4: long), values
            (256, 4, [width]),
            (257, 4, [height]),
            (258, 3, [bits] * channels),
            (259, 3, [1]),
            (262, 3, [2 if channels > 1 else 1 - zero_is_white]),
            (273, 4, [0]),
            (277, 3, [channels]),
            (278, 4, [height]),
            (279, 4, [values.nbytes]),
            (339, 3, [sample_format] * channels),
        ]
        after = 8 + 2 + 12 * len(tags) + 4
        long_values, entries = b"", b""
        for number, kind, content in tags:
            packed = struct.pack(f"{sign}{len(content)}{'H' if kind == 3 else 'I'}", *content)
            if len(packed) > 4:
                packed, long_values = struct.pack(f"{sign}I", after + len(long_values)), long_values + packed
            entries += struct.pack(f"{sign}HHI", number, kind, len(content)) + packed.ljust(4, b"\0")
        strip = struct.pack(f"{sign}I", after + len(long_values))
        at = 12 * 5 + 8  # the value of entry 273
        entries = entries[:at] + strip + entries[at + 4 :]
        head = (b"MM\0*" if big else b"II*\0") + struct.pack(f"{sign}IH", 8, len(tags))
        path.write_bytes(head + entries + bytes(4) + long_values + values.tobytes())

    return write


def with_alpha(alpha: np.ndarray) -> np.ndarray:
    return np.concatenate((COLOURS, alpha[..., None].astype(np.uint8)), 2)


def logo() -> np.ndarray:
    """A black square on transparent black, as logos are."""
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[4:12, 4:12] = 255
    return np.dstack((np.zeros((SIDE, SIDE, 3), np.uint8), alpha))


def palette_with_hole(path: Path) -> None:
    """Number 0 is red but transparent, 1 is black."""
    image = Image.fromarray((logo()[..., 3] > 0).astype(np.uint8))
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.save(path, transparency=0)


def colour_with_hole(path: Path) -> None:
    """An RGB picture in which one colour is transparent."""
    pixels = np.full((SIDE, SIDE, 3), (0, 200, 0), np.uint8)
    pixels[4:12, 4:12] = 0
    Image.fromarray(pixels).save(path, transparency=(0, 200, 0))


def pages(path: Path) -> None:
    first, *others = (Image.fromarray(np.roll(COLOURS, shift, 1)) for shift in range(4))
    first.save(path, save_all=True, append_images=others)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    Image.fromarray(np.rot90(COLOURS).copy()).save(path, exif=exif)


LOGO = grey(np.where(logo()[..., 3] > 0, 0, 255))
HALF = np.full((SIDE, SIDE), 128)
ON_WHITE = np.rint(COLOURS * (128 / 255) + 255 * (127 / 255)).astype(np.uint8)
EACH = GREY.astype(int)
SIXTEEN = GREY.astype(np.uint16) * 257
DARK = GREY.astype(np.uint16) % 60 * 257  # at most 15163: fewer than 14 bits hold it
SEVEN_WHITE = np.where(GREY == 7, 255, GREY)
TWELVE = GREY.astype(np.uint16) * 16 + 15  # 15 to 4095
SHARES = GREY.astype(np.float32) / 255
HOUNSFIELD = GREY.astype(np.int32) * 12 - 1000  # as CT scanners give: -1000 to 2060
HOLED = np.where(GREY == 7, np.nan, SHARES).astype(np.float32)

CASES = [
    Case("8 bits", "png", saved(GREY), grey(GREY)),
    Case("16 bits in PNG", "png", saved(SIXTEEN), grey(GREY)),
    Case("16 bits in TIFF", "tif", saved(SIXTEEN), grey(GREY)),
    Case("16 bits in TIFF, high byte first", "tif", tiff(SIXTEEN[..., None].astype(">u2"), 1), grey(GREY)),
    Case("16 bits in TIFF, 0 white", "tif", tiff((65535 - SIXTEEN)[..., None], 1, zero_is_white=True), grey(GREY)),
    Case("a dark PGM of 16 bits", "pgm", pgm(DARK), grey(GREY % 60)),
    Case("14 of 16 bits", "tif", saved(GREY.astype(np.uint16) * 64), grey(GREY * 64.0 * 255 // 16383)),
    Case("12 of 16 bits", "tif", saved(TWELVE), grey(TWELVE * 255.0 // 4095)),
    Case("12 of 16 bits in PNG", "png", saved(TWELVE), grey(TWELVE * 255.0 // 4095)),
    Case("10 of 16 bits", "tif", saved(GREY.astype(np.uint16) * 4), grey(GREY * 4.0 * 255 // 1023)),
    Case("8 of 16 bits", "tif", saved(GREY.astype(np.uint16)), grey(GREY)),
    Case("16 bits a colour", "png", png_of_16_bits(COLOURS.astype(np.uint16) * 257), COLOURS),
    Case("12 of 16 bits a colour", "png", png_of_16_bits(COLOURS.astype(np.uint16) * 16), COLOURS // 16 * 17),
    Case("16 bits a colour and alpha", "png", png_of_16_bits(with_alpha(HALF).astype(np.uint16) * 257), ON_WHITE),
    Case("float shares", "tif", saved(SHARES), grey(GREY)),
    Case("float grey levels", "tif", saved(GREY.astype(np.float32)), grey(GREY)),
    Case("float of 12 bits", "tif", saved(TWELVE.astype(np.float32)), grey(np.rint(TWELVE * 255.0 / 4095))),
    Case("float of 16 bits", "tif", saved(SIXTEEN.astype(np.float32)), grey(GREY)),
    Case("float from below 0", "tif", saved(SHARES * 6 - 3), grey(GREY)),
    Case("float with a hole", "tif", saved(HOLED), grey(np.where(GREY == 7, 0, GREY))),
    Case("int32 of 8 bits", "tif", saved(GREY.astype(np.int32)), grey(GREY)),
    Case("int32 of 16 bits", "tif", saved(SIXTEEN.astype(np.int32)), grey(GREY)),
    Case("int32 from below 0", "tif", saved(HOUNSFIELD), grey(GREY)),
    Case("int32 of 24 bits", "tif", saved(GREY.astype(np.int32) << 16), grey(GREY)),
    Case("a black logo on transparent ground", "png", saved(logo()), LOGO),
    Case("a black logo on transparent ground in WebP", "webp", saved(logo(), lossless=True, exact=True), LOGO),
    Case("half transparent", "png", saved(with_alpha(HALF)), ON_WHITE),
    Case("grey and alpha", "png", saved(logo()[..., 2:], "LA"), LOGO),
    Case("a transparent palette entry", "png", palette_with_hole, LOGO),
    Case("a transparent palette entry in GIF", "gif", palette_with_hole, LOGO),
    Case("a transparent colour", "png", colour_with_hole, LOGO),
    *(
        Case(
            f"a transparent level of {bits} bits",
            "png",
            grey_png(EACH % 2**bits, bits, clear=1),
            grey(np.where(EACH % 2**bits == 1, 255, EACH % 2**bits * 255 // (2**bits - 1))),
        )
        for bits in (1, 2, 4, 8)
    ),
    Case("a transparent level of 16 bits", "png", png_of_16_bits(SIXTEEN[..., None], 7 * 257), grey(SEVEN_WHITE)),
    Case("many pages", "tif", pages, COLOURS),
    Case("turned by EXIF", "png", turned, COLOURS),
    Case("float with nothing in it", "tif", saved(np.full_like(SHARES, np.nan)), None, "finite"),
    Case("float colours", "tif", tiff(COLOURS.astype(np.float32) / 255, 3), None, "TIFF"),
    Case("double grey", "tif", tiff(SHARES[..., None].astype(np.float64), 3), None, "TIFF"),
]
