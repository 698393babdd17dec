"""Overlays: what is painted where, and that labels can be read on small and on large pictures."""

import numpy as np
import pytest

from minisam_glue.masks import erode, mask_box
from minisam_glue.render import overlay as draw
from minisam_glue.render.overlay import colour_of, contrast, crop, in_plain_letters, overlay

GREY = np.full((60, 80, 3), 100, np.uint8)


def disc(height: int, width: int, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def changed(out: np.ndarray, image: np.ndarray) -> np.ndarray:
    return (out != image).any(2)


@pytest.mark.parametrize("text", ["#1 red circle 0.52", "#12 red circle 0.52", "#123 red circle 0.52"])
def test_a_number_is_never_cut_off_and_looks_like_no_other(text):
    font, number = draw._font(9), text.split()[0]
    for width in range(2, 120):
        shown = draw.fitting(text, font, width)
        assert shown in ("", number) or shown.startswith(number + " ")
        assert font.getlength(shown) <= width
    assert draw.fitting(text, font, 200) == text and draw.fitting("Labrador", font, 20)  # a name alone may be cut


def test_a_mask_is_tinted_outlined_and_nothing_else_is_touched():
    mask = disc(60, 80, 40, 30, 15)
    before = GREY.copy()
    out = overlay(GREY, mask[None])
    assert np.array_equal(GREY, before) and np.array_equal(changed(out, GREY), mask)
    assert tuple(out[15, 40]) == tuple(out[30, 25]) == colour_of(0)  # on the outline
    weight = draw.OPACITY / 256
    assert np.abs(out[30, 40] - (100 * (1 - weight) + np.array(colour_of(0)) * weight)).max() <= 1


def test_an_outline_closes_at_the_border_of_the_picture():
    out = overlay(GREY, np.ones((1, 60, 80), bool))
    edge = (out == colour_of(0)).all(2)
    assert edge[0].all() and edge[-1].all() and edge[:, 0].all() and edge[:, -1].all() and not edge[5:-5, 5:-5].any()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_outlines_are_as_wide_as_asked_in_every_direction(steps):
    mask = disc(101, 101, 50, 50, 40.5)
    ring = mask & ~erode(mask, steps)
    assert ring[50].sum() == ring[:, 50].sum() == 2 * steps
    assert np.diagonal(ring).sum() <= 2 * steps + 2


def test_nothing_found_changes_nothing():
    assert np.array_equal(overlay(GREY), GREY)
    assert np.array_equal(overlay(GREY, np.zeros((0, 60, 80), bool), np.zeros((0, 4)), [], [], []), GREY)
    assert np.array_equal(overlay(GREY, np.zeros((1, 60, 80), bool), labels=["gone"], ids=[3]), GREY)


def test_a_colour_goes_by_id_not_by_place():
    masks = np.stack([disc(60, 80, 20, 40, 8), disc(60, 80, 60, 40, 8)])
    both, swapped = overlay(GREY, masks, ids=[1, 2]), overlay(GREY, masks[::-1], ids=[2, 1])
    assert np.array_equal(both, swapped)
    assert len({colour_of(index) for index in range(21)}) == 21


def test_text_on_every_colour_has_the_contrast_of_wcag():
    for index in range(21):
        colour = colour_of(index)
        assert max(contrast(colour, (0, 0, 0)), contrast(colour, (255, 255, 255))) >= 4.5
        plate = draw._plate("#1 car", 20, colour)
        inks = {tuple(pixel) for pixel in plate.reshape(-1, 3).tolist()}
        assert max(contrast(colour, ink) for ink in inks) >= 4.5


@pytest.mark.parametrize("height,width", [(64, 64), (64, 96), (480, 640), (2160, 3840)])
def test_plates_stay_inside_apart_and_of_a_readable_size(height, width):
    image, plates = np.zeros((height, width, 3), np.uint8), []
    for x, y in ((0, 0), (width, height), (width, 0), (width // 2, height // 2)):
        box = (max(x - 20, 0), max(y - 20, 0), min(x + 20, width), min(y + 20, height))
        draw._label(image, "#12 car 0.91", box, x, (0, 158, 115), plates)
    assert len(plates) == 4
    for left, top, right, bottom in plates:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert 9 <= bottom - top <= max(14, height // 20)
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in plates)
    assert changed(image, np.zeros_like(image)).sum() >= 0.8 * covered  # black letters hide some, overlap would more
    for index, (left, top, right, bottom) in enumerate(plates):
        assert not any(left < r and l < right and top < b and t < bottom for l, t, r, b in plates[:index])


def test_a_label_says_id_label_and_score_and_is_drawn_above_the_object():
    assert draw._text(0, ["a  red\ncar"], [0.914], [7]) == "#7 a red car 0.91"
    assert draw._text(0, None, [0.5], None) == "0.50" and draw._text(0, None, None, None) == ""
    mask = disc(200, 300, 150, 120, 40)
    touched = np.argwhere(changed(overlay(np.full((200, 300, 3), 9, np.uint8), mask[None], labels=["car"]), 9) & ~mask)
    assert 55 < touched[:, 0].min() and touched[:, 0].max() < 82 and abs(touched[:, 1].mean() - 150) < 5


def test_accents_that_the_font_lacks_are_left_out():
    assert in_plain_letters("#1 café Ångström 0.90") == "#1 cafe Angstrom 0.90"
    assert in_plain_letters("#2 한국 ½") == "#2 한국 ½"


def test_a_long_label_is_cut_and_a_tiny_picture_does_without():
    mask = np.zeros((1, 60, 80), bool)
    mask[0, 30:40, 30:40] = True
    out = overlay(GREY, mask, labels=["a very long description of a thing " * 9], ids=[1])
    assert changed(out, GREY)[:30].any()
    tiny = np.zeros((4, 4, 3), np.uint8)
    assert overlay(tiny, np.ones((1, 4, 4), bool), labels=["car"]).shape == tiny.shape


def test_boxes_are_drawn_where_there_are_no_masks_and_cut_at_the_border():
    boxes = np.array([[10.0, 20.0, 30.0, 40.0], [-50.0, 50.0, 900.0, 70.0], [90.0, 5.0, 99.0, 9.0], [np.nan, 0, 5, 5]])
    seen = changed(overlay(GREY, None, boxes), GREY)
    assert seen[20, 10:30].all() and seen[20:40, 10].all() and not seen[25:35, 15:25].any()
    assert seen[50].all() and seen[59].all() and not seen[:19].any()


def test_a_crop_is_the_object_on_nothing():
    mask = np.zeros((60, 80), bool)
    mask[10:20, 30:50] = mask[20:25, 30:40] = True
    cut = crop(GREY, mask)
    assert cut.shape == (15, 20, 4) and cut.dtype == np.uint8 and mask_box(mask) == (30, 10, 50, 25)
    assert np.array_equal(cut[..., 3] > 0, mask[10:25, 30:50]) and cut[0, 0].tolist() == [100, 100, 100, 255]
    assert cut[-1, -1].tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="empty mask"):
        crop(GREY, np.zeros((60, 80), bool))


@pytest.mark.parametrize(
    "wrong,words",
    [
        ({"image": GREY.astype(float)}, "uint8"),
        ({"masks": np.ones((1, 5, 5), bool)}, "but the image"),
        ({"masks": np.ones((1, 60, 80), bool), "labels": []}, "different lengths"),
        ({"scores": [1], "ids": [1, 2]}, "diff"),
    ],
)
def test_what_does_not_fit_together_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        overlay(**{"image": GREY} | wrong)
