import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import own_numbers
import pytest
import torch

from minivit import vit
from minivit.fast import accelerate
from minivit.layers import DropPath
from minivit.vit import PRESETS, VisionTransformer, ViTConfig

TINY = ViTConfig(image_size=8, patch=4, classes=3, dim=16, depth=3, heads=2)
PARAMETERS = {
    "vit-d128-l6": 1_205_898,
    "vit-d256-l6": 4_771_082,
    "vit-d256-l12": 9_509_642,
    "vit-d256-l12-p2": 9_549_578,
    "distilled": 10_565_972,
    "hybrid-cnn": 5_970_634,
    "hybrid-resnet18": 7_599_434,
    "vit-b16": 86_567_656,
    "vit-b16-last3": 86_567_656,
    "vit-b32": 88_224_232,
    "vit-l16": 304_326_632,
    "cifar": 10_065_546,
    "cifar-small": 660_362,
    "cifar-fast": 2_054_444,
    "shapes-demo": 171_738,
}
VARIANTS = {
    "plain": {},
    "mean": {"pool": "mean"},
    "no token": {"pool": "mean", "class_token": False},
    "conv stem": {"stem": "conv"},
    "sincos": {"position": "sincos"},
    "no position": {"position": "none"},
    "decomposed": {"relative_bias": "decomposed"},
    "joint": {"relative_bias": "joint"},
    "mlp conv": {"mlp_conv": True},
    "two heads": {"distillation": True},
    "tail": {"class_attention": 2},
    "tail with bias": {"class_attention": 1, "relative_bias": "decomposed", "distillation": True},
    "cait": {"class_attention": 2, "tokens_enter_late": True, "talking_heads": True, "layer_scale": 0.1},
    "qk norm": {"qk_norm": True},
    "dropout": {"dropout": 0.1, "drop_path": 0.1},
    "smaller images": {"smaller_images": True, "relative_bias": "joint"},
    "temperature, no biases": {"qk_temperature": True, "attention_biases": False, "activation": "silu"},
    "talking heads with temperature": {"talking_heads": True, "qk_temperature": True, "attention_biases": False},
    "rectangle": {"image_size": (8, 16)},
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_documented_number_of_parameters(name):
    with torch.device("meta"):
        model = VisionTransformer(PRESETS[name])
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_the_comments_of_the_presets_state_the_number_of_parameters():
    source = Path(vit.__file__).read_text()
    presets = source[source.index("PRESETS:") : source.index("class Block")]
    stated = [int(number.replace(",", "")) for number in re.findall(r"# (\d[\d,]+)", presets)]
    assert stated == [PARAMETERS[name] for name in PRESETS]


OWN = json.loads(own_numbers.FILE.read_text())["vit"]


@pytest.mark.parametrize("name", OWN)
def test_each_preset_gives_the_scores_that_it_gave_before_also_in_the_fast_form(name):
    for scores in own_numbers.vit_scores(name):
        assert scores == pytest.approx(OWN[name], abs=1e-4, rel=1e-4)


def test_every_preset_has_numbers_of_its_own_or_is_another_with_another_recipe():
    assert OWN.keys() == PRESETS.keys() - {own_numbers.SAME}
    assert PRESETS[own_numbers.SAME] == PRESETS["vit-b16"]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_maps_images_to_class_scores_and_trains_all_its_parameters(name):
    config = dataclasses.replace(TINY, **VARIANTS[name])
    torch.manual_seed(0)
    model = VisionTransformer(config)
    x = torch.randn(2, 3, *config.size)
    assert model(x).shape == (2, 3)
    tokens = model.features(x)
    assert tokens.shape == (2, config.tokens + config.grid[0] * config.grid[1], 16)
    torch.stack(model.heads(tokens)).square().sum().backward()
    untrained = [n for n, p in model.named_parameters() if p.grad is None]
    assert untrained == []


def test_two_heads_are_averaged_at_inference_and_apart_on_request():
    model = VisionTransformer(dataclasses.replace(TINY, distillation=True)).eval()
    x = torch.randn(2, 3, 8, 8)
    class_head, distillation_head = model(x, each_head=True)
    assert not torch.allclose(class_head, distillation_head)
    torch.testing.assert_close(model(x), (class_head + distillation_head) / 2)


def test_the_tail_leaves_the_patches_as_they_are():
    model = VisionTransformer(dataclasses.replace(TINY, class_attention=2, distillation=True)).eval()
    x = torch.randn(1, 6, 16)
    out = model.class_attention_tail(x)
    assert torch.equal(out[:, 2:], x[:, 2:]) and not torch.allclose(out[:, :2], x[:, :2])


def test_the_tail_costs_less_than_full_blocks():
    from torch.utils.flop_counter import FlopCounterMode

    def flops(**changes):
        model = accelerate(VisionTransformer(dataclasses.replace(PRESETS["vit-d256-l12"], **changes)))
        with FlopCounterMode(display=False) as counter:
            model.features(torch.randn(1, 3, 32, 32))
        return counter.get_total_flops()

    assert flops() / flops(class_attention=4) > 1.4


def test_stochastic_depth_rises_linearly_over_all_blocks():
    model = VisionTransformer(dataclasses.replace(TINY, drop_path=0.2, class_attention=1))
    assert [b.drop_path.p for b in [*model.blocks, *model.class_blocks]] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("changes", [{}, {"class_attention": 1}, {"talking_heads": True}, {"mlp_conv": True}])
@pytest.mark.parametrize("form", [lambda model: model, accelerate], ids=["plain", "fast"])
def test_dropout_follows_positions_attention_and_both_layers_of_each_mlp_and_whole_branches_are_dropped(
    form, changes, monkeypatch
):
    drawn, branches = [], []
    dropout = lambda x, p=0.5, training=True, inplace=False: drawn.append(p if training else 0.0) or x  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    monkeypatch.setattr(DropPath, "forward", lambda self, x: branches.append(self.p) or x)
    model = form(VisionTransformer(dataclasses.replace(TINY, dropout=0.3, drop_path=0.2, **changes)))
    model.train()(torch.randn(2, 3, 8, 8))
    assert drawn.count(0.3) == 1 + 3 * TINY.depth and branches == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2])
    drawn.clear()
    model.eval()(torch.randn(2, 3, 8, 8))
    assert not any(drawn)


def test_images_that_are_normalised_alike_give_the_same_scores_alone_and_in_a_batch():
    model = VisionTransformer(dataclasses.replace(TINY, stem="conv", mlp_conv=True, relative_bias="decomposed")).eval()
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-5, rtol=1e-5)


def test_initialisation_gives_faint_scores_and_healthy_tokens():
    torch.manual_seed(0)
    model = VisionTransformer(PRESETS["cifar-small"]).eval()
    x = torch.randn(16, 3, 32, 32)
    assert model(x).std() < 0.5
    assert 0.3 < model.train().features(x).std() < 10
    assert all(p.abs().max() == 0 for n, p in model.named_parameters() if n.endswith("bias") and "norm" not in n)


def test_a_patch_that_does_not_divide_the_image_is_answered_with_what_does():
    with pytest.raises(
        ValueError,
        match="patch 5 does not divide a 32x32 image; the nearest --patch that does is 4, "
        "the nearest --image-size for patch 5 is 30x30",
    ):
        ViTConfig(image_size=32, patch=5)
    with pytest.raises(ValueError, match="nearest --patch that does is 32"):
        ViTConfig(image_size=32, patch=64)


def test_an_image_of_another_size_is_named():
    with pytest.raises(ValueError, match="takes 8x8 images, not 8x12"):
        VisionTransformer(TINY)(torch.randn(1, 3, 8, 12))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"heads": 3}, "does not divide into 3 heads"),
        ({"qk_norm": True, "qk_temperature": True}, "qk_norm has a learned factor already"),
        ({"smaller_images": True, "class_attention": 1}, "takes images of one size"),
        ({"class_token": False}, "pool 'cls' needs the class token"),
        ({"class_token": False, "pool": "mean", "class_attention": 1}, "class-attention blocks need the class token"),
        ({"pool": "mean", "class_attention": 1}, "--class-attention 1: .* the special tokens alone, which no head"),
        ({"class_attention": 4}, "--class-attention is 4, of --depth 3: give a number from 0 to 3"),
        ({"tokens_enter_late": True}, "tokens_enter_late needs class-attention blocks"),
        ({"depth": 0}, "--depth is 0, of a model whose class token would see no patch"),
        ({"mlp_ratio": 0.01}, "--mlp-ratio is 0.01, of dimension 16: give at least 0.0625"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(TINY, **changes)


FAST = dataclasses.replace(PRESETS["cifar-fast"], image_size=16, patch=4, dim=16, depth=2, heads=2)


def test_smaller_images_see_the_middle_of_the_tables_of_relative_positions():
    torch.manual_seed(0)
    for kind in ("joint", "decomposed"):
        block = VisionTransformer(dataclasses.replace(FAST, relative_bias=kind)).blocks[0]
        for table in block.bias.parameters():
            torch.nn.init.normal_(table)
        smaller = VisionTransformer(dataclasses.replace(FAST, relative_bias=kind, image_size=8)).blocks[0]
        middle = [
            p.view(7, 7, -1)[2:5, 2:5].flatten(0, 1) if kind == "joint" else p[2:5] for p in block.bias.parameters()
        ]
        for own, value in zip(smaller.bias.parameters(), middle):
            own.data = value
        torch.testing.assert_close(block.bias((2, 2)), smaller.bias())


def test_a_special_token_keeps_its_row_of_the_bias_on_a_smaller_grid():
    for kind in ("joint", "decomposed"):
        model = VisionTransformer(dataclasses.replace(FAST, relative_bias=kind, class_token=True, pool="cls"))
        bias = model.blocks[0].bias
        for table in bias.parameters():
            torch.nn.init.normal_(table)
        torch.testing.assert_close(bias((2, 2))[:, :, 0], bias()[:, :, 0, :5])
        torch.testing.assert_close(bias((2, 2))[:, :, :, 0], bias()[:, :, :5, 0])


def test_positions_of_a_smaller_grid_are_the_means_of_those_they_cover():
    model = VisionTransformer(FAST)
    expected = model.pos_embed.view(1, 2, 2, 2, 2, 16).mean((2, 4)).view(1, 4, 16)
    torch.testing.assert_close(model.positions((2, 2)), expected)


def test_a_model_for_smaller_images_names_those_that_it_does_not_take():
    model = VisionTransformer(FAST).eval()
    assert model(torch.randn(2, 3, 12, 8)).shape == (2, 10)
    for side in (10, 20):
        with pytest.raises(ValueError, match=f"not {side}x{side}"):
            model(torch.randn(1, 3, side, side))


def test_queries_are_scaled_in_one_way_alone():
    from minivit.attention import Attention

    with pytest.raises(ValueError, match="give one of them"):
        Attention(8, 2, qk_norm=True, qk_temperature=True)


def test_a_temperature_of_two_doubles_the_scores_of_its_head():
    from minivit.attention import Attention

    torch.manual_seed(0)
    plain, warm = Attention(8, 2), Attention(8, 2, qk_temperature=True)
    warm.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 4, 8)
    torch.testing.assert_close(warm(x), plain(x))
    warm.q_norm.temperature.data[1] = 2
    plain.qkv.weight.data[4:8] *= 2
    plain.qkv.bias.data[4:8] *= 2
    torch.testing.assert_close(warm(x), plain(x))
    assert not torch.allclose(warm(x), Attention(8, 2)(x))


def test_matrices_that_start_by_norm_have_norm_root_rows_and_faint_heads():
    model = VisionTransformer(FAST)
    for weight in (
        model.patch_embed.stages[0].down.conv.weight,
        model.blocks[0].attn.qkv.weight,
        model.blocks[1].mlp.fc2.weight,
    ):
        assert weight.norm().item() == pytest.approx(len(weight) ** 0.5, rel=1e-5)
    assert model.head.weight.norm().item() == pytest.approx(0.1 * 10**0.5, rel=1e-5)


def test_numbers_of_numpy_and_lists_make_the_same_configuration_as_pythons_own():
    config = ViTConfig(image_size=[8, 12], classes=np.int64(3), dim=np.int32(16), heads=2, drop_path=np.float32(0.5))
    assert config == ViTConfig(image_size=(8, 12), classes=3, dim=16, heads=2, drop_path=0.5)
    assert len({config, dataclasses.replace(config)}) == 1  # hashable
    assert json.loads(json.dumps(dataclasses.asdict(config)))["classes"] == 3
    with pytest.raises(ValueError, match="classes is 2.0, not a whole number"):
        ViTConfig(classes=np.float64(2))
