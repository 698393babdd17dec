"""minivit/losses.py against torch's own losses and the published code's numbers."""

import pytest
import torch
import torch.nn.functional as F

from minivit.losses import distillation_loss, hard_distillation, soft_cross_entropy, soft_distillation


@pytest.fixture
def scores() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(3 * torch.randn(6, 10, generator=generator) for _ in range(3))


def test_soft_cross_entropy_and_its_gradient_equal_torchs(scores):
    target = scores[1].softmax(1)
    results = []
    for loss in (soft_cross_entropy, F.cross_entropy):
        logits = scores[0].clone().requires_grad_()
        value = loss(logits, target)
        results.append((value, *torch.autograd.grad(value, logits)))
    torch.testing.assert_close(results[0], results[1])


def test_half_precision_scores_are_summed_in_fp32(scores):
    logits = scores[0].bfloat16()
    target = scores[1].softmax(1)
    assert soft_cross_entropy(logits, target) == soft_cross_entropy(logits.float(), target)
    assert soft_distillation(logits, scores[1], 2.0) == soft_distillation(logits.float(), scores[1], 2.0)


def test_soft_distillation_is_zero_only_where_the_teacher_is_matched(scores):
    logits, teacher, _ = scores
    assert soft_distillation(teacher + 5, teacher, 3.0).abs() < 1e-6  # a shift of all scores changes no probability
    assert soft_distillation(logits, teacher, 3.0) > 0.1


def test_the_gradient_keeps_its_size_as_the_temperature_grows(scores):
    logits, teacher, _ = scores
    gradients = []
    for temperature in (50.0, 100.0):
        leaf = logits.clone().requires_grad_()
        gradients += torch.autograd.grad(soft_distillation(leaf, teacher, temperature), leaf)
    assert abs(gradients[1].norm() / gradients[0].norm() - 1) < 0.02


def test_hard_distillation_follows_the_teachers_decision(scores):
    logits, teacher, _ = scores
    torch.testing.assert_close(hard_distillation(logits, teacher), F.cross_entropy(logits, teacher.argmax(1)))


@pytest.mark.parametrize("temperature", [None, 0.0, 2.0])
@pytest.mark.parametrize("weight", [None, torch.linspace(0, 3, 10)])
def test_each_head_has_its_own_loss_weighed_by_alpha_and_classes_are_weighed_in_the_labels(scores, temperature, weight):
    class_logits, dist_logits, teacher = scores
    target = F.one_hot(torch.arange(6), 10).float()
    at = {
        alpha: distillation_loss(class_logits, dist_logits, teacher, target, alpha, temperature, weight)
        for alpha in (0.0, 0.3, 1.0)
    }
    distilled = (
        soft_distillation(dist_logits, teacher, temperature) if temperature else hard_distillation(dist_logits, teacher)
    )
    torch.testing.assert_close(at[0.0], soft_cross_entropy(class_logits, target, weight))
    torch.testing.assert_close(at[1.0], distilled)
    torch.testing.assert_close(at[0.3], 0.7 * at[0.0] + 0.3 * at[1.0])


def test_class_indices_are_no_soft_targets_even_where_their_number_is_that_of_the_classes():
    with pytest.raises(ValueError, match="one_hot makes soft targets"):
        soft_cross_entropy(torch.randn(4, 4), torch.arange(4))
