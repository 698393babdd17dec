"""Box conversions and suppression."""

import torch
from torchvision.ops import nms

from minisam_glue.boxes import area, cxcywh_to_xyxy, suppress, xyxy_to_cxcywh


def test_conversions_are_inverse_of_each_other():
    boxes = torch.rand(5, 4)
    assert torch.allclose(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes, atol=1e-6)
    assert cxcywh_to_xyxy(torch.tensor([5.0, 6.0, 4.0, 2.0])).tolist() == [3.0, 5.0, 7.0, 7.0]


def test_area_of_an_inverted_box_is_zero():
    assert area(torch.tensor([[0.0, 0.0, 2.0, 3.0], [4.0, 0.0, 2.0, 3.0]])).tolist() == [6.0, 0.0]


def test_suppression_spares_other_classes():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [0.0, 1.0, 10.0, 10.0]])
    scores, classes = torch.tensor([0.5, 0.9, 0.7]), torch.tensor([0, 1, 0])
    assert suppress(boxes, scores, 0.5).tolist() == [1]
    assert suppress(boxes, scores, 0.5, classes).tolist() == [1, 2]
    assert suppress(boxes[:0], scores[:0], 0.5).shape == (0,)


def test_many_classes_on_a_large_picture_are_suppressed_as_each_is_alone():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(1000, 2, generator=generator) * 9 + 4940
    boxes = torch.cat((corner, corner + 11 + 9 * torch.rand(1000, 2, generator=generator)), 1)
    scores, classes = torch.rand(1000, generator=generator), torch.arange(1000) % 200
    rows = [torch.nonzero(classes == c).flatten() for c in range(200)]
    alone = torch.cat([own[nms(boxes[own].double(), scores[own].double(), 0.7)] for own in rows])
    assert suppress(boxes, scores, 0.7, classes).sort().values.tolist() == alone.sort().values.tolist()
