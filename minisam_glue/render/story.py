"""A video's story in one picture: key frames with masks and ids, and the boxes and words of the rules that were used.

    picture = story([[Panel(frame, masks, [1, 2], "frame 12"), ...], ...])    # rows of panels

    teller = Storyteller()          # of a long video, frame by frame, with bounded memory
    for panel in panels:
        teller.add(panel)
    picture = teller.picture()

A predicted box has the colour of its object; that of a look-alike which nobody asked for is white. Left out: frames of
several sizes in one picture.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .overlay import colour_of, fitting, overlay

SIDE, LARGEST_SIDE = 240, 480  # pixels of the longer side of a panel; small frames are enlarged by a whole factor
LINES = 2  # of words below a panel
MOST, COLUMNS = 12, 4  # panels of a long video's story; in a row
GAP = 4  # pixels between panels
PAPER, INK, RIVAL = (255, 255, 255), (40, 40, 40), (255, 255, 255)


@dataclass
class Panel:
    """One frame, uint8 (H, W, 3), with masks, bool (O, H, W), and the ids of their objects."""

    image: np.ndarray
    masks: np.ndarray
    ids: list[int]
    title: str
    scores: list[float] | None = None  # object scores, 0 to 1
    predicted: dict[int, tuple[float, float, float, float]] = field(default_factory=dict)  # id -> xyxy, pixels
    words: str = ""  # what the rules did, below the frame
    rivals: Sequence[tuple[float, float, float, float]] = ()  # boxes predicted for look-alikes, xyxy, pixels


def story(rows: Sequence[Sequence[Panel]]) -> np.ndarray:
    """Rows of panels as one picture, uint8 (H, W, 3). ValueError without panels, or for frames of several sizes."""
    sizes = {panel.image.shape for row in rows for panel in row}
    if len(sizes) != 1:
        raise ValueError(f"a story is drawn of frames of one size, not of {len(sizes)}")
    return arranged([[draw_panel(panel) for panel in row] for row in rows])


def arranged(drawn: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Rows of pictures of one size, uint8 (h, w, 3), as one, with gaps between them."""
    tall, wide = drawn[0][0].shape[:2]
    columns = max(len(row) for row in drawn)
    out = np.full((len(drawn) * (tall + GAP) - GAP, columns * (wide + GAP) - GAP, 3), PAPER, np.uint8)
    for y, row in enumerate(drawn):
        for x, picture in enumerate(row):
            out[y * (tall + GAP) :, x * (wide + GAP) :][:tall, :wide] = picture
    return out


def draw_panel(panel: Panel) -> np.ndarray:
    """A frame with what is known of it, a title above and the words below."""
    image, masks, scale = at_panel_size(panel.image, panel.masks)
    picture = Image.fromarray(overlay(image, masks, ids=panel.ids, scores=panel.scores))
    pen, boxes = ImageDraw.Draw(picture), [(colour_of(number), box) for number, box in panel.predicted.items()]
    for colour, box in boxes + [(RIVAL, box) for box in panel.rivals]:
        left, top, right, bottom = (round(scale * side) for side in box)
        dashed(pen, [(left, top), (right, top), (right, bottom), (left, bottom)], colour)
    font = ImageFont.load_default(13)
    line, (width, height) = sum(font.getmetrics()) + 2, picture.size
    canvas = Image.new("RGB", (width, height + (1 + LINES) * line), PAPER)
    canvas.paste(picture, (0, line))
    pen = ImageDraw.Draw(canvas)
    pen.text((1, 0), fitting(panel.title, font, width - 2), INK, font)
    for number, words in enumerate(wrapped(panel.words, font, width - 2), 1):
        pen.text((1, height + number * line), words, INK, font)
    return np.array(canvas)


def panel_words(done: Sequence[str], absent: Sequence[int]) -> str:
    """Word what stands below a frame: what the rules did, and which other objects have no mask, by their ids."""
    ids = [f"#{number}" for number in absent if not any(words.startswith(f"#{number} hidden") for words in done)]
    return "; ".join([*done, *([f"{', '.join(ids)} absent"] if ids else [])])


def at_panel_size(image: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Frame and masks at the size at which they are shown, and by how much they are enlarged."""
    height, width = image.shape[:2]
    longer = max(height, width)
    if longer <= LARGEST_SIDE:
        factor = max(1, -(-SIDE // longer))
        image, masks = (
            np.repeat(np.repeat(a, factor, -2 - c), factor, -1 - c) for a, c in ((image, 1), (np.asarray(masks), 0))
        )
        return image, masks, factor
    scale = LARGEST_SIDE / longer
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = [np.asarray(Image.fromarray(mask).resize(size)) for mask in masks]
    return np.array(Image.fromarray(image).resize(size)), np.array(small, bool).reshape(-1, *size[::-1]), scale


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The text in at most LINES lines of so many pixels; the last one is shortened if there is more."""
    lines, words = [], text.split()
    while words and len(lines) < LINES:
        taken = 1
        while taken < len(words) and font.getlength(" ".join(words[: taken + 1])) <= width:
            taken += 1
        last = len(lines) == LINES - 1
        lines.append(fitting(" ".join(words if last else words[:taken]), font, width))
        words = words[taken:]
    return lines


def dashed(pen: ImageDraw.ImageDraw, corners: list[tuple[int, int]], colour: tuple[int, int, int]) -> None:
    """A closed line of dashes, dark beneath, that shows on any ground."""
    for start, end in zip(corners, [*corners[1:], corners[0]]):
        (x, y), (u, v) = start, end
        length = max(abs(u - x), abs(v - y), 1)
        for at in range(0, length, 8):
            until = min(at + 5, length)
            ends = [(x + (u - x) * part / length, y + (v - y) * part / length) for part in (at, until)]
            pen.line(ends, (0, 0, 0), 3)
            pen.line(ends, colour, 1)


# --- Which frames -----------------------------------------------------------------------------------------


def key_frames(there: Sequence[int], moments: Collection[int], count: int) -> list[int]:
    """Choose up to `count` of the frames that are there, at least two: the first, the last, those at which something
    happens, and some between."""
    chosen = {there[0], there[-1]}
    moments = sorted(set(moments) - chosen)
    room = max(count - len(chosen), 0)
    if len(moments) > room:
        moments = [moments[round(i * (len(moments) - 1) / max(room - 1, 1))] for i in range(room)]
    chosen |= set(moments)
    while len(chosen) < min(count, len(there)):  # the frame that is farthest from all others
        chosen.add(max(set(there) - chosen, key=lambda frame: (min(abs(frame - c) for c in chosen), -frame)))
    return sorted(chosen)


class Storyteller:
    """Collects the panels of a video, of which all frames come in order; how many, nobody needs to know before.

    A moment is a frame on which objects begin or cease to be seen, or what the rules do changes. Kept are the first
    and the last panel, and at most 2 * MOST each of moments and of evenly spaced frames: when there are more, every
    second of them goes.
    """

    def __init__(self):
        self.moments: dict[int, np.ndarray] = {}  # frame -> its panel, drawn
        self.even: dict[int, np.ndarray] = {}
        self.step, self.count, self.happened, self.last = 1, 0, None, None

    def add(self, panel: Panel, happened: object = None) -> None:
        """The next frame. happened: a value that differs from the one before if this is a moment."""
        self.last = panel
        if self.count and happened != self.happened:
            self.moments[self.count] = draw_panel(panel)
            if len(self.moments) > 2 * MOST:
                self.moments = dict(list(self.moments.items())[::2])
        if self.count % self.step == 0:
            self.even[self.count] = draw_panel(panel)
            if len(self.even) > 2 * MOST:
                self.even, self.step = dict(list(self.even.items())[::2]), 2 * self.step
        self.happened, self.count = happened, self.count + 1

    def panels(self, count: int = MOST) -> list[np.ndarray]:
        """Give up to `count` panels, at least two, drawn, in the order of their frames. ValueError before any frame."""
        if self.last is None:
            raise ValueError("a video without frames has no story")
        drawn = self.even | self.moments | {self.count - 1: draw_panel(self.last)}
        return [drawn[frame] for frame in key_frames(sorted(drawn), self.moments, count)]

    def picture(self) -> np.ndarray:
        """The story, uint8 (H, W, 3), in rows of COLUMNS panels."""
        panels = self.panels()
        return arranged([panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)])
