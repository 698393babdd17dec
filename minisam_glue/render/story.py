"""A video's story in one picture: key frames with masks and ids, and the boxes and words of the rules that were used.

    picture = story([[Panel(frame, masks, [1, 2], "frame 12"), ...], ...])    # rows of panels

A predicted box has the colour of its object. Left out: frames of several sizes in one picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .overlay import colour_of, overlay

SIDE = 240  # pixels of the longer side of a panel, at least; smaller frames are enlarged by a whole factor
GAP = 4  # pixels between panels
PAPER, INK = (255, 255, 255), (40, 40, 40)


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


def story(rows: Sequence[Sequence[Panel]]) -> np.ndarray:
    """Rows of panels as one picture, uint8 (H, W, 3). ValueError without panels, or for frames of several sizes."""
    sizes = {panel.image.shape for row in rows for panel in row}
    if len(sizes) != 1:
        raise ValueError(f"a story is drawn of frames of one size, not of {len(sizes)}")
    drawn = [[draw_panel(panel) for panel in row] for row in rows]
    tall, wide = drawn[0][0].shape[:2]
    columns = max(len(row) for row in drawn)
    out = np.full((len(rows) * (tall + GAP) - GAP, columns * (wide + GAP) - GAP, 3), PAPER, np.uint8)
    for y, row in enumerate(drawn):
        for x, picture in enumerate(row):
            out[y * (tall + GAP) :, x * (wide + GAP) :][:tall, :wide] = picture
    return out


def draw_panel(panel: Panel) -> np.ndarray:
    """A frame with what is known of it, a title above and the words below."""
    factor = max(1, -(-SIDE // max(panel.image.shape[:2])))
    image, masks = (
        np.repeat(np.repeat(a, factor, -2 - c), factor, -1 - c) for a, c in ((panel.image, 1), (panel.masks, 0))
    )
    picture = overlay(image, masks, ids=panel.ids, scores=panel.scores)
    font = ImageFont.load_default(13)
    line = sum(font.getmetrics()) + 2
    canvas = Image.new("RGB", (picture.shape[1], picture.shape[0] + 2 * line), PAPER)
    canvas.paste(Image.fromarray(picture), (0, line))
    pen = ImageDraw.Draw(canvas)
    pen.text((1, 0), panel.title, INK, font)
    pen.text((1, line + picture.shape[0]), fitting(panel.words, font, picture.shape[1] - 2), INK, font)
    for number, box in panel.predicted.items():
        left, top, right, bottom = (round(factor * side) for side in box)
        corners = [(left, top + line), (right, top + line), (right, bottom + line), (left, bottom + line)]
        dashed(pen, corners, colour_of(number))
    out = np.array(canvas)
    out[:line], out[line + picture.shape[0] :] = strip(out[:line]), strip(out[line + picture.shape[0] :])
    return out


def strip(part: np.ndarray) -> np.ndarray:
    """A line of text without the ends of boxes that reach into it: what is coloured becomes paper."""
    coloured = part.max(-1).astype(int) - part.min(-1) > 24
    return np.where(coloured[..., None], np.uint8(PAPER), part)


def fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, shortened until it is at most so many pixels wide."""
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text


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


def key_frames(total: int, moments: Sequence[int], count: int) -> list[int]:
    """Choose up to `count` of `total` frames: the first, the last, those at which something happens, some between."""
    chosen = {0, total - 1}
    moments = sorted(set(moments) - chosen)
    room = max(count - len(chosen), 0)
    if len(moments) > room:
        moments = [moments[round(i * (len(moments) - 1) / max(room - 1, 1))] for i in range(room)]
    chosen |= set(moments)
    while len(chosen) < min(count, total):  # the middle of the widest gap
        frames = sorted(chosen)
        widest = max(range(len(frames) - 1), key=lambda i: frames[i + 1] - frames[i])
        chosen.add((frames[widest] + frames[widest + 1]) // 2)
    return sorted(chosen)
