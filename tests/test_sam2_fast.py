"""Each faster form gives the numbers of the plain module that it stands for, and a whole model is switched at once."""

import copy

import pytest
import torch
from helpers.sam2_tiny import frames, noise, tiny_model

from minisam_glue.sam2 import ImagePredictor, VideoTracker, accelerate, build, compile_model, fast
from minisam_glue.sam2.fast import FORMS, depth_to_space, space_to_depth, weighted_sum
from minisam_glue.sam2.hiera import Hiera, HieraBlock
from minisam_glue.sam2.layers import Attention
from minisam_glue.sam2.memory import RotaryAttention

BOX, OTHER = [5, 10, 20, 25], [30, 5, 50, 20]


def both(module):
    """A plain module with random weights and biases, and its faster form with the same."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / max(parameter[0].numel(), 2) ** 0.5)
    other = copy.deepcopy(module)
    other.__class__ = FORMS[type(module)]
    return module, other


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("tokens", [1, 9, fast.FEW, fast.FEW + 1])
def test_attention_of_few_tokens_equals_the_formula(tokens, images):
    plain, folded = both(Attention(32, heads=4, inner=16))
    few, image = noise(3, tokens, 32), noise(images, 50, 32, seed=2)
    image_with_pe = image + noise(1, 50, 32, seed=3)
    for q, k, v in ((few, image_with_pe, image), (image_with_pe, few, few + 1), (few, few + 1, few)):
        torch.testing.assert_close(folded(q, k, v), plain(q, k, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cells", [1, 4])
def test_attention_of_an_image_of_fewer_tokens_than_the_prompts_equals_the_formula(cells):
    plain, folded = both(Attention(32, heads=4, inner=16))
    image, prompts = noise(1, cells, 32), noise(3, 12, 32, seed=2)
    torch.testing.assert_close(folded(image, prompts, prompts), plain(image, prompts, prompts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [8, 32])
@pytest.mark.parametrize("pointers", [0, 4])
def test_rotary_attention_equals_the_formula_with_and_without_gradients(pointers, width):
    plain, other = both(RotaryAttention(32, kv_dim=width))
    x, k, v = noise(1, 16, 32), noise(3, 32 + pointers, width, seed=1), noise(3, 32 + pointers, width, seed=2)
    with torch.no_grad():
        torch.testing.assert_close(other(x, k, v, pointers), plain(x, k, v, pointers), atol=1e-5, rtol=1e-5)
    for layer in (plain, other):
        layer(x, k, v, pointers).square().sum().backward()
    for a, b in zip(plain.parameters(), other.parameters()):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4)


def test_values_summed_in_tiles_equal_the_softmax():
    q, k, v = 9 * noise(1, 20, 8), noise(3, 50, 8, seed=1), noise(3, 50, 4, seed=2)
    want = (q @ k.mT).softmax(-1) @ v
    torch.testing.assert_close(weighted_sum(q, k, v, rows=7, columns=16), want, atol=1e-5, rtol=1e-5)


def test_tables_made_while_tracking_serve_training():
    fast.rotary_table.cache_clear()
    with torch.inference_mode():
        table = fast.rotary_table(4, 8, torch.device("cpu"))
    x = torch.ones(16, 8, requires_grad=True)
    fast.rotate_complex(x, table).sum().backward()
    assert x.grad.any()


@pytest.mark.parametrize("dim_out", [16, 32])
@pytest.mark.parametrize("height, width, window", [(16, 16, 4), (14, 18, 8), (20, 6, 4), (12, 12, 0)])
def test_strips_of_windows_equal_the_whole_map(height, width, window, dim_out, monkeypatch):
    monkeypatch.setattr(fast, "CPU_TOKENS", 80)
    plain, strips = both(HieraBlock(16, dim_out, 2, window).requires_grad_(False))
    x = noise(2, height, width, 16)
    torch.testing.assert_close(strips(x), plain(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("background", [(7, 7), (3, 5)])
def test_positions_stretched_by_matrices_equal_the_interpolated_ones(background):
    plain, separable = both(Hiera(8, 1, (1, 1, 1, 1), (), (8, 4, 14, 7), background).requires_grad_(False))
    torch.testing.assert_close(separable.position(32, 24), plain.position(32, 24), atol=1e-5, rtol=1e-5)


def test_space_to_depth_puts_the_cells_of_a_square_together_and_back():
    x = torch.arange(16).view(1, 4, 4)
    assert space_to_depth(x)[0, 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert torch.equal(depth_to_space(space_to_depth(x)), x)


def test_a_switched_model_keeps_its_weights_and_their_names_and_has_every_form():
    model = copy.deepcopy(tiny_model())
    before = dict(model.named_parameters())
    assert accelerate(model) is model
    after = dict(model.named_parameters())
    assert list(before) == list(after) and all(before[name] is after[name] for name in before)
    kinds = {type(module) for module in model.modules()}
    assert set(FORMS.values()) <= kinds and not set(FORMS) & kinds


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("size", [64, 96])
def test_a_switched_model_gives_the_same_masks_of_an_image(size, multimask):
    predictors = [ImagePredictor(tiny_model(size, fast=fast)) for fast in (False, True)]
    for predictor in predictors:
        predictor.set_images([frames(1)[0], frames(1, seed=1)[0]])
    for image in (0, 1):
        want, got = (p.predict([BOX, OTHER], multimask=multimask, logits=True, image=image) for p in predictors)
        torch.testing.assert_close(got.masks, want.masks, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(got.scores, want.scores, atol=1e-5, rtol=1e-5)
    none = [p.predict(torch.zeros(0, 4), multimask=multimask).masks.shape for p in predictors]
    assert none[0] == none[1] and none[0][0] == 0


@pytest.mark.parametrize("chunk", [1, 8])
@pytest.mark.parametrize("first", [False, True])
def test_a_switched_model_tracks_the_same_masks(first, chunk):
    trackers = [VideoTracker(tiny_model(first=first, fast=fast), chunk=chunk) for fast in (False, True)]
    for tracker in trackers:
        tracker.step(frames(1)[0])
        tracker.prompt(1, box=BOX)
        tracker.prompt(2, points=[[40, 12]], labels=[1])
    for frame in frames(6)[1:]:
        want, got = (tracker.step(frame) for tracker in trackers)
        torch.testing.assert_close(got.low_res, want.low_res, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(got.object_score_logits, want.object_score_logits, atol=1e-4, rtol=1e-4)


def test_the_frame_attends_to_itself_once_for_all_objects(monkeypatch):
    tracker, calls = VideoTracker(tiny_model(fast=True), chunk=1), []
    first = tracker.model.memory_attention.layers[0]
    attend = first.attend_to_frame
    monkeypatch.setattr(first, "attend_to_frame", lambda x: calls.append(1) or attend(x))
    video = frames(3)
    tracker.step(video[0])
    for number, box in enumerate((BOX, OTHER)):
        tracker.prompt(number, box=box)
    for frame in video[1:]:
        tracker.step(frame)
    assert len(calls) == 2


def test_the_plain_image_encoder_and_mask_decoder_are_exported():
    model = build(tiny_model().config)
    encoder, decoder = model.image_encoder, model.sam_mask_decoder
    image = noise(1, 3, 64, 64)
    exported = torch.export.export(encoder, (image,)).module()
    for got, want in zip(exported(image + 1), encoder(image + 1), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    features, position = model.encode_image(image), model.sam_prompt_encoder.image_position()
    for multimask in (False, True):
        inputs = (features.tokens, position, noise(2, 3, 256), features.high_res, multimask)
        exported = torch.export.export(decoder, inputs).module()
        other = (*inputs[:2], noise(2, 3, 256, seed=1), *inputs[3:])
        for got, want in zip(exported(*other), decoder(*other), strict=True):
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("switch", [False, True])
def test_a_compiled_model_gives_the_same_masks(switch):
    trackers = [VideoTracker(m) for m in (tiny_model(), compile_model(copy.deepcopy(tiny_model(fast=switch))))]
    for tracker in trackers:
        tracker.step(frames(1)[0])
        tracker.prompt(1, box=BOX)
    for frame in frames(4)[1:]:
        a, b = (tracker.step(frame) for tracker in trackers)
        torch.testing.assert_close(a.low_res, b.low_res, atol=1e-3, rtol=1e-3)
        assert torch.equal(a.masks(), b.masks())
