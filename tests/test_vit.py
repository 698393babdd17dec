import dataclasses

import pytest
import torch

from minivit.fast import accelerate
from minivit.vit import PRESETS, VisionTransformer, ViTConfig

TINY = ViTConfig(image_size=8, patch=4, classes=3, dim=16, depth=3, heads=2)
PARAMETERS = {
    "vit-d128-l6": 1_205_898,
    "vit-d256-l6": 4_771_082,
    "vit-d256-l12": 9_509_642,
    "vit-d256-l12-p2": 9_549_578,
    "distilled": 10_565_972,
    "vit-b16": 86_567_656,
    "cifar": 10_065_546,
    "cifar-small": 660_362,
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
    "rectangle": {"image_size": (8, 16)},
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_documented_number_of_parameters(name):
    with torch.device("meta"):
        model = VisionTransformer(PRESETS[name])
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


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
        match="patch 5 does not divide a 32x32 image; the nearest patch that does is 4, "
        "the nearest size for patch 5 is 30x30",
    ):
        ViTConfig(image_size=32, patch=5)
    with pytest.raises(ValueError, match="nearest patch that does is 32"):
        ViTConfig(image_size=32, patch=64)


def test_an_image_of_another_size_is_named():
    with pytest.raises(ValueError, match="takes 8x8 images, not 8x12"):
        VisionTransformer(TINY)(torch.randn(1, 3, 8, 12))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"heads": 3}, "does not divide into 3 heads"),
        ({"class_token": False}, "pool 'cls' needs the class token"),
        ({"class_token": False, "pool": "mean", "class_attention": 1}, "class-attention blocks need the class token"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(TINY, **changes)
