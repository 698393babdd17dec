"""minivit/fast.py: each faster form equals the formula it replaces, in its outputs and its gradients."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune as prune_weights

from minivit.attention import Attention
from minivit.cait import ClassAttention, TalkingHeadsAttention
from minivit.fast import FEW_TOKENS, FORMS, FusedAttention, HeadTokensTransformer, accelerate
from minivit.vit import VisionTransformer, ViTConfig

TINY = ViTConfig(image_size=8, patch=4, classes=3, dim=16, depth=3, heads=2)
VARIANTS = {
    "plain": {},
    "two heads": {"distillation": True, "relative_bias": "decomposed"},
    "talking heads": {"talking_heads": True, "qk_norm": True},
    "tail": {"class_attention": 1},
    "tail of two heads": {"class_attention": 2, "distillation": True, "relative_bias": "decomposed"},
    "cait": {"class_attention": 1, "tokens_enter_late": True, "talking_heads": True, "layer_scale": 0.1},
    "temperature": {"qk_temperature": True, "attention_biases": False, "relative_bias": "joint"},
    "mean": {"pool": "mean", "mlp_conv": True},
}


@pytest.fixture(autouse=True)
def fused_from_one_token(monkeypatch):
    """Has the small modules here train by the fused kernel, too."""
    monkeypatch.setattr("minivit.fast.FEW_TOKENS", 0)


def randomise(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module.double()


def outputs_and_gradients(module: nn.Module, *inputs) -> list[torch.Tensor]:
    out = module(*inputs)
    out = torch.stack(out) if isinstance(out, tuple) else out
    gradients = torch.autograd.grad(out.square().sum(), list(module.parameters()), materialize_grads=True)
    return [out, *gradients]


def assert_equal_forms(module: nn.Module, *inputs) -> None:
    fast = accelerate(copy.deepcopy(module))
    for a, b in zip(outputs_and_gradients(module, *inputs), outputs_and_gradients(fast, *inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_fused_attention_equals_the_formula(with_bias, qk_norm):
    bias = torch.randn(1, 3, 7, 7, dtype=torch.float64) if with_bias else None
    assert_equal_forms(randomise(Attention(24, 3, qk_norm=qk_norm)), torch.randn(2, 7, 24, dtype=torch.float64), bias)


@pytest.mark.parametrize("tokens", [1, 2])
def test_folded_class_attention_equals_keys_and_values_written_out(tokens):
    bias = torch.randn(1, 3, tokens, 7, dtype=torch.float64)
    assert_equal_forms(randomise(ClassAttention(24, 3)), torch.randn(2, 7, 24, dtype=torch.float64), tokens, bias)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_an_accelerated_model_gives_the_same_scores_and_gradients(changes):
    model = randomise(VisionTransformer(dataclasses.replace(TINY, **changes)))
    assert_equal_forms(model, torch.randn(2, 3, 8, 8, dtype=torch.float64), True)


def test_an_accelerated_model_takes_smaller_images_as_the_formula_does():
    model = VisionTransformer(dataclasses.replace(TINY, image_size=16, smaller_images=True, relative_bias="joint"))
    assert_equal_forms(randomise(model), torch.randn(2, 3, 8, 12, dtype=torch.float64))


def test_an_accelerated_model_still_gives_the_features_of_all_tokens():
    model, x = VisionTransformer(TINY).eval(), torch.randn(2, 3, 8, 8)
    want = model.features(x)
    torch.testing.assert_close(accelerate(model).features(x), want)


def test_the_last_block_is_spared_the_tokens_that_no_head_reads():
    from torch.utils.flop_counter import FlopCounterMode

    model, flops = VisionTransformer(dataclasses.replace(TINY, image_size=32, depth=1)), []
    for form in (model, accelerate(copy.deepcopy(model))):
        with FlopCounterMode(display=False) as counter:
            form(torch.randn(1, 3, 32, 32))
        flops.append(counter.get_total_flops())
    assert flops[1] < 0.4 * flops[0]


def test_accelerating_keeps_parameters_names_and_checkpoints():
    model = VisionTransformer(dataclasses.replace(TINY, class_attention=1))
    state, parameters = model.state_dict(), list(model.parameters())
    fast = accelerate(model)
    assert fast is model and isinstance(fast, HeadTokensTransformer)
    assert all(p is q for p, q in zip(parameters, fast.parameters(), strict=True))
    VisionTransformer(model.config).load_state_dict(fast.state_dict())
    assert fast.state_dict().keys() == state.keys()


def test_every_form_is_a_subclass_of_the_formula_it_replaces():
    assert all(issubclass(form, plain) for plain, form in FORMS.items())


def test_training_in_bf16_on_a_cpu_takes_the_formula():
    plain = randomise(Attention(16, 2)).float()
    fast = accelerate(copy.deepcopy(plain))
    assert type(fast) is FusedAttention
    x = torch.randn(2, 5, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(x), fast(x))
    assert not torch.equal(plain(x), fast(x))  # the forms round differently


def test_training_on_a_cpu_takes_the_formula_for_few_tokens_alone(monkeypatch):
    calls = []
    monkeypatch.setattr("minivit.fast.FEW_TOKENS", FEW_TOKENS)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, attn_mask: calls.append(q.shape[-2]) or q)
    fast = accelerate(Attention(16, 2))
    for tokens in (FEW_TOKENS, FEW_TOKENS + 1):
        fast(torch.randn(2, tokens, 16))
    assert calls == [FEW_TOKENS + 1]
    with torch.inference_mode():
        fast(torch.randn(2, 5, 16))
    assert calls == [FEW_TOKENS + 1, 5]


def test_class_attention_in_bf16_rounds_no_worse_folded_than_by_the_formula():
    plain = ClassAttention(64, 4)
    folded, x = accelerate(copy.deepcopy(plain)), torch.randn(8, 65, 64, generator=torch.Generator().manual_seed(0))
    exact = plain(x, 1)
    with torch.autocast("cpu", torch.bfloat16):
        errors = [(form(x, 1) - exact).norm() for form in (plain, folded)]
    assert 0 < errors[1] < 1.5 * errors[0]


def test_prediction_in_bf16_on_a_cpu_takes_the_fused_kernel():
    plain = randomise(Attention(16, 2)).float()
    fast, x = accelerate(copy.deepcopy(plain)), torch.randn(2, 5, 16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        a, b = plain(x), fast(x)
    assert not torch.equal(a, b) and torch.allclose(a, b, atol=0.1, rtol=0.1)


def test_talking_heads_have_no_other_form_than_the_paper_s():
    assert type(accelerate(TalkingHeadsAttention(8, 2))) is TalkingHeadsAttention


class WithAdapter(nn.Linear):
    """A linear layer with something added beside its weights, as LoRA does."""

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.in_features, layer.out_features, dtype=layer.weight.dtype)
        self.load_state_dict(layer.state_dict())

    def forward(self, x):
        return super().forward(x) + x.sum(-1, keepdim=True)


def put_adapter(model):
    block = [*model.blocks, *model.class_blocks][-1]
    name = "qkv" if hasattr(block.attn, "qkv") else "kv"
    setattr(block.attn, name, WithAdapter(getattr(block.attn, name)))


def swap_block(model):
    class Doubled(nn.Module):
        def forward(self, x, grid):
            return 2 * x

    model.blocks[-1] = Doubled()


def prune(model):
    prune_weights.random_unstructured(model.blocks[-1].attn.qkv, "weight", 0.5)


def drop_blocks(model):
    model.blocks = model.blocks[:0]


@pytest.mark.parametrize("change", [put_adapter, swap_block, prune, drop_blocks])
@pytest.mark.parametrize("variant", ["plain", "tail"])
def test_a_changed_part_is_called_by_an_accelerated_model_too(change, variant):
    model = randomise(VisionTransformer(dataclasses.replace(TINY, **VARIANTS[variant]))).eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = model(x)
    change(model)
    after = model(x)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(accelerate(model)(x), after, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_hooks_see_every_block_of_an_accelerated_model_with_all_its_tokens(kind):
    model, seen = accelerate(VisionTransformer(TINY)), []

    def watch(module, given, out):
        seen.append(tuple((out[0] if isinstance(out, tuple) else out).shape))

    for block in model.blocks:
        for part in (block, block.attn, block.mlp):
            part.register_forward_hook(watch) if kind == "forward" else part.register_full_backward_hook(watch)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert seen == 9 * [(2, 5, 16)]


def test_an_accelerated_model_is_compiled_in_one_piece():
    model, x = accelerate(VisionTransformer(TINY).eval()), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))


def test_a_forward_of_a_layers_own_is_called_by_the_fast_forms():
    model = accelerate(
        VisionTransformer(ViTConfig(image_size=8, patch=4, dim=16, depth=1, class_attention=1, heads=2)).eval()
    )
    layer, called = model.class_blocks[0].attn.kv, []
    forward = layer.forward
    layer.forward = lambda x: called.append(x.shape) or forward(x)
    model(torch.randn(1, 3, 8, 8))
    assert called
