import pytest
import torch
from helpers.flood import flood

from minisam_glue.sam2.components import clean, fill_holes, small_components


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4, 0.6])
@pytest.mark.parametrize("max_area", [1, 3, 8, 20])
def test_small_components_equal_a_flood_fill(share, max_area):
    mask = torch.rand(2, 1, 23, 31, generator=torch.Generator().manual_seed(max_area)) < share
    want = torch.stack([flood(m, max_area)[None] for m in mask[:, 0]])
    assert torch.equal(small_components(mask, max_area), want)
    assert want.any() or share > 0.25


def test_diagonal_neighbours_are_connected():
    assert small_components(torch.eye(8, dtype=torch.bool), 8).sum() == 8
    assert small_components(torch.eye(9, dtype=torch.bool), 8).sum() == 0


def test_a_snake_longer_than_the_area_is_left_alone():
    mask = torch.zeros(9, 40, dtype=torch.bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    assert small_components(mask, 30).sum() == 0


def test_holes_are_filled_and_sprinkles_removed_but_the_rest_stays():
    logits = torch.full((1, 20, 20), -3.0)
    logits[:, 2:12, 2:12] = 5
    logits[:, 5:7, 5:7] = 0  # a hole of 4
    logits[:, 16, 16] = 2  # a sprinkle of 1
    got = clean(logits, 4, 1, 0.1, -0.1)
    want = logits.clone()
    want[:, 5:7, 5:7], want[:, 16, 16] = 0.1, -0.1
    assert torch.equal(got, want)
    assert torch.equal(fill_holes(logits, 3, 0.1), logits)


def test_no_masks_and_too_large_masks_are_defined():
    assert small_components(torch.zeros(0, 5, 5, dtype=torch.bool), 8).shape == (0, 5, 5)
    with pytest.raises(ValueError, match="less than 4096"):
        small_components(torch.zeros(1, dtype=torch.bool).expand(4096, 4096), 8)
