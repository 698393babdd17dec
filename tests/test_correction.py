"""A prompt on a known object of a later frame, with the demo weights: what contradicts it is forgotten."""

import copy

import pytest
import torch
from helpers.sam2_tiny import frames, tiny_model

from minisam_glue.demo import FOLDER, SEGMENTER, load_segmenter
from minisam_glue.demo.evaluate import broadcast_iou, innermost
from minisam_glue.demo.scenes import clip
from minisam_glue.propagators import MemoryPropagator
from minisam_glue.sam2 import VideoTracker, accelerate

AT, END = 3, 6  # frames: the track lies on the twin, is corrected on frame AT, and goes on


@pytest.fixture(scope="module")
def film():
    return clip(14, "crossing", chosen=range(0, 2 * END, 2))


@pytest.fixture(scope="module")
def slipped(film) -> MemoryPropagator:
    """A tracker on frame AT whose object 1 lies on the second twin, and 2 on another object."""
    tracker = MemoryPropagator(accelerate(load_segmenter(FOLDER / SEGMENTER)))
    tracker.seek(0, film.frames[0])
    tracker.prompt(1, box=film.boxes[0, film.leads[1]])
    tracker.prompt(2, box=film.boxes[0, 0])
    tracker.track()
    for t in range(1, AT + 1):
        tracker.step(film.frames[t])
    return tracker


def corrected(slipped, film, number: int, forget: bool, **prompt) -> dict[int, torch.Tensor]:
    """The masks of objects, bool (frames, H, W), after a prompt on frame AT."""
    tracker = copy.copy(slipped)
    tracker.objects, tracker.identity = copy.deepcopy(slipped.objects), copy.deepcopy(slipped.identity)
    tracker.forget = forget
    tracker.prompt(number, **prompt)
    results = [tracker.step(film.frames[t]) for t in range(AT + 1, END)]
    return dict(zip(results[0].ids, torch.stack([result.masks() for result in results], 1)))


@pytest.mark.parametrize("kind", ["box", "click"])
def test_after_one_correction_a_track_is_as_good_as_a_new_object(kind, film, slipped):
    lead, masks = film.leads[0], torch.from_numpy(film.masks)
    inside = innermost(masks[AT, [lead]]).numpy()
    prompt = {"box": film.boxes[AT, lead]} if kind == "box" else {"points": inside, "labels": [1]}
    official, kept, fresh = (
        corrected(slipped, film, number, forget, **prompt) for number, forget in ((1, False), (1, True), (3, True))
    )
    found = torch.stack((official[1], kept[1], fresh[3]))
    official_iou, kept_iou, fresh_iou = broadcast_iou(found, masks[AT + 1 :, lead]).mean(1).tolist()
    assert fresh_iou > 0.7 and kept_iou > fresh_iou - 0.02 and official_iou < fresh_iou - 0.3
    assert torch.equal(kept[2], fresh[2]) and torch.equal(kept[2], official[2])


def test_a_prompt_that_agrees_with_the_mask_forgets_nothing(film, slipped):
    box = film.boxes[AT, film.leads[1]]
    one, other = (corrected(slipped, film, 1, forget, box=box) for forget in (False, True))
    assert torch.equal(one[1], other[1])


def test_a_second_prompt_on_the_same_frame_corrects_as_the_first_one_does(film, slipped):
    tracker = copy.copy(slipped)
    tracker.objects, tracker.identity = copy.deepcopy(slipped.objects), copy.deepcopy(slipped.identity)
    tracker.prompt(1, box=film.boxes[AT, film.leads[1]])  # which agrees with the mask that slipped
    right = torch.from_numpy(film.masks[AT, [film.leads[0]]])
    result = tracker.prompt(1, box=film.boxes[AT, film.leads[0]])
    assert float(broadcast_iou(result.masks()[:1], right)) > 0.9 and not tracker.objects[1].bank.tracked


def test_a_click_adds_to_a_mask_that_was_given_on_the_same_frame(film):
    both = torch.from_numpy(film.masks[0, list(film.leads)]).any(0)
    found = []
    for keep_clicks in (True, False):
        tracker = MemoryPropagator(accelerate(load_segmenter(FOLDER / SEGMENTER)))
        tracker.seek(0, film.frames[0])
        tracker.prompt(1, mask=both.float().numpy())
        inside = innermost(torch.from_numpy(film.masks[0, [film.leads[0]]])).numpy()
        result = tracker.prompt(1, points=inside, labels=[1], keep_clicks=keep_clicks)
        found.append(float(broadcast_iou(result.masks(), both[None])))
    assert min(found) > 0.8, found


def test_a_click_that_only_cuts_away_forgets_nothing_on_a_frame_that_was_not_tracked(film, slipped):
    tracker = copy.copy(slipped)
    tracker.objects, tracker.identity = copy.deepcopy(slipped.objects), copy.deepcopy(slipped.identity)
    before = set(tracker.objects[1].bank.tracked)
    tracker.seek(AT + 1, film.frames[AT + 1])
    tracker.prompt(1, points=[[2, 2]], labels=[0])
    assert before <= set(tracker.objects[1].bank.tracked) and before


def test_a_corrected_copy_leaves_the_rules_of_the_others_as_they_were(film, slipped):
    before = [track.clean for track in slipped.identity.tracks.values()]
    corrected(slipped, film, 1, True, box=film.boxes[AT, film.leads[0]])
    assert [track.clean for track in slipped.identity.tracks.values()] == before


def test_what_only_cuts_away_is_no_new_object():
    tracker = VideoTracker(tiny_model(), forget=True)
    for image in frames(3):
        tracker.step(image)
        if not tracker.objects:
            tracker.prompt(1, box=[5, 10, 20, 25])
    before = tracker.objects[1].bank.get(2).logits
    result = tracker.prompt(1, points=[[8, 12]], labels=[0])
    assert result.low_res.isfinite().all() and not torch.equal(result.low_res[0], before)
    tracker.prompt(1, points=[[12, 16]], labels=[1], keep_clicks=True)
    assert tracker.objects[1].clicks[2][1].shape == (1, 2)
