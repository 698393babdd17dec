"""The network as the papers have it: loading, its parts against explicit formulas, precision, export."""

import parity
import pytest
import torch
from helpers.gather_samples import gather_samples
from helpers.gdino_tiny import CONFIG, TOKENIZER, tiny_model

from minisam_glue.grounding_dino import model as model_module
from minisam_glue.grounding_dino.bert import phrase_masks
from minisam_glue.grounding_dino.deformable_attention import deformable_sample
from minisam_glue.grounding_dino.model import PRESETS, GroundingDINO, load, load_official
from minisam_glue.grounding_dino.swin import WindowAttention, shift_mask
from minisam_glue.grounding_dino.transformer import Attention

GOLDEN = parity.ROOT / "golden" / "groundingdino"
SHAPES = ((5, 7), (3, 4), (2, 2))


def encode(model, caption="red car . dog .", images=1):
    ids = torch.tensor([TOKENIZER.encode(caption)] * images)
    return model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool))


# --- Checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset, manifest", [("swin-t", "swint_ogc"), ("swin-b", "swinb_cogcoor")])
def test_published_checkpoints_load_by_their_own_names(preset, manifest):
    state = parity.manifest_state(GOLDEN / f"manifest_groundingdino_{manifest}.json")
    state |= {"label_enc.weight": torch.zeros(1), "bert.embeddings.position_ids": torch.zeros(1)}
    with torch.device("meta"):
        model = GroundingDINO(PRESETS[preset])
    load_official(model, {f"module.{key}": value for key, value in state.items()})
    assert not any(p.is_meta for p in model.state_dict().values())
    assert len(set(state) - set(model.state_dict())) == len(model_module.IGNORED_KEYS)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("feat_map.bias"), "1 missing, such as feat_map.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 not known, such as extra"),
        (lambda s: s.update({"feat_map.bias": torch.zeros(3)}), "1 of another shape, such as feat_map.bias"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(change, message):
    state = tiny_model().state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        load_official(tiny_model(), state)


def test_a_saved_model_loads_and_predicts_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", CONFIG)
    model = tiny_model()
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "tiny.pth")
    loaded, image = load(tmp_path / "tiny.pth", "tiny"), torch.randn(1, 3, 40, 56)
    assert not loaded.training
    assert torch.equal(loaded(image, encode(loaded))[0].logits, model(image, encode(model))[0].logits)
    with pytest.raises(ValueError, match="no preset 'swin-x'"):
        load(tmp_path / "tiny.pth", "swin-x")


# --- Deformable attention ----------------------------------------------------------------------------------


def naive_sample(value, shapes, locations, weights):
    """One bilinear read at a time."""
    (B, _, h, d), (_, Q, _, levels, points) = value.shape, weights.shape
    out = torch.zeros(B, Q, h, d, dtype=value.dtype)
    for b, q, head, level, point in torch.cartesian_prod(*map(torch.arange, (B, Q, h, levels, points))).tolist():
        H, W = shapes[level]
        start = sum(a * c for a, c in shapes[:level])
        x, y = (locations[b, q, head, level, point] * torch.tensor([W, H]) - 0.5).unbind()
        for column in (x.floor(), x.floor() + 1):
            for row in (y.floor(), y.floor() + 1):
                if 0 <= column < W and 0 <= row < H:
                    share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * weights[b, q, head, level, point]
                    out[b, q, head] += share * value[b, start + int(row) * W + int(column), head]
    return out.flatten(2)


SAMPLERS = [deformable_sample, gather_samples]


def sampling_inputs(dtype=torch.float32):
    torch.manual_seed(1)
    S = sum(h * w for h, w in SHAPES)
    value, locations = torch.randn(2, S, 2, 4, dtype=dtype), torch.rand(2, 3, 2, 3, 2, 2) * 1.6 - 0.3
    return [t.requires_grad_() for t in (value, locations, torch.rand(2, 3, 2, 3, 2))]


@pytest.mark.parametrize("sample", SAMPLERS)
def test_deformable_sampling_equals_a_naive_loop(sample):
    inputs = sampling_inputs()
    got, want = (f(inputs[0], SHAPES, *inputs[1:]) for f in (sample, naive_sample))
    assert (got - want).abs().max() < 1e-5


def test_gradients_of_the_sampling_equal_those_of_a_naive_loop():
    inputs = sampling_inputs()
    seed = torch.randn(2, 3, 8)
    got, want = (
        torch.autograd.grad((f(inputs[0], SHAPES, *inputs[1:]) * seed).sum(), inputs)
        for f in (deformable_sample, naive_sample)
    )
    for g, w in zip(got, want):
        assert (g - w).abs().max() < 1e-4


@pytest.mark.parametrize("sample", SAMPLERS)
def test_a_location_that_is_not_a_number_spoils_no_other_query(sample):
    value, locations, weights = (t.detach() for t in sampling_inputs())
    locations[0, 0, 0, 0, 0] = torch.nan
    locations[0, 1, 0, 0, 0] = 1e30
    assert sample(value, SHAPES, locations, weights)[0, 1:].isfinite().all()


# --- Attention ---------------------------------------------------------------------------------------------


def explicit_attention(q, k, v, bias):
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + bias).softmax(-1) @ v


def test_fused_attention_equals_the_explicit_formula():
    torch.manual_seed(3)
    attention, x = Attention(32, 4), torch.randn(2, 9, 32)
    nn_attention = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    torch.nn.init.xavier_uniform_(attention.in_proj_weight)
    nn_attention.load_state_dict(attention.state_dict())
    mask = (torch.rand(2, 1, 9, 9) > 0.4) | torch.eye(9, dtype=torch.bool)
    want = nn_attention(x, x, x, attn_mask=~mask.expand(-1, 4, -1, -1).flatten(0, 1))[0]
    assert (attention(x, x, x, mask) - want).abs().max() < 1e-6


def test_window_attention_equals_the_explicit_formula():
    torch.manual_seed(4)
    attention, x = WindowAttention(32, 4, 3), torch.randn(2 * 4, 9, 32)  # two images of 2 x 2 windows
    mask = shift_mask(6, 6, 3, 1, torch.device("cpu"))
    q, k, v = attention.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    bias = attention.relative_position_bias_table[attention.relative_position_index].permute(2, 0, 1)
    want = explicit_attention(q, k, v, bias + mask.repeat(2, 1, 1)[:, None])
    want = attention.proj(want.transpose(1, 2).flatten(2))
    assert (mask != 0).any() and (attention(x, mask) - want).abs().max() < 1e-6


# --- Text --------------------------------------------------------------------------------------------------


def test_a_phrase_does_not_see_the_others():
    model = tiny_model()
    alone, together = encode(model, "dog ."), encode(model, "red car . dog .")
    assert torch.allclose(alone.features[0, 1:3], together.features[0, 4:6], atol=1e-5)
    assert not torch.allclose(encode(model, "red car dog .").features[0, 3], together.features[0, 4], atol=1e-2)


def test_phrase_masks_number_positions_within_each_phrase():
    mask, positions = phrase_masks(torch.tensor([[2, 9, 9, 5, 9, 5, 3]]), (2, 3, 5))
    assert positions[0].tolist() == [0, 0, 1, 2, 0, 1, 0]
    assert mask[0].int().tolist()[2] == [0, 1, 1, 1, 0, 0, 0]


def test_only_a_separator_before_the_last_column_closes_a_phrase():
    unclosed, _ = phrase_masks(torch.tensor([[2, 9, 9, 3]]), (2, 3, 5))
    closed, positions = phrase_masks(torch.tensor([[2, 9, 9, 3, 0]]), (2, 3, 5))
    assert torch.equal(unclosed[0], torch.eye(4, dtype=torch.bool))
    assert closed[0, 1].tolist() == [False, True, True, True, False] and positions[0].tolist() == [0, 0, 1, 2, 0]


# --- The whole ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_forward_runs_in_half_precision(dtype):
    model, image = tiny_model(), torch.randn(2, 3, 40, 56)
    full = model(image, encode(model, images=2))[0]
    with torch.autocast("cpu", dtype):
        mixed = model(image, encode(model, images=2))[0]
    model = model.to(dtype)
    half = model(image.to(dtype), encode(model, images=2))[0]
    for output in (mixed, half):
        assert output.logits.isfinite().all() and output.boxes.dtype == torch.float32
        assert output.logits.shape == full.logits.shape
        assert (output.boxes - full.boxes).abs().median() < 0.02


def test_padding_text_changes_nothing():
    model, image = tiny_model(), torch.randn(1, 3, 40, 56)
    ids = torch.tensor([[*TOKENIZER.encode("red car ."), 0, 0]])
    padded = model(image, model.encode_text(ids, ids != 0))[0]
    plain = model(image, encode(model, "red car ."))[0]
    assert padded.logits[..., -2:].isneginf().all()
    assert torch.allclose(padded.logits[..., :-2], plain.logits, atol=1e-4)
    assert torch.allclose(padded.boxes, plain.boxes, atol=1e-5)


def test_training_mode_returns_every_head_and_the_last_one_first():
    model, image = tiny_model(), torch.randn(1, 3, 40, 56)
    last = model(image, encode(model))[0]
    outputs = model.train()(image, encode(model))
    assert len(outputs) == CONFIG.decoder_layers + 1
    assert torch.equal(outputs[0].logits, last.logits)


def test_an_image_with_fewer_cells_than_queries_is_detected_as_in_a_batch():
    model = tiny_model()
    small, text = model.encode_image(torch.randn(1, 3, 4, 4)), encode(model)
    own = tuple(tuple(level.shape[-2:]) for level in small)
    alone = model.ground(small, (own,), text)[0]
    canvas = [torch.nn.functional.pad(level, (0, 3, 0, 2)) for level in small]
    padded = model.ground(canvas, (own,), text)[0]
    assert alone.boxes.shape == (1, CONFIG.num_queries, 4) and alone.logits.isfinite().all()
    found = alone.logits[0].amax(1).topk(4).indices  # the image has four cells
    assert torch.allclose(alone.logits[0, found], padded.logits[0, found], atol=1e-4)
    assert torch.allclose(alone.boxes[0, found], padded.boxes[0, found], atol=1e-5)


class Network(torch.nn.Module):
    """Images and token ids to logits and boxes, as an exporter sees the model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, ids):
        output = self.model(images, self.model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool)))[0]
        return output.logits, output.boxes


def test_the_network_exports_and_the_exported_one_predicts_the_same():
    network, ids = Network(tiny_model()), torch.tensor([TOKENIZER.encode("red car . dog .")])
    exported = torch.export.export(network, (torch.randn(1, 3, 40, 56), ids), strict=False).module()
    image = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        for got, want in zip(exported(image, ids), network(image, ids)):
            assert torch.allclose(got, want, atol=1e-5)
