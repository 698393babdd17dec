"""More than four hundred inputs for segment.py that are damaged, odd or meant to harm, made from a seed.

Each must end in a result (exit 0) or one line that says what is wrong (exit 2), soon, without a traceback and without a
partial file. Left out: what a file system can't hold on every platform (FIFOs, devices, forbidden folders).
"""

import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image, PngImagePlugin

WIDTH, HEIGHT, FRAMES = 40, 32, 6
CUTS, FLIPS = 6, 10  # damaged copies of each kind of file


@dataclass(frozen=True)
class Case:
    """The arguments for segment.py; the first is always the input."""

    name: str
    args: list[str]


def cases(folder: Path) -> list[Case]:
    """Make the files in `folder` and list the cases, each with a name of its own."""
    rng = np.random.default_rng(0)
    whole = kinds(folder)
    good = folder / "good.png"
    good.write_bytes(whole["png"])
    files = [*broken(whole, rng), *disguised(whole), *enormous(whole["png"]), *sound(), *misled(whole["png"])]
    made = []
    for number, (name, data) in enumerate(files):
        path = folder / f"{number:03d}_{name}"
        path.write_bytes(data)
        made.append(Case(f"file {path.name}", [str(path), "car."]))
    made += [Case(f"path {name}", [source, "car."]) for name, source in paths(folder, whole)]
    made += [Case(f"prompt {text[:20]!a} of {len(text)}", [str(good), text]) for text in PROMPTS]
    made += [Case(f"option {option}", [str(good), option]) for option in BOXES + POINTS]
    made += [Case(f"option {option}", [str(good), "car.", option]) for option in OPTIONS]
    made += [Case(f"mask {name}", [str(good), f"--mask={path}"]) for name, path in masks(folder, whole)]
    return made


def frame(index: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A slope of colours with a bright square that moves by two pixels a frame."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack((x * 5, y * 6, x + y), 2).astype(np.uint8)
    pixels[4:12, 2 * index : 2 * index + 8] = 240
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def kinds(folder: Path) -> dict[str, bytes]:
    """Sound files by the ending of their name."""
    later = [frame(index) for index in range(1, FRAMES)]
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    return {
        "jpg": encoded(frame(), "JPEG", exif=exif),
        "progressive.jpg": encoded(frame(), "JPEG", progressive=True),
        "png": encoded(frame(), "PNG"),
        "animated.png": encoded(frame(), "PNG", save_all=True, append_images=later),
        "gif": encoded(frame(), "GIF", save_all=True, append_images=later, duration=40),
        "webp": encoded(frame(), "WEBP"),
        "bmp": encoded(frame(), "BMP"),
        "animated.webp": encoded(frame(), "WEBP", save_all=True, append_images=later, duration=40),
        "tif": encoded(frame(), "TIFF", compression="tiff_lzw"),
        "mp4": video(folder / "whole.mp4", movflags="+faststart"),
        "tail.mp4": video(folder / "tail.mp4"),
        "mkv": video(folder / "whole.mkv"),
    }


def video(path: Path, **options: str) -> bytes:
    with av.open(str(path), "w", options=options) as output:
        stream = output.add_stream("libx264", rate=10, options={"preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(FRAMES):
            output.mux(stream.encode(av.VideoFrame.from_image(frame(index))))
        output.mux(stream.encode(None))
    return path.read_bytes()


def broken(whole: dict[str, bytes], rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Each kind cut off, with flipped bits (in the whole file and in its first 64 bytes), a hole, and rubbish after."""
    for ending, data in whole.items():
        for length in np.linspace(1, len(data) - 1, CUTS, dtype=int):
            yield f"cut.{ending}", data[:length]
        for trial in range(FLIPS):
            flipped = bytearray(data)
            for at in rng.integers(0, 64 if trial % 3 == 0 else len(data), 1 + trial):
                flipped[at] ^= 1 << rng.integers(8)
            yield f"flipped.{ending}", bytes(flipped)
        middle = len(data) // 2
        yield f"hole.{ending}", data[:middle] + bytes(40) + data[middle + 40 :]
        yield f"longer.{ending}", data + rng.bytes(300)


class _Calls:
    """Makes a file if it is unpickled."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, ("unpickled",)


def disguised(whole: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Names that do not tell what is inside."""
    for ending, inside in (
        ("png", "jpg"),
        ("jpg", "png"),
        ("mp4", "png"),
        ("jpg", "mp4"),
        ("png", "gif"),
        ("mp4", "gif"),
        ("mp4", "mkv"),
        ("gif", "webp"),
        ("txt", "jpg"),
        ("txt", "mp4"),
        ("JPG", "jpg"),
        ("exe", "png"),
    ):
        yield f"really_{inside}.{ending}", whole[inside]
    for ending in ("jpg", "png", "gif", "webp", "bmp", "tif", "mp4", "mkv", "avi", "txt", "pt"):
        yield f"empty.{ending}", b""
        yield f"text.{ending}", b"this is no picture\nat all\n" * 20
    yield "page.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "json.png", b'{"error": "rate limited"}'
    yield "drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="5" height="5"/></svg>'
    yield "zip.webp", b"PK\x03\x04" + bytes(60)
    yield "pickle.png", pickle.dumps(_Calls())
    yield "nul.jpg", bytes(5000)
    yield "noname", whole["png"]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def enormous(png: bytes) -> Iterator[tuple[str, bytes]]:
    """Tiny files that claim billions of pixels, frames or letters."""
    for width, height in ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1), (0, 9), (20_000, 5_000)):
        head = png_chunk(b"IHDR", struct.pack(">II5B", width, height, 8, 2, 0, 0, 0))
        yield f"{width}x{height}.png", png[:8] + head + png[33:]
    gif = encoded(frame().quantize(8), "GIF")
    yield "65535x65535.gif", gif[:6] + b"\xff" * 4 + gif[10:]
    bmp = encoded(frame(), "BMP")
    for name, side in (("large", 60_000), ("largest", 2**31 - 1), ("negative", -(2**31))):
        yield f"{name}.bmp", bmp[:18] + struct.pack("<ii", side, side) + bmp[26:]
    jpeg = encoded(frame(), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5  # height and width (ITU-T T.81, B.2.2)
    yield "65500x65500.jpg", jpeg[:at] + struct.pack(">HH", 65500, 65500) + jpeg[at + 4 :]
    tags = [(256, 4, 1, 10**6), (257, 4, 1, 10**6), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 9)]
    yield (
        "million.tif",
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        + bytes(4),
    )
    yield "loop.tif", b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 1, 5) + b"\x08\0\0\0"
    yield "canvas.webp", b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\xff" * 6 + b"ANIM\0\0\0\0"
    yield "99999x99999.ppm", b"P6 99999 99999 255\n" + bytes(30)
    yield "digits.ppm", b"P6 " + b"9" * 5000 + b" 1 255\n"
    yield "claims.png", png[:33] + png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)) + png[33:]
    for kind in (b"zTXt", b"iCCP"):
        yield f"{kind.decode()}.png", png[:33] + png_chunk(kind, b"x\0\0" + zlib.compress(bytes(1 << 26), 1)) + png[33:]


def sound() -> Iterator[tuple[str, bytes]]:
    """Unusual and yet good: these must give a result."""
    deep = Image.fromarray(np.arange(WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 50)
    clear = frame().convert("RGBA")
    clear.putalpha(90)
    turned, nonsense = Image.Exif(), Image.Exif()
    turned[0x0112], nonsense[0x0112] = 8, 77
    yield "good_16_bit.png", encoded(deep, "PNG")
    yield "good_16_bit.tif", encoded(deep, "TIFF")
    yield "good_cmyk.jpg", encoded(frame().convert("CMYK"), "JPEG")
    yield "good_grey.jpg", encoded(frame().convert("L"), "JPEG")
    yield "good_palette.png", encoded(frame().quantize(16), "PNG", transparency=3)
    yield "good_palette_alpha.png", encoded(frame().quantize(16), "PNG", transparency=bytes(range(0, 256, 16)))
    yield "good_bits.png", encoded(frame().convert("1"), "PNG")
    yield "good_alpha.png", encoded(clear, "PNG")
    yield "good_grey_alpha.png", encoded(clear.convert("LA"), "PNG")
    yield "good_alpha.webp", encoded(clear, "WEBP")
    yield "good_jpeg_2000.jp2", encoded(frame(), "JPEG2000")
    yield "good_pixel.png", encoded(frame(0, 1, 1), "PNG")
    yield "good_wide.png", encoded(frame(0, 3000, 1), "PNG")
    yield "good_tall.jpg", encoded(frame(0, 1, 3000), "JPEG")
    yield "good_two_pages.tif", encoded(frame(), "TIFF", save_all=True, append_images=[frame(1)])
    yield "good_turned.jpg", encoded(frame(), "JPEG", exif=turned)
    yield "good_turned_nowhere.jpg", encoded(frame(), "JPEG", exif=nonsense)
    yield "good_broken_exif.jpg", encoded(frame(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(9))
    yield "good_long_text.png", encoded(frame(), "PNG", pnginfo=_text("x" * 100_000))
    yield "good_one_frame.gif", encoded(frame(), "GIF")
    yield "good_no_duration.gif", encoded(frame(), "GIF", save_all=True, append_images=[frame(1)], duration=0)


def _text(value: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", value)
    return info


def misled(png: bytes) -> Iterator[tuple[str, bytes]]:
    """Programs and lists that a decoder may run or follow instead of reading a picture."""
    yield "endless.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n"
    yield "endless.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n"
    yield "live.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nnowhere.ts\n"
    yield "live.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nwhole.mp4\n"
    yield "list.ffconcat", b"ffconcat version 1.0\nfile whole.mp4\n"
    yield "list.mp4", b"ffconcat version 1.0\nfile nowhere.mp4\n"
    yield "address.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    yield (
        "session.mp4",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
        b"a=rtpmap:96 H264/90000\n",
    )
    yield "subtitles.srt", b"1\n00:00:00,000 --> 00:00:01,000\nhello\n"
    yield "letters.ans", b"\x1b[31mhello\x1b[0m\n" * 30
    yield "tail%03d.mp4", png


def paths(folder: Path, whole: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    """Places without a picture, with a damaged one among good ones, or with a name that is hard to handle."""
    (folder / "empty").mkdir()
    (folder / "folder.png").mkdir()
    (folder / "folder.mp4").mkdir()
    for name, files in {
        "notes": {"a.txt": b"hello"},
        "some": {"1.png": whole["png"], "2.png": whole["png"][:60]},
        "sizes": {"1.png": whole["png"], "2.png": encoded(frame(0, 9, 9), "PNG")},
        "all_broken": {"1.jpg": b"", "2.png": b"x"},
        "inside": {"1.png/x.png": whole["png"]},
    }.items():
        for file, data in files.items():
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_bytes(data)
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "circle.mp4").symlink_to("circle.mp4")
    for name in ("a:b.mp4", "-dash.mp4", "data:,x.mp4", "new\nline.mp4", "[brackets].mp4", "per%03dcent.mp4"):
        (folder / name).write_bytes(whole["mp4"])
        yield f"name {name!a}", str(folder / name)
    for name in (
        "empty",
        "folder.png",
        "folder.mp4",
        "notes",
        "some",
        "sizes",
        "all_broken",
        "inside",
        "dangling.jpg",
        "circle.mp4",
        "nowhere.jpg",
        "nowhere",
        "*.xyz",
        "good.png/inside.png",
        "**/nothing",
    ):
        yield name, str(folder / name)
    for name, source in {
        "long": "x" * 5000,
        "nothing": "",
        "null device": os.devnull,
        "root of nothing": "\udcff.png",
        "camera without number": "camera:",
        "camera": "camera:4711",
        "letters": "camera:../x",
        "refused": "http://127.0.0.1:9/a.png",
        "no host": "http://",
        "bracket": "http://[",
        "space": "http://127.0.0.1:9/a b.png",
        "port": "https://127.0.0.1:99999/a.png",
    }.items():
        yield name, source


def masks(folder: Path, whole: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    """Files for --mask."""
    for name, data in {
        "black": encoded(Image.new("L", (WIDTH, HEIGHT)), "PNG"),
        "moving": whole["mp4"],
        "other size": encoded(Image.new("L", (7, 9), 255), "PNG"),
        "text": b"hello",
        "cut": whole["png"][:50],
    }.items():
        (folder / f"mask {name}.png").write_bytes(data)
        yield name, str(folder / f"mask {name}.png")
    yield "missing", str(folder / "no mask.png")
    yield "folder", str(folder / "empty")


PROMPTS = [
    "",
    " ",
    ".",
    " . , ;",
    "...",
    "\n",
    "\t.\t",
    "car" * 2000,
    "car. " * 1000,
    "a" * 300,
    "a " * 300,
    "x" * 5000,
    ". ".join(f"thing {number}" for number in range(300)),
    "\N{CAT}",
    "\N{CAT}. \N{DOG}.",
    "\u05d7\u05ea\u05d5\u05dc",
    "\u0642\u0637\u0629 \u062d\u0645\u0631\u0627\u0621.",
    "\u732b\u3002\u72ac\u3002",
    "e\u0301\u0301\u0301",
    "\u202ecar",
    "\u200b",
    "\ufeffcar",
    "\udcff\udcfe",
    "\x01\x1b[2J",
    "[CLS] [SEP] [PAD]",
    "[MASK].",
    "%s %d {0} {name}",
    "../../car",
    "<script>alert(1)</script>",
    "\\",
    "\"'",
    "$(reboot) `reboot`",
    "car.dog.cat",
    ".car",
    "CAR!?",
    "1234567890",
    "##ing",
    "|<endoftext|>",
]
BOXES = [
    f"--box={box}"
    for box in (
        "nan,0,9,9",
        "0,0,inf,9",
        "-inf,0,9,9",
        "-9,-9,9,9",
        "-90,-90,-80,-80",
        "900,900,990,990",
        "0,0,1e9,1e9",
        "9,9,3,3",
        "5,5,5,5",
        "0,0,0,0",
        "0,0,1e-9,1e-9",
        "1e400,0,9,9",
        "1,2,3",
        "1,2,3,4,5",
        "",
        ",,,",
        "a,b,c,d",
        "1;2;3;4",
        "1 2 3 4",
        "0x1,0x1,0x9,0x9",
        "\uff11,\uff12,\uff19,\uff19",
        "1_0,2,30,9",
    )
]
POINTS = [
    f"--point={point}"
    for point in (
        "nan,5",
        "5,inf",
        "-1,-1",
        "40,32",
        "1e9,1e9",
        "39.99,31.99",
        "5",
        "5,5,7",
        "5,5,-1",
        "5,5,0",
        "5,5,0.5",
        "5,5,nan",
        "5,5,1,1",
        "",
        ",",
        "a,b",
        "1e400,1",
    )
]
OPTIONS = [
    "--box-threshold=nan",
    "--box-threshold=2",
    "--text-threshold=-1",
    "--nms=nan",
    "--nms=-1",
    "--max-area=0",
    "--stride=0",
    "--stride=-1",
    "--stride=999999999",
    "--start=-1",
    "--start=nan",
    "--start=1e9",
    "--max-seconds=0",
    "--max-seconds=inf",
    "--seed-frame=-1",
    "--seed-frame=999999999",
    "--redetect=-1",
    "--box=1,1,9,9",
    "--unknown",
]
