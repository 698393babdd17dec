"""minivit/evaluate.py: what a model is shown, and what counts as correct."""

import pytest
import torch
from torch import nn

from minivit import evaluate
from minivit.augment import normalise
from minivit.evaluate import Evaluator, make_views, mean_probability, resize_to_model, top1
from minivit.splits import Split
from minivit.vit import VisionTransformer, ViTConfig

MEAN, STD, CPU = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), torch.device("cpu")
TINY = ViTConfig(image_size=16, patch=4, classes=3, dim=16, depth=2, heads=2, dropout=0.5)


def model_and_images(size: int = 16) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return VisionTransformer(TINY), torch.randint(0, 256, (7, 3, size, size), dtype=torch.uint8)


def test_scores_are_those_of_the_normalised_images_without_dropout():
    model, images = model_and_images()
    scores = Evaluator(MEAN, STD, CPU).predict(model.train(), images)
    torch.testing.assert_close(scores, model.eval()(normalise(images, MEAN, STD)))


def test_scores_do_not_depend_on_the_batch_size():
    model, images = model_and_images()
    whole, parts = (Evaluator(MEAN, STD, CPU, batch_size=size).predict(model, images) for size in (7, 3))
    torch.testing.assert_close(whole, parts)


def test_scores_in_bf16_are_float32_and_near_those_of_float32():
    model, images = model_and_images()
    exact, rounded = (
        Evaluator(MEAN, STD, CPU, dtype).predict(model, images) for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)


def test_small_images_are_enlarged_to_what_the_model_takes():
    model, images = model_and_images(8)
    x = normalise(images, MEAN, STD)
    assert resize_to_model(x, model).shape == (7, 3, 16, 16)
    assert Evaluator(MEAN, STD, CPU).predict(model, images).shape == (7, 3)
    assert resize_to_model(x, model, 12).shape == resize_to_model(x, nn.Identity(), 12).shape == (7, 3, 12, 12)
    assert resize_to_model(x, nn.Identity()) is x  # a model without a size of its own


def test_accuracy_is_the_share_of_correct_labels():
    scores = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 5.0]])
    assert top1(scores, torch.tensor([0, 1, 1, 1])) == 0.75
    assert top1(torch.cat([scores, torch.full((4, 2), float("nan"))]), torch.tensor([0, 1, 1, 1] * 2)) == 3 / 8
    model, images = model_and_images()
    evaluator = Evaluator(MEAN, STD, CPU)
    labels = evaluator.predict(model, images).argmax(1)
    labels[:2] = (labels[:2] + 1) % 3
    assert evaluator.accuracy(model, Split(images, labels)) == pytest.approx(5 / 7)


def test_the_mean_over_mirror_images_is_that_of_the_probabilities_and_blind_to_a_mirror():
    model, images = model_and_images()
    evaluator = Evaluator(MEAN, STD, CPU)
    one, other = (evaluator.predict(model, x).softmax(1) for x in (images, images.flip(3)))
    both = evaluator.predict(model, images, "flip")
    torch.testing.assert_close(both.exp(), (one + other) / 2)
    torch.testing.assert_close(both, evaluator.predict(model, images.flip(3), "flip"))
    assert not torch.allclose(one, other, atol=1e-4)


def test_ten_crops_are_the_centre_and_four_corners_of_the_image_with_their_mirror_images():
    images = torch.arange(2 * 3 * 32 * 32).remainder(251).to(torch.uint8).view(2, 3, 32, 32)
    views = make_views(images, "crops")
    assert len(views) == 10 and {tuple(v.shape) for v in views} == {(2, 3, 32, 32)}
    assert torch.equal(views[0], images) and all(torch.equal(b, a.flip(3)) for a, b in zip(views[::2], views[1::2]))
    upper_left, lower_right = views[2], views[8]
    assert torch.equal(upper_left[..., 2:, 2:], images[..., :-2, :-2])
    assert torch.equal(lower_right[..., :-2, :-2], images[..., 2:, 2:])
    with pytest.raises(ValueError, match="--tta is 'twelve', not one of flip, crops"):
        make_views(images, "twelve")


def test_views_are_made_of_one_batch_at_a_time_and_the_scores_are_those_of_all_at_once(monkeypatch):
    model, images = model_and_images()
    views, sizes = evaluate.make_views, []
    monkeypatch.setattr(evaluate, "make_views", lambda part, tta: sizes.append(len(part)) or views(part, tta))
    whole, parts = (Evaluator(MEAN, STD, CPU, batch_size=size).predict(model, images, "crops") for size in (7, 3))
    assert sizes == [7, 3, 3, 1]
    torch.testing.assert_close(whole, parts)


def test_the_mean_of_probabilities_has_a_finite_log_where_all_are_zero():
    scores = torch.tensor([[0.0, 200.0], [0.0, 0.0]])
    mean = mean_probability([scores, scores])
    assert mean.isfinite().all() and torch.equal(mean.argmax(1), torch.tensor([1, 0]))
    torch.testing.assert_close(mean[1].exp(), torch.tensor([0.5, 0.5]))


def test_scores_can_be_learned_from_and_changed_afterwards():
    model, images = model_and_images()
    scores = Evaluator(MEAN, STD, "cpu").predict(model, images)
    temperature = torch.ones(1, requires_grad=True)
    (scores / temperature).logsumexp(1).sum().backward()
    assert temperature.grad.isfinite().all() and not scores.requires_grad
    scores.div_(2)


@pytest.mark.parametrize("images", [torch.rand(2, 3, 16, 16), torch.zeros(2, 3, 16, 16, dtype=torch.uint8).numpy()])
def test_images_that_are_no_bytes_are_refused(images):
    with pytest.raises(ValueError, match="give uint8"):
        Evaluator(MEAN, STD, CPU).predict(VisionTransformer(TINY), images)


def test_no_images_have_scores_of_that_shape_and_no_accuracy():
    model, images = model_and_images()
    evaluator = Evaluator(MEAN, STD, CPU)
    assert evaluator.predict(model, images[:0], "flip").shape == (0, 3)
    with pytest.raises(ValueError, match="no labels"):
        evaluator.accuracy(model, Split(images[:0], torch.zeros(0, dtype=torch.long)))
