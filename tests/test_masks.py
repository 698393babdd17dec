"""Run lengths of masks: the strings below were written by pycocotools 2.0.11 (COCO API) for the masks beside them."""

import json

import numpy as np
import pytest
import torch

from minisam_glue.looks import mean_tokens
from minisam_glue.masks import boxes_of, erode, large_parts
from minisam_glue.masks import decode_rle as decode
from minisam_glue.masks import encode_rle as encode


def disc() -> np.ndarray:
    y, x = np.mgrid[:13, :11]
    return (y - 6) ** 2 + (x - 5) ** 2 < 22


def holed() -> np.ndarray:
    mask = np.zeros((40, 50), bool)
    mask[3:37, 4:44] = True
    mask[10:12, 20] = False
    return mask


def steps() -> np.ndarray:
    """A diagonal, and a block whose runs shrink: negative differences of one and of two characters."""
    mask = np.eye(100, dtype=bool)
    mask[50:, :10] = True
    return mask


def chequered() -> np.ndarray:
    return np.add.outer(np.arange(13), np.arange(11)) % 2 == 0


PYCOCOTOOLS = {
    disc: "a0572N2O00000001N2N:",
    holed: "S5R16000000000000000000000000000000UOLb04900000000000000000000000000000000000000000000]7",
    steps: "01a1a1`N_N_1a1bN_N]1a1dN_N[1a1fN_NY1a1hN_NW1a1jN_NU1a1lN_NS1a1nN_NQ1a1PO_No0a1RO_Nj2" + "0" * 177,
    chequered: "011" + "0" * 141,
    lambda: np.zeros((30, 40), bool): "`U1",
    lambda: np.ones((30, 40), bool): "0`U1",
    lambda: np.zeros((0, 5), bool): "0",
}


@pytest.mark.parametrize("make", PYCOCOTOOLS)
def test_strings_are_those_of_pycocotools_in_both_directions(make):
    mask, text = make(), PYCOCOTOOLS[make]
    assert encode(mask) == {"size": list(mask.shape), "counts": text}
    for counts in (text, text.encode()):
        read = decode({"size": list(mask.shape), "counts": counts})
        assert read.dtype == bool and read.flags.c_contiguous and np.array_equal(read, mask)


def test_small_strings_worked_by_hand():
    """Columns of [[0, 1], [1, 1]]: 0 1 1 1, so the runs 1 3; 31 takes two characters, as bit 5 is the sign."""
    assert encode(np.array([[0, 1], [1, 1]])) == {"size": [2, 2], "counts": "13"}
    assert encode(np.zeros((31, 1)))["counts"] == "o0"  # 31 = 11111, 0: 48 + 32 + 31 = "o", "0"
    assert encode(np.zeros((16, 1)))["counts"] == "`0"  # 16 = 10000 alone would read as -16
    assert encode(np.array([[0, 1, 1, 0, 1]]))["counts"] == "121O"  # runs 1 2 1 1, the last as 1 - 2 = -1 = 11111
    assert decode({"size": [2, 2], "counts": [1, 3]}).tolist() == [[False, True], [True, True]]


def test_random_masks_return_from_json_unchanged():
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = rng.random(rng.integers(1, 70, 2)) < rng.random() ** 2
        assert np.array_equal(decode(json.loads(json.dumps(encode(mask)))), mask)


def test_large_runs_are_kept():
    mask = np.zeros((3000, 2000), bool)
    mask[2999, 1998] = mask[:, 1999] = True
    rle = encode(mask)
    assert len(rle["counts"]) < 12 and np.array_equal(decode(rle), mask)


@pytest.mark.parametrize(
    "rle,words",
    [
        ({"size": [2, 2], "counts": "12"}, "do not add up to 2 x 2"),
        ({"size": [2, 2], "counts": ""}, "do not add up"),
        ({"size": [2, 2], "counts": "5O"}, "do not add up"),
        ({"size": [2, 2], "counts": [5, -1]}, "do not add up"),
        ({"size": [2, 2], "counts": "1 3"}, "none of '0' to 'o'"),
        ({"size": [2, 2], "counts": "1é"}, "none of '0' to 'o'"),
        ({"size": [2, 2], "counts": b"1\xff"}, "none of '0' to 'o'"),
        ({"size": [2, 2], "counts": "1`"}, "cut off"),
        ({"size": [2, 2], "counts": "o" * 12 + "0"}, "a number of 13 characters"),
        ({"size": [2, 2], "counts": [1.5, 2.5]}, "whole numbers"),
        ({"size": [2, 2], "counts": None}, "whole numbers"),
        ({"size": [2, -2], "counts": "4"}, r"no mask has the size \[2, -2\]"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "no mask has the size"),
        ({"size": [4], "counts": "4"}, "no mask has the size"),
        ({"counts": "4"}, "run lengths are"),
        ("4", "run lengths are"),
    ],
)
def test_damaged_run_lengths_are_refused(rle, words):
    with pytest.raises(ValueError, match=words):
        decode(rle)


def test_only_two_dimensions_are_encoded():
    with pytest.raises(ValueError, match="not \\(1, 2, 2\\)"):
        encode(np.zeros((1, 2, 2), bool))


def test_boxes_bound_masks_and_that_of_nothing_is_the_whole_picture():
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, 2:4, 1:7] = masks[1, 5, 7] = True
    assert boxes_of(masks).tolist() == [[1, 2, 7, 4], [7, 5, 8, 6], [0, 0, 8, 6]]


def test_erosion_by_more_than_the_mask_ends_and_leaves_nothing():
    assert erode(np.ones((9, 7), bool), 1).sum() == 7 * 5
    assert not erode(np.ones((9, 7), bool), 10**300).any()


def test_large_parts_have_a_share_of_the_largest_and_so_many_pixels():
    mask = np.zeros((6, 12), bool)
    mask[:4, :4] = mask[:2, 6:10] = mask[5, 11] = True  # 16, 8 and 1 pixels
    limits = ({}, 25), ({"share": 0.5}, 24), ({"share": 0.51}, 16), ({"least": 1.5}, 24), ({"least": 17}, 0)
    for kept, left in limits:
        assert large_parts(mask, **kept).sum() == left
    assert not large_parts(mask & False, 0.5).any()


def test_the_token_of_a_mask_is_the_mean_inside_of_length_1():
    masks, tokens = torch.zeros(3, 4, 4, dtype=torch.bool), torch.eye(4)  # of 2 x 2 cells
    masks[0, :2, :2] = masks[1, :2] = True
    half = 0.5**0.5
    assert torch.allclose(mean_tokens(masks, tokens), torch.tensor([[1.0, 0, 0, 0], [half, half, 0, 0], [0, 0, 0, 0]]))
