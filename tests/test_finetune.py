"""minivit/finetune.py, hybrid.py and the settings of fine-tuning: what learns, at which rate, from which images."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from parity import formula_state
from torch import nn

from minivit import config, run
from minivit import data as datasets
from minivit.augment import apply_op, random_rotation
from minivit.finetune import freeze, learning_share
from minivit.losses import class_weights, soft_cross_entropy
from minivit.optim import param_groups
from minivit.resnet import resnet18
from minivit.splits import hold_out
from minivit.train import Trainer
from minivit.train_config import TrainConfig, TrainingError
from minivit.vit import PRESETS, VisionTransformer, ViTConfig

TINY = ViTConfig(image_size=8, patch=4, classes=10, dim=16, depth=3, heads=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data():
    return hold_out(datasets.shapes(0, 60, 20, image_size=8), 10)


def trainer(data, folder, config: TrainConfig, model: ViTConfig = TINY) -> Trainer:
    torch.manual_seed(7)
    return Trainer(VisionTransformer(model), data, config, folder, CPU)


SHORT = TrainConfig(epochs=2, batch_size=25, amp="off", clean_epochs=0, trivial_augment=False, erasing=0.0)

# ---- the last blocks ------------------------------------------------------------------------------------


def test_the_last_three_blocks_of_vit_b16_are_24_79_percent_of_it():
    with torch.device("meta"):
        model = VisionTransformer(dataclasses.replace(PRESETS["vit-b16"], classes=10))
    freeze(model, 3)
    assert learning_share(model) == (21_272_842, 85_806_346)


@pytest.mark.parametrize(
    "changes, last, learn",
    [
        ({}, 1, ("blocks.2.", "norm.", "head.")),
        ({}, 0, ("norm.", "head.")),
        ({"pool": "mean", "class_token": False}, 2, ("blocks.1.", "blocks.2.", "fc_norm.", "head.")),
        (
            {"class_attention": 1, "distillation": True},
            2,
            ("blocks.1.", "class_blocks.0.", "norm.", "head.", "head_dist."),
        ),
    ],
)
def test_training_the_last_blocks_changes_them_the_norm_and_the_heads_alone(changes, last, learn, data, tmp_path):
    config = dataclasses.replace(TINY, stem="conv", **changes)
    t = trainer(data, tmp_path, dataclasses.replace(SHORT, train_last=last), config)
    before = {name: value.clone() for name, value in t.model.state_dict().items()}
    t.fit(until=1)
    changed = {name for name, value in t.model.state_dict().items() if not torch.equal(value, before[name])}
    of_these = {name for name in before if name.startswith(learn)}
    assert changed and changed <= of_these  # running means of the stem stay, too
    assert {n for n, p in t.model.named_parameters() if p.requires_grad} == of_these


def test_more_blocks_than_there_are_and_models_without_blocks_are_refused(data, tmp_path):
    with pytest.raises(TrainingError, match="--train-last is 4, of a model with 3 blocks: give 0 to 3"):
        trainer(data, tmp_path, dataclasses.replace(SHORT, train_last=4))
    with pytest.raises(ValueError, match="--train-last is -1"):
        freeze(VisionTransformer(TINY), -1)
    for change, flag in (({"train_last": 1}, "--train-last"), ({"layer_decay": 0.5}, "--layer-decay")):
        with pytest.raises(TrainingError, match=f"{flag} needs a Vision Transformer, not a ResNet"):
            Trainer(resnet18(), data, dataclasses.replace(SHORT, **change), tmp_path, CPU)
    with pytest.raises(TrainingError, match="--layer-decay 0.5 goes with --optimizer adamw"):
        dataclasses.replace(SHORT, layer_decay=0.5, optimizer="muon")


# ---- rates ----------------------------------------------------------------------------------------------


def test_layer_decay_lowers_the_rate_from_the_head_down_to_the_embedding(data, tmp_path):
    t = trainer(data, tmp_path, dataclasses.replace(SHORT, layer_decay=0.5, lr=1.0, schedule="linear", warmup=0))
    t.set_lr()
    rates = {id(p): group["lr"] for group in t.optimizer.param_groups for p in group["params"]}
    named = {name: rates[id(p)] for name, p in t.model.named_parameters()}
    assert named["head.weight"] == named["norm.bias"] == 1
    assert [named[f"blocks.{i}.attn.qkv.weight"] for i in (2, 1, 0)] == [0.5, 0.25, 0.125]
    assert named["patch_embed.proj.weight"] == named["cls_token"] == named["pos_embed"] == 0.0625
    decay = {id(p): group["weight_decay"] for group in t.optimizer.param_groups for p in group["params"]}
    assert {decay[id(t.model.pos_embed)], decay[id(t.model.blocks[0].attn.qkv.weight)]} == {0.0, 0.05}
    tail = VisionTransformer(dataclasses.replace(TINY, class_attention=2))
    gains = {id(p): group["gain"] for group in param_groups(tail, 0.1, 0.5) for p in group["params"]}
    assert gains[id(tail.class_blocks[1].attn.q.weight)] == 0.5 and gains[id(tail.blocks[0].mlp.fc1.bias)] == 0.125


def test_warm_up_is_a_share_of_the_run_or_a_number_of_epochs(data, tmp_path):
    for warmup, steps in ((0.5, 6), (2, 4), (1.5, 3), (1, 2)):
        assert trainer(data, tmp_path, dataclasses.replace(SHORT, epochs=6, warmup=warmup)).warmup_steps == steps
    with pytest.raises(TrainingError, match="--warmup is 2 epochs, of --epochs 2: give fewer, or a share below 1"):
        dataclasses.replace(SHORT, warmup=2)


# ---- checkpointing --------------------------------------------------------------------------------------


def kept_numbers(t: Trainer) -> int:
    """How many numbers a forward pass keeps for the backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        t.model.train()
        t.loss(torch.ones(4, 3, 8, 8), torch.eye(10)[:4])
    return sum(kept)


@pytest.mark.parametrize("changes", [{"dropout": 0.3, "drop_path": 0.5}, {"class_attention": 1, "drop_path": 0.5}])
def test_checkpointing_gives_the_same_run_to_the_bit_and_keeps_less(changes, data, tmp_path):
    saved = {}
    for on in (False, True):
        t = trainer(data, tmp_path, dataclasses.replace(SHORT, checkpointing=on), dataclasses.replace(TINY, **changes))
        t.fit(until=1)
        saved[on] = (kept_numbers(t), t.history[0]["train_loss"])
    assert saved[True][1] == saved[False][1]
    assert saved[True][0] < saved[False][0] / 2


# ---- labels and classes ---------------------------------------------------------------------------------


def test_label_smoothing_ends_by_itself_and_the_augmentation_goes_on(data, tmp_path, monkeypatch):
    config = dataclasses.replace(SHORT, epochs=3, label_smoothing=0.2, unsmoothed_epochs=1, mix_prob=0.0, erasing=1.0)
    t, seen = trainer(data, tmp_path, config), []
    monkeypatch.setattr(t, "strong", lambda x, generator: t.plain(x, generator))
    loss = t.loss
    monkeypatch.setattr(t, "loss", lambda x, target: seen.append((t.epoch, target.max().item())) or loss(x, target))
    monkeypatch.setattr(type(t.plain), "__call__", lambda self, x, generator: x.float() / 255)
    t.fit()
    assert {epoch: round(top, 3) for epoch, top in seen} == {0: 0.82, 1: 0.82, 2: 1.0}


def test_weights_of_classes_equal_torchs_weighted_cross_entropy():
    labels = torch.tensor([0, 0, 0, 1, 3, 3])
    weight = class_weights(labels, 4)
    assert weight.tolist() == pytest.approx([0.5, 1.5, 0, 0.75]) and weight[labels].mean() == pytest.approx(0.75)
    logits, target = torch.randn(6, 4), torch.rand(6, 4).softmax(1)
    torch.testing.assert_close(
        soft_cross_entropy(logits, target, weight), F.cross_entropy(logits, target, weight=weight)
    )


@pytest.mark.parametrize("balance", ["weights", "sampler"])
def test_a_class_of_few_images_counts_as_much_as_the_others(balance, data, tmp_path):
    rare = torch.cat([(data.train.labels == 0).nonzero()[:2, 0], (data.train.labels != 0).nonzero()[:, 0]])
    few = dataclasses.replace(data, train=data.train[rare])
    t = trainer(few, tmp_path, dataclasses.replace(SHORT, balance=balance, mix_prob=0.0))
    if balance == "sampler":
        order = torch.cat([t.draw_order() for _ in range(40)])
        share = (few.train.labels[order] == 0).double().mean().item()
        assert share == pytest.approx(0.1, abs=0.03)  # of 10 classes; without balance 0.04
    else:
        x, target = torch.randn(4, 3, 8, 8), torch.eye(10)[torch.tensor([0, 1, 2, 0])]
        weights = class_weights(few.train.labels, 10)
        assert torch.equal(t.loss(x, target)[0], soft_cross_entropy(t.model(x), target, weights))


def test_an_order_drawn_with_repeats_is_resumed_and_one_beyond_the_images_is_not(data, tmp_path):
    config = dataclasses.replace(SHORT, balance="sampler")
    first, second = trainer(data, tmp_path, config), trainer(data, tmp_path, config)
    first.order, first.batch = first.draw_order(), 1
    assert len(first.order.unique()) < len(first.order) == len(data.train)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.order, first.order)
    first.order[3] = len(data.train)
    with pytest.raises(ValueError, match="others than there are"):
        second.load_state_dict(first.state_dict())


# ---- images ---------------------------------------------------------------------------------------------


def test_a_random_rotation_turns_each_image_within_its_range_as_pil_does():
    x = torch.randint(0, 256, (200, 3, 9, 9), dtype=torch.uint8)
    turned = random_rotation(x, 30, torch.Generator().manual_seed(3))
    angles = 30 * (2 * torch.rand(200, generator=torch.Generator().manual_seed(3)) - 1)
    assert torch.equal(turned, apply_op(x, "Rotate", angles))
    assert angles.min() < -25 and angles.max() > 25 and torch.equal(turned[:, :, 4, 4], x[:, :, 4, 4])


# ---- hybrids --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem, channels", [("cnn", 256), ("resnet18", 256)])
def test_a_hybrid_makes_one_token_of_each_position_of_a_feature_map(stem, channels):
    config = dataclasses.replace(TINY, image_size=16, stem=stem)
    model = VisionTransformer(config).eval()
    x = torch.randn(2, 3, 16, 16)
    features = model.patch_embed.features(x)
    assert features.shape == (2, channels, 4, 4)
    tokens = torch.einsum("bchw,dc->bhwd", features, model.patch_embed.proj.weight[..., 0, 0]).flatten(1, 2)
    torch.testing.assert_close(model.patch_embed(x), tokens + model.patch_embed.proj.bias)
    assert model(x).shape == (2, 10)


def test_the_map_of_the_hybrid_is_that_of_resnet18s_third_stage():
    hybrid, network = VisionTransformer(dataclasses.replace(TINY, image_size=16, stem="resnet18")), resnet18()
    source = network.eval().state_dict()
    source = formula_state({name: tuple(value.shape) for name, value in source.items() if value.ndim}) | {
        name: value for name, value in source.items() if not value.ndim
    }
    network.load_state_dict(source)
    names = {"conv1": "0", "bn1": "1", "layer1": "3", "layer2": "4", "layer3": "5"}
    features = {}
    for name, value in source.items():
        first, _, rest = name.partition(".")
        if first in names:
            features[f"{names[first]}.{rest}"] = value
    hybrid.patch_embed.features.load_state_dict(features)
    x = torch.randn(2, 3, 16, 16)
    want = network.layer3(network.layer2(network.layer1(network.stem(x))))
    torch.testing.assert_close(hybrid.eval().patch_embed.features(x), want)


@pytest.mark.parametrize("stem, patches", [("cnn", (2, 8)), ("resnet18", (2, 8))])
def test_a_hybrid_takes_patches_of_powers_of_two(stem, patches):
    for patch in patches:
        config = dataclasses.replace(TINY, image_size=16, patch=patch, stem=stem, depth=1)
        assert VisionTransformer(config)(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(ValueError, match=rf"--patch 5: --stem {stem} needs a patch size that is a power of two"):
        VisionTransformer(dataclasses.replace(TINY, image_size=20, patch=5, stem=stem))
    if stem == "resnet18":
        with pytest.raises(ValueError, match="--patch 16: a ResNet-18 has maps of patches of 1, 2, 4 and 8"):
            VisionTransformer(dataclasses.replace(TINY, image_size=16, patch=16, stem=stem))


def test_dropout_before_the_head_acts_in_training_alone():
    model = VisionTransformer(dataclasses.replace(TINY, head_dropout=0.5, distillation=True))
    x = torch.randn(2, 3, 8, 8)
    nn.init.zeros_(model.head.weight)
    first, second = (model.train()(x, each_head=True) for _ in range(2))
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])
    assert torch.equal(model.eval()(x), model(x))


# ---- recipes --------------------------------------------------------------------------------------------


def test_the_recipes_of_the_references_are_the_presets_defaults():
    def recipe(preset: str, **wanted: object) -> None:
        args = config.resolve({"preset": preset})
        assert {name: args[name] for name in wanted} == wanted
        run.check(args)

    recipe("vit-b16-last3", epochs=7, batch_size=128, lr=1e-4, weight_decay=0.01, clip=1.0, label_smoothing=0.1)
    recipe("vit-b16-last3", train_last=3, patience=7, warmup=3 / 7, erasing=0.25, jitter=0.2, rotate=15.0)
    recipe("vit-b16-last3", head_dropout=0.1)
    # Runs from before the dropout was of the recipe do not name it, and go on.
    assert run.all_settings("vit-b16-last3", {}) == run.all_settings("vit-b16-last3", {"head_dropout": 0.1})
    recipe("vit-b16", schedule="one-cycle", trivial_augment=True, label_smoothing=0.1, mix_prob=0.0, head_dropout=0.1)
    recipe("distilled", lr=6e-4, min_lr=0.0, warmup=0.05, batch_size=192, epochs=300, mixup=0.4, cutmix=1.0)
    recipe("distilled", label_smoothing=0.05, clean_epochs=15, ema_start=0.995, ema_end=0.9995, erasing=0.25)
    assert config.resolve({"preset": "distilled", "epochs": 20})["clean_epochs"] == 2  # of a short run a tenth
    assert config.resolve({"preset": "distilled", "epochs": 20, "clean_epochs": 15})["clean_epochs"] == 15
    recipe("distilled", distill_temperature=2.0, distill_weight=0.5, weight_decay=0.05)
    recipe("resnet18", lr=1e-3, weight_decay=0.01, epochs=40, batch_size=256, schedule="cosine", mix_prob=0.0)


def test_dropout_of_the_embedding_acts_only_where_the_embedding_learns(data, tmp_path):
    for last, acts in ((1, False), (None, True)):
        t = trainer(data, tmp_path, dataclasses.replace(SHORT, train_last=last), dataclasses.replace(TINY, dropout=0.5))
        t.fit(until=1)
        t.train_epoch(lambda: None)
        assert t.model.pos_dropout.training == acts and t.model.blocks[2].training
