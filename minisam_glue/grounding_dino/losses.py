"""Training losses of Grounding DINO: Hungarian matching, then token similarity, L1 and GIoU.

Paper: arXiv 2303.05499, section 3.5, with the weights of its appendix on implementation; matching after DETR,
arXiv 2005.12872; focal loss, arXiv 1708.02002; GIoU, arXiv 1902.09630. "similarity" is what the paper calls the
contrastive or classification loss. The official project published none of it. Left out: denoising queries, and the
averaging of the number of boxes over several processes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou

from ..assignment import hungarian
from ..boxes import cxcywh_to_xyxy
from .model import DetectorOutput

ALPHA = 0.25  # focal loss: weight of the positives; the exponent, gamma, is 2: both as in its paper
MATCH_WEIGHTS = {"similarity": 2.0, "l1": 5.0, "giou": 2.0}
LOSS_WEIGHTS = {"similarity": 1.0, "l1": 5.0, "giou": 2.0}


@dataclass
class Target:
    """The n objects of one image."""

    boxes: Tensor  # (n, 4), cxcywh as fractions of the image
    tokens: Tensor  # (n, L), True at the text tokens that name the object


def token_map(spans: list[tuple[int, int]], labels: list[int], length: int) -> Tensor:
    """(n, length), True at the columns of each object's phrase; spans as in detector.Caption, labels number them."""
    tokens = torch.zeros(len(labels), length, dtype=torch.bool)
    for row, label in zip(tokens, labels):
        row[slice(*spans[label])] = True
    return tokens


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sigmoid focal loss of each logit against 0 or 1, of any equal shapes: easy ones count little.

    alpha_t (1 - p_t)^2 (-log p_t), with p_t the probability of the right answer, 1 - `missed`.
    """
    probability = logits.sigmoid()
    missed = wanted * (1 - probability) + (1 - wanted) * probability
    weight = wanted * ALPHA + (1 - wanted) * (1 - ALPHA)
    return weight * missed**2 * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")


@torch.no_grad()
def match_queries(logits: Tensor, boxes: Tensor, target: Target) -> Tensor:
    """The query for each of the n objects of an image, from its logits (Q, L) and boxes (Q, 4): no query twice."""
    tokens, truth = target.tokens.to(logits.device).float(), target.boxes.to(boxes)
    logits = logits[:, : tokens.shape[1]].float()
    positive, negative = (focal_loss(logits, torch.full_like(logits, wanted)) for wanted in (1.0, 0.0))
    cost = {
        "similarity": (positive - negative) @ (tokens / tokens.sum(1, keepdim=True)).T,
        "l1": torch.cdist(boxes.float(), truth.float(), p=1),
        "giou": -generalized_box_iou(cxcywh_to_xyxy(boxes.float()), cxcywh_to_xyxy(truth.float())),
    }
    total = sum(MATCH_WEIGHTS[name] * value for name, value in cost.items())  # (Q, n)
    return torch.tensor(hungarian(total.T.cpu().numpy()), dtype=torch.long, device=boxes.device)


def head_loss(output: DetectorOutput, targets: list[Target], chosen: list[Tensor]) -> dict[str, Tensor]:
    """Sums of the losses of one head; chosen[b] (n,) are the queries matched to the objects of image b."""
    wanted = torch.zeros_like(output.logits)
    for b, (target, queries) in enumerate(zip(targets, chosen)):
        wanted[b, queries, : target.tokens.shape[1]] = target.tokens.to(wanted)
    boxes = torch.cat([output.boxes[b, queries] for b, queries in enumerate(chosen)])
    truth = torch.cat([target.boxes for target in targets]).to(boxes)
    overlap = generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(truth)).diagonal()
    valid = ~output.logits.isneginf()  # no text padding
    return {
        "similarity": focal_loss(output.logits[valid].float(), wanted[valid].float()).sum(),
        "l1": (boxes - truth).abs().sum(),
        "giou": (1 - overlap).sum(),
    }


def detection_loss(outputs: list[DetectorOutput], targets: list[Target]) -> dict[str, Tensor]:
    """Outputs of a model in training mode -> each loss, summed over all heads, and their weighted "total".

    All are divided by the number of objects in the batch. ValueError if there are some and outputs are not finite.
    """
    number = max(1, sum(len(target.boxes) for target in targets))
    sums = {name: outputs[0].boxes.new_zeros(()) for name in LOSS_WEIGHTS}
    for output in outputs:
        chosen = [match_queries(output.logits[b], output.boxes[b], target) for b, target in enumerate(targets)]
        for name, value in head_loss(output, targets, chosen).items():
            sums[name] = sums[name] + value / number
    return sums | {"total": sum(LOSS_WEIGHTS[name] * value for name, value in sums.items())}
