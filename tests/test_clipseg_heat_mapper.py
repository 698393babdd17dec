"""Phrases and pictures to heat maps."""

import numpy as np
import pytest
import torch
from helpers.clipseg_tiny import TOKENIZER, tiny_model
from PIL import Image

from minisam_glue.clipseg import HeatMapper, highlight
from minisam_glue.clipseg.heat_mapper import preprocess
from minisam_glue.layers import load_strictly


def picture(height: int = 30, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def mapper() -> HeatMapper:
    return HeatMapper(tiny_model(), TOKENIZER, size=48)


def counted(monkeypatch, owner, name: str) -> list:
    """Arguments of each call of a method."""
    calls, original = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: calls.append(args) or original(*args))
    return calls


def test_every_prompt_of_every_image_has_its_heat_map(mapper):
    logits = mapper.heat_maps([picture(), picture(90, 20, 1)], ["cat", "dog", "a cat"])
    assert logits.shape == (2, 3, 48, 48) and logits.dtype == torch.float32
    for i, image in enumerate([picture(), picture(90, 20, 1)]):
        for p, phrase in enumerate(["cat", "dog", "a cat"]):
            alone = HeatMapper(mapper.model, TOKENIZER, 48).heat_maps([image], [phrase])[0, 0]
            torch.testing.assert_close(logits[i, p], alone)
    assert mapper.heat_maps([], ["cat", "dog"]).shape == (0, 2, 48, 48)


def test_an_image_is_encoded_once_for_all_phrases_and_a_phrase_once_for_all_images(mapper, monkeypatch):
    images = counted(monkeypatch, mapper.model, "encode_image")
    texts = counted(monkeypatch, mapper.model.clip, "encode_text")
    for i in range(3):
        mapper.heat_maps([picture(seed=i)], ["cat", "dog", *(f"cat {n}" for n in range(20))])
    assert len(images) == 3 and len(texts) == 22
    mapper.heat_maps([picture()], ["cat", "bird"])
    assert len(texts) == 23  # only the new one


def test_a_cached_phrase_does_not_outlive_a_change_of_the_weights(mapper):
    before = mapper.heat_maps([picture()], ["cat"])
    with torch.no_grad():
        mapper.model.clip.text_projection.weight.mul_(3)
    assert (mapper.heat_maps([picture()], ["cat"]) - before).abs().max() > 1e-3


def test_a_cached_phrase_does_not_outlive_other_weights_in_the_place_of_the_old_ones(mapper):
    before = mapper.heat_maps([picture()], ["cat"])
    state = {name: value.clone() for name, value in mapper.model.state_dict().items()}
    state["clip.text_projection.weight"] *= 3
    load_strictly(mapper.model, state)
    assert (mapper.heat_maps([picture()], ["cat"]) - before).abs().max() > 1e-3


def test_a_cached_phrase_is_of_one_precision_of_autocast(mapper):
    with torch.autocast("cpu", torch.float16):
        mapper.encode_phrases(["cat"])
    with torch.autocast("cpu", torch.bfloat16):
        assert mapper.encode_phrases(["cat"])["cat"].dtype == torch.bfloat16


def test_heat_maps_that_are_no_numbers_are_told_and_not_taken_for_nothing(mapper):
    mapper.model.decoder.film_add.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="no numbers .NaN.: take --dtype float32"):
        mapper.heat_maps([picture()], ["cat"])


def test_templates_are_an_ensemble_of_embeddings(mapper):
    ensemble = HeatMapper(mapper.model, TOKENIZER, 48, ("{}", "a {}"))
    expected = mapper.encode_prompts(["cat", "a cat"]).mean(0)
    torch.testing.assert_close(ensemble.encode_prompts(["cat"])[0], expected)


def test_a_picture_of_the_object_may_take_the_place_of_a_phrase(mapper):
    example = picture(20, 20, 5)
    conditions = mapper.encode_prompts(["dog", example, "cat"])
    torch.testing.assert_close(conditions[1], mapper.model.clip.encode_image(mapper.pixels([example]))[0])
    torch.testing.assert_close(conditions[[0, 2]], mapper.encode_prompts(["dog", "cat"]))
    assert mapper.heat_maps([picture()], [example]).shape == (1, 1, 48, 48)


def test_a_highlighted_object_stays_and_its_background_fades_to_the_mean_grey_and_is_cut_away():
    image, mask = np.full((40, 60, 3), 200, np.uint8), np.zeros((40, 60), bool)
    mask[10:20, 30:34] = True
    shown = highlight(image, mask, context=0.5)
    assert shown.shape == (20, 20, 3)  # the crop of 20 x 8 in a square: a stretched object is another one
    means = (0.485, 0.456, 0.406)
    grey = [round(0.1 * 200 + 0.9 * 255 * mean) for mean in means]  # 0.1 times the normalised pixels
    assert (shown[5:15, 8:12] == 200).all() and (shown[0, 6:14] == grey).all() and (shown[:, 6:8] == grey).all()
    assert (shown[:, [0, 5, 14, 19]] == [round(255 * mean) for mean in means]).all()
    with pytest.raises(ValueError, match="show the object"):
        highlight(image, mask & False)
    with pytest.raises(ValueError, match="show the object"):
        highlight(image, mask[:20])


@pytest.mark.parametrize("height, width", [(1, 1), (100, 8000), (3, 1)])
def test_pictures_of_any_size_are_stretched_to_the_square(mapper, height, width):
    logits = mapper.heat_maps([picture(height, width)], ["cat"])
    assert logits.shape == (1, 1, 48, 48) and logits.isfinite().all()


def test_the_smallest_and_a_larger_heat_map_work_too():
    model = tiny_model()
    for size in (8, 96):
        assert HeatMapper(model, TOKENIZER, size).heat_maps([picture()], ["cat"]).shape[-2:] == (size, size)


def test_pixels_are_normalised_by_the_statistics_of_imagenet():
    grey = preprocess(np.full((5, 7, 3), 124, np.uint8), 16)
    torch.testing.assert_close(grey[:, 0, 0], (torch.tensor([124 / 255] * 3) - torch.tensor([0.485, 0.456, 0.406]))
                               / torch.tensor([0.229, 0.224, 0.225]))  # fmt: skip


@pytest.mark.parametrize(
    "prompts, words",
    [
        ([], "give a list of phrases"),
        ("cat", "give a list of phrases"),
        ([" "], "an empty phrase"),
        (["cat", ""], "an empty phrase"),
        (["cat " * 20], "has 20 tokens: it must have 1 to 10"),
        ([3.5], "an image is a PIL image or an array"),
        (picture(), "prompts is one ndarray: give a list of phrases or pictures"),
        (Image.fromarray(picture()), "prompts is one Image: give a list of phrases or pictures"),
    ],
)
def test_prompts_that_name_nothing_or_too_much_are_refused(mapper, prompts, words):
    with pytest.raises(ValueError, match=words):
        mapper.heat_maps([picture()], prompts)


@pytest.mark.parametrize("one", [picture(), Image.fromarray(picture())])
def test_one_picture_in_place_of_a_list_is_refused(mapper, one):
    with pytest.raises(TypeError, match="images is one picture: give a list"):
        mapper.heat_maps(one, ["cat"])


def test_cached_phrases_hold_no_graph(mapper):
    assert not mapper.encode_prompts(["a dog in a cat"]).requires_grad


def test_many_pictures_and_phrases_are_decoded_a_few_heat_maps_at_a_time(mapper, monkeypatch):
    decode, batches = mapper.model.decode, []
    monkeypatch.setattr(
        mapper.model, "decode", lambda tokens, some, size: batches.append(len(some)) or decode(tokens, some, size)
    )
    images, phrases = [picture(seed=seed) for seed in range(5)], [f"cat {n}" for n in range(7)]
    heat = mapper.heat_maps(images, phrases)
    assert batches == [3, 3, 1]
    torch.testing.assert_close(heat[2], mapper.heat_maps(images[2:3], phrases)[0])


def test_the_longest_phrase_is_taken(mapper):
    assert mapper.heat_maps([picture()], ["cat " * 10]).isfinite().all()


def test_an_empty_phrase_stays_empty_inside_a_template(mapper):
    with pytest.raises(ValueError, match="an empty phrase"):
        HeatMapper(mapper.model, TOKENIZER, 48, ("a photo of {}",)).heat_maps([picture()], [""])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"size": 50}, "heat_size 50: give a multiple of 8 up to 4096, such as 48"),
        ({"size": 0}, "heat_size 0: give a multiple of 8 up to 4096, such as 8"),
        ({"size": 100_000}, "heat_size 100000: give a multiple of 8 up to 4096, such as 4096"),
        ({"size": 48.0}, "heat_size 48.0: give a whole number of pixels"),
        ({"templates": ("a photo",)}, "template 'a photo': mark the place"),
        ({"templates": ()}, "mark the place of the phrase"),
    ],
)
def test_settings_that_can_not_be_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        HeatMapper(tiny_model(), TOKENIZER, **({"size": 48} | arguments))
