import gc
import io
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.sam2_tiny import frames, tiny_model

from minisam_glue.sam2 import FrameResult, VideoTracker
from minisam_glue.sam2.memory_bank import map_frame

VIDEO = frames(8)
BOX, OTHER, THIRD = [5, 10, 20, 25], [30, 5, 50, 20], [2, 28, 30, 39]


def tracker(model=None, **options):
    return VideoTracker(model or tiny_model(), **options)


def start(box=BOX, model=None, **options):
    """A tracker that has seen frame 0, with object 1 on it."""
    t = tracker(model, **options)
    t.step(VIDEO[0])
    t.prompt(1, box=box)
    return t


@pytest.mark.parametrize("chunk", [1, 8])
def test_a_restored_tracker_goes_on_with_the_same_objects_and_masks(chunk):
    whole = start(chunk=chunk)
    for image in VIDEO[1:3]:
        whole.step(image)
    whole.prompt(2, box=OTHER)
    whole.step(VIDEO[3])
    other = tracker(chunk=chunk)
    other.restore(whole.state())
    added = [[o.added_at for o in t.objects.values()] for t in (whole, other)]
    assert added[0] == added[1] and len(set(added[0])) == 2
    for image in VIDEO[4:]:
        assert torch.equal(whole.step(image).low_res, other.step(image).low_res)


def test_a_pass_back_from_frame_0_is_empty_and_changes_no_correction_there():
    answers = []
    for back in (False, True):
        t = start(keep_all=True)
        assert len(list(t.propagate(VIDEO))) == len(VIDEO)
        if back:
            assert list(t.propagate(VIDEO, reverse=True)) == []
        t.seek(0, VIDEO[0])
        answers.append(t.prompt(1, points=[(20, 20)], labels=[1]).low_res)
    assert torch.equal(*answers)


def test_a_restored_tracker_keeps_the_brightness_of_frames_of_16_bits():
    deep = [image.astype(np.uint16) * factor for image, factor in zip(VIDEO, (257, 16, 16, 16))]
    whole = start()
    whole.reset()
    whole.step(deep[0])
    whole.prompt(1, box=BOX)
    other = tracker()
    other.restore(torch_round_trip(whole.state()))
    for image in deep[1:]:
        assert np.array_equal(whole.as_rgb(image), other.as_rgb(image))
        assert torch.equal(whole.step(image).low_res, other.step(image).low_res)


def torch_round_trip(state: dict) -> dict:
    """The state as a file gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_a_prompted_frame_without_a_mask_is_refused():
    state = start().state()
    state["objects"][0]["bank"]["prompted"][0]["logits"] = None
    with pytest.raises(ValueError, match="logits"):
        tracker().restore(state)


def test_held_bytes_after_50_frames_equal_those_after_150():
    t = tracker(tiny_model(image_size=32))
    first = frames(1)[0]
    t.step(first)
    t.prompt(1, box=BOX)
    t.prompt(2, points=[[40, 12]], labels=[1])
    held = {}
    for i in range(1, 151):
        t.step(first)
        held[i] = t.held_bytes()
    assert held[50] == held[150] and held[5] < held[50]
    memories = [len(o.bank.prompted) + len(o.bank.tracked) for o in t.objects.values()]
    with_tokens = [sum(m.tokens is not None for m in o.bank.tracked.values()) for o in t.objects.values()]
    assert memories == [17, 17] and with_tokens == [7, 7]  # the frame itself, 15 pointers (6 memories), one prompted


@pytest.mark.parametrize("chunk", [1, 8])
def test_a_late_object_leaves_the_others_bit_identical(chunk):
    video = frames(24)
    alone, joined = start(chunk=chunk), start(chunk=chunk)
    for i, frame in enumerate(video[1:], 1):
        a, b = alone.step(frame), joined.step(frame)
        if i in (3, 5):
            b = joined.prompt(10 + i, box=OTHER)
        assert torch.equal(a.low_res[0], b.low_res[0]) and torch.equal(
            a.object_score_logits[0], b.object_score_logits[0]
        )
    assert joined.result().ids == [1, 13, 15]


@pytest.mark.parametrize("chunk", [1, 8])
def test_an_object_added_for_a_second_pass_leaves_the_others_bit_identical(chunk):
    alone, joined = start(chunk=chunk, keep_all=True), start(chunk=chunk, keep_all=True)
    for t in (alone, joined):
        list(t.propagate(VIDEO))
        t.seek(0, VIDEO[0])
    joined.prompt(2, box=OTHER)
    for a, b in zip(alone.propagate(VIDEO), joined.propagate(VIDEO), strict=True):
        assert torch.equal(a.low_res[0], b.low_res[0])


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunk_size_does_not_change_a_mask(chunk):
    trackers = [start(chunk=c) for c in (chunk, 8)]
    for t in trackers:
        t.prompt(2, box=OTHER)
        t.prompt(3, box=THIRD)
    for frame in VIDEO[1:]:
        a, b = (t.step(frame) for t in trackers)
        torch.testing.assert_close(a.low_res, b.low_res, atol=5e-4, rtol=1e-4)
        assert (a.masks() != b.masks()).float().mean() < 1e-4


def test_objects_of_one_frame_are_independent_bit_by_bit():
    one, three = start(), start()
    three.prompt(2, box=OTHER)
    three.prompt(3, mask=np.zeros((40, 56), bool))
    for frame in VIDEO[1:]:
        assert torch.equal(one.step(frame).low_res[0], three.step(frame).low_res[0])


def test_streaming_equals_offline():
    streaming, offline = start(), tracker(keep_all=True)
    offline.seek(0, VIDEO[0])
    offline.prompt(1, box=BOX)
    for frame, result in zip([None, *VIDEO[1:]], offline.propagate(VIDEO), strict=True):
        stepped = streaming.result() if frame is None else streaming.step(frame)
        assert stepped.frame == result.frame and torch.equal(stepped.low_res, result.low_res)


def test_frames_are_read_when_due_and_then_let_go():
    class Frame(np.ndarray):
        """An array that can be watched."""

    alive, read = [], []

    def reader():
        for i, frame in enumerate(frames(30)):
            frame = frame.view(Frame)
            alive.append(weakref.ref(frame))
            read.append(i)
            yield frame

    t = start()
    t.reset()
    t.seek(0, VIDEO[0])
    t.prompt(1, box=BOX)
    for result in t.propagate(reader()):
        assert read[-1] == result.frame
        gc.collect()
        assert sum(ref() is not None for ref in alive) <= 2
    assert len(read) == 30


def test_reverse_and_both_directions_reach_every_frame():
    t = tracker(keep_all=True)
    t.seek(4, VIDEO[4])
    t.prompt(1, box=BOX)
    assert [r.frame for r in t.propagate(VIDEO)] == [4, 5, 6, 7]
    assert [r.frame for r in t.propagate(np.stack(VIDEO), reverse=True)] == [4, 3, 2, 1, 0]
    assert [r.frame for r in t.propagate(VIDEO, start=2, count=3)] == [2, 3, 4]
    bounded = tracker()
    bounded.seek(4, VIDEO[4])
    bounded.prompt(1, box=BOX)
    backwards = {r.frame: r.low_res for r in bounded.propagate(VIDEO, reverse=True)}
    assert list(backwards) == [4, 3, 2, 1, 0]


def test_reverse_is_forward_on_the_reversed_video():
    forward, backward = tracker(), tracker()
    forward.seek(0, VIDEO[7])
    backward.seek(7, VIDEO[7])
    for t in (forward, backward):
        t.prompt(1, box=BOX)
    both = zip(forward.propagate(VIDEO[::-1]), backward.propagate(VIDEO, reverse=True), strict=True)
    for a, b in both:
        assert a.frame == 7 - b.frame
        torch.testing.assert_close(a.low_res, b.low_res, atol=1e-4, rtol=1e-4)


def correct(t):
    """Track, click on frame 3, track all again: the answer to the click, and the second pass."""
    t.seek(0, VIDEO[0])
    t.prompt(1, box=BOX)
    before = {r.frame: r.low_res for r in t.propagate(VIDEO)}
    t.seek(3, VIDEO[3])
    click = t.prompt(1, points=[[50, 30]], labels=[0]).low_res
    return before, click, {r.frame: r.low_res for r in t.propagate(VIDEO)}


def test_a_correction_sticks_and_recomputes_what_follows():
    before, click, after = correct(tracker(keep_all=True))
    assert not torch.equal(click, before[3]) and torch.equal(after[3], click)
    assert torch.equal(after[0], before[0])
    assert all(not torch.equal(after[t], before[t]) for t in (4, 5, 6, 7))


def test_the_official_mode_forgets_a_correction():
    before, click, after = correct(tracker(keep_all=True, sticky=False))
    assert not torch.equal(click, before[3])
    torch.testing.assert_close(after[3], before[3], atol=1e-4, rtol=1e-4)


def test_a_correction_while_streaming_changes_what_follows():
    plain, corrected = start(), start()
    for t in (plain, corrected):
        t.step(VIDEO[1])
    corrected.prompt(1, points=[[50, 30]], labels=[0])
    assert not torch.equal(plain.step(VIDEO[2]).low_res, corrected.step(VIDEO[2]).low_res)


def test_a_click_on_a_frame_that_was_prompted_and_tracked_attends_to_its_own_memory(monkeypatch):
    tracker, selections = VideoTracker(tiny_model(), keep_all=True), []
    images = frames(3)
    tracker.seek(0, images[0])
    tracker.prompt(1, points=[[12, 17]], labels=[1])
    for index, image in enumerate(images):
        tracker.seek(index, image)
        tracker.track()
    condition = tracker.model.condition_on_memory
    monkeypatch.setattr(
        tracker.model,
        "condition_on_memory",
        lambda features, chosen, *a: selections.extend(chosen) or condition(features, chosen, *a),
    )
    tracker.seek(0, images[0])
    before = tracker.objects[1].bank.prompted[0]
    tracker.prompt(1, points=[[14, 12]], labels=[1])
    (selection,) = selections
    assert selection.maps == [(0, before)] and selection.pointers == [(0, before)]  # as officially


def test_clicks_can_be_kept_or_replaced():
    kept, replaced = start(), start()
    for t in (kept, replaced):
        t.prompt(2, points=[[40, 12]], labels=[1])
    a = kept.prompt(2, points=[[10, 30]], labels=[0], keep_clicks=True)
    b = replaced.prompt(2, points=[[10, 30]], labels=[0])
    assert kept.objects[2].clicks[0][0].shape == (1, 2, 2) and replaced.objects[2].clicks[0][0].shape == (1, 1, 2)
    assert not torch.equal(a.low_res[1], b.low_res[1]) and torch.equal(a.low_res[0], b.low_res[0])


def test_a_bounded_tracker_goes_forward_and_then_back():
    t, video = tracker(), frames(24)
    t.seek(4, video[4])
    t.prompt(1, box=BOX)
    assert [r.frame for r in t.propagate(video)] == list(range(4, 24))
    back = {r.frame: r for r in t.propagate(video, start=12, reverse=True)}
    assert list(back) == list(range(12, -1, -1)) and all(r.low_res.isfinite().all() for r in back.values())


def test_small_holes_are_filled_in_the_masks_but_not_in_the_memories():
    raw, filled = start(max_hole=0), start(max_hole=0)
    filled.max_hole = 200
    a, b = raw.step(VIDEO[1]), filled.step(VIDEO[1])
    holes = (a.low_res <= 0) & (b.low_res > 0)
    assert holes.any() and (b.low_res[holes] == 0.1).all()
    memories = [t.objects[1].bank.tracked[1].tokens for t in (raw, filled)]
    assert torch.equal(*memories)


def test_what_a_removed_object_held_is_freed():
    pair, alone = start(chunk=8), start(chunk=8)
    pair.prompt(2, box=OTHER)
    for t in (pair, alone):
        t.step(VIDEO[1])
        t.step(VIDEO[2])
    assert pair.held_bytes() > alone.held_bytes()
    pair.remove(2)
    assert pair.held_bytes() == alone.held_bytes()


def test_a_removed_object_is_gone_and_the_others_go_on():
    t, alone = start(), start()
    t.step(VIDEO[1])
    t.prompt(2, box=OTHER)
    alone.step(VIDEO[1])
    t.step(VIDEO[2])
    alone.step(VIDEO[2])
    t.remove(2)
    result = t.step(VIDEO[3])
    assert result.ids == [1] and torch.equal(result.low_res, alone.step(VIDEO[3]).low_res)
    with pytest.raises(ValueError, match="no object 2"):
        t.remove(2)


def test_an_absent_object_has_an_empty_mask_and_a_negative_score():
    t = start(model=tiny_model(object_score=-30.0))
    result = t.step(VIDEO[1])
    assert result.object_score_logits.item() < 0 and not result.masks().any() and result.masks().shape == (1, 40, 56)


def test_an_object_has_no_mask_before_it_came():
    t = tracker(keep_all=True)
    for frame in VIDEO[:3]:
        assert t.step(frame).masks().shape == (0, 40, 56)
    t.prompt(1, box=BOX)
    t.seek(1, VIDEO[1])
    assert not t.result().masks().any()


@pytest.mark.parametrize("first", [False, True])
def test_mask_prompts_come_back_as_masks(first):
    mask = np.zeros((40, 56), bool)
    mask[10:25, 5:20] = True
    t = tracker(tiny_model(first=first))
    t.step(VIDEO[0])
    got = t.prompt(1, mask=mask).masks()[0].numpy()
    assert (got & mask).sum() > 0.9 * (got | mask).sum()
    assert t.step(VIDEO[1]).low_res.isfinite().all()


def test_non_overlapping_masks_share_no_pixel():
    t = start(non_overlap=True)
    assert (t.prompt(2, box=BOX).masks().sum(0) <= 1).all()


def test_masks_are_those_of_the_logits_and_made_one_by_one(monkeypatch):
    seen, interpolate = [], F.interpolate
    result = FrameResult(0, [1, 2, 3], torch.randn(3, 16, 16), torch.ones(3), (45, 61), non_overlap=False)
    expected = result.logits() > 0
    monkeypatch.setattr(F, "interpolate", lambda x, **options: seen.append(len(x)) or interpolate(x, **options))
    assert torch.equal(result.masks(), expected) and seen == [1, 1, 1]
    none = FrameResult(0, [], torch.zeros(0, 16, 16), torch.zeros(0), (45, 61), non_overlap=False)
    assert none.masks().shape == (0, 45, 61) and none.masks().dtype == torch.bool


def test_only_the_nearest_prompted_frames_are_kept():
    t = tracker(tiny_model(image_size=32), max_prompted=3)
    for i, frame in enumerate(frames(60)):
        t.step(frame)
        if i % 5 == 0:
            t.prompt(1, box=BOX)
    bank = t.objects[1].bank
    assert len(bank.prompted) <= 6 and max(bank.prompted) == 55
    assert len(bank.select_memories(60, limit=3).maps) <= 3 + 6


def test_a_bad_prompt_changes_nothing():
    t = start()
    before = t.result()
    for prompt, message in [
        ({}, "no prompt"),
        ({"box": [1, float("nan"), 3, 4]}, "not finite"),
        ({"box": [9, 9, 1, 1]}, "xyxy"),
        ({"box": [BOX, OTHER]}, "2 prompts"),
        ({"box": []}, "no prompt"),
        ({"points": [[1, 2]]}, "give both"),
        ({"mask": np.zeros((5, 5))}, r"\(40, 56\)"),
        ({"mask": np.full((40, 56), np.nan)}, "not finite"),
        ({"mask": np.zeros((40, 56)), "box": BOX}, "whole prompt"),
        ({"box": BOX, "keep_clicks": True}, "before clicks"),
    ]:
        with pytest.raises(ValueError, match=message):
            t.prompt(1, **prompt)
        with pytest.raises(ValueError):
            t.prompt(2, **({"box": [1, 2]} if prompt.get("keep_clicks") else prompt))
    assert t.result().ids == [1] and torch.equal(t.result().low_res, before.low_res)


def test_misuse_is_a_clear_error():
    with pytest.raises(ValueError, match="no frame yet"):
        tracker().prompt(1, box=BOX)
    with pytest.raises(ValueError, match="no frame yet"):
        tracker().track()
    with pytest.raises(ValueError, match="prompt an object first"):
        list(tracker().propagate(VIDEO))
    t = start()
    with pytest.raises(ValueError, match=r"\(20, 56\).*\(40, 56\)"):
        t.step(VIDEO[1][:20])
    with pytest.raises(ValueError, match="array of float"):
        t.step(VIDEO[1] / 255.0)
    with pytest.raises(ValueError, match="can be indexed"):
        list(t.propagate(iter(VIDEO), reverse=True))
    with pytest.raises(ValueError, match="8 frames"):
        list(t.propagate(VIDEO, start=8))
    with pytest.raises(ValueError, match="count from 0"):
        t.seek(-1, VIDEO[0])
    with pytest.raises(ValueError, match="chunk 0"):
        tracker(chunk=0)


def test_reset_frees_everything_and_starts_anew():
    t, fresh = start(), start()
    t.step(VIDEO[1])
    t.reset()
    assert t.held_bytes() == 0 and t.frame == -1
    t.step(VIDEO[0])
    t.prompt(1, box=BOX)
    assert torch.equal(t.step(VIDEO[1]).low_res, fresh.step(VIDEO[1]).low_res)


def test_bfloat16_tracks_nearly_the_same_masks():
    mask = np.zeros((40, 56), bool)
    mask[10:25, 5:20] = True
    trackers = [tracker(), tracker()]
    for t, half in zip(trackers, (False, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            t.step(VIDEO[0])
            t.prompt(1, mask=mask)  # a box could fall on either side of the stability threshold
    for frame in VIDEO[1:5]:
        want = trackers[0].step(frame)
        with torch.autocast("cpu", torch.bfloat16):
            got = trackers[1].step(frame)
        assert got.low_res.dtype == torch.float32 and (got.low_res - want.low_res).norm() < 0.05 * want.low_res.norm()
        assert (got.masks() == want.masks()).float().mean() > 0.98


def test_memories_are_those_of_the_frame_before_and_of_multiples_of_the_stride_either_way():
    """As SAM2Base._prepare_memory_conditioned_features counts them, with ceilings on the way back."""
    ahead = [map_frame(10, steps, 1, 3) for steps in range(1, 5)]
    back = [map_frame(9, steps, -1, 3) for steps in range(1, 5)]
    assert ahead == [9, 6, 3, 0] and back == [10, 12, 15, 18]
    assert [map_frame(10, steps, -1, 1) for steps in range(1, 4)] == [11, 12, 13]
