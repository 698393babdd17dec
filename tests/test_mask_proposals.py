"""Masks that SAM 2 proposes for a seed: which one is taken, and when a region is several objects."""

import numpy as np
import pytest
import torch
from helpers.squares import H, W, picture
from helpers.tiny_heat import heat_models

from minisam_glue.demo.evaluate_clipseg import find_masks, found_metrics
from minisam_glue.demo.scenes import scene
from minisam_glue.heatmap import HeatSettings
from minisam_glue.mask_proposals import (
    agreement,
    choose_single,
    first_of_repeats,
    mask_logits,
    propose,
    rate,
    segment_seed,
    split_seed,
)
from minisam_glue.models import load_models
from minisam_glue.pipeline import segment_image, segment_video
from minisam_glue.prompts import SEED_PROMPTS, Seeding
from minisam_glue.seeding import Seed, find_seeds

SPLIT = Seeding(heat=HeatSettings(split=True))


def box_mask(*sides: int) -> torch.Tensor:
    """Bool (64, 64) that is True inside a box xyxy of a picture (H, W)."""
    mask = torch.zeros(64, 64, dtype=torch.bool)
    left, top, right, bottom = (round(side * 64 / whole) for side, whole in zip(sides, (W, H, W, H)))
    mask[top:bottom, left:right] = True
    return mask


# --- One mask for a seed -----------------------------------------------------------------------------------


def test_a_mask_prompt_is_logits_of_ten_with_the_shares_of_its_edge_between():
    models, mask = heat_models(), np.zeros((64, 64), bool)
    mask[:, :30] = True
    logits = mask_logits(mask, models)
    side = models.sam.config.image_size // 4
    assert logits.shape == (1, side, side) and logits[0, :, [0, -1]].tolist() == [pytest.approx([10, -10])] * side
    assert logits.mean() == pytest.approx(20 * 30 / 64 - 10, abs=0.5)


def test_of_the_proposed_masks_the_one_that_agrees_with_the_heat_map_is_taken_not_the_best_scored(monkeypatch):
    models = heat_models()
    object_mask = box_mask(5, 10, 15, 22)
    proposed = torch.stack([~object_mask, object_mask, object_mask & False])[None].float() - 0.5
    scores = torch.tensor([[0.99, 0.4, 0.7]])
    monkeypatch.setattr(models.predictor, "propose", lambda **given: (proposed, scores))
    (seed,) = find_seeds(models, [picture(5)], "bright.")[0].objects
    encoded = models.predictor.encode([picture(5)])
    mask, score = segment_seed(models, seed, encoded)
    assert mask[11:21, 6:14].all() and mask.mean() < 0.1 and score == pytest.approx(0.4)
    seed.region = None
    assert not segment_seed(models, seed, encoded)[0][11:21, 6:14].any()  # the background


def test_a_mask_of_which_both_models_are_unsure_is_no_object(monkeypatch):
    models = heat_models()
    object_mask = box_mask(5, 10, 15, 22)
    for score, found in ((0.5, 1), (0.35, 0)):  # an agreement of about 1 is added
        proposed = torch.stack([object_mask] * 3)[None].float() - 0.5, torch.full((1, 3), score)
        monkeypatch.setattr(models.predictor, "propose", lambda given=proposed, **_: given)
        seeding = Seeding(heat=HeatSettings(evidence=1.4))
        result = segment_image(models, picture(5), "bright.", seeding=seeding)
        assert len(result.objects) == found and result.best[1] == pytest.approx(0.9)


def test_a_video_is_searched_on_until_a_mask_has_evidence():
    models = heat_models()
    frames = [picture(5), picture(6), picture(7)]
    unsure, sure = (Seeding(heat=HeatSettings(evidence=value)) for value in (2.0, 0.0))
    results = list(segment_video(models, frames, "bright.", seeding=unsure))
    assert [len(result.objects) for result in results] == [0, 0, 0] and models.heat_mapper.looked == 3
    models = heat_models()
    assert list(segment_video(models, frames, "bright.", seeding=sure))[-1].objects and models.heat_mapper.looked == 1


@pytest.mark.parametrize("left", range(40, 49))
def test_a_region_thinner_than_a_pixel_of_the_masks_still_tells_which_of_them_agrees(left):
    region = np.zeros((256, 256), bool)
    region[60:76, left : left + 2] = True
    masks = torch.zeros(2, 96, 96, dtype=torch.bool)
    masks[0], masks[1, 22:29, left * 96 // 256 : (left + 2) * 96 // 256 + 1] = True, True
    assert agreement(masks, region).argmax() == 1


def test_of_several_masks_the_one_that_agrees_with_the_heat_map_is_known():
    region = np.zeros((88, 88), bool)
    region[20:60, 30:70] = True
    small = torch.zeros(3, 32, 32, dtype=torch.bool)
    small[0] = True
    small[1, 7:22, 11:25] = True
    small[2] = ~small[1]
    iou = agreement(small, region)
    assert iou.argmax() == 1 and iou[1] > 0.8 and iou[2] < 0.1


def test_the_points_alone_propose_masks_beside_all_prompts_together(monkeypatch):
    models, asked = heat_models(), []
    real = models.predictor.propose
    monkeypatch.setattr(models.predictor, "propose", lambda **given: asked.append(given) or real(**given))
    encoded = models.predictor.encode([picture(5)])

    def proposed(*prompts: str, **settings: int) -> int:
        asked.clear()
        seeding = Seeding(prompts, HeatSettings(**settings))
        (seed,) = find_seeds(models, [picture(5)], "bright.", seeding=seeding)[0].objects
        return len(propose(models, seed, encoded)[0])

    assert proposed("box", "points") == 6 and asked[1]["labels"] == [1] * 8 and asked[1].get("boxes") is None
    assert proposed("points") == 6  # without the points on the background
    assert proposed("points", "mask", negatives=0) == 6 and proposed("points", negatives=0) == 3
    assert proposed("box") == proposed("mask") == 3


def test_a_click_alone_may_mean_several_things_and_one_beside_a_mask_does_not(monkeypatch):
    models, asked = heat_models(), []
    real = models.predictor.propose
    monkeypatch.setattr(models.predictor, "propose", lambda **given: asked.append(given) or real(**given))
    encoded, mask = models.predictor.encode([picture(5)]), np.zeros((H, W), bool)
    mask[4:12, 4:12] = True
    for held, count in ((None, 3), (mask, 1)):
        seed = Seed("bright", 1.0, points=[(8.0, 8.0)], point_labels=[1], mask=held)
        assert len(propose(models, seed, encoded)[0]) == count


# --- Several objects in one region -------------------------------------------------------------------------


LEFT, RIGHT, BOTH = box_mask(5, 10, 15, 22), box_mask(15, 10, 25, 22), box_mask(5, 10, 25, 22)


def touching(monkeypatch, single: float = 0.9, together: float = 0.6):
    """Models for a picture of two squares side by side: SAM 2 tells them apart by single points alone.

    single, together: its scores of a square's mask, and of a mask of both.
    """
    models = heat_models()

    def proposed(points=None, labels=None, **others) -> tuple[torch.Tensor, torch.Tensor]:
        alone = labels == [1]
        mask = (LEFT if points[0][0] < 15 else RIGHT) if alone else BOTH
        low = torch.stack([mask, mask & False, ~mask])[None]
        return low.float() - 0.5, torch.tensor([[single if alone else together, 0.1, 0.2]])

    monkeypatch.setattr(models.predictor, "propose", proposed)
    return models


def test_two_objects_that_touch_in_one_region_are_told_apart(monkeypatch):
    found = segment_image(touching(monkeypatch), picture(5, 15), "bright.", seeding=SPLIT).objects
    one, two = sorted(found, key=lambda o: o.box)
    np.testing.assert_allclose((one.box, two.box), ((5, 10, 15, 22), (15, 10, 25, 22)), atol=0.7)
    assert one.mask[10:22, 5:15].mean() > 0.8 and not (one.mask & two.mask).any()
    assert one.label == two.label == "bright" and one.score == two.score == pytest.approx(0.9, abs=1e-3)


def test_the_whole_region_is_no_mask_prompt_of_one_of_its_objects(monkeypatch):
    models, image = touching(monkeypatch), picture(5, 15)
    (seeds,) = find_seeds(models, [image], "bright.", seeding=Seeding(SEED_PROMPTS, HeatSettings(split=True)))
    (whole,) = seeds.objects
    parts = split_seed(models, whole, models.predictor.encode([image]))
    assert whole.mask is not None and len(parts) == 2 and all(part.mask is None for part in parts)


def test_objects_of_a_region_have_the_least_area_of_instances(monkeypatch):
    for least, objects in ((5000, 2), (6500, 1)):  # a square has 120 of 2240 pixels, 6600 of 352 x 352; here a bit less
        seeding = Seeding(heat=HeatSettings(split=True, min_area=least))
        assert len(segment_image(touching(monkeypatch), picture(5, 15), "bright.", seeding=seeding).objects) == objects


def test_a_mask_of_the_points_alone_is_taken_if_it_fits_better(monkeypatch):
    models = heat_models()

    def proposed(boxes=None, **others) -> tuple[torch.Tensor, torch.Tensor]:
        mask = box_mask(5, 10, 9, 22) if boxes else box_mask(5, 10, 15, 22)
        return mask[None, None].float() - 0.5, torch.tensor([[0.8]])

    monkeypatch.setattr(models.predictor, "propose", proposed)
    (found,) = segment_image(models, picture(5), "bright.").objects
    assert found.mask[11:21, 6:14].all()


def test_of_masks_that_agree_nearly_as_well_the_one_that_sam_2_is_surer_of_is_taken():
    masks = torch.stack([box_mask(5, 10, 15, 22), box_mask(5, 10, 15, 21)])
    assert rate(masks, torch.tensor([0.5, 0.9]), masks[0].numpy()).argmax() == 1
    assert rate(masks, torch.tensor([0.9, 0.9]), masks[0].numpy()).argmax() == 0


def test_a_region_stays_one_object_unless_it_is_to_be_split(monkeypatch):
    (whole,) = segment_image(touching(monkeypatch), picture(5, 15), "bright.").objects
    assert whole.mask[10:22, 5:25].mean() > 0.8


def test_a_mask_of_the_whole_region_that_sam_2_is_sure_of_stays_one_object(monkeypatch):
    models = touching(monkeypatch, single=0.5, together=0.95)
    assert len(segment_image(models, picture(5, 15), "bright.", seeding=SPLIT).objects) == 1


def test_without_points_a_region_is_not_split(monkeypatch):
    models = heat_models()
    (seeds,) = find_seeds(models, [picture(5, 15)], "bright.", seeding=Seeding(("box",), HeatSettings(split=True)))
    (seed,) = seeds.objects
    assert split_seed(models, seed, models.predictor.encode([picture(5, 15)])) == [seed]


def test_a_video_tracks_each_of_two_objects_that_touch_on_its_first_frame(monkeypatch):
    models = touching(monkeypatch)
    frames = [picture(5, 15, seed=t) for t in range(3)]
    for propagate in ("memory", "flow"):
        results = list(segment_video(models, frames, "bright.", seeding=SPLIT, propagate=propagate))
        assert [o.id for o in results[0].objects] == [1, 2]
        assert not (results[0].objects[0].mask & results[0].objects[1].mask).any()


def test_of_single_masks_those_outside_and_repeats_are_left_out():
    shifted = LEFT.roll(1, 1)
    masks = torch.stack([BOTH, LEFT, shifted, RIGHT, ~BOTH])
    assert choose_single(masks, torch.tensor([0.5, 0.8, 0.7, 0.9, 1.0]), BOTH) == [3, 1]
    assert choose_single(masks, torch.tensor([0.95, 0.8, 0.7, 0.9, 1.0]), BOTH) == [0]  # the others repeat a part of it


def test_what_several_pieces_of_one_object_show_comes_once(monkeypatch):
    models = heat_models()
    image, maps = picture(5), torch.full((1, 1, 64, 64), 0.004)
    maps[0, 0, 16:34, 5:10] = maps[0, 0, 16:34, 12:17] = 0.9  # two pieces of the square
    monkeypatch.setattr(models.heat_mapper, "heat_maps", lambda images, phrases: maps.logit())
    whole = box_mask(5, 10, 15, 22)[None, None].float() - 0.5
    monkeypatch.setattr(models.predictor, "propose", lambda **given: (whole, torch.ones(1, 1)))
    pieces = Seeding(heat=HeatSettings(min_area=100))
    assert len(find_seeds(models, [image], "bright.", seeding=pieces)[0]) == 2
    assert len(segment_image(models, image, "bright.", seeding=pieces).objects) == 1
    for redetect in (0, 1):
        frames = list(segment_video(models, [image, image], "bright.", seeding=pieces, redetect=redetect))
        assert [[o.id for o in frame.objects] for frame in frames] == [[1], [1]]


def test_repeats_are_those_of_one_phrase():
    one, larger = LEFT.numpy(), BOTH.numpy()
    assert first_of_repeats(["a", "a", "b", "a", "b"], [one, one, one, larger, one]) == [0, 2, 3]
    assert first_of_repeats([], []) == []


def test_the_demo_weights_tell_objects_that_touch_apart():
    models = load_models("demo", method="clipseg", device="cpu")
    for truth in map(scene, (2040, 2043)):
        together, apart = (
            found_metrics([(truth, find_masks(models, truth, Seeding(heat=HeatSettings(split=split))))])["text_iou"]
            for split in (False, None)
        )
        assert apart > together + 0.1
