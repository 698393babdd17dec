"""A picture and its objects as one HTML file: each object is a layer that a checkbox shows or hides.

Everything is inside the file, so that it opens without a network. A layer is a PNG of the object's bounding box in
three colours (none, tint, outline), a few hundred bytes, placed in per cent of the picture. Labels are text, never
markup; besides, the security policy of the page allows no script but its own. Videos have pages of their own
(film_page.py).
"""

import hashlib
import io
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ..masks import erode, mask_box
from ..support.files import whole_file
from ..support.text import one_line
from .overlay import OPACITY, colour_of, ink_on, stroke_width

LONGEST_SIDE = 4096  # pixels of the embedded picture: it is seen at the size of a window, and JPEG ends at 65,535

STYLE = """
:root { color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }
body { margin: 0; }
main { display: grid; grid-template-columns: minmax(0, 1fr) minmax(14rem, 20rem); gap: 1rem; padding: 1rem; }
.picture { position: relative; overflow: hidden; justify-self: center; align-self: start; }
.picture img { display: block; width: 100%; height: 100%; }
.layer { position: absolute; transition: opacity .1s; }
.layer[hidden] { display: none; }
.layer.boxed { box-sizing: border-box; border: 2px solid var(--colour); }
.layer b { position: absolute; bottom: 100%; left: 50%; transform: translateX(-50%); padding: 0 .3em; font-size: 11px; }
.layer.high b { bottom: auto; top: 0; }
.layer b, .swatch { background: var(--colour); color: var(--ink); border-radius: 3px; }
.pointing .layer { opacity: .2; }
.pointing .layer.lit { opacity: 1; z-index: 1; outline: 2px dashed var(--colour); }
h1 { margin: 0; font-size: 1.1rem; overflow-wrap: anywhere; }
ul { margin: 0; padding: 0; list-style: none; max-height: calc(100vh - 8rem); overflow: auto; }
li label { display: flex; align-items: center; gap: .5rem; padding: .2rem .4rem; border-radius: 4px; cursor: pointer; }
li label:hover, li label:focus-within { background: color-mix(in srgb, currentColor 12%, transparent); }
li bdi { flex: 1; min-width: 0; overflow-wrap: anywhere; text-align: left; }
.swatch { min-width: 1.6rem; padding: 0 .3rem; text-align: center; }
button { font: inherit; }
@media (max-width: 45rem) { main { grid-template-columns: minmax(0, 1fr); } ul { max-height: none; } }
"""

SCRIPT = """
const picture = document.querySelector(".picture");
const boxes = [...document.querySelectorAll("input")];
let pointed = null;
function show() {
  for (const box of boxes) {
    const layer = document.getElementById(box.dataset.layer);
    layer.hidden = !box.checked;
    layer.classList.toggle("lit", box === pointed);
  }
  picture.classList.toggle("pointing", pointed !== null && pointed.checked);
  document.querySelector("output").textContent = boxes.filter(box => box.checked).length + " of " + boxes.length;
}
function point(box) { pointed = box; show(); }
function choose(on) { for (const box of boxes) box.checked = on; show(); }
for (const box of boxes) {
  const row = box.closest("li");
  box.addEventListener("change", show);
  for (const event of ["pointerenter", "focusin"]) row.addEventListener(event, () => point(box));
  for (const event of ["pointerleave", "focusout"]) row.addEventListener(event, () => point(null));
}
document.getElementById("all").addEventListener("click", () => choose(true));
document.getElementById("none").addEventListener("click", () => choose(false));
show();
"""

BUTTONS = '<button type="button" id="all">All</button> <button type="button" id="none">None</button>'
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<div class="picture" style="aspect-ratio: {width} / {height}; width: min(100%, calc((100vh - 2rem) * {ratio:.5f}))">
{picture}
</div>
<section aria-label="Objects">
<h1>{title}</h1>
{controls}
<ul>
{rows}
</ul>
</section>
</main>
<script>{script}</script>
</body>
</html>
"""


class Record(Protocol):
    """An object on a page: box is xyxy in pixels, mask bool (H, W)."""

    id: int
    label: str
    score: float | None
    box: Sequence[float]
    mask: np.ndarray


def write_page(path: str | Path, image: np.ndarray, records: Sequence[Record], title: str | None = None) -> None:
    """Write the page: the picture, uint8 RGB (H, W, 3), with a checkbox per record. title: by default the file's name.

    An object with an empty mask shows its box. ValueError if a mask is not of the picture's size, OSError if the file
    can't be written.
    """
    size = image.shape[:2]
    for record in records:
        if record.mask.shape != size:
            raise ValueError(f"the mask of #{record.id} is {record.mask.shape} but the image {size}")
    title = escape(one_line(Path(path).stem if title is None else title))
    layers = "\n".join(layer(f"layer{number}", "", record) for number, record in enumerate(records))
    write_html(
        path,
        title=title,
        size=size,
        picture=f'<img alt="{title}" src="{small_jpeg(image)}">\n{layers}',
        controls=f"<p>{BUTTONS}\n<output>{len(records)} of {len(records)}</output> shown</p>",
        rows="\n".join(_row(number, record) for number, record in enumerate(records)),
        style=STYLE,
        script=SCRIPT,
    )


def write_html(path: str | Path, size: tuple[int, int], script: str, **parts: str) -> None:
    """Fill PAGE and write it; only `script` may run there. size: height, width. parts: markup, and the title as text in
    HTML. OSError if the file can't be written."""
    height, width = size
    script_hash = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shape = {"width": width, "height": height, "ratio": width / height}
    page = PAGE.format(script=script, script_hash=script_hash, **shape, **parts)
    with whole_file(path) as temporary:
        temporary.write_bytes(page.encode())


def layer(name: str, group: str, record: Record) -> str:
    """An object as an element that is placed over its picture. name, group: its id, and one more class."""
    height, width = record.mask.shape
    bounds = mask_box(record.mask)
    left, top, right, bottom = bounds or record.box
    place = (
        f"left: {100 * left / width:.5g}%; top: {100 * top / height:.5g}%; "
        f"width: {100 * (right - left) / width:.5g}%; height: {100 * (bottom - top) / height:.5g}%"
    )
    inside = f'<img alt="" src="{_png(record.mask[top:bottom, left:right], record)}">' if bounds else ""
    kind = "layer" + f" {group}" * bool(group) + " boxed" * (bounds is None)
    kind += " high" * (top < height / 20)  # no room above for its number
    style = f"{colours(record.id)}; {place}"
    return f'<div class="{kind}" id="{name}" style="{style}">{inside}<b>#{record.id}</b></div>'


def _row(number: int, record: Record) -> str:
    score = "" if record.score is None else f"{record.score:.2f}"
    return (
        f'<li><label><input type="checkbox" checked data-layer="layer{number}">'
        f'<span class="swatch" style="{colours(record.id)}">#{record.id}</span>'
        f"<bdi>{escape(one_line(record.label))}</bdi><span>{score}</span></label></li>"
    )


def colours(number: int) -> str:
    """The style of an object's colour, and of text on it."""
    colour = colour_of(number)
    return "--colour: rgb({}, {}, {}); --ink: rgb({}, {}, {})".format(*colour, *ink_on(colour))


def _png(inside: np.ndarray, record: Record) -> str:
    """The object's tint and, just inside its edge, its outline; nothing elsewhere."""
    outline = inside & ~erode(inside, stroke_width(*record.mask.shape))
    layer = Image.fromarray(inside.astype(np.uint8) + outline)
    layer.putpalette(colour_of(record.id) * 4)
    return _data_uri(layer, "PNG", bits=2, transparency=bytes([0, OPACITY, 255, 255]), optimize=True)


def small_jpeg(image: np.ndarray, longest: int = LONGEST_SIDE, quality: int = 90) -> str:
    """A picture, uint8 RGB (H, W, 3), as the data URI of a JPEG whose sides are at most so long."""
    picture = Image.fromarray(image)
    picture.thumbnail((longest, longest))
    return _data_uri(picture, "JPEG", quality=quality)


def _data_uri(image: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{b64encode(buffer.getvalue()).decode()}"
