"""What the demo segmenter learns from clips: which frames, which prompts, which memories."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.demo_training import TINY_SEGMENTER as CONFIG

from minisam_glue.demo import episodes, train_segmenter
from minisam_glue.demo.clip_metrics import meeting_span
from minisam_glue.demo.curriculum import MEETINGS, RETURNS, Recipe, choose_episode
from minisam_glue.demo.episodes import (
    AFTER,
    LENGTH,
    Episode,
    comeback,
    contact,
    exclusive,
    first_after,
    hints,
    late_weights,
    longest_absence,
    mosaic,
    with_jump,
    without_recent,
)
from minisam_glue.demo.scenes import ALL_KINDS, TRAINING_FROM, clip, motion
from minisam_glue.demo.train_segmenter import SegmenterTask, unroll
from minisam_glue.demo.training import Trainer
from minisam_glue.sam2.memory_bank import FrameMemory, MemorySelection

ALWAYS = Recipe(
    steps=20,
    warmup_steps=2,
    batch_size=2,
    side=64,
    early_side=64,
    clip_side=64,
    image_steps=0,
    mixed_steps=1,
    clip_share=2.0,
    episode_steps=0,
    contacts=0.5,
    returns=0.5,
    warm=4,
    taught=3,
    boxed=0.7,
    exclusive=1.0,
    forgetful=1.0,
    mosaics=0.5,
    jumps=0.5,
)


def rngs(number):
    return (np.random.default_rng(seed) for seed in range(number))


def test_motion_is_that_of_the_clip_and_knows_what_is_hidden():
    for kind in ("occlusion", "twins", "crossing"):
        moved, film = motion(7, kind, 12, (48, 64)), clip(7, kind, 12, (48, 64))
        assert np.array_equal(moved.masks, film.masks) and (moved.leads, moved.twins) == (film.leads, film.twins)
        seen = film.boxes[..., 2] > 0
        assert (moved.wholes[..., :2] <= film.boxes[..., :2])[seen].all()
        assert (moved.wholes[..., 2:] >= film.boxes[..., 2:])[seen].all()
    hidden = motion(7, "occlusion", 12, (48, 64))
    gone = ~hidden.masks[:, hidden.leads[0]].any((1, 2))
    assert gone.any() and (hidden.wholes[gone, hidden.leads[0], 2] > 0).all()


def test_a_contact_is_led_up_to_from_before_the_meeting_and_ends_after_it():
    ends, strides = 0, set()
    for rng in rngs(200):
        e = contact(rng, (24, 36), 12, 7)
        assert 0 <= e.chosen.min() and e.chosen.max() < LENGTH and (np.diff(e.chosen) > 0).all()
        assert len(e.chosen) == len(e.numbers) == e.taught_from + 7 and e.numbers[0] == 0
        assert e.chosen[0] < 24 and e.chosen[1] <= 24 + 1  # the prompt and the memory begin before it
        assert set(np.diff(e.chosen[1:])) <= {1, 2, 3} and set(np.diff(e.numbers[1:])) == {1}
        strides.add(int(e.chosen[-1] - e.chosen[-2]))
        ends += first_after(e.chosen, 36) is not None
    assert strides == {1, 2, 3} and ends > 80


def test_a_comeback_is_learned_from_after_an_absence_that_fills_the_memory():
    for rng in rngs(200):
        e = comeback(rng, (20, 38), 12, 7)
        assert 0 <= e.chosen.min() and e.chosen.max() < LENGTH and (np.diff(e.chosen) > 0).all()
        assert e.chosen[0] < 20 and e.chosen[e.taught_from] <= 39 < e.chosen[-1]
        absent = (e.chosen[: e.taught_from] >= 20) & (e.chosen[: e.taught_from] <= 38)
        assert absent.sum() >= 4
    assert len(comeback(next(rngs(1)), (45, 57), 12, 7).chosen) > 3  # at the end of a clip it has fewer frames


def test_a_jump_skips_frames_that_the_memory_does_not_count():
    for rng in rngs(50):
        for chosen in (np.arange(5, 13), 50 - np.arange(5, 13)):
            e = with_jump(rng, Episode(chosen, list(range(8)), 3))
            steps = np.abs(np.diff(e.chosen))
            assert e.chosen.min() >= 0 and e.chosen.max() < LENGTH and sorted(steps)[:-1] == [1] * 6 and steps.max() > 2
            assert e.numbers == list(range(8)) and e.taught_from == 3


def test_the_first_frame_after_a_meeting_is_told_also_where_frames_are_missing():
    recipe, told = replace(ALWAYS, jumps=1.0, warm=12, taught=7), []
    for i in range(24):
        _, moved, episode = choose_episode(TRAINING_FROM + i, MEETINGS, recipe, np.random.default_rng(i), (48, 64))
        if episode.parted is None:
            continue
        span = meeting_span(torch.from_numpy(moved.masks[:, [*moved.leads, *moved.twins][:2]]))
        backward = episode.chosen[-1] < episode.chosen[-2]
        after = episode.chosen < span[0] if backward else episode.chosen > span[1]
        assert episode.parted == after.argmax() > 0 and after[episode.parted :].all()
        told.append(bool(backward))
    assert set(told) == {True, False} and len(told) >= 6


def test_the_longest_absence_is_between_two_appearances():
    assert longest_absence(np.array([0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0], bool)) == (5, 7)
    assert longest_absence(np.array([1, 1, 0, 0], bool)) is longest_absence(np.zeros(3, bool)) is None


def test_meetings_and_returns_are_found_in_the_clips_that_are_about_them():
    recipe = replace(ALWAYS, jumps=0.0, warm=12, taught=7)
    for kinds, least in ((MEETINGS, 12), (RETURNS, 18)):  # about some meetings nothing leads up to them
        found = [
            choose_episode(TRAINING_FROM + i, kinds, recipe, np.random.default_rng(i), (48, 64)) for i in range(24)
        ]
        assert {kind for kind, *_ in found} == set(kinds)
        about = [e for _, _, e in found if e.taught_from > 1]
        assert len(about) >= least
        assert {bool(e.chosen[-1] > e.chosen[0]) for e in about} == {True, False}


def test_a_mosaic_labels_one_of_four_equal_pictures():
    film = clip(3, "crossing", 4, (40, 56))
    frames, masks, boxes = mosaic(np.random.default_rng(0), film.frames, film.masks, film.boxes)
    assert frames.shape == (4, 80, 112, 3) and masks.shape == (4, film.masks.shape[1], 80, 112)
    assert masks.sum() == film.masks.sum()
    rows, columns = masks[0].any(0).nonzero()
    top, left = rows.min() // 40 * 40, columns.min() // 56 * 56
    assert np.array_equal(frames[:, top : top + 40, left : left + 56], film.frames)
    assert np.array_equal(masks[..., top : top + 40, left : left + 56], film.masks)
    seen = film.boxes[..., 2] > 0
    assert np.array_equal(boxes[seen] - film.boxes[seen], np.tile((left, top, left, top), (seen.sum(), 1)))
    assert not boxes[~seen].any()
    for y in (0, 40):
        for x in (0, 56):
            part = frames[:, y : y + 40, x : x + 56]
            assert any(np.array_equal(np.flip(part, axes), film.frames) for axes in ((), (1,), (2,), (1, 2)))


def test_predicted_boxes_err_by_up_to_half_their_size_and_come_on_some_frames_alone():
    boxes = np.tile(np.float32((10, 20, 30, 50)), (400, 3, 1))
    boxes[:, 2] = 0
    found = hints(np.random.default_rng(0), boxes, 0.5)
    given = ~np.isnan(found).any(-1)
    assert 0.4 < given[:, 0].mean() < 0.6 and np.array_equal(given[:, 0], given[:, 1]) and not given[:, 2].any()
    centres = (found[..., :2] + found[..., 2:])[given] / 2
    shift = np.abs(centres - (20, 35)) / (20, 30)
    assert shift.max() < 0.95 and np.quantile(shift, 0.9) < 0.6 and shift.mean() > 0.03
    assert np.isnan(hints(np.random.default_rng(0), boxes, 0.0)).all()


def test_exclusive_masks_give_each_pixel_to_one_object_of_its_clip():
    logits = torch.tensor([3.0, 1.0, 2.0])[:, None, None].expand(3, 2, 2).clone()
    logits[1, 0, 0] = 9.0
    out = exclusive(logits, torch.tensor([0, 0, 1]))
    assert ((out > 0).sum((1, 2))).tolist() == [3, 1, 4] and out[0, 0, 0] == out[1, 1, 1] == -10.0
    assert torch.equal(exclusive(logits[:1], torch.tensor([0])), logits[:1])


def test_forgotten_memories_are_recent_ones_and_the_same_for_all_objects():
    memory = FrameMemory(torch.zeros(4), torch.zeros(()), torch.zeros(1, 4), None)
    both = [MemorySelection([(slot, memory) for slot in (0, *range(1, 7))], [(1, memory)]) for _ in range(2)]
    kept = [without_recent(both, torch.Generator().manual_seed(seed)) for seed in range(30)]
    assert all(one.layout == two.layout and one.maps[0][0] == 0 and one.pointers for one, two in kept)
    assert 2.5 < np.mean([len(one.maps) - 1 for one, _ in kept]) < 3.5


def test_the_loss_is_larger_right_after_a_return_and_a_meeting():
    there = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 1, 1, 1]], dtype=torch.bool).T
    assert late_weights(there, None, 3.0)[:, 0].tolist() == [1, 1, 1, 1, 3, 3, 3, 3, 1, 1] and AFTER == 4
    assert late_weights(there[:, [0, 0]], 5, 3.0)[:, 1].tolist() == [1, 1, 1, 1, 3, 3, 3, 3, 3, 1]
    assert (late_weights(torch.ones(3, 2, dtype=torch.bool), None, 3.0) == 1).all()


def test_frames_that_lead_up_fill_the_memory_without_gradients(monkeypatch):
    task, seen = SegmenterTask(ALWAYS, CONFIG), []
    torch.manual_seed(0)
    model = task.build().train()
    batch = next(b for b in (task.batch(step, step) for step in range(1, 20)) if b.taught_from > 2)
    encode = model.encode_memory
    monkeypatch.setattr(model, "encode_memory", lambda *a, **k: seen.append(encode(*a, **k)) or seen[-1])
    answers = unroll(model, batch)
    last = len(batch.numbers) - 1
    assert [m.requires_grad for m in seen] == [t == 0 or t >= batch.taught_from for t in range(last)]
    assert {t for _, t in answers} == {0, *range(batch.taught_from, last + 1)}
    assert all(out.masks.requires_grad for out, _ in answers)


def test_a_step_of_every_kind_of_episode_runs_and_the_loss_falls_on_a_repeated_one(tmp_path):
    task = SegmenterTask(replace(ALWAYS, steps=1000), CONFIG)
    trainer = Trainer(task, tmp_path, "cpu")
    batches = [task.batch(step, step) for step in range(1, 6)]
    assert any((b.weights > 1).any() for b in batches) and any(not b.hints.isnan().all() for b in batches)
    for batch in batches:
        losses = trainer.update(batch)
        assert all(torch.isfinite(value) for value in losses.values()) and losses["total"] > 0
    again = [float(trainer.update(batches[0])["total"].detach()) for _ in range(8)]
    assert min(again[-3:]) < 0.9 * again[0]


def test_predicted_boxes_change_the_answer(monkeypatch):
    task = SegmenterTask(ALWAYS, CONFIG)
    torch.manual_seed(0)
    model = task.build()
    batch = next(b for b in (task.batch(step, step) for step in range(1, 40)) if not b.hints[-1].isnan().any())
    with torch.no_grad():
        answers = unroll(model, batch)
        blind = unroll(model, replace(batch, hints=torch.full_like(batch.hints, torch.nan)))
    assert torch.equal(answers[0][0].masks, blind[0][0].masks)  # of the prompted frame
    assert not torch.equal(answers[-1][0].object_score_logits, blind[-1][0].object_score_logits)


def test_the_wide_segmenter_is_small_enough():
    task = SegmenterTask(Recipe())
    with torch.device("meta"):
        model = train_segmenter.SAM2(task.config)
    assert task.config.embed_dim >= 32 and 2 * sum(p.numel() for p in model.parameters()) < 4.8e6


def test_training_is_stopped_in_time_by_one_process_alone(tmp_path, monkeypatch, capsys):
    argv = ["train", "--out", str(tmp_path / "run"), "--minutes", "1"]
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(train_segmenter.training.dist, "init_process_group", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        train_segmenter.training.command("", SegmenterTask, Recipe(), "runs/x")
    assert ended.value.code == 2 and "--minutes stops a run of one process" in capsys.readouterr().err


def test_every_kind_of_clip_is_either_about_a_meeting_or_a_return_or_free():
    assert set(MEETINGS) | set(RETURNS) | {"free"} == set(ALL_KINDS) and episodes.NOISE <= 0.5
