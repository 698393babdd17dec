"""Losses on soft targets, and knowledge distillation.

Hinton et al., arXiv 1503.02531, section 2; DeiT, arXiv 2012.12877, section 4. A soft target is a distribution
over the classes, (B, C), made by minivit.mix.one_hot and the mixes; label smoothing is part of it. All sums
are in fp32. Left out: losses for many labels per image.
"""

import torch
from torch import Tensor

from minivit.mix import check_labels


def soft_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over the batch of -sum_c weight * target * log softmax(logits), a scalar.

    logits, target: (B, C); weight: (C,), of each class, None for 1. ValueError for other shapes.
    """
    check_targets(target, logits.shape)
    if weight is not None:
        target = target * weight
    return -(target * logits.float().log_softmax(-1)).sum(-1).mean()


def check_targets(target: Tensor, shape: torch.Size) -> None:
    """ValueError unless targets have the shape of the logits (B, C): indices would be broadcast where B equals C."""
    if target.shape != shape:
        raise ValueError(
            f"targets have shape {tuple(target.shape)}, logits {tuple(shape)}: give (B, C); "
            "minivit.mix.one_hot makes soft targets (B, C) of class indices"
        )


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Weights (C,) under which all classes of labels (N,) count the same: N / (C * images of the class).

    0 for a class without images. Of the labels themselves the mean weight is 1, if there are images of each class.
    ValueError for a label beyond these classes.
    """
    check_labels(labels, classes)
    counts = torch.bincount(labels, minlength=classes)
    return torch.where(counts > 0, len(labels) / (classes * counts.clamp(min=1)), 0.0)


def soft_distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(logits / T)), mean over the batch. logits, teacher: (B, C).

    T^2 keeps the size of the gradient as T grows (arXiv 1503.02531, section 2). KL has the teacher first, as in
    Hinton's loss and in DeiT's code; DeiT's equation 2 has the student first. That code (DistillationLoss in losses.py)
    divides by the number of classes as well, which is the same as a C times smaller weight. ValueError for other
    shapes, or a temperature that is not above 0.
    """
    check_targets(teacher, logits.shape)
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}: give one above 0")
    student = (logits.float() / temperature).log_softmax(-1)
    wanted = (teacher.float() / temperature).log_softmax(-1)
    return temperature**2 * (wanted.exp() * (wanted - student)).sum(-1).mean()


def hard_distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross-entropy with the teacher's decision, argmax over its logits. logits, teacher: (B, C)."""
    decision = torch.nn.functional.one_hot(teacher.argmax(-1), teacher.shape[-1])
    return soft_cross_entropy(logits, decision)


def distillation_loss(
    class_logits: Tensor,
    dist_logits: Tensor,
    teacher: Tensor,
    target: Tensor,
    alpha: float,
    temperature: float | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """(1 - alpha) * cross-entropy of the class head + alpha * distillation of the distillation head.

    All of (B, C). temperature None or 0: hard distillation (DeiT, equation 3, where alpha is 1/2); a number: soft
    (equation 2, where alpha is lambda and the temperature tau). weight: of each class, (C,), in the cross-entropy
    with the labels.
    """
    if not temperature:
        distilled = hard_distillation(dist_logits, teacher)
    else:
        distilled = soft_distillation(dist_logits, teacher, temperature)
    return (1 - alpha) * soft_cross_entropy(class_logits, target, weight) + alpha * distilled
