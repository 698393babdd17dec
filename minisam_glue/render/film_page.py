"""A video as one HTML file: a slider over key frames, with a checkbox per object.

The key frames are evenly spaced, and at most MOST of them are kept however long the video is, so that the page stays
small. As on the page of a picture, everything is inside the file and labels are text, never markup. Left out: sound,
and the frames in between, which the annotated video has.
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..records import Segmented
from ..support.text import one_line
from .page import BUTTONS, STYLE, colours, layer, small_jpeg, write_html

MOST = 32  # key frames; with half of them left when there would be more
LONGEST_SIDE = 960  # pixels of a key frame

SCRIPT = """
const slider = document.getElementById("frame");
const frames = [...document.querySelectorAll(".key")];
const boxes = [...document.querySelectorAll("input[type=checkbox]")];
function show() {
  frames.forEach((frame, number) => { frame.hidden = number != slider.value; });
  const frame = frames[slider.value];
  document.querySelector("output").textContent = frame.dataset.title;
  for (const box of boxes) {
    for (const layer of document.querySelectorAll("." + box.dataset.object)) layer.hidden = !box.checked;
    box.closest("li").classList.toggle("absent", !frame.querySelector("." + box.dataset.object));
  }
}
function choose(on) { for (const box of boxes) box.checked = on; show(); }
slider.addEventListener("input", show);
for (const box of boxes) box.addEventListener("change", show);
document.getElementById("all").addEventListener("click", () => choose(true));
document.getElementById("none").addEventListener("click", () => choose(false));
show();
"""

MORE_STYLE = """
.key { height: 100%; }
.key[hidden] { display: none; }
.absent { opacity: .5; }
input[type=range] { width: 100%; }
"""


@dataclass
class KeyFrame:
    """One picture of the page: its JPEG and the layers of its objects, as markup."""

    title: str
    size: tuple[int, int]  # height, width
    picture: str
    layers: list[str]
    ids: set[int]  # of the objects on it


class FilmPage:
    """Collects key frames of a video, all of whose frames are shown to `add` in order; `write` makes the page.

    Every step-th frame is kept. When there are more than MOST, every second of them goes and the step doubles: so they
    are evenly spaced at any time, although nobody knows how long a video is before its end.
    """

    def __init__(self):
        self.step, self.count, self.keys = 1, 0, []
        self.labels: dict[int, str] = {}

    def add(self, result: Segmented, time: float) -> None:
        """The next frame; time in seconds of the source."""
        for record in result.seen:
            self.labels.setdefault(record.id, record.label)
        if self.count % self.step == 0:
            if len(self.keys) == MOST:
                self.keys, self.step = self.keys[::2], 2 * self.step
            if self.count % self.step == 0:
                self.keys.append(self._key(result, time))
        self.count += 1

    def _key(self, result: Segmented, time: float) -> KeyFrame:
        layers = [layer(f"layer{self.count}-{o.id}", f"object{o.id}", o) for o in result.seen]
        picture = small_jpeg(result.image, LONGEST_SIDE, quality=80)
        ids = {record.id for record in result.seen}
        return KeyFrame(f"frame {result.frame}, {time:.3f} s", result.image.shape[:2], picture, layers, ids)

    def write(self, path: str | Path, title: str) -> None:
        """Write the page. OSError if that can't be done, ValueError if there is no frame."""
        if not self.keys:
            raise ValueError("a video without frames has no page")
        slider = f'<input type="range" id="frame" min="0" max="{len(self.keys) - 1}" value="0" aria-label="Key frame">'
        write_html(
            path,
            title=escape(one_line(title)),
            size=self.keys[0].size,
            picture="\n".join(self._frame(number, key) for number, key in enumerate(self.keys)),
            controls=f"<p>{slider}<output>{self.keys[0].title}</output></p>\n<p>{BUTTONS}</p>",
            rows="\n".join(self._row(number, label) for number, label in sorted(self.labels.items())),
            style=STYLE + MORE_STYLE,
            script=SCRIPT,
        )

    def _frame(self, number: int, key: KeyFrame) -> str:
        hidden = " hidden" if number else ""
        inside = "\n".join([f'<img alt="{key.title}" src="{key.picture}">', *key.layers])
        return f'<div class="key" data-title="{key.title}"{hidden}>{inside}</div>'

    def _row(self, number: int, label: str) -> str:
        shown = any(number in key.ids for key in self.keys)
        return (
            f'<li><label><input type="checkbox" checked data-object="object{number}">'
            f'<span class="swatch" style="{colours(number)}">#{number}</span>'
            f"<bdi>{escape(one_line(label))}</bdi>{'' if shown else ' (between the key frames)'}</label></li>"
        )
