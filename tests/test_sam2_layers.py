import pytest
import torch
import torch.nn.functional as F
from helpers.sam2_tiny import tiny_model

from minisam_glue.sam2.hiera import from_windows, to_windows
from minisam_glue.sam2.layers import FEW, Attention, ParameterCache, sine_position_2d
from minisam_glue.sam2.mask_decoder import double, nest, unnest
from minisam_glue.sam2.memory import RotaryAttention, rotary_table, rotate, weighted_sum


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(**sizes):
    torch.manual_seed(0)
    layer = Attention(32, heads=4, **sizes).requires_grad_(False)
    for name, value in layer.named_parameters():
        if name.endswith("bias"):
            value.copy_(noise(len(value), seed=1))
    return layer


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("tokens", [1, 9, FEW + 1])
def test_folded_attention_equals_the_fused_one(images, tokens):
    layer, few, image = attention(inner=16), noise(3, tokens, 32), noise(images, 50, 32, seed=2)
    placed = image + noise(1, 50, 32, seed=3)
    torch.testing.assert_close(layer.read(few, placed, image), layer(few, placed, image), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.write(placed, few, few + 1), layer(placed, few, few + 1), atol=1e-5, rtol=1e-5)


def test_values_summed_before_their_projection_equal_fused_attention():
    q, k, v = 9 * noise(1, 20, 8), noise(3, 50, 8, seed=1), noise(3, 50, 4, seed=2)
    want = F.scaled_dot_product_attention(q[None].expand(3, 1, -1, -1), k[:, None], v[:, None])[:, 0]
    torch.testing.assert_close(weighted_sum(q * 8**-0.5, k, v, rows=7, columns=16), want)


def test_an_object_is_attended_alike_alone_and_among_others():
    torch.manual_seed(0)
    layer = RotaryAttention(32, kv_dim=8).requires_grad_(False)
    x, k = noise(1, 16, 32), noise(3, 36, 8, seed=1)
    torch.testing.assert_close(layer(x, k, k, 4)[1:2], layer(x, k[1:2], k[1:2], 4), atol=1e-6, rtol=1e-6)


def test_memory_attention_gives_the_same_numbers_with_and_without_gradients():
    torch.manual_seed(0)
    layer = RotaryAttention(32, kv_dim=8)
    x, k = noise(1, 16, 32), noise(3, 36, 8, seed=1)
    with torch.no_grad():
        want = layer(x, k, k, 4)
    got = layer(x, k, k, 4)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)
    got.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_tables_made_while_tracking_serve_training():
    rotary_table.cache_clear()
    sine_position_2d.cache_clear()
    with torch.inference_mode():
        tables = *rotary_table(4, 8, torch.device("cpu")), sine_position_2d(4, 4, 8, torch.device("cpu"))
    for table in tables:
        (torch.ones(8, requires_grad=True) * table).sum().backward()


def test_rotary_products_depend_on_offsets_alone():
    cos, sin = rotary_table(6, 32, torch.device("cpu"))
    q, k = (rotate(x.expand(36, 32), cos, sin).view(6, 6, 32) for x in (noise(32), noise(32, seed=1)))
    torch.testing.assert_close(q[0, 1] @ k[2, 4], q[3, 0] @ k[5, 3], atol=1e-5, rtol=1e-5)


def test_folded_neck_equals_two_convolutions():
    model = tiny_model()
    encoder, conv = model.image_encoder, model.sam_mask_decoder.conv_s1
    x = noise(2, 6, 6, 16)
    lateral = F.linear(x, *encoder.neck.weights(1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(encoder.folded(1, x, conv), conv(lateral).permute(0, 2, 3, 1), atol=1e-5, rtol=1e-5)


def test_transposed_convolution_equals_its_product():
    torch.manual_seed(0)
    conv = torch.nn.ConvTranspose2d(6, 5, 2, stride=2).requires_grad_(False)
    image = noise(2, 9, 6)
    want = conv(image.mT.unflatten(2, (3, 3)))
    torch.testing.assert_close(double(conv, image), nest(want.permute(0, 2, 3, 1), 3), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("height, width, size", [(8, 8, 4), (7, 9, 4), (1, 1, 7)])
def test_windows_come_back_without_their_padding(height, width, size):
    x = noise(2, height, width, 3)
    assert torch.equal(from_windows(to_windows(x, size), height, width), x)


def test_nested_order_comes_back_to_raster_order():
    x = noise(2, 12, 12, 1)
    assert torch.equal(unnest(nest(x, 3).permute(0, 3, 1, 2), 3), x.permute(0, 3, 1, 2))


def test_cached_positions_follow_the_weights():
    weight, cache, calls = torch.ones(3), ParameterCache(), []

    def value():
        calls.append(1)
        return weight * 2

    with torch.no_grad():
        for _ in range(3):
            assert cache.get([weight], (), value).sum() == 6
        assert len(calls) == 1
        weight.add_(1)
        assert cache.get([weight], (), value).sum() == 12
        assert cache.get([weight], (5,), value).sum() == 12 and len(calls) == 3
