import pytest
import torch
from helpers.sam2_tiny import noise, tiny_model

from minisam_glue.sam2.hiera import from_windows, to_windows
from minisam_glue.sam2.layers import Attention, sine_position_2d
from minisam_glue.sam2.memory import MemoryAttention, RotaryAttention, axial_angles, rotate

CPU = torch.device("cpu")


@pytest.mark.parametrize("images", [1, 3])
def test_attention_is_the_softmax_of_scaled_products(images):
    torch.manual_seed(0)
    layer = Attention(32, heads=4, inner=16).requires_grad_(False)
    tokens, image = noise(3, 9, 32), noise(images, 50, 32, seed=1)
    q, k, v = layer.q_proj(tokens), layer.k_proj(image), layer.v_proj(image)
    heads = []
    for i in range(4):
        part = slice(4 * i, 4 * i + 4)
        heads.append((q[..., part] @ k[..., part].mT / 2).softmax(-1) @ v[..., part])
    torch.testing.assert_close(layer(tokens, image, image), layer.out_proj(torch.cat(heads, -1)))


def test_a_rotation_is_a_complex_product_of_channel_pairs():
    x, angles = noise(2, 36, 32), axial_angles(6, 32, CPU)
    turned = torch.view_as_complex(x.unflatten(-1, (16, 2))) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(rotate(x, angles), torch.view_as_real(turned).flatten(-2))


def test_rotary_products_depend_on_offsets_alone():
    angles = axial_angles(6, 32, CPU)
    q, k = (rotate(x.expand(36, 32), angles).view(6, 6, 32) for x in (noise(32), noise(32, seed=1)))
    torch.testing.assert_close(q[0, 1] @ k[2, 4], q[3, 0] @ k[5, 3], atol=1e-5, rtol=1e-5)
    assert not torch.isclose(q[0, 1] @ k[2, 4], q[0, 1] @ k[4, 2])


def test_pointers_have_no_place_and_maps_have():
    torch.manual_seed(0)
    layer = RotaryAttention(32, kv_dim=8).requires_grad_(False)
    x, memory = noise(1, 16, 32), noise(1, 36, 8, seed=1)
    swapped = memory[:, [*range(32), 33, 32, 34, 35]]
    torch.testing.assert_close(layer(x, memory, memory, 4), layer(x, swapped, swapped, 4))
    swapped = memory[:, [1, 0, *range(2, 36)]]
    assert not torch.allclose(layer(x, memory, memory, 4), layer(x, swapped, swapped, 4), atol=1e-3)
    other_frame = memory[:, [*range(16, 32), *range(16), *range(32, 36)]]
    torch.testing.assert_close(layer(x, memory, memory, 4), layer(x, other_frame, other_frame, 4))


def test_an_object_is_attended_alike_alone_and_among_others():
    torch.manual_seed(0)
    layer = MemoryAttention(32, 8, 48, 2).requires_grad_(False)
    frame, place = noise(1, 16, 32), sine_position_2d(4, 4, 32, CPU)
    memory, position = noise(3, 36, 8, seed=1), noise(1, 36, 8, seed=2)
    together = layer(frame, place, memory, position, 4)
    torch.testing.assert_close(together[1:2], layer(frame, place, memory[1:2], position, 4), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("height, width, size", [(8, 8, 4), (7, 9, 4), (1, 1, 7)])
def test_windows_come_back_without_their_padding(height, width, size):
    x = noise(2, height, width, 3)
    assert torch.equal(from_windows(to_windows(x, size), height, width), x)


def test_a_window_sees_nothing_of_another():
    block = tiny_model().image_encoder.trunk.blocks[0]
    x = noise(1, 16, 16, 8)
    changed = x.clone()
    changed[:, :8, :8] += 1
    same = (block(x) == block(changed)).all(-1)[0]
    assert not same[:8, :8].any() and same[8:].all() and same[:, 8:].all()


def test_the_mask_decoder_upscales_as_act_norm_deconv_plus_the_finer_map():
    decoder = tiny_model().sam_mask_decoder
    deconv1, norm, _, deconv2, _ = decoder.output_upscaling
    image, s0, s1 = noise(2, 16, 256), noise(1, 32, 16, 16, seed=1), noise(1, 64, 8, 8, seed=2)
    x = torch.nn.functional.gelu(norm(deconv1(image.mT.reshape(2, 256, 4, 4)) + s1))
    want = torch.nn.functional.gelu(deconv2(x) + s0)
    torch.testing.assert_close(decoder.upscale(image, s0, s1), want)
