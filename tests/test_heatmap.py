"""Heat maps to thresholds, components, instances and seed points."""

import time

import numpy as np
import parity
import pytest
import torch
from helpers.sam2_tiny import tiny_model

from minisam_glue.demo import HEAT_EVIDENCE, HEAT_FLOOR, HEAT_MIN_AREA
from minisam_glue.heatmap import (
    HeatInstance,
    HeatSettings,
    choose_threshold,
    confidence,
    find_instances,
    label_components,
    measure_components,
    otsu,
    seed_points,
    spread,
)
from minisam_glue.models import Models
from minisam_glue.seeding import box_share

FOLDER = parity.ROOT / "golden" / "clipseg"
OTSU = parity.Golden.load(FOLDER / "postprocess_otsu.npz")
COMPONENTS = parity.Golden.load(FOLDER / "postprocess_components.npz")


def instances_of(logits: torch.Tensor, size: tuple[int, int], settings: HeatSettings) -> list[HeatInstance]:
    heat = confidence(logits)
    return find_instances(heat, choose_threshold(heat, settings), size, settings)


def logit(heat: np.ndarray) -> torch.Tensor:
    return torch.logit(torch.from_numpy(heat).float(), eps=1e-6)


def blobs(*boxes, size: int = 352, low: float = 0.02, high: float = 0.9) -> torch.Tensor:
    """Logits with rectangles xyxy of high confidence."""
    heat = np.full((size, size), low)
    for left, top, right, bottom in boxes:
        heat[top:bottom, left:right] = high
    return logit(heat)


# --- Otsu's threshold --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTSU.config["results"])
def test_thresholds_and_foregrounds_are_exactly_those_of_the_references(name):
    expected, levels = OTSU.config["results"][name], OTSU.stored["u8_" + name]
    values = OTSU.stored["float_" + name]
    assert otsu(levels) == expected["skimage_u8"]
    assert (levels > otsu(levels)).sum() == expected["skimage_u8_fg"]
    assert otsu(values) == expected["skimage_float_256"]
    assert otsu(values, 64) == expected["skimage_float_64"]
    assert (values > otsu(values)).sum() == expected["skimage_float_fg"]


def test_otsu_maximises_the_variance_between_the_classes():
    values = np.random.default_rng(0).integers(0, 40, 500)

    def between(threshold: int) -> float:
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0.0

    assert between(int(otsu(values))) == max(map(between, range(40)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_otsu_splits_values_that_lie_closer_together_than_bins_can(dtype):
    low, high = dtype(0.3), np.nextafter(np.nextafter(dtype(0.3), dtype(1)), dtype(1))
    values = np.array([[low, low, high], [low, high, high]])
    assert otsu(values) == low and ((values > otsu(values)) == (values == high)).all()


@pytest.mark.parametrize("values", [np.zeros(0), np.array([0.0, np.nan]), np.array([np.inf])])
def test_otsu_refuses_what_has_no_threshold(values):
    with pytest.raises(ValueError, match="finite values"):
        otsu(values)


def test_a_percentile_takes_the_place_of_a_threshold_that_splits_the_background():
    heat = np.random.default_rng(0).uniform(0.2, 0.3, (64, 64))
    heat[:24] *= 0.1  # a darker third: Otsu takes the rest for the object
    assert (heat > otsu(heat)).mean() > 0.5
    chosen = choose_threshold(heat, HeatSettings(floor=0.0))
    assert chosen == pytest.approx(np.quantile(heat, 0.97)) and (heat > chosen).mean() < 0.04


def test_a_threshold_stays_between_the_floor_and_one_half():
    heat = np.full((40, 40), 0.001)
    heat[:5, :5] = 0.013
    assert choose_threshold(heat, HeatSettings()) == 0.1
    heat[:] = 0.8
    heat[:20] = 0.97
    assert choose_threshold(heat, HeatSettings()) == 0.5  # both are of the object
    assert choose_threshold(heat, HeatSettings(threshold=0.9)) == 0.9


def test_an_instance_must_reach_the_floor_somewhere_but_not_everywhere():
    heat = np.full((352, 352), 0.001)
    heat[40:100, 40:100], heat[200:260, 200:260] = 0.7, 0.7
    heat[50:60, 50:60] = 0.95
    (found,) = instances_of(logit(heat), (352, 352), HeatSettings(floor=0.9))
    assert found.box == (40, 40, 100, 100) and found.region.sum() == 3600
    assert len(instances_of(logit(heat), (352, 352), HeatSettings(floor=0.5))) == 2
    assert len(instances_of(logit(heat), (352, 352), HeatSettings(threshold=0.5, floor=0.9))) == 2


def test_floor_least_area_and_splitting_are_those_of_the_weights_unless_they_are_given():
    official, small = (Models(None, tiny_model(), demo=demo) for demo in (False, True))
    assert official.heat_settings(HeatSettings()) == HeatSettings(floor=0.1, min_area=300, split=False, evidence=0)
    of_demo = small.heat_settings(HeatSettings(percentile=0.9))
    assert (of_demo.floor, of_demo.min_area, of_demo.percentile) == (HEAT_FLOOR, HEAT_MIN_AREA, 0.9)
    assert of_demo.evidence == HEAT_EVIDENCE
    assert of_demo.split and not official.heat_settings(HeatSettings()).split  # these know parts of things
    given = HeatSettings(floor=0.0, min_area=7, split=False, evidence=0.5)
    assert small.heat_settings(given) == official.heat_settings(given) == given


# --- Components --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("name", COMPONENTS.stored)
def test_components_are_exactly_those_of_the_references(name, connectivity):
    labels = label_components(COMPONENTS.stored[name].astype(bool), connectivity)
    assert np.array_equal(labels, COMPONENTS.outputs[f"{name}_labels{connectivity}"])
    found, expected = measure_components(labels), COMPONENTS.outputs[f"{name}_stats{connectivity}"]
    assert np.array_equal(found.boxes, np.concatenate((expected[:, :2], expected[:, :2] + expected[:, 2:4]), 1))
    assert np.array_equal(found.areas, expected[:, 4])


def test_components_of_a_spiral_are_one():
    mask = np.zeros((41, 41), bool)
    for k in range(0, 20, 2):  # squares in one another, each opened at one corner and joined to the next
        mask[k, k : 41 - k] = mask[40 - k, k : 41 - k] = mask[k : 41 - k, k] = mask[k : 41 - k, 40 - k] = True
        if k:
            mask[k, k - 1] = True
    assert label_components(mask, 4).max() == 1


def test_components_of_a_large_mask_take_no_time():
    mask = np.random.default_rng(0).random((1500, 1500)) > 0.6
    start = time.perf_counter()
    assert label_components(mask).max() > 1000
    assert time.perf_counter() - start < 10


# --- Instances ---------------------------------------------------------------------------------------------


def test_each_region_is_an_instance_with_its_box_in_pixels_of_the_picture():
    logits = blobs((10, 20, 60, 80), (200, 100, 300, 180))
    one, two = sorted(instances_of(logits, (704, 176), HeatSettings()), key=lambda i: i.box)
    assert one.box == (5, 40, 30, 160) and two.box == (100, 200, 150, 360)
    assert one.score == pytest.approx(0.9, abs=1e-3) and one.region.sum() == 50 * 60
    assert ((one.points / (0.5, 2)) % 1 == 0.5).all()  # the middles of the map's pixels


def test_the_most_confident_instance_comes_first():
    logits = blobs((10, 10, 60, 60)).maximum(blobs((100, 100, 160, 160), high=0.99))
    assert [round(i.score, 2) for i in instances_of(logits, (352, 352), HeatSettings())] == [0.99, 0.9]


@pytest.mark.parametrize("size, side", [(352, 17), (704, 34), (176, 8)])
def test_regions_below_the_smallest_area_are_noise_at_any_size(size, side):
    settings = HeatSettings()  # 300 pixels of 352 x 352: a square of 17.3
    assert not instances_of(blobs((40, 40, 40 + side, 40 + side), size=size), (99, 99), settings)
    assert len(instances_of(blobs((40, 40, 42 + side, 42 + side), size=size), (99, 99), settings)) == 1


def test_an_absent_object_lights_up_nothing():
    weak = blobs((50, 50, 150, 150), low=0.001, high=0.013)
    assert not instances_of(weak, (352, 352), HeatSettings())
    assert len(instances_of(weak, (352, 352), HeatSettings(threshold=0.005))) == 1  # unless one asks for it


@pytest.mark.parametrize("value, count", [(0.0, 0), (0.3, 0), (1.0, 1)])
def test_a_flat_heat_map_is_nothing_or_the_whole_picture(value, count):
    found = instances_of(logit(np.full((32, 32), value)), (10, 20), HeatSettings())
    assert [instance.box for instance in found] == [(0, 0, 20, 10)] * count


@pytest.mark.parametrize("size", [(600, 800), (534, 800), (3024, 4032), (1, 1), (100, 8000)])
def test_an_instance_that_fills_a_picture_of_any_size_has_its_box_exactly(size):
    (found,) = instances_of(torch.full((352, 352), 3.0), size, HeatSettings())
    assert found.box == (0, 0, size[1], size[0]) and box_share(found.box, size) == 1


def test_heat_maps_are_enlarged_as_logits():
    logits = torch.tensor([[-8.0, 8.0]]).expand(2, 2)
    wide = confidence(logits, (2, 4))
    assert wide.shape == (2, 4)
    np.testing.assert_allclose(wide[0], torch.tensor([-8.0, -4.0, 4.0, 8.0]).sigmoid().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [{"threshold": 1.5}, {"percentile": -0.1}, {"floor": float("nan")}, {"min_area": -1}, {"border": float("inf")},
     {"positives": -1}, {"negatives": -2}, {"positives": 2.5}, {"negatives": "8"}, {"floor": "0.1"}, {"border": "5"},
     {"evidence": 2.5}, {"evidence": -0.1}],
)  # fmt: skip
def test_settings_that_can_not_be_are_refused(settings):
    with pytest.raises(ValueError, match="give a (whole )?number from 0"):
        HeatSettings(**settings)


@pytest.mark.parametrize("split", ["yes", 1, 2.5, [], np.array([1, 0])])
def test_whether_regions_are_split_is_true_false_or_left_open(split):
    with pytest.raises(ValueError, match="give True, False or None"):
        HeatSettings(split=split)


# --- Seed points -------------------------------------------------------------------------------------------


def test_positives_lie_inside_the_border_and_negatives_outside_of_it():
    logits = blobs((100, 120, 180, 220), (200, 120, 260, 220))
    instances = instances_of(logits, (352, 352), HeatSettings(negatives=40))
    assert len(instances) == 2
    for instance in instances:
        left, top, right, bottom = instance.box
        for (x, y), sign in zip(instance.points, instance.labels):
            if sign:
                assert left + 5 <= x <= right - 5 and top + 5 <= y <= bottom - 5
            else:
                assert logits[int(y), int(x)] < 0
                assert x <= left - 5 or x >= right + 5 or y <= top - 5 or y >= bottom + 5
        assert instance.labels.tolist() == [1] * 8 + [0] * 40


def test_positives_are_spread_over_the_confident_part():
    heat = np.full((100, 100), 0.01)
    heat[20:80, 20:80] = 0.4
    heat[20:80, 50:80] = np.linspace(0.8, 0.9, 30)
    region = heat > 0.3
    points, signs = seed_points(heat, region, region, HeatSettings(), 3)
    inside = points[signs == 1]
    assert inside[:, 0].min() >= 50  # the more confident half
    distances = np.linalg.norm(inside[:, None] - inside[None], axis=-1) + 1e9 * np.eye(8)
    assert distances.min() > 8


def test_a_region_thinner_than_the_border_still_has_positives():
    region = np.zeros((50, 50), bool)
    region[10, 5:45] = True
    points, signs = seed_points(region * 0.9, region, region, HeatSettings(negatives=0), 5)
    assert len(points) == 8 and all(region[y, x] for x, y in points)


def test_a_small_object_has_negatives_around_it_and_borders_grow_with_the_picture():
    region = np.zeros((60, 60), bool)
    region[30:33, 30:33] = True
    points, signs = seed_points(region * 0.9, region, region, HeatSettings(), 5)
    away = np.abs(points[signs == 0] - 31).max(1)
    assert len(away) == 8 and 6 <= away.min() <= away.max() <= 13
    assert [HeatSettings(border=5).scaled_border(side) for side in (176, 352, 704)] == [2, 5, 10]


def test_no_negatives_are_made_up_where_the_object_fills_the_picture():
    region = np.ones((50, 50), bool)
    _, signs = seed_points(region * 0.9, region, region, HeatSettings(), 5)
    assert signs.tolist() == [1] * 8


def test_points_may_be_left_out():
    instance = instances_of(blobs((50, 50, 90, 90)), (352, 352), HeatSettings(positives=0, negatives=0))[0]
    assert instance.points.shape == (0, 2) and instance.labels.shape == (0,)


def test_points_are_spread_from_the_best_pixel_to_the_farthest():
    candidates, value = np.zeros((1, 101), bool), np.zeros((1, 101))
    candidates[0, ::10] = True
    value[0, 30] = 1
    assert spread(candidates, value, 3)[:, 0].tolist() == [30, 100, 0]
    assert spread(candidates & False, value, 3).shape == (0, 2)
