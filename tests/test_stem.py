import copy
import dataclasses
import warnings

import pytest
import torch

from minivit import train
from minivit.augment import normalise
from minivit.checkpoint import save_model
from minivit.data import shapes
from minivit.stem import Whitening, WhiteningStem
from minivit.train_config import TrainConfig
from minivit.vit import PRESETS, VisionTransformer


def correlated_images() -> torch.Tensor:
    torch.manual_seed(0)
    noise = torch.randn(64, 3, 12, 12)
    return noise + noise.roll(1, 3) + noise.mean(1, keepdim=True)


def test_whitened_neighbourhoods_are_uncorrelated_and_of_unit_variance():
    images, layer = correlated_images(), Whitening()
    layer.fit([images], eps=0.0)
    y = layer(images)[:, :12].transpose(0, 1).flatten(1)  # (12, all places)
    torch.testing.assert_close(y @ y.T / y.shape[1], torch.eye(12), atol=1e-4, rtol=0)


def test_the_second_half_of_the_whitened_channels_is_the_first_with_the_other_sign():
    images, layer = correlated_images(), Whitening()
    layer.fit([images])
    first, second = layer(images).chunk(2, dim=1)
    torch.testing.assert_close(first, -second)


def test_whitening_holds_a_part_of_the_images_at_a_time_and_is_that_of_all(monkeypatch):
    data = shapes(0, 60, 20, image_size=16)
    model = VisionTransformer(dataclasses.replace(PRESETS["cifar-fast"], image_size=16, depth=1))
    other, seen, weights = copy.deepcopy(model), [], []
    monkeypatch.setattr(train, "normalise", lambda part, *stats: seen.append(len(part)) or normalise(part, *stats))
    for vit, at_once in ((model, train.WHITENED_AT_ONCE), (other, 25 * 16 * 16)):
        monkeypatch.setattr(train, "WHITENED_AT_ONCE", at_once)
        train.fit_whitening(vit, data)
        weights.append(vit.patch_embed.whiten.conv.weight)
    assert seen == [60, 25, 25, 10]
    torch.testing.assert_close(*weights)


def test_a_trainer_whitens_a_model_of_anyone_and_keeps_filters_that_were_set_before(tmp_path):
    model = VisionTransformer(dataclasses.replace(PRESETS["cifar-fast"], image_size=16, depth=1))
    data, filters = shapes(0, 60, 20, image_size=16), model.patch_embed.whiten.conv.weight
    config = TrainConfig(epochs=1, batch_size=20, crop=0, sizes=())
    train.Trainer(model, data, config, tmp_path / "first", "cpu")
    y = model.patch_embed.whiten(normalise(data.train.images, data.mean, data.std))[:, :12].transpose(0, 1).flatten(1)
    products = y @ y.T / y.shape[1]
    assert (products - products.diag().diag()).abs().max() < 1e-3  # uncorrelated
    before = filters.clone()
    train.Trainer(model, dataclasses.replace(data, mean=(0.1,) * 3), config, tmp_path / "second", "cpu")
    assert torch.equal(filters, before)


@pytest.mark.parametrize("thaw", [False, True])
def test_a_trainer_leaves_the_filters_that_a_model_was_trained_with_and_says_if_they_are_random(thaw, tmp_path, caplog):
    model = VisionTransformer(dataclasses.replace(PRESETS["cifar-fast"], image_size=16, depth=1))
    data, filters = shapes(0, 60, 20, image_size=16), model.patch_embed.whiten.conv.weight
    model.requires_grad_(thaw)
    model(normalise(data.train.images, data.mean, data.std))  # a step of one's own
    before = filters.detach().clone()
    train.Trainer(model, data, TrainConfig(epochs=1, batch_size=20, crop=0, sizes=()), tmp_path, "cpu")
    assert torch.equal(filters, before) and ("its random filters stay" in caplog.text) != thaw


def test_a_stem_that_is_not_whitened_is_told_when_its_model_is_saved(tmp_path):
    model = VisionTransformer(dataclasses.replace(PRESETS["cifar-fast"], image_size=16, depth=1, classes=2))
    with pytest.warns(UserWarning, match="not whitened"):
        save_model(tmp_path / "a.pt", model, ["a", "b"], (0.5,) * 3, (0.25,) * 3)
    model.patch_embed.whiten.fit([correlated_images()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_model(tmp_path / "b.pt", model, ["a", "b"], (0.5,) * 3, (0.25,) * 3)


def test_whitening_is_frozen():
    assert not any(p.requires_grad for p in Whitening().parameters())


def test_without_whitening_the_first_layer_starts_at_random_and_learns():
    config = dataclasses.replace(PRESETS["cifar-fast"], image_size=16, depth=1, whiten=False)
    model = VisionTransformer(config)
    whitened = VisionTransformer(dataclasses.replace(config, whiten=True))
    first = model.patch_embed.whiten.weight
    before = first.detach().clone()
    train.fit_whitening(model, shapes(0, 60, 20, image_size=16))
    assert torch.equal(first, before) and first.requires_grad
    images = torch.randn(2, 3, 16, 16)
    assert model.patch_embed(images).shape == whitened.patch_embed(images).shape
    model(images).sum().backward()
    assert first.grad.abs().max() > 0


def test_only_the_whitening_stem_can_do_without_whitening():
    with pytest.raises(ValueError, match="--no-whiten is of the whitening stem, not of --stem conv"):
        dataclasses.replace(PRESETS["cifar"], stem="conv", whiten=False)


@pytest.mark.parametrize("patch, side", [(4, 8), (4, 24), (4, 32), (8, 24), (8, 32), (16, 32)])
def test_the_whitening_stem_makes_one_token_of_each_patch(patch, side):
    stem = WhiteningStem(patch, 16)
    assert stem(torch.randn(2, 3, side, side)).shape == (2, (side // patch) ** 2, 16)


@pytest.mark.parametrize("patch, better", [(1, 4), (2, 4), (5, 4), (6, 8), (12, 8)])
def test_the_whitening_stem_names_the_patches_that_it_makes(patch, better):
    with pytest.raises(ValueError, match=f"patches of 4, 8, 16 pixels, not {patch}: --patch {better} or --stem conv"):
        WhiteningStem(patch, 16)


def test_each_further_convolution_of_a_stage_adds_to_what_comes_in():
    torch.manual_seed(0)
    short, deep = WhiteningStem(8, 16, depth=1).eval(), WhiteningStem(8, 16, depth=3).eval()
    missing, unexpected = deep.load_state_dict(short.state_dict(), strict=False)
    further = {f"stages.{stage}.mixes.{mix}" for stage in range(3) for mix in (1, 2)}
    assert {name.rsplit(".", 2)[0] for name in missing} == further and not unexpected
    images = torch.randn(2, 3, 16, 16)
    assert not torch.equal(deep(images), short(images))
    for stage in deep.stages:
        for mix in stage.mixes[1:]:
            torch.nn.init.zeros_(mix.norm.weight)  # such a convolution adds nothing
    torch.testing.assert_close(deep(images), short(images))
