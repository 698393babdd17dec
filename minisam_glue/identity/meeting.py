"""Two look-alikes whose masks overlap: their union is cut between the places where they should be."""

import torch
from torch import Tensor

from .frame import Frame, main_parts, mask_boxes
from .motion import CentreBox, Motion, box_iou, touching_pairs

REACH = 0.65  # a mask keeps only pixels within this distance of its predicted centre, in predicted widths or heights
# A meeting is over when predicted boxes enlarged by this factor no longer touch, unless the masks are still merged.
MARGIN = 1.1
HIDDEN = 0.6  # IoU of predicted boxes from which a mask can't be told apart, and is not written
PART = 0.3  # share of the median area; smaller parts of the union are ignored as evidence
TOLD = 0.15  # two predictions closer than this, in sizes, cannot tell whose side is whose
GONE = 0.1  # share of the median area below which a cut mask is absent
OFF = -10.0  # logit outside a cut mask, as of masks that may not overlap


class Meeting:
    """Look-alikes whose masks overlap: where each should be says which part of the union is its own.

    motions: of the members, by id. An area that several claim goes to the nearest prediction, measured in
    widths and heights of the predicted boxes. Where predictions coincide nobody can tell: for these few frames both
    have all of the union that is within REACH, and neither is written.
    """

    def __init__(self, motions: dict[int, Motion]):
        self.members, self.motions = list(motions), list(motions.values())

    def settle(self, frame: Frame) -> None:
        """Correct the predictions by what the frame shows, and cut the masks."""
        self.correct(frame.t, *self.measure(frame))
        union, distance = self.measure(frame)
        boxes, own = self.boxes(frame.t), owned(distance)
        for k, number in enumerate(self.members):
            if number in frame.fixed:
                continue
            frame.changed.add(number)
            hidden = any(box_iou(boxes[k], box) > HIDDEN for i, box in enumerate(boxes) if i != k)
            if hidden:
                frame.unwritten.add(number)
            cut = torch.where(distance[k] <= REACH if hidden else own[k], union, union.clamp(max=OFF))
            if int((cut > 0).sum()) < max(1, GONE * self.motions[k].area):
                frame.hide(number)
            else:
                frame.logits[frame.row[number]] = cut

    def explains(self, frame: Frame) -> bool:
        """Whether each member has a part of the union where it should be."""
        union, distance = self.measure(frame)
        parts = ((union > 0) & owned(distance)).sum((1, 2)).tolist()
        return all(part >= PART * motion.area for part, motion in zip(parts, self.motions))

    def measure(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """The members' union, logits (s, s), and the distances (n, s, s) of pixels from where each is predicted."""
        union = frame.logits[[frame.row[number] for number in self.members]].amax(0)
        return union, distances(self.boxes(frame.t), union)

    def boxes(self, t: int) -> list[CentreBox]:
        """The predicted boxes of the members on frame t."""
        return [motion.predict(t) for motion in self.motions]

    def correct(self, t: int, union: Tensor, distance: Tensor) -> None:
        """Correct the predictions on frame t by the sides of the union (s, s).

        The member whose predicted box reaches furthest to a side owns that side; the gap between box and union is its
        error. If the errors on two opposite sides, of two members, point the same way (outward or inward), their common
        part is a turn: the two bounce back. The rest is drift.
        """
        near = (union > 0) & (distance <= REACH).any(0)
        mask = main_parts(near[None], PART * min(motion.area for motion in self.motions))
        if not mask.any():
            return
        x, y, w, h = mask_boxes(mask)[0]
        boxes = self.boxes(t)
        drifts, turns = ([[0.0, 0.0] for _ in self.members] for _ in range(2))
        for axis, centre, side in ((0, x, w), (1, y, h)):
            (low, one), (high, other) = found = [
                outermost(boxes, axis, sign, sign * centre + side / 2) for sign in (-1, 1)
            ]
            (a, size), (b, other_size) = ((boxes[member][axis], boxes[member][2 + axis]) for member in (low, high))
            told = abs(a - b) >= TOLD * min(size, other_size) and one * other > 0
            turn = min(one, other, key=abs) if told else 0.0
            for sign, (member, error) in zip((-1, 1), found):
                drifts[member][axis] += sign * (error - turn) / (2 if low == high else 1)
                turns[member][axis] += sign * turn
        for motion, drift, turn in zip(self.motions, drifts, turns):
            motion.correct(t, tuple(drift), tuple(turn))

    def over(self, t: int) -> bool:
        """Whether no two of the predicted boxes touch any more on frame t."""
        return not touching_pairs(dict(enumerate(self.boxes(t))), MARGIN)


def outermost(boxes: list[CentreBox], axis: int, sign: int, edge: float) -> tuple[int, float]:
    """The number of the box that reaches furthest to a side, and how far the edge of the union is beyond it.

    axis, sign: 0 and -1 for the left side. edge: its place times the sign.
    """
    edges = [sign * box[axis] + box[2 + axis] / 2 for box in boxes]
    member = max(range(len(edges)), key=edges.__getitem__)
    return member, edge - edges[member]


def distances(boxes: list[CentreBox], like: Tensor) -> Tensor:
    """Distances of pixels from the centres of n boxes, in widths or heights, the larger of both: (n, s, s)."""
    place = torch.arange(like.shape[-1], dtype=torch.float32, device=like.device) + 0.5
    x, y, w, h = torch.tensor(boxes, dtype=torch.float32, device=like.device).T[..., None]
    return torch.maximum(((place - x).abs() / w)[:, None], ((place - y).abs() / h)[..., None])


def owned(distance: Tensor) -> Tensor:
    """Whether pixels are within REACH of each of n places, and nearest to it: bool (n, s, s). distance: (n, s, s)."""
    places = torch.arange(len(distance), device=distance.device)[:, None, None]
    return (distance.argmin(0) == places) & (distance <= REACH)
