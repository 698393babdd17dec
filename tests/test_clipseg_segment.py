"""A sentence to masks by way of heat maps, in Python and on the command line."""

import json

import numpy as np
import pytest
import torch
from helpers.clipseg_tiny import TOKENIZER, tiny_model
from helpers.commands import command
from helpers.squares import film, picture, save, save_film
from helpers.tiny_heat import BrightHeatMapper, heat_models
from helpers.tiny_segment import tiny_models
from PIL import Image

from minisam_glue import models as model_loading
from minisam_glue.clipseg import HeatMapper
from minisam_glue.heatmap import HeatSettings
from minisam_glue.models import Models, load_models
from minisam_glue.pipeline import segment_image, segment_images, segment_video
from minisam_glue.prompts import SEED_PROMPTS, Seeding, Thresholds
from minisam_glue.seeding import Seed, _enlarged, auto_threshold, find_seeds, points_of_box, with_prompts

CLIPSEG = ("--method", "clipseg", "--min-area", 100)


# --- Heat maps to seeds ------------------------------------------------------------------------------------


def test_each_bright_region_is_an_object_of_its_phrase_and_an_absent_one_is_none():
    (found,) = find_seeds(heat_models(), [picture(5, 30)], "bright. dark.")
    assert [o.label for o in found.objects] == ["bright", "bright"] and found.best[0] == "bright"
    assert found.best[1] == pytest.approx(0.9, abs=1e-3) and [h.phrase for h in found.heat] == ["bright", "dark"]
    one, two = sorted(found.objects, key=lambda o: o.box)
    np.testing.assert_allclose(one.box, (5, 10, 15, 22), atol=1)
    np.testing.assert_allclose(two.box, (30, 10, 40, 22), atol=1)


def test_objects_of_several_phrases_come_in_the_order_of_their_confidence(monkeypatch):
    models, maps = heat_models(), torch.full((1, 3, 64, 64), 0.004)
    for phrase, (confidence, column) in enumerate(((0.7, 5), (0.9, 25), (0.8, 45))):
        maps[0, phrase, 10:40, column : column + 15] = confidence
    monkeypatch.setattr(models.heat_mapper, "heat_maps", lambda images, phrases: maps.logit())
    seeds = find_seeds(models, [picture(5)], "a. b. c.")[0]
    assert [seed.label for seed in seeds.objects] == ["b", "c", "a"] and seeds.best == ("b", pytest.approx(0.9))


def test_nothing_is_found_where_the_confidence_is_low_and_that_is_said():
    found = segment_image(heat_models(0.013), picture(5), "bright.")
    assert found.objects == [] and found.best == ("bright", pytest.approx(0.013, abs=1e-4))


def test_several_pictures_get_what_each_gets_alone():
    pictures = [picture(5), picture(), picture(9, 30, height=30)]
    for image, together in zip(pictures, segment_images(heat_models(), pictures, "bright.")):
        alone = segment_image(heat_models(), image, "bright.")
        assert [o.as_json() for o in together.objects] == [o.as_json() for o in alone.objects]


def test_a_region_that_is_too_large_or_too_small_is_no_object():
    models, image = heat_models(), picture(5)
    assert not segment_image(models, image, "bright.", Thresholds(max_area=0.01)).objects
    assert not segment_image(models, image, "bright.", seeding=Seeding(heat=HeatSettings(min_area=90000))).objects


@pytest.mark.parametrize("prompts", [("box",), ("points",), ("mask",), ("box", "points"), SEED_PROMPTS])
def test_sam_gets_the_prompts_that_are_asked_for_and_no_others(prompts, monkeypatch):
    models, asked = heat_models(), []
    propose = models.predictor.propose
    monkeypatch.setattr(models.predictor, "propose", lambda **given: asked.append(given) or propose(**given))
    (seed,) = find_seeds(models, [picture(5)], "bright.", seeding=Seeding(prompts))[0].objects
    assert seed.prompts_box == ("box" in prompts) and bool(seed.points) == ("points" in prompts)
    assert (seed.mask is not None) == ("mask" in prompts)
    segment_image(models, picture(5), "bright.", seeding=Seeding(prompts))
    given = asked[0]
    assert (given["points"] is not None) == ("points" in prompts) and (given["mask"] is not None) == ("mask" in prompts)
    assert (given["boxes"] is not None) == ("box" in prompts or prompts == ("mask",))  # a mask comes with its box


def test_a_region_between_the_pixels_of_a_tiny_picture_still_has_a_mask_prompt():
    seeds = find_seeds(heat_models(), [picture(0, height=24)[:, :2]], "bright.", seeding=Seeding(("mask",)))[0]
    assert all(seed.mask.any() for seed in seeds.objects)
    region = np.zeros((64, 64), bool)
    region[41, 10] = True  # between the rows and columns of the picture
    assert np.argwhere(_enlarged(region, (24, 20))).tolist() == [[15, 3]]


# --- The same prompts from a detector ----------------------------------------------------------------------


def test_a_detector_s_boxes_may_become_points_and_masks_too():
    models, image = tiny_models(), picture(5, 30)
    plain = segment_image(models, image, "bright.")
    for prompts in (("points",), ("mask",), ("box", "points", "mask")):
        found = segment_image(models, image, "bright.", seeding=Seeding(prompts))
        assert [(o.label, o.score, o.box) for o in found.objects] == [(o.label, o.score, o.box) for o in plain.objects]
    (seed, _) = find_seeds(models, [image], "bright.", seeding=Seeding(("points", "mask")))[0].objects
    assert seed.points[0] == (10.0, 16.0) and seed.point_labels == [1] + [0] * (len(seed.points) - 1)
    assert seed.mask.sum() == 10 * 12 and not seed.prompts_box


def test_points_of_a_box_are_its_middle_and_what_lies_around_it_in_the_picture():
    thin = with_prompts(Seed("a", 1.0, (10, 99.6, 30, 100)), (100, 100), Seeding(("mask",)))
    assert thin.mask.sum() == 20 and thin.mask[99, 10:30].all()
    between = with_prompts(Seed("a", 1.0, (10.6, 20.4, 30.6, 40.4)), (100, 100), Seeding(("mask",)))
    assert between.mask.sum() == 20 * 20 and between.mask[20:40, 11:31].all()
    points, labels = points_of_box((40, 40, 80, 60), (352, 352), HeatSettings(border=5))
    assert points[0] == (60, 50) and labels == [1] + [0] * 8
    assert all(x in (35, 60, 85) and y in (35, 50, 65) for x, y in points[1:])
    points, labels = points_of_box((0, 0, 352, 352), (352, 352), HeatSettings())
    assert points == [(176, 176)]  # nothing is outside
    assert points_of_box((4, 4, 9, 9), (20, 20), HeatSettings(positives=0, negatives=2))[1] == [0, 0]


def test_an_automatic_threshold_is_otsu_s_kept_between_a_floor_and_one_half():
    scores = torch.tensor([0.02] * 50 + [0.05] * 20 + [0.4, 0.42])
    assert 0.05 < auto_threshold(scores, 0.0) < 0.4
    assert auto_threshold(scores, 0.41) == 0.41 and auto_threshold(torch.zeros(0), 0.25) == 0.25
    assert auto_threshold(torch.tensor([0.6] * 9 + [0.95] * 9), 0.25) == 0.5
    found = find_seeds(tiny_models(), [picture(5, 30)], "bright.", Thresholds(box="auto"))[0]
    assert len(found) == 2


# --- Videos ------------------------------------------------------------------------------------------------


def test_a_video_is_seeded_on_the_first_frame_that_shows_something_and_looked_at_again():
    models = heat_models()
    frames = list(segment_video(models, film(8, empty=3), "bright.", redetect=2))
    assert [len(f.objects) for f in frames[:4]] == [0, 0, 0, 1]
    assert frames[3].objects[0].id == 1 and frames[3].objects[0].label == "bright"
    assert [bool(f.heat) for f in frames] == [True] * 4 + [False, True, False, True]
    assert models.heat_mapper.looked == 6


def test_a_video_in_which_nothing_is_ever_found_is_a_result(tmp_path, capsys):
    source = save_film(tmp_path / "film", 4)
    words = [source, "bright.", "--frames", *CLIPSEG, "--format", "gif", "--out", tmp_path / "out"]
    assert command(*words, models=heat_models(0.013)) == 0
    assert "nothing found; the best is 'bright' with 0.013: nothing here looks like it" in capsys.readouterr().out


def test_the_frame_is_not_encoded_again_to_choose_among_masks(monkeypatch):
    models, encoded = heat_models(), []
    encode = models.sam.encode_image
    monkeypatch.setattr(models.sam, "encode_image", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    list(segment_video(models, film(3), "bright."))
    assert encoded == [1, 1, 1]


def test_an_interrupted_video_goes_on_to_the_same_masks(tmp_path, monkeypatch):
    words = [save_film(tmp_path / "film", 6), "bright.", "--frames", *CLIPSEG, "--redetect", 2, "--format", "gif"]
    words += ["--save", "heatmap"]
    assert command(*words, "--out", tmp_path / "whole", models=heat_models()) == 0
    original = model_loading.Models.stage

    def break_off(self, name):
        if name == "track" and self.seconds["tracked"] == 3:
            raise OSError(28, "No space left on device")
        self.seconds["tracked"] += name == "track"
        return original(self, name)

    from minisam_glue.cli import video

    monkeypatch.setattr(video, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(Models, "stage", break_off)
    assert command(*words, "--out", tmp_path / "broken", models=heat_models()) == 2
    monkeypatch.setattr(Models, "stage", original)
    assert command(*words, "--out", tmp_path / "broken", "--resume", models=heat_models()) == 0
    whole, resumed = (tmp_path / name / "film" / "result.jsonl" for name in ("whole", "broken"))
    assert whole.read_bytes() == resumed.read_bytes()
    maps = [sorted(p.name for p in (tmp_path / n / "film" / "heatmaps").rglob("*")) for n in ("whole", "broken")]
    assert maps[0] == maps[1] and "000002_mask.png" in maps[0]


# --- The command line --------------------------------------------------------------------------------------


def test_heat_maps_are_saved_as_a_picture_a_mask_and_an_overlay(tmp_path):
    source = save(picture(5, 30), tmp_path / "two.png")
    words = [source, "bright. dark.", *CLIPSEG, "--out", tmp_path / "out", "--quiet"]
    assert command(*words, "--save", "heatmap", models=heat_models()) == 0
    folder = tmp_path / "out" / "two"
    names = [f"{stem}{end}.png" for stem in ("001_bright", "002_dark") for end in ("", "_mask", "_overlay")]
    assert sorted(path.name for path in (folder / "heatmaps").iterdir()) == sorted(names)
    heat, mask, overlay, dark = (
        np.asarray(Image.open(folder / "heatmaps" / f"{name}.png"))
        for name in ("001_bright", "001_bright_mask", "001_bright_overlay", "002_dark_mask")
    )
    assert heat.shape == overlay.shape == (40, 56, 3) and mask.shape == (40, 56)
    assert mask[15, 10] == 255 and mask[15, 22] == 0 and not dark.any()
    assert heat[15, 10].tolist() == [255, 255, 178] and heat[15, 22].max() < 10
    record = json.loads((folder / "result.json").read_text())
    assert record["method"] == "clipseg" and record["seeding"]["heat"]["min_area"] == 100
    assert command(*words, models=heat_models()) == 0
    assert not (folder / "heatmaps").exists()  # those of the earlier run would belie the new results


def test_a_low_confidence_is_said_with_what_may_help(tmp_path, capsys):
    source = save(picture(5), tmp_path / "one.png")
    words = [source, "bright.", *CLIPSEG, "--out", tmp_path / "out"]
    assert command(*words, models=heat_models(0.013)) == 0
    assert "the best is 'bright' with 0.013: nothing here looks like it" in capsys.readouterr().out
    assert command(*words, models=heat_models(0.08)) == 0
    assert "the best is 'bright' with 0.08: try --heat-threshold 0.04" in capsys.readouterr().out
    assert command(*words, "--heat-threshold", 0.04, models=heat_models(0.08)) == 0
    assert "1 bright" in capsys.readouterr().out
    assert command(*words, "--min-area", 1e5, models=heat_models()) == 0
    assert "try a smaller --min-area or a larger --max-area" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--method", "clipseg", "--detector", "swin-t"), "--detector swin-t: --method clipseg has none"),
        (("--method", "sam3"), "invalid choice: 'sam3'"),
        (("--method", "clipseg", "--heat-threshold", "2"), "give a number from 0 to 1, or otsu"),
        (("--method", "clipseg", "--heat-percentile", "-1"), "give a number from 0 to 1"),
        (("--method", "clipseg", "--heat-size", "0"), "give a whole number from 8"),
        (("--box-threshold", "often"), "give a number from 0 to 1, or auto"),
        (("--positives", "-1"), "give a whole number from 0"),
        (("--seed-prompt", "circle"), "invalid choice: 'circle'"),
    ],
)
def test_flags_that_make_no_sense_are_one_line(flags, words, tmp_path, capsys):
    source = save(picture(5), tmp_path / "one.png")
    assert command(source, "bright.", *flags, "--out", tmp_path / "out", models=heat_models()) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_flags_without_effect_are_named(tmp_path, capsys):
    source = save(picture(5), tmp_path / "one.png")
    assert command(source, "bright.", *CLIPSEG, "--nms", 0.5, "--out", tmp_path / "out", models=heat_models()) == 0
    assert "note: --nms does nothing with --method clipseg" in capsys.readouterr().out
    assert command(source, "bright.", "--heat-percentile", 0.9, "--out", tmp_path / "out") == 0
    assert "note: --heat-percentile does nothing without --method clipseg" in capsys.readouterr().out


@pytest.mark.parametrize("phrase, words", [(" . ", "has no phrase"), ("cat " * 40, "it must have 1 to 10")])
def test_a_phrase_that_is_missing_or_too_long_is_one_line(phrase, words, tmp_path, capsys):
    models = Models(None, tiny_models().sam, heat_mapper=HeatMapper(tiny_model(), TOKENIZER, 48))
    source = save(picture(5), tmp_path / "one.png")
    assert command(source, phrase, *CLIPSEG, "--out", tmp_path / "out", models=models) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize("height, width", [(1, 1), (40, 2000)])
def test_pictures_of_any_size_are_a_result(height, width, tmp_path):
    source = save(np.full((height, width, 3), 200, np.uint8), tmp_path / "odd.png")
    words = [source, "cat.", *CLIPSEG, "--save", "heatmap", "--out", tmp_path / "out", "--quiet"]
    models = Models(None, tiny_models().sam, heat_mapper=HeatMapper(tiny_model(), TOKENIZER, 48))
    for some in (heat_models(), models):
        assert command(*words, models=some) == 0
        assert (tmp_path / "out" / "odd" / "result.json").is_file()


# --- Loading -----------------------------------------------------------------------------------------------


def test_weights_that_are_damaged_or_missing_are_one_line(tmp_path, monkeypatch, capsys):
    source = save(picture(5), tmp_path / "one.png")
    (tmp_path / "weights").mkdir()

    def fetch(name, folder, progress):
        path = tmp_path / "weights" / name
        path.write_bytes(b"damaged")
        return path

    monkeypatch.setattr(model_loading.weights, "fetch", fetch)
    words = [source, "bright.", *map(str, CLIPSEG), "--weights", tmp_path / "weights", "--out", tmp_path / "out"]
    from minisam_glue.cli import main

    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert "weights/clipseg can't be used" in error.replace("\\", "/") and error.count("\n") == 1
    assert main([*map(str, words), "--heat-size", "350"]) == 2
    assert "--heat-size 350: give a multiple of 16 up to 4096, such as 352" in capsys.readouterr().err


def test_the_method_is_known_by_name_and_needs_no_detector():
    with pytest.raises(ValueError, match="method 'both': there is no such method"):
        load_models(method="both")
    for source in (None, "demo"):
        with pytest.raises(ValueError, match="detector .clipseg.: there is no such model, choose one of swin-t"):
            load_models(source, detector="clipseg")
        with pytest.raises(ValueError, match="detector 'swin-b': method clipseg has none; leave one of them out"):
            load_models(source, detector="swin-b", method="clipseg")
    with pytest.raises(ValueError, match="seed_prompt"):
        Seeding(("circle",))
    assert heat_models().detector is None and isinstance(heat_models().heat_mapper, BrightHeatMapper)
    assert Seed(box=(1, 2, 3, 4)).as_prompt() == {"box": [1, 2, 3, 4]}


@pytest.mark.parametrize("threshold, there", [(0.3, True), (0.45, False)])
def test_the_mask_of_a_saved_heat_map_is_what_exceeds_the_threshold_that_was_given(threshold, there, tmp_path):
    source, flags = save(picture(5), tmp_path / "a.png"), ["--method", "clipseg", "--heat-threshold", threshold]
    words = [source, "bright.", *flags, "--save", "heatmap", "--quiet", "--out", tmp_path / "out"]
    assert command(*words, models=heat_models(0.4)) == 0
    mask = np.asarray(Image.open(tmp_path / "out" / "a" / "heatmaps" / "001_bright_mask.png"))
    assert (mask[15, 10] == 255) == there and not mask[30].any()


def test_an_automatic_threshold_is_not_below_the_text_threshold_that_was_given():
    found = [
        find_seeds(tiny_models(), [picture(5, 30)], "bright.", Thresholds(box="auto", text=text))[0].objects
        for text in (0.25, 0.85, 0.95)
    ]
    assert [len(objects) for objects in found] == [2, 1, 0]  # of scores 0.9 and 0.8
