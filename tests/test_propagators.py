"""Masks that optical flow carries: where they go, when they are doubted, and that a run can be broken off anywhere."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.commands import command, lines
from helpers.sam2_tiny import tiny_model
from helpers.squares import film, picture, save_film
from helpers.tiny_heat import heat_models
from helpers.tiny_segment import tiny_models

from minisam_glue import propagation, propagators, redetection
from minisam_glue.demo.evaluate import measure_trackers
from minisam_glue.demo.scenes import clip
from minisam_glue.identity import Frame
from minisam_glue.identity.frame import FIRST_RIVAL
from minisam_glue.identity.notes import RivalBox
from minisam_glue.identity.rules import Track
from minisam_glue.masks import mask_iou
from minisam_glue.pipeline import segment_video
from minisam_glue.prompts import Clicks
from minisam_glue.propagation import BOTH, REVERSE, Tracking
from minisam_glue.propagators import DETECT_EVERY, PROPAGATORS, FlowPropagator, MemoryPropagator, brightness
from minisam_glue.records import HeatMap
from minisam_glue.sam2 import SAM2, VideoTracker
from minisam_glue.sam2.mask_decoder import Decoded
from minisam_glue.sam2.memory_bank import FrameMemory
from minisam_glue.sam2.model import ABSENT, ObjectOutput

FLOW = {"propagate": "flow"}


def textured(left: int, top: int = 40) -> tuple[np.ndarray, torch.Tensor]:
    """A bright textured square at (left, top) before a texture, uint8 (160, 160, 3), and its mask (160, 160)."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 90, (40, 40)).repeat(4, 0).repeat(4, 1)
    image[top : top + 60, left : left + 60] = rng.integers(120, 250, (15, 15)).repeat(4, 0).repeat(4, 1)
    mask = torch.zeros(160, 160, dtype=torch.bool)
    mask[top : top + 60, left : left + 60] = True
    return image[..., None].repeat(3, 2).astype(np.uint8), mask


class Trusting(FlowPropagator):
    """SAM 2 refines nothing: a mask is what flow makes of the one before; a fresh look finds nothing."""

    searches = 0

    def __init__(self, model, refine_every=1):
        self.encoded, self.refined = [], []
        super().__init__(model, refine_every)

    def encode(self, frame, image):
        features = super().encode(frame, image)
        self.encoded += [] if features is None else [frame]
        return features

    def current(self):
        self.encoded += [self.frame] if self.picture is not None else []
        return super().current()

    def refine_masks(self, warped):
        self.refined.append(self.frame)
        return ObjectOutput(warped, torch.zeros(len(warped), self.model.config.dim), torch.ones(len(warped)))

    def decode_from_prompted(self, obj, reverse):
        self.searches, _ = self.searches + 1, self.current()
        side = self.model.config.image_size // 4
        pointer = torch.zeros(self.model.config.dim)
        return FrameMemory(pointer, torch.tensor(-5.0), None, torch.full((side, side), -10.0))


def begin(image, mask, refine_every: int = 1) -> Trusting:
    propagator = Trusting(tiny_model(), refine_every)
    propagator.seek(0, image)
    propagator.prompt(1, mask=mask)
    return propagator


def test_flow_carries_a_mask_along_with_what_it_shows():
    propagator = begin(*textured(20))
    for t in range(1, 6):
        image, mask = textured(20 + 6 * t, 40 + 3 * t)
        found = propagator.step(image).masks()
    assert mask_iou(found, mask[None]).item() > 0.7 and propagator.searches == 0
    assert mask_iou(textured(20)[1][None], mask[None]).item() < 0.3


def test_on_frames_between_refinements_flow_alone_carries_masks_and_sam_2_sees_none_of_them():
    every, third = begin(*textured(20)), begin(*textured(20), refine_every=3)
    for t in range(1, 6):
        frame = textured(20 + 6 * t, 40 + 3 * t)[0]
        one, other = every.step(frame).masks(), third.step(frame).masks()
        assert torch.equal(one, other)  # as these refine nothing
    assert every.encoded == [0, 1, 2, 3, 4, 5] and third.encoded == [0, 3] and third.searches == 0
    assert every.refined == [1, 2, 3, 4, 5] and third.refined == [3]
    third.seek(6, textured(50)[0])
    third.seek(7, np.zeros_like(frame))
    third.track()
    assert third.searches == 1 and third.encoded == [0, 3, 6, 7]  # the lost object was looked for on frame 7


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_only_a_whole_number_of_frames_lies_between_refinements(wrong):
    with pytest.raises(ValueError, match="refine_every is .*: give a whole number from 1"):
        FlowPropagator(tiny_model(), wrong)


def test_memory_has_no_frames_between_refinements():
    with pytest.raises(ValueError, match="refine_every 3 is for propagate flow"):
        Tracking(tiny_models(), "bright.", refine_every=3)


def test_what_disappears_is_absent_and_not_smeared():
    propagator = begin(*textured(20))
    cut = np.random.default_rng(5).integers(0, 90, (40, 40, 1), dtype=np.uint8).repeat(4, 0).repeat(4, 1).repeat(3, 2)
    for count in (1, 2):
        assert not propagator.step(cut).masks().any() and propagator.searches == count


@pytest.mark.parametrize("change", [0.2, 5.0])
def test_a_mask_that_collapses_or_explodes_is_doubted(change):
    propagator, warped = begin(*textured(20)), torch.zeros(1, 16, 16, dtype=torch.bool)
    warped[0, 4:8, 4:8] = True
    refined = torch.zeros_like(warped)
    side = round(4 * change**0.5)
    refined[0, 4 : 4 + side, 4 : 4 + side] = True
    assert propagator.trusted(warped, warped, [16]).all()
    assert not propagator.trusted(refined, warped, [16]).any()
    assert not propagator.trusted(warped, warped, [16 * 9]).any() and not propagator.trusted(warped, warped, [1]).any()


@pytest.mark.parametrize(
    "start, count, known, good",
    [
        *((8, 20, 20, True), (9, 20, 20, False)),  # IoU 0.43, 0.38 with the warped mask
        *((0, 40, 20, True), (0, 41, 20, False), (0, 10, 20, True), (0, 9, 20, False)),  # twice or half its area
        *((0, 20, 160, True), (0, 20, 161, False), (0, 20, 3, True), (0, 20, 2, False)),  # eight times the known one
    ],
)
def test_a_mask_elsewhere_or_of_another_size_is_doubted(start, count, known, good):
    place = torch.arange(64)[None, None]
    warped, refined = place < 20, (place >= start) & (place < start + count)
    assert FlowPropagator.trusted(None, refined, warped, [known]).tolist() == [good]


def test_a_look_with_the_sentence_is_asked_for_now_and_then_while_something_is_lost():
    propagator, image = begin(*textured(20)), textured(20)[0]
    assert not propagator.wants_detection(1)
    propagator.seek(1, image)
    propagator.track()
    propagator.mistrust(1)
    assert propagator.wants_detection(2)
    propagator.detection_done()
    asked = [propagator.wants_detection(t) for t in range(2, 2 + DETECT_EVERY)]
    assert asked == [False] * (DETECT_EVERY - 1) + [True]
    propagator.last_detection = 30  # on the way back
    assert [propagator.wants_detection(t) for t in (31 - DETECT_EVERY, 30 - DETECT_EVERY)] == [False, True]


def test_a_lost_object_of_a_sentence_returns_with_its_id_and_nothing_new_joins(monkeypatch):
    monkeypatch.setitem(propagation.PROPAGATORS, "flow", Trusting)
    monkeypatch.setattr(redetection, "RETURN_LIKENESS", -1.0)  # to a random model nothing is like anything
    models = tiny_models()
    frames = [picture(5)] * 2 + [picture()] * 3 + [picture(5, 40)] * 20
    results = list(segment_video(models, frames, "bright.", **FLOW))
    assert {o.id for r in results for o in r.objects} == {1}
    assert [bool(r.seen) for r in results[2:5]] == [False] * 3 and results[-1].seen
    assert models.detector.looked <= 2 + len(frames) // DETECT_EVERY


def test_a_mask_where_the_heat_map_shows_nothing_is_given_up():
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:8, :8] = True
    for corner, cold in ((slice(0, 8), False), (slice(8, 16), True)):
        logits = torch.full((16, 16), -9.0)
        logits[corner, corner] = 9
        hot = redetection.hot_pixels([HeatMap("bright", logits, 0.5)], (16, 16))
        assert redetection.is_cold(mask, hot["bright"]) == cold and not redetection.is_cold(mask, hot.get("dark"))


def test_flow_keeps_a_frame_of_its_own_until_it_is_looked_at():
    masks = []
    for reused in (False, True):
        propagator, image = FlowPropagator(tiny_model(), refine_every=3), picture(5)
        propagator.seek(1, image)
        image[:] *= not reused
        propagator.prompt(1, box=(5, 10, 15, 22))
        masks.append(propagator.result().low_res)
    assert torch.equal(*masks)


def same(one, other) -> bool:
    return [o.id for o in one.objects] == [o.id for o in other.objects] and np.array_equal(one.masks, other.masks)


@pytest.mark.parametrize("direction", ["forward", BOTH])
def test_a_run_by_flow_goes_on_from_a_state_bit_for_bit(direction, tmp_path):
    frames = [picture(), picture(5), picture(12, 40)]
    settings = {"seed_frame": 1, "redetect": 1, "direction": direction, "refine_every": 2} | FLOW
    whole = list(segment_video(tiny_models(), frames, "bright.", **settings))
    for stop in range(len(whole)):
        first = Tracking(tiny_models(), "bright.", **settings)
        run = first.run(frames)
        for _ in range(stop + 1):
            next(run)
        torch.save(first.state(), tmp_path / "state.pt")
        second = Tracking(tiny_models(), "bright.", **settings)
        second.restore(torch.load(tmp_path / "state.pt", weights_only=True))
        rest = list(second.run(frames))
        assert len(rest) == len(whole) - stop - 1 and all(map(same, rest, whole[stop + 1 :]))


def test_reverse_by_flow_is_forward_through_the_reversed_video():
    frames = film(5)
    forward = segment_video(tiny_models(), frames[::-1], "bright.", **FLOW)
    backward = segment_video(tiny_models(), frames, "bright.", direction=REVERSE, **FLOW)
    assert all(np.array_equal(a.masks, b.masks) for a, b in zip(forward, backward, strict=True))


def test_a_state_of_another_propagator_or_a_damaged_one_is_refused_and_changes_nothing():
    one, other = (Tracking(tiny_models(), "bright.", propagate=name) for name in ("flow", "memory"))
    for tracking in (one, other):
        list(tracking.run(film(2)))
    before = one.state()
    with pytest.raises(ValueError):
        one.restore(other.state())
    for name, value in (
        ("now", torch.zeros(3)),
        ("now", torch.zeros(1, 1, dtype=torch.uint8)),  # no frame of this video
        ("areas", {}),
        ("areas", 5),
        ("areas", {1: "x"}),
        ("last_detection", -3),
    ):
        state = one.state()
        state["tracker"][name] = value
        with pytest.raises(ValueError):
            one.restore(state)
    for next_frame in (None, -1):  # of a run that goes forward
        with pytest.raises(ValueError, match="the next frame"):
            other.restore(other.state() | {"next": next_frame})
    with pytest.raises(ValueError, match="the next frame"):  # that of the way back is known
        Tracking(tiny_models(), "bright.", direction=BOTH).restore(other.state() | {"next": None, "reverse": True})
    assert one.tracker.frame == 1 and one.state()["known"] == before["known"]


@pytest.mark.parametrize("kind", PROPAGATORS.values())
def test_an_object_of_any_number_goes_on_from_a_state(kind):
    whole, other = kind(tiny_model()), kind(tiny_model())
    whole.seek(0, picture(5))
    for number in (0, -3):
        whole.prompt(number, box=[5, 10, 15, 22])
    whole.track()
    other.restore(whole.state())
    assert torch.equal(whole.step(picture(5)).low_res, other.step(picture(5)).low_res)


def test_what_flow_holds_does_not_grow():
    tracking = Tracking(tiny_models(), "bright.", redetect=1, **FLOW)
    held = [
        tracking.tracker.held_bytes() / max(len(result.objects), 1) for result in tracking.run(iter([picture(5)] * 24))
    ]
    assert max(held[20:]) <= max(held[16:20]) * 1.02


@pytest.mark.parametrize(
    "frames",
    [
        [picture()] * 3,
        [picture()] * 2 + [picture(5)] * 2,
        [picture(5)],
        [picture(5)] * 3,
        [np.full((1, 1, 3), 200, np.uint8)] * 3,
        [np.full((1, 50, 3), 200, np.uint8)] * 2,
        [picture(5), picture(30, seed=4), picture(), picture(20, 40)],
    ],
    ids=["nothing", "nothing at first", "one frame", "identical", "1x1", "1x50", "scene cuts"],
)
def test_odd_videos_have_a_result_for_each_frame(frames):
    prompts = ["bright."] + ([Clicks(points=[(0, 0, 1)])] if frames[0].shape[0] == 1 else [])
    for prompt in prompts:
        results = list(segment_video(tiny_models(), frames, prompt, **FLOW))
        assert [r.frame for r in results] == list(range(len(frames)))
        assert all(r.masks.shape[1:] == frames[0].shape[:2] for r in results)


def test_an_unknown_propagator_is_said():
    with pytest.raises(ValueError, match="propagate 'magic': choose one of memory, flow"):
        segment_video(tiny_models(), film(2), "bright.", propagate="magic")


def test_the_command_propagates_by_flow_goes_on_where_it_was_and_keeps_frames(tmp_path, monkeypatch):
    from minisam_glue.cli import video

    words = [save_film(tmp_path / "film", 5), "bright.", "--frames", "--format", "gif", "--propagate", "flow"]
    words += ["--save", "frames"]
    assert command(*words, "--out", tmp_path / "whole") == 0
    monkeypatch.setattr(video, "SAVE_EVERY", 0.0)
    run, done = Tracking.run, SimpleNamespace(count=0)

    def broken(self, frames):
        for result in run(self, frames):
            yield result
            done.count += 1
            if done.count == 3:
                raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tracking, "run", broken)
    assert command(*words, "--out", tmp_path / "broken") == 2
    assert command(*words[:-4], "--save", "frames", "--out", tmp_path / "broken", "--resume") == 2  # by memory
    assert command(*words, "--out", tmp_path / "broken", "--resume") == 0
    whole, resumed = (tmp_path / name / "film" for name in ("whole", "broken"))
    assert lines(whole / "result.jsonl") == lines(resumed / "result.jsonl")
    for folder in (whole, resumed):
        saved = sorted((folder / "frames").iterdir())
        assert [path.name for path in saved] == [f"{t:06d}.png" for t in range(5)]
    from minisam_glue.media import read_image

    assert np.array_equal(read_image(str(saved[2])), film(5)[2])


def test_both_propagators_are_measured_on_the_same_clips():
    films = [clip(seed, kind, 4, (48, 64)) for seed, kind in enumerate(("free", "crossing"))]
    found = measure_trackers(tiny_model(), films, PROPAGATORS)
    metrics = {name: values.metrics() for name, values in found.items()}
    assert metrics.keys() == {"memory", "flow"}
    for one in metrics.values():
        assert {"jf", "jf_free", "jf_crossing", "j", "f"} <= one.keys() and one["seconds_per_frame"] > 0
    twice = measure_trackers(tiny_model(), [clip(1, "free", 3)], {"one": MemoryPropagator, "again": MemoryPropagator})
    same = {name: metrics.metrics().get("same_masks_free") for name, metrics in (found | twice).items()}
    assert same["one"] is None and same["again"] == 1.0 and same["flow"] == 0.0
    assert metrics["memory"]["clip_objects"] == metrics["flow"]["clip_objects"] > 0
    assert metrics["memory"]["jf"] != metrics["flow"]["jf"]


def test_heat_maps_seed_flow_and_a_lost_object_returns_with_its_id():
    frames = [picture(), picture(5), picture(7), picture(), picture(), picture(9)]
    results = list(segment_video(heat_models(), frames, "bright.", redetect=2, **FLOW))
    assert [[(o.id, bool(o.mask.any())) for o in r.objects] for r in results[1:5]] == [
        [(1, True)],
        [(1, True)],
        [(1, False)],
        [(1, False)],
    ]
    assert (1, True) in [(o.id, bool(o.mask.any())) for o in results[5].objects]


def test_a_frame_that_is_encoded_late_keeps_no_graph():
    models = heat_models()
    models.sam = copy.deepcopy(models.sam).requires_grad_(True)  # as load_segmenter leaves it
    tracking = Tracking(models, "square.", redetect=1, propagate="flow", refine_every=2)
    frames = film(4, empty=1)
    assert [len(result.objects) for result in tracking.run(frames)] == [0, 1, 1, 1]
    learned = list(tracking.detections.appearances.values())
    assert learned and not any(one.requires_grad for one in learned)
    assert not tracking.tracker.current().tokens.requires_grad
    again = Tracking(models, "square.", redetect=1, propagate="flow", refine_every=2)
    again.restore(tracking.state())
    assert not any(one.requires_grad for one in again.detections.appearances.values())


def test_a_warped_mask_needs_half_of_its_pixels_to_be_found_again(monkeypatch):
    propagator = begin(*textured(20))
    propagator.seek(1, textured(20)[0])
    for share, kept in ((0.49, []), (0.5, [1])):
        monkeypatch.setattr(propagator, "warp_masks", lambda logits, share=share: (logits, torch.tensor([share])))
        assert list(propagator.refine([1])) == kept


@pytest.mark.parametrize(
    "brighter, there, back, share",
    [(31, 0, 0, 1), (33, 0, 0, 0), (0, 0.7, 0, 1), (0, 0.75, 0, 0), (0, 10, -8.6, 1), (0, 10, -8.4, 0)],
)
def test_pixels_are_found_again_within_32_grey_levels_and_where_both_flows_agree(
    brighter, there, back, share, monkeypatch
):
    frame = np.full((160, 160, 3), 100, np.uint8)
    propagator = begin(frame, textured(50)[1])
    propagator.seek(1, frame + np.uint8(brighter))
    flows = torch.zeros(2, 2, 160, 160)
    flows[0, 0], flows[1, 0] = there, back  # the square of their sum may be 0.5 and a hundredth of their squares
    monkeypatch.setattr(propagators, "farneback", lambda before, after: flows)
    assert propagator.warp_masks(propagator.carried[1].logits[None])[1].tolist() == [share]


def test_a_mask_that_is_mistrusted_is_absent_with_score_and_pointer():
    propagator = FlowPropagator(tiny_model())
    propagator.seek(0, picture(5))
    propagator.prompt(1, box=[5, 10, 15, 22])
    propagator.step(picture(5))
    propagator.mistrust(1)
    memory = propagator.objects[1].bank.tracked[1]
    assert (memory.logits == ABSENT).all() and propagator.result().object_score_logits < 0
    assert torch.equal(memory.pointer, propagator.model.no_obj_ptr[0])


# --- What SAM 2 is asked ------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch) -> list:
    """The points and labels that SAM 2's decoder is given."""
    given, decode = [], SAM2.decode

    def recorded(self, tokens, high_res, *prompts):
        given.append(prompts)
        return decode(self, tokens, high_res, *prompts)

    monkeypatch.setattr(SAM2, "decode", recorded)
    return given


def wide(kind) -> MemoryPropagator:
    """A propagator on a frame twice as wide as high, whose masks are 16 x 16."""
    propagator = kind(tiny_model())
    propagator.seek(0, np.zeros((40, 80, 3), np.uint8))
    return propagator


def test_a_warped_mask_is_refined_with_the_box_around_it(asked):
    warped = torch.full((1, 16, 16), -10.0)
    warped[0, 2:6, 4:9] = 10
    wide(FlowPropagator).refine_masks(warped)
    ((points, labels, mask),) = asked
    assert points.tolist() == [[[16, 8], [36, 24]]] and labels.tolist() == [[2, 3]]  # of 64 x 64 pixels
    assert torch.equal(mask[:, 0], warped)


def test_a_warped_mask_of_one_cell_is_refined_in_a_video_smaller_than_the_masks(asked):
    propagator, warped = FlowPropagator(tiny_model()), torch.full((1, 16, 16), -10.0)
    propagator.seek(0, np.zeros((8, 8, 3), np.uint8))
    warped[0, 0, 0] = 10
    propagator.refine_masks(warped)
    assert asked[0][0].tolist() == [[[0, 0], [4, 4]]]


def test_a_search_without_memory_asks_with_its_boxes_and_answers_with_pointers_of_presence(asked):
    boxes = torch.tensor([[4.0, 2, 9, 6], [0, 0, 16, 16]])
    logits, ious, pointers = wide(MemoryPropagator).masks_without_memory(boxes)
    assert torch.cat([points for points, _ in asked]).tolist() == [[[16, 8], [36, 24]], [[0, 0], [64, 64]]]
    assert all(labels.tolist() == [[2, 3]] * len(labels) for _, labels in asked)
    assert logits.shape == (2, 16, 16) and ious.shape == (2,) and pointers.shape == (2, 256)


def test_what_the_rules_find_counts_as_there_and_what_they_hide_as_absent():
    propagator, scores = wide(MemoryPropagator), torch.tensor([-3.0, 5.0, 2.0])
    model = propagator.model
    decoded = Decoded(torch.zeros(3, 3, 16, 16), torch.rand(3, 3), torch.rand(3, 3, model.config.dim), scores)
    frame = Frame(0, [1, 2, 3], torch.full((3, 16, 16), 7.0), [0.9] * 3, torch.zeros(1, 1))
    frame.changed, frame.absent = {1, 2}, {2}
    out, objects = model.as_object(decoded), [SimpleNamespace(id=number) for number in (1, 2, 3)]
    after = propagator.changed(objects, out, decoded, frame, {})
    assert after.object_score_logits.tolist() == [1, -1, 2] and scores.tolist() == [-3, 5, 2]
    assert [mask.unique().tolist() for mask in after.logits] == [[7], [ABSENT], [0]]
    own = model.obj_ptr_proj(decoded.tokens[0, decoded.ious[0].argmax()])
    assert torch.equal(out.pointer[0], model.no_obj_ptr[0]) and torch.allclose(after.pointer[0], own, atol=1e-5)
    assert torch.equal(after.pointer[1], model.no_obj_ptr[0]) and torch.equal(after.pointer[2], out.pointer[2])
    found = torch.full((model.config.dim,), 3.0)  # the pointer of the search, if that found the object
    assert torch.equal(propagator.changed(objects, out, decoded, frame, {1: found}).pointer[0], found)


def test_memories_of_frames_without_an_object_go_when_the_rules_find_it(monkeypatch):
    propagator, image = wide(MemoryPropagator), np.zeros((40, 80, 3), np.uint8)
    propagator.prompt(1, box=[10, 10, 40, 30])
    propagator.step(image)
    pointer = torch.full((propagator.model.config.dim,), 3.0)
    for found, kept in (({}, [1, 2]), ({1: SimpleNamespace(pointer=pointer)}, [3])):

        def settle(frame, masks_of, found=found):
            frame.changed |= found.keys()
            return found

        monkeypatch.setattr(propagator.identity, "settle", settle)
        propagator.step(image)
        assert sorted(propagator.objects[1].bank.tracked) == kept
    assert torch.equal(propagator.objects[1].bank.tracked[3].pointer, pointer)


def test_what_the_rules_predicted_is_noted_in_pixels_of_the_video():
    propagator = wide(MemoryPropagator)
    track = Track(rival_of={3})
    track.motion.observe(0, (4.0, 8.0, 2.0, 4.0), 8)
    propagator.identity.tracks, propagator.identity.in_meeting = {3: track, FIRST_RIVAL: track}, {3, FIRST_RIVAL}
    result = SimpleNamespace(object_score_logits=torch.zeros(1), size=(40, 80), ids=[3], frame=0)
    notes = propagator.notes(result)
    assert notes.predicted == {3: (15, 15, 25, 25)} and notes.scores == {3: 0.5}
    assert notes.rivals == [RivalBox([3], (15, 15, 25, 25))]


def test_holes_shrink_with_the_masks_and_four_prompted_frames_are_kept(monkeypatch):
    seen = []
    monkeypatch.setattr(VideoTracker, "__init__", lambda self, model, **options: seen.append(options))
    for side in (1024, 512, 256):
        MemoryPropagator(SimpleNamespace(config=SimpleNamespace(image_size=side)))
    assert [options.pop("max_hole") for options in seen] == [8, 2, 0]
    assert seen == [{"max_prompted": 4, "forget": True}] * 3


def test_flow_sees_pictures_of_at_most_512_pixels_in_their_proportions():
    for size, seen in (((600, 1200), (256, 512)), ((1024, 256), (512, 128)), ((40, 80), (40, 80))):
        assert brightness(np.zeros((*size, 3), np.uint8), torch.device("cpu")).shape == seen
