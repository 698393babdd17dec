"""HEIC pictures, as phones take them: one HEVC picture, or a grid of them, in the boxes of ISO/IEC 23008-12 (HEIF).

Pillow does not read them, and FFmpeg takes the tiles of a grid for videos. So the boxes are read here, and the pictures
in them are decoded by PyAV (the extra `cli`). Left out: alpha, depth and thumbnails beside the main picture, overlays,
sequences, cropping.
"""

import struct
from collections.abc import Iterator

import numpy as np

from .limits import MAX_PIXELS, MediaError, load_av

BRANDS = {b"heic", b"heix", b"heim", b"heis"}  # of pictures in HEVC; mif1 stands for any codec
MOST_TILES = 4096


def is_heif(head: bytes) -> bool:
    """Whether the first bytes of a file, a hundred will do, are a HEIC picture's."""
    if head[4:8] != b"ftyp":
        return False
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, length - 3, 4))}
    return head[8:12] in BRANDS or (head[8:12] == b"mif1" and bool(brands & BRANDS))


def read_heif(data: bytes) -> np.ndarray:
    """The main picture of a HEIC file as uint8 RGB (H, W, 3), turned upright. MediaError; others if it is damaged."""
    return _File(data).picture()


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The boxes of ISO/IEC 14496-12, 4.2, one after another: type and content."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            size, head = struct.unpack_from(">Q", data, at + 8)[0], 16
        size = len(data) - at if size == 0 else size
        if size < head or at + size > len(data):
            raise MediaError("damaged: a box is longer than the file")
        yield kind, data[at + head : at + size]
        at += size


class _Bytes:
    """Big-endian numbers, one after another."""

    def __init__(self, data: bytes, at: int = 0):
        self.data, self.at = data, at

    def number(self, size: int) -> int:
        self.at += size
        if self.at > len(self.data):
            raise MediaError("damaged: a box ends early")
        return int.from_bytes(self.data[self.at - size : self.at], "big")


class _File:
    """The items of a file: where their bytes are, what kind they are, and what is said about them."""

    def __init__(self, data: bytes):
        self.data = data
        meta = dict(boxes(data)).get(b"meta", b"")
        parts = dict(boxes(meta[4:]))  # after version and flags
        missing = {b"pitm", b"iinf", b"iloc", b"iprp"} - parts.keys()
        if missing:
            raise MediaError("damaged: no main picture is named")
        pitm = _Bytes(parts[b"pitm"])
        self.main = pitm.number(4 if pitm.number(4) >> 24 else 2)
        self.inside = parts.get(b"idat", b"")
        self.kinds = _kinds(parts[b"iinf"])
        self.places = _places(parts[b"iloc"])
        self.tiles = _tiles(parts.get(b"iref", bytes(4)))
        self.properties = _properties(parts[b"iprp"])

    def content(self, item: int) -> bytes:
        """The bytes of an item, put together from its extents."""
        inside, extents = self.places[item]
        source = self.inside if inside else self.data
        if sum(length or len(source) for _, length in extents) > len(source):
            raise MediaError("damaged: a picture is longer than the file")
        content = b"".join(source[at : at + length] if length else source[at:] for at, length in extents)
        if not content:
            raise MediaError("damaged: a picture is not in the file")
        return content

    def picture(self) -> np.ndarray:
        kind = self.kinds.get(self.main)
        if kind == b"hvc1":
            pixels = self._decoded(self.main)
        elif kind == b"grid":
            pixels = self._grid()
        else:
            name = (kind or b"none").decode("ascii", "replace")
            raise MediaError(f"a HEIC picture of the kind {name} is not supported: convert it to JPEG")
        for name, content in self.properties.get(self.main, ()):
            if name == b"irot":  # quarter turns to the left
                pixels = np.rot90(pixels, content[0] & 3)
            elif name == b"imir":  # 0: top and bottom are exchanged, 1: left and right
                pixels = pixels[:, ::-1] if content[0] & 1 else pixels[::-1]
        return np.ascontiguousarray(pixels)

    def _grid(self) -> np.ndarray:
        """Tiles of one size, row after row, cut to the size of the whole (23008-12, 6.6.2.3)."""
        head = _Bytes(self.content(self.main))
        large = head.number(2) & 1
        rows, columns = head.number(1) + 1, head.number(1) + 1
        width, height = head.number(4 if large else 2), head.number(4 if large else 2)
        tiles = self.tiles.get(self.main, [])
        if width * height > MAX_PIXELS:
            raise MediaError(f"{width}x{height} pixels are more than {MAX_PIXELS}: make it smaller first")
        if len(tiles) != rows * columns or len(tiles) > MOST_TILES:
            raise MediaError(f"damaged: {len(tiles)} tiles for {rows} x {columns}")
        places: dict[int, list[int]] = {}  # each tile is decoded once, however often a small file names it
        for number, tile in enumerate(tiles):
            places.setdefault(tile, []).append(number)
        whole, decoded = np.zeros((height, width, 3), np.uint8), 0
        for tile, numbers in places.items():
            pixels = self._decoded(tile)
            high, wide = pixels.shape[:2]
            decoded += high * wide
            if decoded > 2 * MAX_PIXELS:  # much of it beyond the edges
                raise MediaError(f"damaged: tiles of far more than {width}x{height} pixels")
            for number in numbers:
                top, left = number // columns * high, number % columns * wide
                place = whole[top : top + high, left : left + wide]
                place[:] = pixels[: place.shape[0], : place.shape[1]]
        return whole

    def _decoded(self, item: int) -> np.ndarray:
        """One HEVC picture. Its decoder's settings are a property of the item, as are its colours."""
        said = dict(self.properties.get(item, ()))
        width, height = struct.unpack_from(">II", said.get(b"ispe", bytes(12)), 4)
        if width * height > MAX_PIXELS:
            raise MediaError(f"{width}x{height} pixels are more than {MAX_PIXELS}: make it smaller first")
        av = load_av("a HEIC picture")
        decoder = av.CodecContext.create("hevc", "r")
        decoder.extradata = said[b"hvcC"]
        frames = [*decoder.decode(av.Packet(self.content(item))), *decoder.decode(None)]
        if not frames:
            raise MediaError("damaged: a picture in it can't be decoded")
        frame, colours = frames[0], said.get(b"colr", b"")
        if colours[:4] == b"nclx":  # ITU-T H.273: primaries, transfer and matrix in two bytes each, and the range's bit
            frame.colorspace = int.from_bytes(colours[8:10], "big")
            frame.color_range = 2 if colours[10] & 0x80 else 1
        return frame.to_ndarray(format="rgb24")


def _kinds(iinf: bytes) -> dict[int, bytes]:
    """Item -> its type, as hvc1 or grid, of the entries of an iinf box."""
    start = 8 if iinf[0] else 6
    kinds = {}
    for _, entry in boxes(iinf[start:]):
        reader = _Bytes(entry)
        version = reader.number(4) >> 24
        if version >= 2:
            item = reader.number(2 if version == 2 else 4)
            reader.number(2)  # protection
            kinds[item] = entry[reader.at : reader.at + 4]
    return kinds


def _places(iloc: bytes) -> dict[int, tuple[bool, list[tuple[int, int]]]]:
    """Item -> whether it lies in the idat box, and its extents as offset and length."""
    reader = _Bytes(iloc)
    version = reader.number(4) >> 24
    sizes = reader.number(2)
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    places = {}
    for _ in range(reader.number(2 if version < 2 else 4)):
        item = reader.number(2 if version < 2 else 4)
        inside = bool(reader.number(2) & 15) if version else False
        reader.number(2)  # which file: this one
        base = reader.number(base_size)
        extents, count = [], reader.number(2)
        if count > 1 and not (offset_size or length_size):  # many in no bytes of the file
            raise MediaError("damaged: pieces of a picture without a place")
        for _ in range(count):
            if version:
                reader.number(index_size)
            offset = base + reader.number(offset_size)
            extents.append((offset, reader.number(length_size)))
        places[item] = (inside, extents)
    return places


def _tiles(iref: bytes) -> dict[int, list[int]]:
    """Item -> the items that it is derived from, in order."""
    size = 4 if iref[0] else 2
    tiles = {}
    for kind, content in boxes(iref[4:]):
        if kind == b"dimg":
            reader = _Bytes(content)
            item, count = reader.number(size), reader.number(2)
            tiles[item] = [reader.number(size) for _ in range(count)]
    return tiles


def _properties(iprp: bytes) -> dict[int, list[tuple[bytes, bytes]]]:
    """Item -> its properties as type and content, in the order in which they are to be applied."""
    parts = list(boxes(iprp))
    known = list(boxes(dict(parts)[b"ipco"]))
    properties = {}
    for kind, content in parts:
        if kind != b"ipma":
            continue
        reader = _Bytes(content)
        head = reader.number(4)
        for _ in range(reader.number(4)):
            item = reader.number(4 if head >> 24 else 2)
            size = 2 if head & 1 else 1
            numbers = [reader.number(size) & (0x7FFF if size == 2 else 0x7F) for _ in range(reader.number(1))]
            properties[item] = [known[number - 1] for number in numbers if 0 < number <= len(known)]
    return properties
