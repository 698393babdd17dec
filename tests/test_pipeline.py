import numpy as np
import pytest
import torch
from helpers.squares import H, W, film, picture
from helpers.tiny_segment import tiny_models

from minisam_glue import pipeline, propagation
from minisam_glue.masks import mask_iou
from minisam_glue.pipeline import segment_image, segment_images, segment_video
from minisam_glue.prompts import Clicks, Seeding, Thresholds
from minisam_glue.propagation import BOTH, REVERSE, Tracking
from minisam_glue.propagators import MOST_PROMPTED
from minisam_glue.redetection import Redetection, assign
from minisam_glue.seeding import Seed, Seeds


def same(one, other) -> bool:
    return (
        one.frame == other.frame
        and [o.id for o in one.objects] == [o.id for o in other.objects]
        and np.array_equal(one.masks, other.masks)
    )


def test_a_text_becomes_one_record_per_object_with_the_predictor_s_mask_of_its_box():
    models, image = tiny_models(), picture(5, 30)
    found = segment_image(models, image, "bright, dark")
    assert [(o.id, o.label) for o in found.objects] == [(1, "bright"), (2, "bright")]
    assert found.boxes.tolist() == [[5, 10, 15, 22], [30, 10, 40, 22]] and found.best == ("bright", 0.9)
    models.predictor.set_image(image)
    assert np.array_equal(found.masks, models.predictor.predict(boxes=found.boxes).masks[:, 0].numpy())
    assert [o.score for o in found.objects] == pytest.approx([0.9, 0.8])


def test_seeds_of_a_sentence_may_have_points_too(monkeypatch):
    models, image = tiny_models(), picture(5, 30)
    seeds = [
        Seed("bright", 0.9, (5, 10, 15, 22), [(9, 15), (40, 30)], [1, 0]),
        Seed("bright", 0.8, (30, 10, 40, 22), [(35, 12)], [1]),
    ]
    monkeypatch.setattr(pipeline, "find_seeds", lambda models, images, *_: [Seeds(seeds) for _ in images])
    found = segment_images(models, [picture(20), image], "bright.")[1]
    models.predictor.set_images([picture(20), image])
    for seed, segment in zip(seeds, found.objects):
        expected = models.predictor.predict([seed.box], seed.points, seed.point_labels, image=1)
        assert np.array_equal(segment.mask, expected.masks[0, 0].numpy()) and segment.box == seed.box
    boxes_alone = models.predictor.predict(boxes=[seed.box for seed in seeds], image=1).masks[:, 0].numpy()
    assert not np.array_equal(found.masks, boxes_alone)


def test_the_detector_is_asked_with_the_thresholds_that_were_given(monkeypatch):
    models, asked = tiny_models(), []
    detect = models.detector.detect
    monkeypatch.setattr(models.detector, "detect", lambda *a, **k: asked.append((a[2:], k)) or detect(*a, **k))
    for box in (0.4, "auto"):
        segment_images(models, [picture(5), picture()], "bright.", Thresholds(box, 0.3, 0.6, 0.5))
    options = {"max_area": 0.5, "batch_size": 2}
    assert asked == [((0.4, 0.3, 0.6), options), ((0.0, 0.0, 0.6), options)]  # auto has a threshold of its own


def test_one_click_alone_is_answered_by_the_best_of_three_masks(monkeypatch):
    models, asked, image = tiny_models(), [], picture(5)
    propose = models.predictor.propose

    def recorded(**given):
        low, scores = propose(**given)
        asked.append((low, torch.tensor([[0.2, 0.3, 0.9]]) if given["multimask"] else scores))
        return asked[-1]

    monkeypatch.setattr(models.predictor, "propose", recorded)
    (found,) = segment_image(models, image, Clicks(points=[(9, 15, 1)])).objects
    segment_image(models, image, Clicks(points=[(9, 15, 1), (40, 30, 0)]))
    segment_image(models, image, Clicks(boxes=[(5, 10, 15, 22)], points=[(9, 15, 1)]))
    assert [low.shape[1] for low, _ in asked] == [3, 1, 1]
    models.predictor.set_image(image)
    three = models.predictor.predict(points=[(9, 15)], labels=[1], multimask=True).masks[0]
    assert np.array_equal(found.mask, three[2].numpy()) and found.score == pytest.approx(0.9)
    assert found.mask.base.untyped_storage().nbytes() == found.mask.nbytes  # a view would keep all three


def test_nothing_found_has_the_size_of_the_picture_and_says_the_best_score():
    found = segment_image(tiny_models(), picture(), "bright.")
    assert found.masks.shape == (0, H, W) and found.boxes.shape == (0, 4) and found.best == ("bright", 0.1)
    assert np.array_equal(found.annotated(), found.image)


def test_pictures_of_unequal_sizes_together_equal_one_by_one():
    images = [picture(5, 30), picture(), picture(20, height=30, width=64)]
    together = segment_images(tiny_models(), images, "bright.")
    for image, result in zip(images, together, strict=True):
        alone = segment_image(tiny_models(), image, "bright.")
        assert same(result, alone) and np.array_equal(result.boxes, alone.boxes)
        assert result.best == alone.best


def test_boxes_points_and_masks_take_the_place_of_a_text():
    models, image = tiny_models(), picture(5)
    mask = np.zeros((H, W), bool)
    mask[10:22, 5:15] = True
    found = segment_image(models, image, Clicks(boxes=[[5, 10, 15, 22]], masks=[mask]))
    assert [o.label for o in found.objects] == ["object"] * 2 and found.objects[0].box == (5, 10, 15, 22)
    clicked = segment_image(models, image, Clicks(points=[[9, 15, 1], [40, 30, 0]])).objects[0]
    models.predictor.set_image(image)
    expected = models.predictor.predict(points=[[9, 15], [40, 30]], labels=[1, 0])
    assert np.array_equal(clicked.mask, expected.masks[0, 0].numpy())
    assert clicked.score == pytest.approx(float(expected.scores[0, 0]))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Clicks(), "no prompt"),
        (lambda: Clicks(boxes=[[0, 0, 1, 1]] * 2, points=[[0, 0, 1]]), "points correct one box"),
        (lambda: segment_image(tiny_models(), picture(), Clicks(masks=[np.ones((3, 3), bool)])), r"mask of \(3, 3\)"),
        (lambda: segment_image(tiny_models(), picture(), Clicks(masks=[np.zeros((H, W), bool)])), "empty"),
        (lambda: Tracking(tiny_models(), "x", direction="sideways"), "choose one of forward"),
        (lambda: Tracking(tiny_models(), Clicks(boxes=[[0, 0, 1, 1]]), redetect=3), "needs a sentence"),
        (lambda: Tracking(tiny_models(), "x", seed_frame=-1), "whole number from 0"),
        (lambda: list(segment_video(tiny_models(), iter(film(2)), "x", direction=REVERSE)), "backward"),
    ],
)
def test_malformed_prompts_are_clear_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_video_is_answered_frame_by_frame_without_reading_ahead():
    given = []

    def source():
        for image in film(5):
            given.append(1)
            yield image

    count = 0
    for count, result in enumerate(segment_video(tiny_models(), source(), "bright."), 1):
        assert len(given) == count and result.frame == count - 1 and len(result.objects) == 1
    assert count == 5


def test_the_first_frame_with_a_detection_is_the_seed():
    models = tiny_models()
    results = list(segment_video(models, film(5, empty=2), "bright."))
    assert [len(r.objects) for r in results] == [0, 0, 1, 1, 1] and models.detector.looked == 3
    assert [r.best for r in results] == [("bright", 0.1)] * 2 + [("bright", 0.9), None, None]
    late = list(segment_video(tiny_models(), film(5), "bright.", seed_frame=3))
    assert [len(r.objects) for r in late] == [0, 0, 0, 1, 1]


def test_reverse_is_forward_through_the_reversed_video():
    frames = film(6)
    forward = list(segment_video(tiny_models(), frames[::-1], "bright."))
    backward = list(segment_video(tiny_models(), frames, "bright.", direction=REVERSE))
    assert [r.frame for r in backward] == [5, 4, 3, 2, 1, 0]
    assert all(np.array_equal(a.masks, b.masks) for a, b in zip(forward, backward))


def test_both_directions_join_a_forward_and_a_reverse_run_from_the_seed():
    frames, clicks = film(6), Clicks(boxes=[[10, 10, 20, 22]])
    results = list(segment_video(tiny_models(), frames, clicks, seed_frame=3, direction=BOTH))
    assert [r.frame for r in results] == [0, 1, 2, 3, 4, 5, 2, 1, 0]
    ahead = list(segment_video(tiny_models(), frames, clicks, seed_frame=3))
    back = list(segment_video(tiny_models(), frames, clicks, seed_frame=3, direction=REVERSE))
    assert all(same(a, b) for a, b in zip(results[3:6], ahead[3:]))
    assert all(same(a, b) for a, b in zip(results[6:], back[3:]))
    assert results[-1].objects[0].first == 0 and results[-1].objects[0].last == 5


@pytest.mark.parametrize("direction", ["forward", REVERSE, BOTH])
def test_a_run_that_goes_on_from_a_state_gives_the_same_masks_bit_for_bit(direction, tmp_path):
    frames = film(4, empty=1) + [picture(12, 40), picture(14, 40)]  # the second square joins on frame 4
    settings = {"seed_frame": 2, "redetect": 2, "direction": direction}
    whole = list(segment_video(tiny_models(), frames, "bright.", **settings))
    for stop in range(len(whole)):
        first = Tracking(tiny_models(), "bright.", **settings)
        run = first.run(frames)
        for _ in range(stop + 1):
            next(run)
        torch.save(first.state(), tmp_path / "state.pt")
        second = Tracking(tiny_models(), "bright.", **settings)
        second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
        one, other = first.state()["tracker"], second.state()["tracker"]
        assert one["passes"] == other["passes"] and one["frame"] == other["frame"] and one["size"] == other["size"]
        before, after = ([(o["id"], o["added_at"]) for o in state["objects"]] for state in (one, other))
        assert before == after
        rest = list(second.run(frames))
        assert len(rest) == len(whole) - stop - 1
        for a, b in zip(rest, whole[stop + 1 :]):
            assert same(a, b) and [vars(o).keys() for o in a.objects] == [vars(o).keys() for o in b.objects]
            assert [(o.first, o.last, o.score) for o in a.objects] == [(o.first, o.last, o.score) for o in b.objects]


def test_redetection_keeps_what_is_tracked_and_adds_what_is_new_without_encoding_again():
    models = tiny_models()
    encoded = []
    encode = models.sam.encode_image
    models.sam.encode_image = lambda images: encoded.append(len(images)) or encode(images)
    try:
        frames = [picture(5)] * 3 + [picture(5, 38)] * 3
        results = list(segment_video(models, frames, "bright.", redetect=1, thresholds=Thresholds()))
    finally:
        del models.sam.encode_image
    assert sum(encoded) == len(frames)
    assert results[2].objects[0].id == 1 and len({o.id for r in results for o in r.objects}) >= 2
    assert [o.id for o in results[-1].objects] == sorted({o.id for r in results for o in r.objects})


def test_redetection_counts_from_the_seed_frame_also_if_nothing_was_there():
    models = tiny_models()
    results = list(segment_video(models, film(6, empty=1), "bright.", redetect=3))
    assert [r.frame for r in results if r.best] == [0, 1, 4] and models.detector.looked == 3
    results = list(segment_video(tiny_models(), film(6, empty=4), "bright.", seed_frame=1, redetect=2))
    assert [r.frame for r in results if r.best] == [1, 3, 5]
    assert [len(r.objects) for r in results] == [0, 0, 0, 0, 0, 1]


def test_a_look_at_many_boxes_is_a_look_at_each():
    tracker = Tracking(tiny_models(), "bright.").tracker
    tracker.seek(0, picture(5, 30))
    boxes = torch.tensor([[5.0, 10, 15, 22], [30, 10, 40, 22], [0, 0, 56, 40]])
    together = tracker.masks_for_boxes(boxes)
    for row, box in enumerate(boxes):
        alone = tracker.masks_for_boxes(box[None])
        assert torch.equal(together.logits[row], alone.logits[0]) and torch.equal(
            together.pointer[row], alone.pointer[0]
        )
    assert not torch.equal(together.pointer[0], together.pointer[1])
    assert tracker.masks_for_boxes(torch.zeros(0, 4)).logits.shape == (0, 16, 16) and tracker.objects == {}


def test_what_is_held_does_not_grow_when_an_object_returns_again_and_again():
    tracker, mask = Tracking(tiny_models(), "bright.").tracker, picture(5).min(2) > 139
    for frame in range(30):
        tracker.seek(frame, picture(5, seed=frame))
        tracker.prompt(1, mask=mask)
    assert len(tracker.objects[1].bank.prompted) <= 16 + MOST_PROMPTED


@pytest.mark.parametrize("direction", [REVERSE, BOTH])
def test_a_direction_that_frames_can_not_take_is_said_before_any_is_read(direction):
    def source():
        raise AssertionError("read")
        yield

    with pytest.raises(ValueError, match="read backward"):
        next(segment_video(tiny_models(), source(), "bright.", direction=direction))


def test_what_is_held_does_not_grow_when_every_frame_is_detected_again():
    tracking = Tracking(tiny_models(), "bright.", redetect=1)
    held = []
    for result in tracking.run(iter([picture(5)] * 60)):
        held.append(tracking.tracker.held_bytes() / max(len(result.objects), 1))
    assert max(held[40:]) <= max(held[20:40]) * 1.02


def test_assignment_takes_the_best_pairs_above_the_limit():
    gain = torch.tensor([[0.9, 0.8, 0.0], [0.8, 0.1, 0.2]])
    assert assign(gain, 0.5) == {0: 1, 1: 0}
    assert assign(gain.T, 0.5) == {1: 0, 0: 1}
    assert assign(torch.zeros(0, 3), 0.5) == {} and assign(torch.zeros(3, 0), 0.5) == {}


def test_intersection_over_union_of_masks():
    one = torch.zeros(2, 4, 4, dtype=torch.bool)
    one[0, :2] = True
    other = torch.zeros(1, 4, 4, dtype=torch.bool)
    other[0, 1:3] = True
    assert mask_iou(one, other).tolist() == [[pytest.approx(4 / 12)], [0.0]]


def test_objects_on_one_mask_are_parted_on_every_frame_also_between_detections(monkeypatch):
    frames, separate = [], Redetection.separate
    monkeypatch.setattr(
        Redetection, "separate", lambda self, *given: frames.append(self.tracker.frame) or separate(self, *given)
    )
    list(segment_video(tiny_models(), film(6), "bright.", redetect=3))
    assert frames == [1, 2, 3, 4, 5]


def test_each_look_at_a_video_has_the_thresholds_and_the_seeding_that_were_given(monkeypatch):
    asked, find = [], propagation.find_seeds
    monkeypatch.setattr(propagation, "find_seeds", lambda *a: asked.append(a[2:]) or find(*a))
    thresholds, seeding = Thresholds(0.31, 0.2, 0.4, 0.9), Seeding(("points",))
    list(segment_video(tiny_models(), film(3), "bright.", thresholds, redetect=1, seeding=seeding))
    assert asked == [("bright.", thresholds, seeding)] * 3
