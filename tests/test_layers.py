import pytest
import torch

from minivit.layers import MLP, ConvStem, DropPath, LayerScale, PatchEmbed, drop_path_rates, sincos_2d


def test_patch_embedding_is_one_linear_map_of_each_patch_in_raster_order():
    embed, x = PatchEmbed(4, 5), torch.randn(2, 3, 8, 12)
    out = embed(x)
    assert out.shape == (2, 6, 5)
    patch = x[:, :, 4:8, 8:12].flatten(1)  # second row, third column
    expected = patch @ embed.proj.weight.flatten(1).T + embed.proj.bias
    torch.testing.assert_close(out[:, 5], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_the_convolutional_stem_has_one_token_per_patch(patch):
    assert ConvStem(patch, 32)(torch.randn(2, 3, 16, 24)).shape == (2, (16 // patch) * (24 // patch), 32)


def test_a_convolutional_stem_names_a_patch_it_cannot_do():
    with pytest.raises(ValueError, match="--patch 6: .* power of two"):
        ConvStem(6, 32)


def test_the_convolution_in_the_mlp_reaches_the_eight_neighbours_and_no_special_token():
    torch.manual_seed(0)
    mlp, x = MLP(8, 16, conv=True), torch.randn(1, 2 + 25, 8, requires_grad=True)
    mlp(x, (5, 5))[0, 2 + 12].sum().backward()  # the middle of the 5 x 5 grid
    reached = {i for i in range(27) if x.grad[0, i].abs().sum() > 0}
    assert reached == {2 + i for i in (6, 7, 8, 11, 12, 13, 16, 17, 18)}


def test_drop_path_keeps_or_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    y = drop(torch.ones(40000, 2, 3)).flatten(1)
    assert (y == y[:, :1]).all() and y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert y.mean() == pytest.approx(1, abs=0.02)
    assert torch.equal(drop.eval()(torch.ones(4, 2)), torch.ones(4, 2))


def test_drop_path_rates_rise_linearly_from_zero():
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]


def test_layer_scale_starts_as_a_small_gain():
    assert torch.equal(LayerScale(3, 0.1)(torch.ones(2, 3)), torch.full((2, 3), 0.1))


def test_sincos_positions_are_distinct_and_of_equal_length():
    table = sincos_2d((4, 6), 32)
    assert table.shape == (24, 32)
    torch.testing.assert_close(table.norm(dim=1), torch.full((24,), 4.0))
    assert (torch.cdist(table, table) + torch.eye(24) > 1e-2).all()
    with pytest.raises(ValueError, match="divisible by 4"):
        sincos_2d((2, 2), 30)
