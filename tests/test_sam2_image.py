import copy

import numpy as np
import pytest
import torch
from helpers.flood import flood
from helpers.sam2_tiny import frames, tiny_model
from PIL import Image

from minisam_glue.sam2 import ImagePredictor
from minisam_glue.sam2.mask_decoder import STABILITY, MaskDecoder, stability

IMAGE = frames(1)[0]  # 40 x 56
BOXES = [[5, 10, 20, 25], [0, 0, 55, 39], [30, 5, 50, 20], [8, 3, 9, 30], [1, 1, 40, 12]]


def predictor(image=IMAGE, model=None, **options):
    made = ImagePredictor(model or tiny_model(), **options)
    made.set_image(image)
    return made


def same(a, b, atol=2e-5):
    for name in ("masks", "scores", "low_res"):
        x, y = getattr(a, name), getattr(b, name)
        if x.dtype == torch.bool:
            assert torch.equal(x, y)
        else:
            torch.testing.assert_close(x, y, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("multimask", [False, True])
def test_boxes_as_a_batch_equal_one_by_one(multimask):
    p = predictor(chunk=5)
    batch = p.predict(boxes=BOXES, multimask=multimask, logits=True)
    assert batch.masks.shape == (5, 3 if multimask else 1, 40, 56)
    for i, box in enumerate(BOXES):
        one = p.predict(boxes=box, multimask=multimask, logits=True)
        torch.testing.assert_close(batch.masks[i], one.masks[0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(batch.scores[i], one.scores[0], atol=1e-6, rtol=1e-5)


def test_the_unstable_masks_of_a_batch_fall_back_alone(monkeypatch):
    """Among these boxes some single masks are stable and some are not, so both branches are in one batch."""
    p = predictor()
    points, labels, _ = p.prompts(BOXES, None, None, None, (40, 56))
    model, features, seen, render = p.model, p.encoded.features, {}, MaskDecoder.render
    with torch.inference_mode():
        monkeypatch.setattr(MaskDecoder, "render", lambda *args: seen.setdefault("masks", render(*args)))
        three = model.decode(model.without_memory(features), features.high_res, points, labels, multimask=True)
        monkeypatch.undo()
    all4, ious = seen["masks"], three.ious
    stable = stability(all4[:, 0]) >= STABILITY
    assert stable.any() and not stable.all()
    best = 1 + ious.argmax(1)
    want = all4[torch.arange(5), torch.where(stable, 0, best)]
    torch.testing.assert_close(p.predict(boxes=BOXES).low_res[:, 0], want.clamp(-32, 32), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunk_size_does_not_change_a_mask(chunk):
    same(predictor().predict(boxes=BOXES), predictor(chunk=chunk).predict(boxes=BOXES))


def test_images_as_a_batch_equal_one_by_one():
    other = frames(1, 30, 31, seed=1)[0]
    batch = ImagePredictor(tiny_model())
    batch.set_images([IMAGE, Image.fromarray(other)])
    for i, image in enumerate((IMAGE, other)):
        same(
            batch.predict(boxes=BOXES[0], logits=True, image=i),
            predictor(image).predict(boxes=BOXES[0], logits=True),
            1e-4,
        )


def test_one_set_of_points_or_one_mask_serves_all_boxes():
    p = predictor()
    low = p.predict(boxes=BOXES[0]).low_res[0, 0]
    shared = p.predict(boxes=BOXES[:2], points=[[12, 14]], labels=[1], mask=low)
    repeated = p.predict(boxes=BOXES[:2], points=[[[12, 14]]] * 2, labels=[[1]] * 2, mask=torch.stack([low, low]))
    same(shared, repeated)
    without = p.predict(boxes=BOXES[:2], logits=True)
    assert not torch.equal(without.low_res, shared.low_res)


def test_scores_shapes_and_types_of_each_prompt():
    p = predictor()
    for prompt in (
        {"points": [[12, 14]], "labels": [1]},
        {"points": [[12, 14], [50, 3]], "labels": [1, 0]},
        {"mask": p.predict(boxes=BOXES[0]).low_res},
        {"boxes": np.array(BOXES[0])},
    ):
        got = p.predict(**prompt, multimask=True)
        assert got.masks.shape == (1, 3, 40, 56) and got.masks.dtype == torch.bool
        assert got.scores.shape == (1, 3) and got.low_res.shape == (1, 3, 16, 16)
        assert ((0 <= got.scores) & (got.scores <= 1)).all() and got.low_res.abs().max() <= 32


@pytest.mark.parametrize("empty", [[], np.zeros((0, 4)), torch.zeros(0, 4)])
def test_no_boxes_give_no_masks(empty):
    got = predictor().predict(boxes=empty, multimask=True)
    assert got.masks.shape == (0, 3, 40, 56) and got.masks.dtype == torch.bool
    assert got.scores.shape == (0, 3) and got.low_res.shape == (0, 3, 16, 16)
    assert predictor().predict(boxes=empty, logits=True).masks.dtype == torch.float32


@pytest.mark.parametrize("box", [[-30, -30, 300, 300], [100, 100, 200, 200], [-50, -50, -10, -10], [5, 5, 5, 5]])
def test_boxes_that_leave_the_image_give_finite_masks(box):
    got = predictor().predict(boxes=box, logits=True)
    assert got.masks.shape == (1, 1, 40, 56) and got.masks.isfinite().all()


@pytest.mark.parametrize(
    "prompt, message",
    [
        ({}, "no prompt"),
        ({"points": np.zeros((0, 2)), "labels": []}, "no prompt"),
        ({"boxes": [1, 2, float("nan"), 4]}, "not finite"),
        ({"boxes": [1, 2, float("inf"), 4]}, "not finite"),
        ({"boxes": [30, 10, 5, 20]}, "xyxy"),
        ({"boxes": [1, 2, 3]}, r"\(4,\) or \(B, 4\)"),
        ({"boxes": [[1, 2, 3, 4], [1, 2]]}, "not a rectangular"),
        ({"boxes": "box"}, "not a rectangular"),
        ({"points": [[1, 2]]}, "give both"),
        ({"points": [[1, 2]], "labels": [1, 0]}, r"labels \(2,\)"),
        ({"points": [[1, 2]], "labels": [2]}, "1 for positive"),
        ({"points": [[float("nan"), 2]], "labels": [1]}, "not finite"),
        ({"boxes": BOXES, "points": [[[1, 2]]] * 2, "labels": [[1]] * 2}, "5 boxes but 2"),
        ({"mask": np.zeros((40, 56))}, r"\(16, 16\)"),
        ({"boxes": BOXES, "mask": np.zeros((2, 16, 16))}, "5 prompts but 2 masks"),
        ({"boxes": BOXES, "image": 1}, "counted from 0"),
    ],
)
def test_bad_prompts_are_clear_errors(prompt, message):
    with pytest.raises(ValueError, match=message):
        predictor().predict(**prompt)


def test_asking_before_an_image_is_a_clear_error():
    with pytest.raises(ValueError, match="set_image first"):
        ImagePredictor(tiny_model()).predict(boxes=BOXES)
    with pytest.raises(ValueError, match="at least one"):
        ImagePredictor(tiny_model()).set_images([])
    with pytest.raises(ValueError, match="chunk"):
        ImagePredictor(tiny_model(), chunk=0)


def test_grey_rgba_and_pillow_images_are_converted():
    want = predictor().predict(boxes=BOXES[0], logits=True)
    opaque = np.dstack((IMAGE, np.full(IMAGE.shape[:2], 255, np.uint8)))
    for image in (opaque, Image.fromarray(IMAGE), Image.fromarray(opaque), IMAGE[::-1][::-1]):
        same(predictor(image).predict(boxes=BOXES[0], logits=True), want)
    clear = np.dstack((IMAGE, np.zeros(IMAGE.shape[:2], np.uint8)))
    want = predictor(np.full_like(IMAGE, 255)).predict(boxes=BOXES[0], logits=True)
    same(predictor(clear).predict(boxes=BOXES[0], logits=True), want)  # transparent pixels show the white ground
    grey = IMAGE[..., 0]
    want = predictor(np.dstack([grey] * 3)).predict(boxes=BOXES[0], logits=True)
    for image in (grey, grey[..., None], Image.fromarray(grey)):
        same(predictor(image).predict(boxes=BOXES[0], logits=True), want)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 90), (70, 1)])
def test_images_of_one_pixel_work(height, width):
    got = predictor(np.full((height, width, 3), 9, np.uint8)).predict(boxes=[0, 0, width, height])
    assert got.masks.shape == (1, 1, height, width)


@pytest.mark.parametrize(
    "image, message",
    [
        (IMAGE / 255.0, "array of float64"),
        (IMAGE.astype(np.int64), "array of int64"),
        (torch.tensor(IMAGE), "Tensor"),
        (np.zeros((0, 5, 3), np.uint8), "not empty"),
        (np.zeros((5, 5, 2), np.uint8), "an image array is"),
        (IMAGE.transpose(2, 0, 1), "an image array is"),
        (IMAGE[None], "an image array is"),
        ("image.jpg", "str"),
    ],
)
def test_wrong_images_are_clear_errors(image, message):
    with pytest.raises(ValueError, match=message):
        predictor(image)


def test_low_resolution_logits_are_clamped_and_masks_are_not():
    model = copy.deepcopy(tiny_model())
    for mlp in model.sam_mask_decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight *= 50
    got = predictor(model=model).predict(boxes=BOXES[0], logits=True)
    assert got.low_res.abs().max() == 32 and got.masks.abs().max() > 40


@pytest.mark.parametrize("hole, sprinkle", [(30, 0), (0, 30), (60, 6)])
def test_holes_are_filled_and_sprinkles_removed_up_to_the_areas_that_were_asked_for(hole, sprinkle):
    plain = predictor().predict(boxes=BOXES, logits=True)
    got = predictor(max_hole=hole, max_sprinkle=sprinkle).predict(boxes=BOXES, logits=True)
    want = plain.low_res.clone()
    for logits, clean in zip(plain.low_res[:, 0], want[:, 0]):
        clean[flood(logits <= 0, hole)] = 10
        clean[flood(logits > 0, sprinkle)] = -10
    full = torch.nn.functional.interpolate(want, plain.masks.shape[2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(got.masks, full)
    assert ((got.masks > 0) != (plain.masks > 0)).any()
    masks = predictor(max_hole=hole, max_sprinkle=sprinkle).predict(boxes=BOXES).masks
    assert torch.equal(masks, got.masks > 0)
    assert torch.equal(got.low_res, plain.low_res)  # what goes back as a prompt is as it was


@pytest.mark.parametrize("dtype, error", [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_gives_nearly_the_same_masks(dtype, error, autocast):
    want = predictor().predict(boxes=BOXES, multimask=True, logits=True).masks
    model = tiny_model() if autocast else copy.deepcopy(tiny_model()).to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        got = predictor(model=model).predict(boxes=BOXES, multimask=True, logits=True)
    assert (got.masks - want).norm() < error * want.norm() and got.scores.dtype == torch.float32
    assert ((got.masks > 0) == (want > 0)).float().mean() > 0.99
