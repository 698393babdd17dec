"""Training and evaluating the demo segmenter."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.demo_training import TINY_SEGMENTER as CONFIG
from helpers.demo_training import Oracle
from helpers.square_masks import square

from minisam_glue.demo import curriculum, evaluate, load_segmenter
from minisam_glue.demo.clip_metrics import broadcast_iou
from minisam_glue.demo.curriculum import Recipe, collate, prepare, random_frames
from minisam_glue.demo.evaluate import evaluate_masks, greedy_pairs, innermost, seeded
from minisam_glue.demo.scenes import KINDS, TRAINING_FROM, clip, scene
from minisam_glue.demo.train_segmenter import (
    EVALUATED,
    SegmenterTask,
    best_mask,
    covered,
    error_clicks,
    mask_losses,
    unroll,
)
from minisam_glue.demo.training import Trainer, export
from minisam_glue.sam2 import PRESETS, VideoTracker
from minisam_glue.sam2.mask_decoder import Decoded
from minisam_glue.sam2.memory import axial_angles, rotate

RECIPE = Recipe(
    steps=4,
    batch_size=2,
    warmup_steps=2,
    frames=3,
    side=64,
    clip_side=64,
    objects=2,
    image_steps=1,
    mixed_steps=1,
    clip_share=1.0,
    early_side=64,
    episode_steps=3,
    contacts=1.0,
    warm=2,
    taught=2,
)
TASK = SegmenterTask(RECIPE, CONFIG)


def clip_batch(film, objects, opening="box", seed=0, side=64):
    sample = prepare(film.frames, film.masks, film.boxes[0], np.array(objects), np.random.default_rng(0), side)
    return collate([sample], list(range(len(film.frames))), opening, 0, seed)


# --- Training ---------------------------------------------------------------------------------------------


def test_gradients_reach_every_parameter_in_images_and_two_frames():
    torch.manual_seed(0)
    model = TASK.build().train()
    score = model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
    film = clip(5, "free", 2, (48, 64))
    for opening in ("box", "click", "mask"):
        samples = [curriculum.image_sample(TRAINING_FROM + i, 4, np.random.default_rng(i), 64) for i in range(4)]
        TASK.losses(model, collate(samples, [0], opening, 3, 0))["total"].backward()
        for there in (5.0, -10.0):  # found on the first frame, then missed
            score.data += there
            TASK.losses(model, clip_batch(film, seeded(film), opening))["total"].backward()
        score.data += 5.0
    size = {name: None if p.grad is None else float(p.grad.abs().sum()) for name, p in model.named_parameters()}
    assert size.pop("no_mem_pos_enc") is None
    # Which of the three masks is the best, and taught, is chance.
    hyper = [size.pop(name) for name in list(size) if re.search(r"hypernetworks_mlps\.[123]\.", name)]
    assert None not in hyper and max(hyper) > 0
    # A key's bias shifts all scores of a query alike, which softmax does not see.
    assert not [name for name, value in size.items() if not name.endswith("k_proj.bias") and not value]


def test_training_sees_what_the_tracker_sees(monkeypatch):
    monkeypatch.setattr(curriculum, "JITTER", 0.0)
    torch.manual_seed(0)
    model, film = TASK.build(), clip(5, "crossing", 4, (48, 64))
    objects = seeded(film)
    with torch.no_grad():
        answers = unroll(model, clip_batch(film, objects, seed=0))  # a seed that asks for a single mask
    tracker = VideoTracker(model, max_hole=0)
    tracker.seek(0, film.frames[0])
    for i in objects:
        tracker.prompt(i, box=film.boxes[0, i])
    results = [tracker.track(), *map(tracker.step, film.frames[1:])]
    for (out, _), result in zip(answers, results, strict=True):
        there = out.object_score_logits > 0
        torch.testing.assert_close(out.object_score_logits, result.object_score_logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(best_mask(out)[there], result.low_res[there], atol=1e-3, rtol=1e-3)
    assert there.any()


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, part = (Trainer(TASK, tmp_path / name, "cpu") for name in ("whole", "part"))
    batches = [TASK.batch(step, step) for step in range(4)]  # images, a clip, a meeting
    assert [(len(b.numbers), b.taught_from) for b in batches[:3]] == [(1, 1), (1, 1), (3, 1)]
    assert batches[3].taught_from > 1
    whole.run(0)
    assert not part.run(0, minutes=0)  # one step
    part.update(TASK.batch(1, 1))
    part.save()
    resumed = Trainer(TASK, tmp_path / "part", "cpu")
    resumed.run(0)
    for one, two in ((whole.model, resumed.model), (whole.ema, resumed.ema)):
        for key, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[key]), key
    assert (tmp_path / "part" / "segmenter.pt").exists()


@pytest.mark.slow
def test_training_overfits_two_scenes(tmp_path):
    recipe = Recipe(steps=120, warmup_steps=10, ema_decay=0.9)
    trainer = Trainer(SegmenterTask(recipe, replace(PRESETS["demo"], image_size=128)), tmp_path, "cpu")
    scenes, rng = [scene(seed, (64, 64)) for seed in (4, 10)], np.random.default_rng(0)
    samples = [prepare(s.image[None], s.masks[None], s.boxes, np.arange(len(s.boxes)), rng, 128) for s in scenes]
    for step in range(120):
        trainer.update(collate(samples, [0], ("box", "click")[step % 2], 0, step))
    metrics = evaluate_masks(trainer.ema, scenes)
    assert metrics["box_iou"] > 0.8 and metrics["click_iou"] > 0.8, metrics


@pytest.mark.slow
def test_training_overfits_one_clip_which_takes_memory(tmp_path):
    recipe = Recipe(steps=200, lr=1.5e-3, warmup_steps=10, ema_decay=0.9)
    trainer = Trainer(SegmenterTask(recipe, replace(PRESETS["demo"], image_size=128)), tmp_path, "cpu")
    film = clip(5, "crossing", 60, (48, 64), [0, 3, 6])
    for step in range(200):
        trainer.update(clip_batch(film, film.leads, seed=step, side=128))
    masks = evaluate.track(trainer.ema, film, list(film.leads))
    assert broadcast_iou(masks, torch.from_numpy(film.masks[:, film.leads]))[1:].min() > 0.7


def test_exported_weights_load_strictly_and_are_small(tmp_path):
    trainer = Trainer(SegmenterTask(RECIPE), tmp_path, "cpu")
    export(trainer.ema, tmp_path / "segmenter.pt")
    loaded = load_segmenter(tmp_path / "segmenter.pt").state_dict()
    for key, value in trainer.ema.state_dict().items():
        assert loaded[key].dtype == value.dtype and torch.allclose(loaded[key], value, rtol=1e-3, atol=1e-6), key
    assert (tmp_path / "segmenter.pt").stat().st_size < 5e6


def test_training_never_draws_a_held_out_seed(monkeypatch):
    drawn = []
    monkeypatch.setattr(curriculum, "scene", lambda seed: drawn.append(seed) or scene(seed, (40, 40)))
    monkeypatch.setattr(curriculum, "clip", lambda seed, *rest: drawn.append(seed) or clip(seed, *rest))
    for step in range(RECIPE.steps):
        TASK.batch(step, step)
    assert len(drawn) == len(set(drawn)) == 6 and min(drawn) >= TRAINING_FROM > max(EVALUATED)


def test_truth_and_boxes_of_a_batch_lie_on_the_objects(monkeypatch):
    monkeypatch.setattr(curriculum, "JITTER", 0.0)
    for step in (0, 3):
        batch = TASK.batch(step, step)
        T, O = batch.truth.shape[:2]
        assert batch.images.shape == (T * (int(batch.owner.max()) + 1), 3, 64, 64) and batch.boxes.shape == (O, 2, 2)
        for truth, box in zip(batch.truth[0], batch.boxes / 2):
            rows, columns = (truth > 0.2).nonzero().unbind(1)
            around = torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            torch.testing.assert_close(box.flatten(), around.float(), atol=1.5, rtol=0)


def test_frames_are_chosen_within_the_clip_in_even_steps():
    gaps = 0
    for seed in range(200):
        chosen, numbers = random_frames(np.random.default_rng(seed), 8)
        assert 0 <= chosen.min() and chosen.max() < 60 and numbers[0] == 0 and len(numbers) == 8
        assert len(set(np.diff(chosen)[1:])) == 1 and set(np.diff(numbers)[1:]) == {1}
        gaps += numbers[1] > 1
    assert 20 < gaps < 80


def test_most_chosen_frames_span_the_middle_of_the_clip():
    spans = [sorted(random_frames(np.random.default_rng(seed), 8)[0][1:]) for seed in range(200)]
    assert np.mean([span[0] <= 30 <= span[-1] for span in spans]) > 0.7


def test_clips_are_smaller_until_the_last_steps():
    task = SegmenterTask(replace(RECIPE, steps=8, early_side=96, early_steps=1, clip_side=32, full_steps=4), CONFIG)
    batches = [task.batch(step, step) for step in range(8)]
    assert [batch.images.shape[-1] for batch in batches] == [96, 64, 32, 32, 64, 64, 64, 64]


def test_memory_attention_begins_with_a_look_at_its_own_place():
    attention = SegmenterTask(RECIPE).build().memory_attention.layers[0].cross_attn_image
    angles = axial_angles(16, 96, torch.device("cpu"))
    query, key = (rotate(p.bias.expand(256, -1), angles) for p in (attention.q_proj, attention.k_proj))
    scores = query @ key.T / 96**0.5
    assert torch.equal(scores.argmax(1), torch.arange(256)) and scores.max() - scores.min() < 8
    weights, near = scores.softmax(1)[8 * 16 + 8].view(16, 16), slice(6, 11)
    assert weights[near, near].sum() > 0.3


def test_clips_come_with_time():
    recipe = Recipe(image_steps=30, mixed_steps=20, clip_share=0.6)
    assert [recipe.clips_at(step) for step in (0, 30)] == [0.0, 0.0]
    assert [recipe.clips_at(step) for step in (40, 50, 99)] == pytest.approx([0.3, 0.6, 0.6])


def test_clicks_lie_in_the_error_region():
    inside, generator = square(5, 5).repeat(20, 1, 1), torch.Generator().manual_seed(0)
    wrong = square(5, 12).repeat(20, 1, 1) ^ inside  # missed on its left, and too much on its right
    xy, labels = error_clicks(wrong, inside, generator)
    column, row = (xy[:, 0] - 0.5).long().unbind(1)
    assert wrong[torch.arange(20), row, column].all()
    assert torch.equal(labels[:, 0] == 1, inside[torch.arange(20), row, column]) and 0 < labels.sum() < 20
    xy, labels = error_clicks(torch.zeros_like(wrong), inside, generator)
    assert ((xy > 5) & (xy < 15)).all() and (labels == 1).all()


def test_an_object_smaller_than_a_pixel_still_has_one():
    truth = torch.zeros(2, 8, 8)
    truth[0, 2, 3] = 0.2
    assert covered(truth).nonzero().tolist() == [[0, 2, 3]]


def test_the_best_of_three_masks_is_taught_and_all_their_scores():
    truth = square(4, 4, 8, 16).float()
    perfect = 20 * torch.nn.functional.avg_pool2d(truth, 2) - 10
    out = Decoded(
        torch.stack((-perfect, perfect, torch.full_like(perfect, -9)), 1),
        torch.tensor([[0.5, 1.0, 0.25]]),
        torch.zeros(1, 3, 4),
        torch.tensor([8.0]),
    )
    losses = mask_losses(out, truth)
    assert losses["focal"] < 0.01 and losses["dice"] < 0.15 and losses["object_score"] < 1e-3
    assert losses["iou"] == pytest.approx((0.5 + 0.0 + 0.25) / 3, abs=0.05)
    absent = mask_losses(out, torch.zeros_like(truth))
    assert absent["focal"] == absent["dice"] == absent["iou"] == 0 and absent["object_score"] > 7
    crowd = square(4, 8, 8, 16).float()  # a fourth of the picture
    union = mask_losses(out._replace(masks=out.masks.clamp(min=0.1)), truth, crowd)["iou"]
    assert union == pytest.approx(3 * mask_losses(out._replace(masks=out.masks.clamp(min=0.1)), truth)["iou"])
    assert mask_losses(out, truth, crowd)["iou"] >= losses["iou"]
    twice = mask_losses(out, truth, weights=torch.tensor([2.0]))
    assert twice["iou"] == 2 * losses["iou"] and twice["object_score"] == 2 * losses["object_score"]


# --- Judging ----------------------------------------------------------------------------------------------


def test_the_innermost_pixel_is_the_middle():
    assert innermost(square(4, 20, 11)).tolist() == [[25, 9]]
    assert innermost(torch.ones(1, 9, 9, dtype=torch.bool)).tolist() == [[4, 4]]


def test_masks_and_objects_are_matched_one_to_one():
    assert greedy_pairs(torch.tensor([[0.9, 0.8], [0.7, 0.1], [0.6, 0.0]])) == pytest.approx([0.9, 0.1])
    assert greedy_pairs(torch.zeros(0, 3)) == greedy_pairs(torch.zeros(2, 2)) == []


class TruePredictor:
    """Answers a box with the mask of the object that has it."""

    def __init__(self, scenes):
        self.by_image = {s.image.tobytes(): s for s in scenes}

    def set_image(self, image):
        self.truth = self.by_image[image.tobytes()]

    def predict(self, boxes):
        rows = [int(np.abs(self.truth.boxes - box).sum(1).argmin()) for box in torch.as_tensor(boxes).numpy()]
        return type("Found", (), {"masks": torch.from_numpy(self.truth.masks[rows])[:, None]})


def test_a_mask_that_only_touches_its_object_and_a_second_one_of_it_count_as_wrong():
    truth = next(s for s in (scene(seed, (48, 64)) for seed in range(12)) if max(s.labels) >= 0)
    row = max(range(len(truth.labels)), key=lambda i: (truth.labels[i] >= 0) * truth.masks[i].sum())
    whole = torch.from_numpy(truth.masks[row])
    corner = whole & (whole.flatten().cumsum(0).view(whole.shape) <= int(whole.sum()) // 3)
    objects = sum(label >= 0 for label in truth.labels)
    for masks, wrong in (([whole], 0), ([corner], 1), ([whole, corner], 1), ([whole, whole], 1)):
        found = [(truth, torch.full((len(masks),), truth.labels[row]), torch.stack(masks))]
        assert evaluate.text_metrics(found)["text_wrong"] == pytest.approx(wrong / objects)


def test_text_to_masks_counts_missed_objects_and_false_masks(monkeypatch):
    scenes = [s for s in (scene(seed, (48, 64)) for seed in range(12)) if len(s.phrases) > 1 and max(s.labels) > 0]
    monkeypatch.setattr(evaluate, "ImagePredictor", lambda model: TruePredictor(scenes))
    metrics = evaluate.evaluate_text_to_masks(Oracle(scenes), None, scenes)
    assert metrics["text_iou"] == 1.0 and metrics["text_wrong"] == 0.0 and metrics["text_objects"] > 10
    wrong = Oracle(scenes, lambda labels: [(label + 1) % 5 for label in labels])  # the masks of other phrases
    metrics = evaluate.evaluate_text_to_masks(wrong, None, scenes)
    assert metrics["text_iou"] == 0.0 and metrics["text_wrong"] == 1.0


@pytest.fixture(scope="module")
def films():
    return [clip(seed, kind, 12, (48, 64)) for seed, kind in enumerate(KINDS)]


def test_a_random_model_is_evaluated_in_every_respect(films):
    metrics = evaluate.evaluate(None, TASK.build(), [scene(0, (48, 48))], lambda: films[:2])
    assert {"box_iou", "click_iou", "jf", "jf_crossing", "no_memory_jf", "both_right", "j_after"} <= metrics.keys()
    assert all(np.isfinite(value) for value in metrics.values())


def test_without_memory_the_box_of_the_last_mask_is_the_prompt(films, monkeypatch):
    asked = []

    class Predictor:
        def __init__(self, model):
            pass

        def set_image(self, image):
            self.t = next(t for t, frame in enumerate(films[0].frames) if frame is image or (frame == image).all())

        def predict(self, boxes):
            asked.append(np.array(boxes))
            masks = torch.from_numpy(films[0].masks[self.t, :1])
            return type("Found", (), {"masks": masks[:, None]})

    monkeypatch.setattr(evaluate, "ImagePredictor", Predictor)
    assert torch.equal(evaluate.track_without_memory(None, films[0], [0]), torch.from_numpy(films[0].masks[:, :1]))
    for t in range(1, 12):
        assert np.array_equal(asked[t], films[0].boxes[t - 1, :1])
