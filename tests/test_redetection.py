"""What Tracking makes of detections and tracks on one frame, with a tracker whose masks and pointers are scripted."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.sam2_tiny import tiny_model
from helpers.squares import picture
from helpers.tiny_segment import tiny_models

from minisam_glue import redetection
from minisam_glue.propagation import Tracking
from minisam_glue.propagators import MemoryPropagator
from minisam_glue.records import Segment
from minisam_glue.redetection import Redetection, confirm, drifted, hot_pixels, is_cold, revive, sharing, unmatched
from minisam_glue.sam2 import FrameResult
from minisam_glue.sam2.model import ObjectOutput
from minisam_glue.seeding import Seed, Seeds

SIDE = 12


def strip(span: tuple[int, int] | None) -> torch.Tensor:
    """Logits (SIDE, SIDE) of a mask that covers the columns of `span`; None for an empty one."""
    logits = torch.full((SIDE, SIDE), -5.0)
    if span:
        logits[:, span[0] : span[1]] = 5.0
    return logits


def look(degrees: float) -> torch.Tensor:
    """A look (6,): the smaller the angle between two, the more alike are their objects."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack((angle.cos(), angle.sin(), *torch.zeros(4)))  # and a colour, the same for all


class ScriptedTracker:
    """Stands in for VideoTracker. tracks: id -> (span or None, angle when prompted); looks: (span, angle) of boxes."""

    size, model = (SIDE, SIDE), SimpleNamespace(device=torch.device("cpu"))

    def __init__(self, tracks: dict, looks: list):
        self.tracks, self.looks_of, self.prompted = tracks, looks, []
        self.objects, self.lost, self.in_meeting = dict.fromkeys(tracks), [], set()

    def masks_for_boxes(self, boxes):
        assert len(boxes) == len(self.looks_of)
        logits = torch.stack([strip(span) for span, _ in self.looks_of] or [strip(None)])[: len(boxes)]
        pointers = torch.stack([look(angle) for _, angle in self.looks_of] or [look(0)])[: len(boxes)]
        return ObjectOutput(logits, pointers, torch.ones(len(boxes)))

    def prompt(self, number, box=None, mask=None):
        self.prompted.append((number, "box", tuple(box)) if mask is None else (number, "mask", span_of(mask)))

    detection_done = MemoryPropagator.detection_done

    def appearances(self, masks, image):
        """By place: what lies on the columns of a detection looks like it, else as the track of these columns."""
        there = {span: angle for span, angle in (*self.tracks.values(), *self.looks_of) if span}
        spans = [span_of(mask) if mask.any() else None for mask in masks]
        return torch.stack([look(there.get(span, 0)) for span in spans] or [look(0)])[: len(spans)]

    def is_prompted(self, number):
        return number in [prompted for prompted, *_ in self.prompted]

    def meet(self, one, other):
        return {one, other} <= self.in_meeting

    def lose(self, number):
        self.lost.append(number)

    def result(self):
        spans = [None if number in self.lost else span for number, (span, _) in self.tracks.items()]
        logits = torch.stack([strip(span) for span in spans] or [strip(None)])[: len(spans)]
        return FrameResult(8, list(self.tracks), logits, torch.ones(len(self.tracks)), self.size, False)


def span_of(mask: torch.Tensor) -> tuple[int, int]:
    columns = mask.any(0).nonzero().flatten()
    return int(columns[0]), int(columns[-1]) + 1


def reconcile(tracks: dict, found: list, forgotten: int = 0) -> tuple[list, dict]:
    """tracks: id -> (label, span, angle); found: (label, span, angle) and a box if it matters, the n-th
    with score 0.9 - n / 10.

    An angle says how an object looked, and how a detection looks: alike up to 36 degrees.
    Returns the prompts that the tracker got, a detection's box being (n, n, n, n), and the scores by id.
    """
    tracking = run(tracks, found, forgotten)
    return tracking.tracker.prompted, {number: round(o.score, 3) for number, o in tracking.known.items()}


def run(tracks: dict, found: list, forgotten: int = 0) -> Tracking:
    tracking = Tracking(tiny_models(), "anything", redetect=1)
    tracking.tracker = ScriptedTracker({number: track[1:] for number, track in tracks.items()}, [f[1:3] for f in found])
    tracking.known = {number: Segment(number, label, 0.5, (), None) for number, (label, _, _) in tracks.items()}
    if forgotten:  # an object of the way ahead, of which the way back knows nothing
        tracking.known[forgotten] = Segment(forgotten, "car", 0.5, (), None)
    boxes = [tuple(map(float, f[3])) if len(f) > 3 else (float(n),) * 4 for n, f in enumerate(found)]
    seeds = [Seed(f[0], 0.9 - n / 10, box) for n, (f, box) in enumerate(zip(found, boxes))]
    tracking.detections = redetection.Redetection(tracking.tracker, tracking.known)
    tracking.detections.appearances = {number: look(angle) for number, (_, _, angle) in tracks.items()}
    tracking.detections.reconcile(Seeds(seeds, ("car", 0.9)), tracking.tracker.result(), None, tracking._add)
    return tracking


def test_a_detection_on_a_track_confirms_it_and_nothing_else():
    assert reconcile({1: ("car", (0, 4), 0)}, [("car", (1, 4), 70)]) == ([], {1: 0.9})


def test_detections_and_tracks_are_paired_by_the_best_total_not_one_by_one():
    tracks = {1: ("car", (0, 4), 0), 2: ("car", (2, 6), 0)}
    prompted, scores = reconcile(tracks, [("car", (1, 5), 0), ("car", (0, 4), 0)])  # the first fits both equally
    assert prompted == [] and scores == {1: 0.8, 2: 0.9}


def test_a_detection_elsewhere_is_a_new_object_with_a_number_never_used():
    prompted, scores = reconcile({1: ("car", (0, 4), 0)}, [("car", (8, 11), 0)], forgotten=5)
    assert prompted == [(6, "box", (0, 0, 0, 0))] and scores[6] == 0.9 and scores[1] == 0.5


def test_another_phrase_for_what_an_object_looks_like_is_no_new_object():
    assert reconcile({1: ("car", (0, 4), 0)}, [("dog", (0, 4), 30)]) == ([], {1: 0.5})


def test_a_detection_of_another_phrase_empties_the_track_that_lost_its_object():
    tracking = run({1: ("car", (0, 4), 0), 2: ("car", (8, 11), 0)}, [("dog", (0, 4), 60), ("car", (8, 11), 0)])
    assert tracking.tracker.prompted == [(3, "box", (0, 0, 0, 0))] and tracking.tracker.lost == [1]


def test_an_object_that_its_own_phrase_confirms_is_not_lost_however_it_looks():
    assert run({1: ("car", (0, 4), 0)}, [("car", (0, 4), 80), ("dog", (0, 4), 80)]).tracker.lost == []


def test_a_track_on_nothing_that_is_detected_is_lost_if_it_looks_like_something_else(monkeypatch):
    for angle, lost in ((80, [1]), (40, [])):
        monkeypatch.setattr(
            ScriptedTracker, "appearances", lambda self, masks, image, a=angle: look(a).expand(len(masks), 6)
        )
        assert run({1: ("car", (0, 4), 0)}, []).tracker.lost == lost


def test_of_two_objects_with_one_mask_the_one_that_is_not_confirmed_or_unlike_is_emptied():
    both = {1: ("car", (0, 4), 0), 2: ("car", (0, 4), 0)}
    assert run(both, [("car", (0, 4), 0)]).tracker.lost == [2]
    assert run({1: ("car", (0, 4), 60), 2: ("dog", (0, 4), 0)}, []).tracker.lost == [1]
    assert run(both, [("car", (0, 4), 0), ("car", (0, 4), 0)]).tracker.lost == [2]  # of two alike the later one
    assert run(both, []).tracker.lost == [2]


def test_look_alikes_that_meet_are_both_confirmed_by_one_detection():
    tracking = run({1: ("car", (0, 4), 0), 2: ("car", (0, 4), 0)}, [])
    for meeting, lost in (({1, 2}, []), ({1, 3}, [2])):
        tracking.tracker.in_meeting, tracking.tracker.lost = meeting, []
        tracking.detections.separate(None, {1})
        assert tracking.tracker.lost == lost


def test_a_mask_that_was_emptied_empties_no_other():
    tracking = run({1: ("car", (0, 10), 0), 2: ("dog", (1, 11), 0), 3: ("cat", (2, 12), 0)}, [])
    tracking.detections.appearances[3] = look(45)  # it is the one of 2 and 3 that its mask is unlike
    tracking.detections.separate(None, {1})
    assert tracking.tracker.lost == [2]  # the one of 1 and 2 that is not confirmed; 1 and 3 share less than 0.7


def test_several_phrases_for_one_thing_are_one_new_object_or_the_one_that_returns():
    car, vehicle = (("car", (6, 9), 0, (6, 0, 9, 12)), ("vehicle", (6, 9), 0, (6, 0, 9, 11)))
    assert reconcile({}, [car, vehicle])[0] == [(1, "box", car[3])]
    assert reconcile({1: ("car", (0, 3), 0)}, [vehicle, car])[0] == [(2, "box", vehicle[3])]
    assert reconcile({1: ("car", None, 0)}, [vehicle, car])[0] == [(1, "mask", (6, 9))]
    for other in (("wheel", (6, 8), 0, (6, 0, 9, 12)), ("rider", (6, 9), 0, (6, 0, 9, 6))):  # another mask, another box
        assert len(reconcile({}, [car, other])[0]) == 2


def test_several_phrases_for_one_thing_are_one_object_on_the_first_frame():
    tracker = ScriptedTracker({}, [((0, 4), 0), ((0, 4), 0), ((6, 9), 0)])
    named = (("car", 0.6, 4), ("vehicle", 0.7, 4), ("car", 0.5, 9))
    seeds = [Seed(label, score, (0.0, 0.0, right, 12.0)) for label, score, right in named]
    assert redetection.Redetection(tracker, {}).distinct(Seeds(seeds)) == seeds[1:]
    seeds[0].prompts_box = False  # it is shown by points, and may be something else
    assert redetection.Redetection(tracker, {}).distinct(Seeds(seeds)) == seeds


def test_what_was_lost_and_of_which_no_appearance_is_known_does_not_return_by_its_label():
    tracking = run({1: ("car", None, 0)}, [])
    tracking.detections.appearances.clear()
    tracking.tracker.looks_of = [((4, 6), 0)]
    found = Seeds([Seed("car", 0.9, (0.0,) * 4)])
    tracking.detections.reconcile(found, tracking.tracker.result(), None, tracking._add)
    assert tracking.tracker.prompted == [(2, "box", (0, 0, 0, 0))]


def test_what_is_prompted_is_known_as_it_looks_from_then_on():
    tracking = run({1: ("car", (0, 4), 0), 2: ("car", (6, 9), 10)}, [])
    tracking.tracker.tracks[1] = ((0, 4), 80)
    tracking.detections.prompted([1], None)
    assert torch.allclose(tracking.detections.appearances[1], look(80))
    assert torch.equal(tracking.detections.appearances[2], look(10))


def test_a_part_of_a_track_and_a_box_around_several_are_not_new():
    tracks = {1: ("car", (0, 2), 0), 2: ("car", (2, 4), 0), 3: ("car", (4, 6), 0), 4: ("car", (6, 12), 0)}
    assert reconcile(tracks, [("car", (0, 6), 0), ("car", (6, 8), 0)])[0] == []
    assert [number for number, *_ in reconcile(tracks, [("car", (0, 6), 0), ("dog", (6, 8), 0)])[0]] == [5]


def test_what_was_lost_returns_only_to_something_like_it():
    tracks = {1: ("car", None, 0)}
    assert reconcile(tracks, [("car", (4, 6), 40)])[0] == [(2, "box", (0, 0, 0, 0))]
    assert reconcile(tracks, [("car", (4, 6), 30)])[0] == [(1, "mask", (4, 6))]


def test_what_was_lost_returns_with_its_number_and_the_likest_detection():
    tracks = {1: ("car", None, 0), 2: ("car", None, 60), 3: ("car", (0, 3), 0)}
    prompted, scores = reconcile(tracks, [("car", (4, 6), 50), ("car", (7, 9), 10), ("car", (10, 12), 150)])
    assert sorted(prompted) == [(1, "mask", (7, 9)), (2, "mask", (4, 6)), (4, "box", (2, 2, 2, 2))]
    assert scores == {1: 0.8, 2: 0.9, 3: 0.5, 4: 0.7}


def test_what_returns_has_the_mask_of_its_own_detection():
    tracks = {1: ("car", (0, 3), 0), 2: ("car", None, 0)}
    assert reconcile(tracks, [("car", (0, 3), 0), ("car", (6, 9), 0)])[0] == [(2, "mask", (6, 9))]


def test_what_was_lost_does_not_return_as_something_else():
    prompted, scores = reconcile({1: ("dog", None, 0)}, [("car", (4, 6), 0)])
    assert prompted == [(2, "box", (0, 0, 0, 0))] and scores == {1: 0.5, 2: 0.9}


def test_what_is_seen_does_not_give_its_number_to_a_detection_elsewhere():
    assert reconcile({1: ("car", (0, 3), 0)}, [("car", (0, 3), 0), ("car", (6, 9), 0)])[0] == [(2, "box", (1, 1, 1, 1))]


@pytest.mark.parametrize("tracks", [{}, {1: ("car", None, 0)}, {1: ("car", (0, 3), 0)}])
def test_no_detection_and_an_empty_mask_change_nothing(tracks):
    assert reconcile(tracks, [])[0] == []
    assert reconcile(tracks, [("car", None, 0)])[0] == []


def test_a_first_detection_is_a_new_object():
    assert reconcile({}, [("car", (0, 3), 0)])[0] == [(1, "box", (0, 0, 0, 0))]


@pytest.mark.parametrize("angle, lost", [(50, []), (60, [1, 2])])
def test_what_was_absent_or_elsewhere_comes_back_only_on_something_like_it(angle, lost):
    tracking = Tracking(tiny_models(), "anything", redetect=1)
    tracking.tracker = ScriptedTracker(dict.fromkeys((1, 2, 3), ((0, 4), angle)), [])
    tracking.detections = redetection.Redetection(tracking.tracker, tracking.known)
    tracking.detections.appearances = dict.fromkeys((1, 2, 3), look(0))
    before = {1: strip(None) > 0, 2: strip((5, 9)) > 0, 3: strip((3, 5)) > 0}
    result = tracking.detections.refuse_strangers(before, tracking.tracker.result(), None)
    assert tracking.tracker.lost == lost
    assert [bool((logits > 0).any()) for logits in result.low_res] == [not lost, not lost, True]


def test_tokens_and_colours_both_say_what_is_alike():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4, :4], image[:4, 4:], image[4:, :4] = (200, 40, 40), (40, 160, 60), (200, 40, 40)
    tokens = torch.zeros(4, 3)
    tokens[0, 0] = tokens[1, 0] = tokens[2, 1] = 1  # the two above look the same to SAM 2
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    masks[0, :4, :4] = masks[1, :4, 4:] = masks[2, 4:, :4] = True
    found = redetection.appearances(masks, tokens, torch.from_numpy(image))
    alike = redetection.likeness(found, found[0])
    assert alike[0] == pytest.approx(1) and torch.allclose(found[0, 3:6], torch.tensor([200, 40, 40]) / 255)
    assert alike[1] < redetection.DRIFT_LIKENESS and alike[2] < redetection.DRIFT_LIKENESS and not found[3, :6].any()


def test_a_look_at_no_box_finds_nothing_also_in_the_fast_form():
    tracker = MemoryPropagator(tiny_model(fast=True))
    tracker.seek(0, picture(5))
    assert tracker.masks_for_boxes([]).logits.shape == (0, 16, 16)


# --- The limits ---------------------------------------------------------------------------------------------


def strips(*starts: int) -> torch.Tensor:
    """Masks (n, 1, 40) of ten pixels in a row; those of starts 1, 2, 3 and 4 apart have IoU 0.82, 0.67, 0.54, 0.43."""
    place = torch.arange(40)
    return torch.stack([(place >= start) & (place < start + 10) for start in starts])[:, None]


YES, NO = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)


def test_half_of_the_union_confirms_a_track_of_the_same_phrase():
    assert confirm(strips(0), strips(3), YES) == {0: 0}
    assert confirm(strips(0), strips(4), YES) == confirm(strips(0), strips(3), NO) == {}


def test_seven_tenths_of_the_union_are_one_mask():
    assert sharing(strips(0, 1)) == [[0, 1]] and sharing(strips(0, 2)) == []


def test_a_detection_is_new_if_half_of_it_is_free_and_no_other_phrase_has_its_mask():
    assert unmatched(strips(0), strips(5), YES, {}) == [0] and unmatched(strips(0), strips(4), YES, {}) == []
    assert unmatched(strips(0), strips(2), NO, {}) == [0] and unmatched(strips(0), strips(1), NO, {}) == []
    assert (
        unmatched(strips(0) & False, strips(20), YES, {}) == [] and unmatched(strips(0), strips(20), YES, {0: 0}) == []
    )


@pytest.mark.parametrize("alike, present, lost", [(0.79, 0.7, [0]), (0.8, 0.7, []), (0.8, 0.59, [0]), (0.8, 0.6, [])])
def test_a_track_is_lost_under_an_unlike_detection_or_on_something_unlike(alike, present, lost):
    alike, present = torch.tensor([[alike]], dtype=torch.float64), torch.tensor([present], dtype=torch.float64)
    assert drifted(strips(0), strips(3), alike, {}, present) == lost
    assert drifted(strips(0), strips(3), alike, {0: 0}, present) == []  # confirmed
    assert drifted(strips(0), strips(3) & False, alike, {}, present) == []  # nowhere


class OnGpu(torch.Tensor):
    """A tensor that gives all its numbers, but no single one: a GPU is waited for each time."""

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)

    def item(self):
        raise AssertionError("a single number was asked for")

    __bool__ = __float__ = __int__ = item


def test_a_pair_is_not_lost_to_others_that_overlap_too_little_to_count():
    detected, tracked = strips(13, 6), strips(10, 17)  # IoU 0.54 and 0.43; 0.43 and 0: crosswise the sum is greater
    assert confirm(detected, tracked, torch.ones(2, 2, dtype=torch.bool)) == {0: 0}


def test_a_gpu_is_not_asked_for_each_entry_of_a_table():
    detected, tracked = (strips(*starts).as_subclass(OnGpu) for starts in ((0, 20), (3, 12, 25)))
    tracker = SimpleNamespace(appearances=lambda masks, image: torch.ones(len(masks), 5).as_subclass(OnGpu))
    detections = Redetection(tracker, {})
    detections.appearances[2] = torch.ones(5).as_subclass(OnGpu)
    alike, same = detections._likeness(detected, [1, 2, 3], None), torch.ones(2, 3, dtype=torch.bool)
    assert type(alike) is torch.Tensor and alike.shape == (2, 3)
    assert confirm(detected, tracked, same) == {0: 0}
    assert drifted(detected, tracked, alike, {0: 0}, torch.tensor([1.0, 0.5, 1.0])) == [1]
    assert unmatched(detected, tracked, same, {0: 0}) == []
    detections.learn_appearances({1}, SimpleNamespace(ids=[1, 2, 3], low_res=tracked.float()), None)
    assert detections.appearances.keys() == {1, 2}


def test_what_is_alike_enough_is_found_again_as_many_as_may_be():
    alike = torch.tensor([[0.8]], dtype=torch.float64)
    assert revive(alike, YES) == {0: 0} and revive(alike - 0.01, YES) == revive(alike, NO) == {}
    chain = 0.81 * torch.eye(6) + torch.eye(6).roll(1, 1).triu()  # six pairs that are alike, or five that are equal
    assert revive(chain, YES.expand(6, 6)) == {i: i for i in range(6)}


def test_a_mask_is_cold_where_the_heat_map_of_its_phrase_shows_less_than_a_quarter():
    for warm, cold in ((2, True), (3, False)):
        heat = np.where(np.arange(40) < warm, 0.9, 0.1)[None]
        hot = hot_pixels([SimpleNamespace(phrase="car", threshold=0.5, at=lambda size, heat=heat: heat)], (1, 40))
        assert is_cold(strips(0)[0], hot["car"]) == cold and not is_cold(strips(0)[0], hot.get("dog"))


def test_an_appearance_is_learned_by_a_tenth_at_a_time():
    tracker = SimpleNamespace(appearances=lambda masks, image: torch.full((len(masks), 2), float(image[0])))
    detections, result = Redetection(tracker, {}), SimpleNamespace(ids=[4], low_res=torch.ones(1, 2, 2))
    for shade in (1.0, 2.0):
        detections.learn_appearances({4}, result, np.full(1, shade))
    assert detections.appearances[4].tolist() == pytest.approx([1.1, 1.1])


def test_a_confirmed_object_is_known_as_it_looks_now():
    tracking = run({1: ("car", (0, 4), 0)}, [])
    tracking.tracker.tracks[1], tracking.tracker.looks_of = ((0, 4), 30), [((0, 4), 30)]
    tracking.detections.reconcile(Seeds([Seed("car", 0.9, (0.0,) * 4)]), tracking.tracker.result(), None, tracking._add)
    assert torch.allclose(tracking.detections.appearances[1], 0.9 * look(0) + 0.1 * look(30))
