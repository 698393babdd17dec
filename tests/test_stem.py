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


def test_each_further_convolution_of_a_stage_adds_to_what_comes_in():
    torch.manual_seed(0)
    short, deep = WhiteningStem(4, 16, depth=1, width=8).eval(), WhiteningStem(4, 16, depth=3, width=8).eval()
    missing, unexpected = deep.load_state_dict(short.state_dict(), strict=False)
    assert {name.rsplit(".", 2)[0] for name in missing} == {"mix1.1", "mix1.2", "mix2.1", "mix2.2"} and not unexpected
    images = torch.randn(2, 3, 8, 8)
    assert not torch.equal(deep(images), short(images))
    for mix in (*deep.mix1[1:], *deep.mix2[1:]):
        torch.nn.init.zeros_(mix.norm.weight)  # such a convolution adds nothing
    torch.testing.assert_close(deep(images), short(images))
