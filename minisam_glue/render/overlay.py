"""Masks, outlines and labels drawn on a picture, and objects cut out of it.

Colours are those of Okabe and Ito, "Color Universal Design" (2008), which colour-blind people tell apart,
without black; text is black or white, whichever contrasts more by WCAG 2.1 (section 1.4.3). Strokes and
letters grow with the picture. Left out: fonts for accents and scripts that Pillow's built-in Aileron lacks.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..masks import as_bool, erode, mask_box
from ..support.text import one_line

COLOURS = np.array(
    [[230, 159, 0], [86, 180, 233], [0, 158, 115], [213, 94, 0], [240, 228, 66], [0, 114, 178], [204, 121, 167]],
    np.uint8,
)
OPACITY = 115  # of a mask, in 256ths
SMALLEST_TEXT = 9  # pixels; below this letters run together
LONGEST_TEXT = 200  # letters, of which as many are shown as the picture is wide enough for


def overlay(
    image: np.ndarray,
    masks: Sequence[np.ndarray] | np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    labels: Sequence[str] | None = None,
    scores: Sequence[float] | None = None,
    ids: Sequence[int] | None = None,
) -> np.ndarray:
    """Draw translucent masks, bool (O, H, W), their outlines and label plates on a copy of uint8 RGB (H, W, 3).

    boxes: xyxy in pixels (O, 4), drawn if there are no masks. A plate shows `#id`, label and score, as far as given.
    The colour of an object depends on its id, so that it stays the same through a video. ValueError if lengths or
    sizes differ.
    """
    masks = None if masks is None else [as_bool(np.asarray(mask)) for mask in masks]
    count = _count(image, masks, boxes, labels, scores, ids)
    out = image.copy()
    stroke = stroke_width(*image.shape[:2])
    colours = [colour_of(ids[index] if ids is not None else index) for index in range(count)]
    anchors = []
    for index, colour in enumerate(colours):
        box = _box(index, masks, boxes, image.shape)
        anchors.append(box)
        if box is not None and masks is not None:
            _paint(out, masks[index], box, colour, stroke)
        elif box is not None:
            _frame(out, box, colour, stroke)
    plates: list[tuple[int, int, int, int]] = []
    for index, (box, colour) in enumerate(zip(anchors, colours)):
        text = _text(index, labels, scores, ids)
        if box is not None and text:
            left, top, right, _ = box
            apex = (left + right) // 2 if masks is None else left + np.flatnonzero(masks[index][top, left:right]).mean()
            _label(out, text, box, int(apex), colour, plates)
    return out


def colour_of(index: int) -> tuple[int, int, int]:
    """RGB colour of object `index`: one of seven, then of the same seven lighter, then darker."""
    base, turn = COLOURS[index % len(COLOURS)].astype(int), index // len(COLOURS) % 3
    mixed = base if turn == 0 else (base + 255) // 2 if turn == 1 else base * 5 // 8
    return tuple(mixed.tolist())


def ink_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever is easier to read on an RGB colour."""
    return max(((0, 0, 0), (255, 255, 255)), key=lambda ink: contrast(colour, ink))


def stroke_width(height: int, width: int) -> int:
    """Width in pixels of an outline in a picture of this size."""
    return max(1, round(np.sqrt(height * width) / 330))


def crop(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The object alone: uint8 RGBA of its bounding box, transparent outside the mask, bool (H, W).

    ValueError if the mask is empty or of another size than the picture.
    """
    _check_picture(image, "crop cuts from")
    mask = as_bool(np.asarray(mask))
    if mask.shape != image.shape[:2]:
        raise ValueError(f"the mask is {mask.shape} but the image {image.shape[:2]}")
    box = mask_box(mask)
    if box is None:
        raise ValueError("an empty mask has nothing to cut out")
    left, top, right, bottom = box
    alpha = mask[top:bottom, left:right, None].astype(np.uint8) * 255
    return np.concatenate((image[top:bottom, left:right] * (alpha > 0), alpha), 2)


def _check_picture(image: np.ndarray, use: str) -> None:
    """ValueError, which says what the picture is for, unless it is uint8 (H, W, 3)."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{use} uint8 (H, W, 3), not {image.dtype} {image.shape}")


def _count(image: np.ndarray, masks: object, *others: object) -> int:
    """Number of objects. ValueError if lengths or sizes differ."""
    _check_picture(image, "overlay draws on")
    lengths = {len(given) for given in (masks, *others) if given is not None}
    if len(lengths) > 1:
        raise ValueError(f"masks, boxes, labels, scores and ids are of different lengths: {sorted(lengths)}")
    for mask in masks if masks is not None else ():
        if mask.shape != image.shape[:2]:
            raise ValueError(f"a mask is {mask.shape} but the image {image.shape[:2]}")
    return lengths.pop() if lengths else 0


def _box(index: int, masks: object, boxes: object, shape: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """Bounds of an object in pixels: of its mask, else of its box inside the picture; None if nothing is visible."""
    if masks is not None:
        return mask_box(masks[index])
    if boxes is None:
        return None
    left, top, right, bottom = (float(value) for value in boxes[index])
    if not all(map(np.isfinite, (left, top, right, bottom))):
        return None
    left, right = (int(min(max(round(value), 0), shape[1])) for value in (left, right))
    top, bottom = (int(min(max(round(value), 0), shape[0])) for value in (top, bottom))
    return (left, top, right, bottom) if left < right and top < bottom else None


def _paint(out: np.ndarray, mask: np.ndarray, box: tuple[int, int, int, int], colour: tuple, stroke: int) -> None:
    """Tint the mask and draw its outline just inside it, within its bounding box only."""
    left, top, right, bottom = box
    inside, part = mask[top:bottom, left:right], out[top:bottom, left:right]
    for channel, value in enumerate(colour):  # a table of 256 results is faster than arithmetic on the pixels
        tinted = ((np.arange(256) * (256 - OPACITY) + value * OPACITY) >> 8).astype(np.uint8)
        np.copyto(part[..., channel], tinted[part[..., channel]], where=inside)
    part[inside & ~erode(inside, stroke)] = colour


def _frame(out: np.ndarray, box: tuple[int, int, int, int], colour: tuple, stroke: int) -> None:
    left, top, right, bottom = box
    part = out[top:bottom, left:right]
    part[:stroke] = part[-stroke:] = part[:, :stroke] = part[:, -stroke:] = colour


def _text(index: int, labels: object, scores: object, ids: object) -> str:
    words = [] if ids is None else [f"#{ids[index]}"]  # first, so that it is never next to the score nor cut off
    words += [] if labels is None else [one_line(labels[index])]
    words += [] if scores is None else [f"{float(scores[index]):.2f}"]
    return in_plain_letters(" ".join(word for word in words if word))


def in_plain_letters(text: str) -> str:
    """The text without accents, which the built-in font lacks: "cafe" for "café". Other scripts stay, as boxes."""
    letters = (letter for letter in unicodedata.normalize("NFD", text) if not unicodedata.combining(letter))
    return unicodedata.normalize("NFC", "".join(letters))  # which joins Korean syllables again


def _label(out: np.ndarray, text: str, box: tuple, apex: int, colour: tuple, plates: list[tuple]) -> None:
    """Draw a plate wholly inside the picture, where it hides no other plate if possible."""
    height, width = out.shape[:2]
    plate = _plate_within(text, colour, width, height)
    if plate is None:
        return
    tall, wide = plate.shape[:2]
    left, top = _place(box, apex, wide, tall, width, height, plates)
    plates.append((left, top, left + wide, top + tall))
    out[top : top + tall, left : left + wide] = plate


def _place(box: tuple, apex: int, wide: int, tall: int, width: int, height: int, plates: list) -> tuple[int, int]:
    """Left and top of a plate: above the object's highest point, else inside it, below it, then further away."""
    left, top, right, bottom = box
    lefts = [min(max(x, 0), width - wide) for x in (apex - wide // 2, left, right - wide)]
    tops = [
        top - tall if top >= tall else top,
        top,
        bottom - tall,
        bottom,
        *range(top + tall, height, tall),
        *range(top - 2 * tall, 0, -tall),
    ]
    spots = [(x, min(max(y, 0), height - tall)) for y in tops for x in lefts]
    for x, y in spots:
        if not any(x < r and l < x + wide and y < b and t < y + tall for l, t, r, b in plates):
            return x, y
    return spots[0]


@lru_cache(maxsize=64)
def _plate_within(text: str, colour: tuple, width: int, height: int) -> np.ndarray | None:
    """A plate no wider than the picture: smaller letters first, then a shorter text; None if no letter has room."""
    text = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
    size = round(8.5 + np.sqrt(width * height) / 84)
    while size > SMALLEST_TEXT and _extent(text, size)[0] > width:
        size -= 1
    text = fitting(text, _font(size), width - 2 * _margin(size))
    wide, tall = _extent(text, size)
    return _plate(text, size, colour) if text and wide <= width and tall <= height else None


def fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, shortened until it is at most so many pixels wide; "#12" at its beginning is whole or not there."""
    number = text.split(" ", 1)[0] if text.startswith("#") else ""
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    if not number or text.startswith(number + " "):
        return text
    return number if font.getlength(number) <= width else ""


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _margin(size: int) -> int:
    return max(1, size // 5)


def _extent(text: str, size: int) -> tuple[int, int]:
    """Width and height in pixels of a plate; the height is the same for all texts of a size."""
    font, margin = _font(size), _margin(size)
    ascent, descent = font.getmetrics()
    return int(np.ceil(font.getlength(text))) + 2 * margin, ascent + descent + margin


def _plate(text: str, size: int, colour: tuple) -> np.ndarray:
    plate = Image.new("RGB", _extent(text, size), colour)
    margin = _margin(size)
    ImageDraw.Draw(plate).text((margin, margin // 2), text, ink_on(colour), _font(size))
    return np.asarray(plate)


def contrast(one: tuple, other: tuple) -> float:
    """Contrast ratio of two RGB colours, 1 to 21 (WCAG 2.1)."""
    low, high = sorted(_luminance(colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: tuple) -> float:
    channels = np.array(colour) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
