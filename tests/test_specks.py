"""Stray pixels of a tracked mask: they go, and parts of an object that is half hidden stay."""

from pathlib import Path

import numpy as np
import pytest
from helpers.squares import film
from helpers.tiny_segment import tiny_models

from minisam_glue import Clicks, frames, load_models, propagation, segment_video
from minisam_glue.masks import label_components
from minisam_glue.propagation import SPECK, without_specks
from minisam_glue.propagators import HOLE, MOST_PROMPTED
from minisam_glue.sam2 import VideoTracker

CLIP = Path(__file__).parent.parent / "examples" / "leaving.webp"
SENTENCE = "black circle. green heart."


def disc(centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[:120, :160]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def parts(mask: np.ndarray) -> list[int]:
    """Areas of the connected parts, largest first."""
    return sorted(np.bincount(label_components(mask).ravel())[1:].tolist(), reverse=True)


@pytest.mark.parametrize("seed", range(10))
def test_specks_go_and_the_parts_of_a_half_hidden_object_stay(seed):
    rng = np.random.default_rng(seed)
    seen = disc((60, 80), rng.uniform(25, 50))
    for left in range(40, 130, 15):  # behind bars
        seen[:, left : left + int(rng.integers(2, 8))] = False
    seen &= ~without_small_parts(seen)
    stray, largest = np.zeros_like(seen), parts(seen)[0]
    for _ in range(4):
        y, x = rng.integers(0, 118), rng.integers(0, 158)
        if not seen[max(0, y - 3) : y + 5, max(0, x - 3) : x + 5].any():
            stray[y : y + 2, x : x + 1 + int(largest > 500)] = True
    assert len(parts(seen)) > 2 and np.array_equal(without_specks(seen | stray), seen)


def without_small_parts(mask: np.ndarray) -> np.ndarray:
    """The parts of a mask that are too small for the test to say what should happen to them."""
    labels = label_components(mask)
    areas = np.bincount(labels.ravel())
    return ((areas < 0.05 * areas[1:].max())[labels]) & mask


def test_an_empty_mask_and_one_part_stay_as_they_are_and_keep_no_other_masks_in_memory():
    for mask in (np.zeros((4, 5), bool), np.eye(4, 5, dtype=bool), np.ones((4, 5), bool)):
        clean = without_specks(mask)
        assert np.array_equal(clean, mask) and not np.shares_memory(clean, mask)


def test_the_glue_clears_specks_and_the_tracker_stays_exact(monkeypatch):
    monkeypatch.setattr(propagation, "SPECK", 1.0)  # all but the largest part, since these masks have no small ones
    pictures, box = film(6), [4, 10, 14, 22]
    models = tiny_models()
    holes = HOLE * (models.sam.config.image_size // 4) ** 2 // 256**2
    tracker = VideoTracker(models.sam, max_hole=holes, max_prompted=MOST_PROMPTED)
    exact = []
    for index, image in enumerate(pictures):
        tracker.seek(index, image)
        if index == 0:
            tracker.prompt(1, box=box)
        exact.append(tracker.track(False).masks()[0].numpy())
    glued = [frame.masks[0] for frame in segment_video(models, pictures, Clicks(boxes=[box]))]
    assert all(np.array_equal(without_specks(one), other) for one, other in zip(exact, glued, strict=True))
    assert any((one != other).any() for one, other in zip(exact, glued))


def follow_both_objects(results) -> None:
    for found in results:
        if found.frame == 0:
            assert {o.label for o in found.seen} == {"black circle", "green heart"}
        for o in found.seen:
            areas = parts(o.mask)
            assert areas[-1] >= SPECK * areas[0], (found.frame, areas)
            assert o.box[2] - o.box[0] < 80 and o.box[3] - o.box[1] < 80, (found.frame, o.label, o.box)


def test_on_the_example_boxes_follow_the_object_not_three_pixels_far_away():
    models = load_models("demo")
    with frames(CLIP, max_seconds=13 / 12) as clip:
        follow_both_objects(segment_video(models, clip, SENTENCE))


@pytest.mark.slow
def test_on_the_whole_example_boxes_follow_the_object():
    with frames(CLIP) as clip:
        follow_both_objects(segment_video(load_models("demo"), clip, SENTENCE))
