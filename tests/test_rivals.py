"""Rivals: look-alikes that nobody asked for are followed unseen, on scripted masks and in the tracker."""

import copy

import numpy as np
import pytest
import torch
from helpers.sam2_tiny import frames, tiny_model
from helpers.scripted_masks import SIDE, answers, logits_of, square, tokens_of

from minisam_glue.demo import FOLDER, SEGMENTER, load_segmenter
from minisam_glue.demo.scenes import clip
from minisam_glue.identity import Frame, Identity, state_kind
from minisam_glue.identity.frame import FIRST_RIVAL, is_rival
from minisam_glue.identity.rivals import MOST_RIVALS, SEARCHES
from minisam_glue.identity.rules import LOOK_EVERY
from minisam_glue.masks import mask_iou
from minisam_glue.propagators import MemoryPropagator
from minisam_glue.sam2 import accelerate

NOTHING = torch.zeros(SIDE, SIDE, dtype=torch.bool)


class Scene:
    """An object that walks to the right past a look-alike, and a decoder that answers boxes by what lies there."""

    def __init__(self, twin: tuple[float, float] = (34, 28), other: torch.Tensor = NOTHING):
        self.identity, self.twin, self.other = Identity(), square(*twin), other

    def frame(self, t: int, mask: torch.Tensor, fixed: set[int] = frozenset()) -> Frame:
        """A frame on which the object has this mask, which may have a part of its look-alike."""
        there = square(8 + t) | self.twin
        return Frame(t, [1], logits_of([mask]), [0.9], tokens_of(there, self.other), set(fixed))

    def masks_of(self, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        things = [thing for thing in (square(8), self.twin, self.other) if thing.any()]
        centres = ((boxes[:, :2] + boxes[:, 2:]) / 2).long().clamp(0, SIDE - 1).tolist()
        return answers([next((m for m in things if m[y, x]), NOTHING) for x, y in centres], 0.9)

    def begin(self) -> list[int]:
        """Prompt the object on the first frame: the rivals that are found."""
        self.identity.find_rivals(self.frame(0, square(8), {1}), self.masks_of)
        return self.identity.rivals

    def walk(self, frames: range, leak: torch.Tensor = NOTHING) -> torch.Tensor:
        """The masks of the object, (T, SIDE, SIDE); in its own there is `leak`, too."""
        seen = []
        for t in frames:
            frame = self.frame(t, square(8 + t) | (leak if t > 5 else NOTHING))
            assert not any(map(is_rival, self.identity.settle(frame, self.masks_of)))
            seen.append((frame.logits[0] > 0) & (1 not in frame.absent))
        return torch.stack(seen)


def test_a_look_alike_beside_a_prompted_object_is_a_rival_and_what_is_unlike_is_none():
    assert len(Scene().begin()) == 1
    assert not Scene((34, 90), square(34, 28)).begin()
    half = Scene()  # a decoder that adds as much of the ground to what it finds
    half.masks_of = lambda boxes: answers([half.twin | square(24, 28, 14)] * len(boxes), 0.9)
    assert not half.begin()


def test_a_look_alike_that_comes_later_is_a_rival_from_then_on():
    scene = Scene()
    late, scene.twin = scene.twin, NOTHING
    assert not scene.begin()
    scene.walk(range(1, 5))
    scene.twin = late
    scene.walk(range(5, LOOK_EVERY))
    assert not scene.identity.rivals
    scene.walk(range(LOOK_EVERY, LOOK_EVERY + 5))
    assert len(scene.identity.rivals) == 1
    frames = range(LOOK_EVERY + 5, LOOK_EVERY + 12)
    cut = scene.walk(frames, leak=late)
    assert (mask_iou(cut, torch.stack([square(8 + t) for t in frames])).diagonal() > 0.8).all()


def test_an_object_whose_mask_jumped_to_a_look_alike_does_not_become_a_rival_of_it():
    scene = Scene()
    late, scene.twin = scene.twin, NOTHING
    scene.begin()
    scene.walk(range(1, LOOK_EVERY))
    scene.twin = late
    there = square(8 + LOOK_EVERY)
    scene.identity.settle(scene.frame(LOOK_EVERY, late), lambda boxes: answers([there] * len(boxes), 0.9))
    assert not scene.identity.rivals


def test_a_mask_that_takes_in_its_rival_is_cut():
    scene = Scene()
    scene.begin()
    frames = range(1, 20)
    cut = scene.walk(frames, leak=scene.twin)
    alone = Scene()
    uncut = alone.walk(frames, leak=alone.twin)
    true = torch.stack([square(8 + t) for t in frames])
    assert (mask_iou(cut, true).diagonal() > 0.8).all()
    assert mask_iou(uncut, true).diagonal()[-1] < 0.6


def test_an_object_that_is_right_is_not_cut_where_the_mask_of_a_rival_covers_it():
    scene, frames = Scene(), range(1, 20)
    scene.begin()
    whole = scene.masks_of
    scene.masks_of = lambda boxes: answers([m | square(8 + frames[-1]) for m in whole(boxes)[0] > 0], 0.9)
    assert torch.equal(scene.walk(frames), torch.stack([square(8 + t) for t in frames]))


def test_a_lost_object_is_not_looked_for_where_a_rival_is():
    for has_rival in (True, False):
        scene, found = Scene(), []
        if has_rival:
            scene.begin()
        scene.walk(range(1, 8))
        for t in range(8, 14):
            frame = scene.frame(t, NOTHING)
            frame.tokens = tokens_of(scene.twin, NOTHING)
            found += scene.identity.settle(frame, scene.masks_of)
        assert bool(found) == (not has_rival)  # without the rival it is taken for the object


def test_a_rival_that_is_prompted_is_one_no_more_and_one_that_is_gone_is_given_up():
    scene = Scene()
    scene.begin()
    frame = Frame(1, [1, 2], logits_of([square(9), scene.twin]), [0.9, 0.9], tokens_of(square(9) | scene.twin, NOTHING))
    frame.fixed = {2}
    scene.identity.find_rivals(frame, scene.masks_of)
    assert not scene.identity.rivals
    scene = Scene()
    scene.begin()
    scene.twin = NOTHING
    left = []
    for t in range(1, 14):
        scene.walk(range(t, t + 1))
        left.append(len(scene.identity.rivals))
    assert left == [1] * 8 + [0] * 5


@pytest.mark.parametrize("since", range(2, LOOK_EVERY + 2))
def test_a_rival_is_given_up_on_any_frame_also_where_others_are_looked_for(since):
    scene = Scene()
    scene.begin()
    scene.walk(range(1, since))
    scene.twin = NOTHING
    scene.walk(range(since, since + 9))
    assert not scene.identity.rivals


def test_what_lies_on_the_object_or_is_unlike_it_teaches_nothing_of_a_rival():
    scene = Scene((20, 24))
    (rival,) = scene.begin()
    scene.walk(range(1, 4))
    clean = scene.identity.tracks[rival].clean
    scene.walk(range(4, 12))  # the object is in front of it
    assert scene.identity.tracks[rival].clean == clean == 4
    scene = Scene()
    (rival,) = scene.begin()
    scene.other, scene.twin = scene.twin, NOTHING  # something else comes to its place
    scene.walk(range(1, 3))
    assert scene.identity.tracks[rival].absent == 2


def test_there_are_four_rivals_at_most_and_no_user_has_their_numbers():
    scene, here = Scene(), square(22, 22, 12)
    squares = [square(x, y, 12) for x in (6, 22, 38) for y in (6, 22, 38) if (x, y) != (22, 22)]
    alike = torch.stack(squares).any(0) | here
    frame = Frame(0, [1], logits_of([here]), [0.9], tokens_of(alike, NOTHING), {1})

    def masks_of(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        centres = ((boxes[:, :2] + boxes[:, 2:]) / 2).long().tolist()
        return answers([next((m for m in squares if m[y, x]), NOTHING) for x, y in centres], 0.9)

    scene.identity.find_rivals(frame, masks_of)
    assert len(scene.identity.rivals) == MOST_RIVALS
    scene.identity.find_rivals(frame, masks_of)  # no room: a fifth is not looked for
    assert len(scene.identity.rivals) == MOST_RIVALS
    assert all(map(is_rival, scene.identity.rivals)) and not is_rival(FIRST_RIVAL + 1)
    state = scene.identity.state()
    state_kind(state["tracks"][0]["appearance"].numel())(state, "the rules")
    assert Identity.from_state(state, torch.device("cpu")).rivals == scene.identity.rivals


def test_a_rival_that_vanishes_behind_the_object_does_not_come_to_live_on_it():
    scene = Scene((20, 24))
    scene.begin()
    scene.walk(range(1, 6))
    scene.twin = NOTHING
    scene.masks_of = lambda boxes: answers([square(22)] * len(boxes), 0.9)  # the object, which now stands still
    for t in range(6, 40):
        frame = scene.frame(14, square(22))
        frame.t = t
        scene.identity.settle(frame, scene.masks_of)
        assert torch.equal(frame.logits[0] > 0, square(22)) and not frame.unwritten & {1}


def test_a_tracked_object_that_is_lost_for_a_moment_is_no_rival_and_is_found_again():
    scene, found = Scene(), {}
    for t in range(1, 10):
        masks = [square(8), scene.twin if t < 6 else NOTHING]
        frame = Frame(t, [1, 2], logits_of(masks), [0.9, 0.9], tokens_of(square(8) | scene.twin, NOTHING))
        if t == 7:
            prompted = Frame(t, [1], logits_of(masks[:1]), [0.9], frame.tokens, {1})
            scene.identity.find_rivals(prompted, scene.masks_of)
        found |= scene.identity.settle(frame, scene.masks_of)
    assert set(found) == {2} and not scene.identity.rivals


def test_a_rival_concerns_those_objects_alone_that_it_was_found_for():
    scene = Scene()
    (rival,) = scene.begin()
    for t in range(1, 12):
        merged = square(24, 28) | scene.twin  # of another object, 3, which the rival is not one of
        masks = [square(8), square(24, 28) if t < 8 else merged]
        tokens = tokens_of(square(8) | square(24, 28) | scene.twin, NOTHING)
        frame = Frame(t, [1, 3], logits_of(masks), [0.9, 0.9], tokens)
        scene.identity.settle(frame, scene.masks_of)
        assert torch.equal(frame.logits[1] > 0, masks[1])
    assert scene.identity.rivals == [rival] and scene.identity.tracks[3].known
    scene.identity.forget(1)
    assert not scene.identity.rivals


def test_of_objects_prompted_on_one_frame_a_rival_concerns_those_that_it_is_like():
    scene, unlike = Scene(), square(9, 34)
    tokens = tokens_of(square(8) | square(24, 28) | scene.twin, unlike)
    masks = [square(8), unlike, square(24, 28)]
    frame = Frame(0, [1, 2, 3], logits_of(masks), [0.9] * 3, tokens, {1, 2, 3})
    scene.identity.find_rivals(frame, scene.masks_of)
    (rival,) = scene.identity.rivals
    assert scene.identity.tracks[rival].rival_of == {1, 3}
    scene.identity.forget(1)
    assert scene.identity.rivals == [rival]
    scene.identity.forget(3)
    assert not scene.identity.rivals


def test_of_two_rivals_with_one_mask_one_is_followed_and_far_in_time_none_is_trusted():
    scene = Scene()
    (rival,) = scene.begin()
    scene.identity.tracks[rival - 1] = copy.deepcopy(scene.identity.tracks[rival])
    scene.walk(range(1, 2))
    assert scene.identity.rivals == [rival]
    scene.walk(range(2, 12))
    scene.identity.find_rivals(scene.frame(0, square(8), {1}), scene.masks_of)  # back to the first frame
    assert len(scene.identity.rivals) == 1 and scene.identity.tracks[scene.identity.rivals[0]].clean == 1


def test_a_search_for_rivals_among_many_objects_ends_early():
    asked, many = [], [square(3 + 6 * x, 3 + 6 * y, 4) for x in range(7) for y in range(7)]
    alike = torch.ones(SIDE, SIDE, dtype=torch.bool) & ~square(24, 24, 4)
    frame = Frame(0, list(range(1, 50)), logits_of(many), [0.9] * 49, tokens_of(alike, NOTHING), set(range(1, 50)))

    def masks_of(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        asked.append(len(boxes))
        return answers([NOTHING] * len(boxes), 0.0)

    Identity().find_rivals(frame, masks_of)
    assert len(asked) <= SEARCHES


@pytest.mark.parametrize(("name", "value"), [("areas", [0]), ("sizes", [[10**300, 1]]), ("places", [[0, 1e300, 1]])])
def test_a_motion_of_impossible_numbers_is_refused(name, value):
    scene = Scene()
    scene.begin()
    state = scene.identity.state()
    state["tracks"][0][name] = value
    with pytest.raises(ValueError, match="the rules"):
        state_kind(state["tracks"][0]["appearance"].numel())(state, "the rules")


def test_what_is_known_in_double_precision_goes_on_in_single():
    scene = Scene()
    scene.begin()
    state = scene.identity.state()
    state["tracks"][0]["appearance"] = state["tracks"][0]["appearance"].double()
    scene.identity = Identity.from_state(state, torch.device("cpu"))
    scene.walk(range(1, 8))
    assert len(scene.identity.rivals) == 1


# --- In the tracker ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    return accelerate(load_segmenter(FOLDER / SEGMENTER))


def test_a_twin_that_nobody_tracks_draws_no_mask_to_it_and_is_not_shown(demo):
    film = clip(302, "twins")
    covered = {}
    for rules in (False, True):
        tracker = MemoryPropagator(demo, rules)
        tracker.seek(0, film.frames[0])
        tracker.prompt(1, box=film.boxes[0, film.leads[0]])
        results, words = [tracker.track()], []
        for image in film.frames[1:36]:
            results.append(tracker.step(image))
            words += tracker.notes(results[-1]).words
        assert all(result.ids == [1] for result in results)
        masks = torch.stack([result.masks()[0] for result in results])
        twins = torch.from_numpy(film.masks[:36, list(film.twins)])
        covered[rules] = int(((masks[:, None] & twins).sum((2, 3)) > 0.5 * twins.sum((2, 3))).any(1).sum())
    assert len(tracker.identity.rivals) == 2 and set(words) == {"#1 and a look-alike meet"}
    assert covered[True] == 0 < covered[False]


def test_an_object_that_was_covered_while_the_light_changed_has_its_mask_again(demo):
    film = clip(119, "free", chosen=range(12))
    true, frames, tracker = film.masks[:, 2], film.frames.copy(), MemoryPropagator(demo)
    for t in (6, 7):  # a grey box hides it
        rows, columns = np.nonzero(true[t])
        frames[t][rows.min() - 4 : rows.max() + 5, columns.min() - 4 : columns.max() + 5] = (90, 110, 100)
    frames[8:] = (frames[8:] * 0.55).astype(np.uint8)
    tracker.seek(0, frames[0])
    tracker.prompt(1, box=film.boxes[0, 2])
    masks = np.stack([tracker.track().masks()[0], *(tracker.step(image).masks()[0] for image in frames[1:])])
    overlap = (masks & true).sum((1, 2)) / (masks | true).sum((1, 2)).clip(min=1)
    assert (overlap[[1, 2, 3, 4, 5, 8, 9, 10, 11]] > 0.8).all()


def test_the_memory_of_a_rival_is_nobodys(monkeypatch):
    def rule(self, frame, look):
        frame.unwritten |= {FIRST_RIVAL, 1}
        return {}

    monkeypatch.setattr(Identity, "settle", rule)
    tracker, film = MemoryPropagator(tiny_model()), frames(2)
    tracker.seek(0, film[0])
    tracker.prompt(1, box=[5, 10, 20, 25])
    tracker.step(film[1])
    assert tracker.objects[1].bank.tracked[1].tokens is None


def test_rivals_are_part_of_a_state_and_of_the_way_back(demo):
    film = clip(302, "twins")
    whole, other = MemoryPropagator(demo), MemoryPropagator(demo)
    whole.seek(0, film.frames[0])
    whole.prompt(1, box=film.boxes[0, film.leads[0]])
    other.restore(whole.state())
    back = MemoryPropagator(demo)
    back.restore(whole.state_of({1}))
    assert not whole.identity.rivals and other.identity.rivals == back.identity.rivals != []
    for image in film.frames[1:4]:
        assert torch.equal(whole.step(image).low_res, other.step(image).low_res)
    gone = MemoryPropagator(demo)
    gone.seek(0, film.frames[0])
    gone.prompt(1, box=film.boxes[0, film.leads[0]])
    gone.seek(1, film.frames[1])
    assert gone.identity.rivals == whole.identity.rivals == other.identity.rivals
    adopted = MemoryPropagator(demo)
    adopted.adopt(gone.state_of({1}))
    assert adopted.identity.rivals == gone.identity.rivals and set(adopted.objects) == {1}
    assert not gone.state_of({2})["identity"]["tracks"]
    gone.remove(1)
    assert not gone.identity.rivals
    state = other.state()
    state["identity"]["tracks"][0] |= {"clean": 0, "appearance": None}
    with pytest.raises(ValueError, match="does not know how it looks"):
        whole.restore(state)
