"""Two look-alikes whose masks overlap: their union is cut between the places where they should be."""

import torch
from torch import Tensor

from .frame import Frame, main_parts, mask_boxes
from .motion import Box, Motion, box_iou, touch

REACH = 0.65  # from the centre, in widths and heights of the predicted box: a mask is kept within
MARGIN = 1.1  # times their size, two predicted boxes that no longer touch end a meeting
HIDDEN = 0.6  # IoU of predicted boxes from which a mask can't be told apart, and is not written
GONE = 0.1  # share of the median area below which a cut mask is absent
OFF = -10.0  # logit outside a cut mask, as of masks that may not overlap


class Meeting:
    """Look-alikes whose masks overlap: where each should be says which part of the union is its own.

    motions: of the members, by id. An area that several claim goes to the nearest prediction, measured in
    widths and heights of the predicted boxes. Where predictions coincide nobody can tell: for these few frames the
    masks stay whole, and are not written.
    """

    def __init__(self, motions: dict[int, Motion]):
        self.members, self.motions = list(motions), list(motions.values())

    def settle(self, frame: Frame) -> None:
        """Correct the predictions by what the frame shows, and cut the masks."""
        rows = [frame.row[number] for number in self.members]
        union = frame.logits[rows].amax(0)
        self.correct(frame.number, union, distances(self.boxes(frame.number), union))
        boxes = self.boxes(frame.number)
        distance = distances(boxes, union)
        owner = distance.argmin(0)
        for k, number in enumerate(self.members):
            others = [box for i, box in enumerate(boxes) if i != k]
            hidden = max(box_iou(boxes[k], box) for box in others) > HIDDEN
            own = (distance[k] <= REACH) & (torch.ones_like(owner, dtype=torch.bool) if hidden else owner == k)
            cut = torch.where(own, union, union.clamp(max=OFF))
            if number in frame.fixed:
                continue
            frame.changed.add(number)
            if hidden:
                frame.unwritten.add(number)
            if int((cut > 0).sum()) < max(1, GONE * self.motions[k].area):
                frame.hide(number)
            else:
                frame.logits[rows[k]] = cut

    def boxes(self, number: int) -> list[Box]:
        return [motion.predict(number) for motion in self.motions]

    def correct(self, number: int, union: Tensor, distance: Tensor) -> None:
        """Where a prediction is the outermost, that side of the union is its own: the difference is its error."""
        mask = (union > 0) & (distance <= REACH).any(0)
        if not mask.any():
            return
        x, y, w, h = mask_boxes(main_parts(mask[None]))[0]
        errors = [[[], []] for _ in self.members]
        for axis, centre, side in ((0, x, w), (1, y, h)):
            for sign in (-1, 1):
                edges = [sign * box[axis] + box[2 + axis] / 2 for box in self.boxes(number)]
                outermost = max(range(len(edges)), key=edges.__getitem__)
                errors[outermost][axis].append(sign * (sign * centre + side / 2 - edges[outermost]))
        for motion, sides in zip(self.motions, errors):
            motion.correct(number, tuple(sum(side) / len(side) if side else 0.0 for side in sides))

    def over(self, number: int) -> bool:
        """Whether no two of the predicted boxes touch any more."""
        boxes = self.boxes(number)
        return not any(touch(a, b, MARGIN) for i, a in enumerate(boxes) for b in boxes[:i])


def distances(boxes: list[Box], like: Tensor) -> Tensor:
    """Distances of pixels from the centres of n boxes, in widths or heights, the larger of both: (n, s, s)."""
    place = torch.arange(like.shape[-1], dtype=torch.float32, device=like.device) + 0.5
    x, y, w, h = torch.tensor(boxes, dtype=torch.float32, device=like.device).T[..., None]
    return torch.maximum(((place - x).abs() / w)[:, None], ((place - y).abs() / h)[..., None])
