"""The faster forms of Grounding DINO's modules equal the plain ones, forwards and backwards."""

import copy

import pytest
import torch
from helpers.gather_samples import gather_samples
from helpers.gdino_tiny import TOKENIZER, tiny_model

from minisam_glue.grounding_dino import fast
from minisam_glue.grounding_dino.deformable_attention import MSDeformAttn, deformable_sample
from minisam_glue.grounding_dino.fast import FORMS, accelerate
from minisam_glue.grounding_dino.fusion import BiMultiHeadAttention
from minisam_glue.grounding_dino.swin import WindowAttention, shift_mask


def encode(model, images=2):
    ids = torch.tensor([TOKENIZER.encode("red car . dog ."), [*TOKENIZER.encode("cat ."), 0, 0, 0]][:images])
    return model.encode_text(ids, ids != 0)


def predict(model):
    """Outputs for two images of unequal size, with padding in the images and in the text."""
    torch.manual_seed(5)
    images = torch.randn(2, 3, 40, 56).to(model.feat_map.weight.dtype)
    return model(images, encode(model), [(40, 40), (32, 56)])


def pair():
    model = tiny_model()
    return model, accelerate(copy.deepcopy(model))


def test_every_module_that_has_a_faster_form_is_switched_and_keeps_its_weights():
    plain, quick = pair()
    kinds = {type(module) for module in plain.modules()}
    assert FORMS.keys() <= kinds and not FORMS.keys() & {type(module) for module in quick.modules()}
    assert all(issubclass(form, kind) and form.__init__ is kind.__init__ for kind, form in FORMS.items())
    assert all(torch.equal(value, quick.state_dict()[key]) for key, value in plain.state_dict().items())
    assert accelerate(quick) is quick


@pytest.mark.parametrize("part", [fast.PART, 1000])  # numbers in a temporary: all tokens at once, and a few
def test_the_whole_model_predicts_the_same(part, monkeypatch):
    monkeypatch.setattr(fast, "PART", part)
    plain, quick = (model.double() for model in pair())  # in float32 rounding makes 1e-4, more or less by the processor
    with torch.no_grad():
        want, got = predict(plain)[0], predict(quick)[0]
    assert torch.allclose(got.logits, want.logits, atol=1e-5) and torch.allclose(got.boxes, want.boxes, atol=1e-6)


def test_it_has_the_gradients_of_the_plain_model():
    plain, quick = pair()
    for model in (plain, quick):
        outputs = predict(model.train())
        torch.manual_seed(6)
        sum((o.boxes * torch.randn_like(o.boxes)).sum() + o.logits[:, :, :4].sum() for o in outputs).backward()
    largest = max(float(p.grad.abs().max()) for p in plain.parameters())
    for (name, a), b in zip(plain.named_parameters(), quick.named_parameters()):
        assert torch.allclose(a.grad, b[1].grad, rtol=1e-3, atol=1e-6 * largest), name


@pytest.mark.parametrize("windows_at_once", [1, 3, 100])
def test_windows_in_parts_equal_all_windows_at_once(windows_at_once, monkeypatch):
    monkeypatch.setattr(fast, "PART", windows_at_once * 3 * 9 * 32)
    torch.manual_seed(4)
    plain, x = WindowAttention(32, 4, 3), torch.randn(2 * 4, 9, 32)  # two images of 2 x 2 windows
    for mask in (None, shift_mask(6, 6, 3, 1, x.device)):
        assert (accelerate(copy.deepcopy(plain))(x, mask) - plain(x, mask)).abs().max() < 1e-6


@pytest.mark.parametrize("masked", [False, True])
def test_folded_fusion_equals_the_formula(masked):
    torch.manual_seed(2)
    plain = BiMultiHeadAttention(32, 64, 4).double()
    v, l = torch.randn(2, 50, 32).double(), torch.randn(2, 7, 32).double()
    valid = (torch.arange(50) < torch.tensor([[50], [31]]), torch.arange(7) < torch.tensor([[4], [7]]))
    valid = valid if masked else (None, None)
    for got, want in zip(accelerate(copy.deepcopy(plain))(v, l, *valid), plain(v, l, *valid)):
        assert (got - want).abs().max() < 1e-13


def test_samples_on_and_beyond_every_border_equal_the_plain_form():
    torch.manual_seed(1)
    shapes = ((3, 2), (1, 5))  # the second level is wider than the first
    B, h, S = 2, 3, sum(height * width for height, width in shapes)
    steps = torch.arange(-0.5, 1.5, 1 / 20)  # beyond the map, on its edges, in the middle of its cells
    places = torch.cartesian_prod(steps, steps)  # (Q, 2)
    locations = places[None, :, None, None, None].expand(B, -1, h, len(shapes), 1, -1)
    value, weights = torch.randn(B, S, h, 4), torch.rand(B, len(places), h, len(shapes), 1)
    want = deformable_sample(value, shapes, locations, weights)
    assert (gather_samples(value, shapes, locations, weights) - want).abs().max() < 1e-5


@pytest.mark.parametrize("numbers", [2, 4])  # reference points, and boxes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deformable_attention_equals_the_plain_form(numbers, dtype):
    torch.manual_seed(3)
    shapes = ((6, 4), (3, 2), (2, 1))
    plain = MSDeformAttn(32, 3, 4, 2)
    for parameter in plain.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    quick = accelerate(copy.deepcopy(plain)).to(dtype)
    query, value = torch.randn(2, 9, 32), torch.randn(2, 32, 32)
    arguments = torch.rand(2, 9, 3, numbers), value, shapes, torch.rand(2, 32) < 0.9
    with torch.no_grad():
        want = plain(query, *arguments)
        got = quick(query.to(dtype), arguments[0], value.to(dtype), *arguments[2:])
    assert got.dtype == dtype and (got - want).abs().max() < (1e-5 if dtype == torch.float32 else 0.03)
