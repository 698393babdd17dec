import pytest
import torch

from minivit.stem import Whitening, WhiteningStem


def correlated_images() -> torch.Tensor:
    torch.manual_seed(0)
    noise = torch.randn(64, 3, 12, 12)
    return noise + noise.roll(1, 3) + noise.mean(1, keepdim=True)


def test_whitened_neighbourhoods_are_uncorrelated_and_of_unit_variance():
    images, layer = correlated_images(), Whitening()
    layer.fit(images, eps=0.0)
    y = layer(images)[:, :12].transpose(0, 1).flatten(1)  # (12, all places)
    torch.testing.assert_close(y @ y.T / y.shape[1], torch.eye(12), atol=1e-4, rtol=0)


def test_the_second_half_of_the_whitened_channels_is_the_first_with_the_other_sign():
    images, layer = correlated_images(), Whitening()
    layer.fit(images)
    first, second = layer(images).chunk(2, dim=1)
    torch.testing.assert_close(first, -second)


def test_whitening_is_frozen():
    assert not any(p.requires_grad for p in Whitening().parameters())


@pytest.mark.parametrize("side", [8, 24, 32])
def test_the_whitening_stem_makes_one_token_of_each_patch(side):
    assert WhiteningStem(4, 16, width=8)(torch.randn(2, 3, side, side)).shape == (2, side**2 // 16, 16)


def test_the_whitening_stem_names_the_patch_that_it_makes():
    with pytest.raises(ValueError, match="patches of 4x4 pixels, not 8x8"):
        WhiteningStem(8, 16)
