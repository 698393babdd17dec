"""Rivals: look-alikes of a tracked object that nobody asked for (distractors).

The rules follow them too, without showing them, so that an object meets them as it meets another tracked one: a mask
that covers both is cut (meeting.py), and a lost object is not looked for where a rival is (search.py). They are found
where an object is prompted, and later on frames 0, 8, 16 and so on if it is seen clearly there, by box prompts at the
places whose image tokens are like its own, and followed by a box prompt where their motion says: SAM 2's memory, which
takes most of the time of a tracked object, is not used. What DAM4SAM (arXiv 2411.17576) does about distractors is to
keep more memories of the object.
"""

from collections.abc import Collection, Sequence

from torch import Tensor

from ..looks import mean_tokens
from .frame import FIRST_RIVAL, Frame
from .motion import CentreBox, box_iou
from .search import FOUND_LIKENESS, Candidate, Looks, MasksOf, find_candidates

MOST_RIVALS, TRIES = 4, 6  # rivals of a video; places tried for each object
SEARCHES = 8  # objects in a row without a rival after which the others are not tried: each place costs a decoding
RIVAL_LIKENESS = 0.88  # least cosine of appearances: they are seen in another light, or from another side
SAME_PLACE = 0.5  # IoU of boxes, or share of a mask, from which two are one
LAST_RIVAL = FIRST_RIVAL - MOST_RIVALS + 1


def free_id(taken: Collection[int]) -> int:
    """An id for a new rival."""
    return next(number for number in range(FIRST_RIVAL, LAST_RIVAL - 1, -1) if number not in taken)


def find_rivals(
    frame: Frame, numbers: Sequence[int], masks_of: MasksOf, room: int, lost: Sequence[Tensor], least: float
) -> list[tuple[int, Candidate]]:
    """Find look-alikes, at most `room`, of the objects of these ids on a frame that was measured; each with its object.

    lost: appearances (C,) of objects that are looked for: what is like one of them is no rival. least: see
    find_candidates.
    """
    found, taken, in_vain = [], frame.taken(frame.ids), 0
    for number in numbers:
        if len(found) >= room or in_vain >= SEARCHES:
            break
        row, before = frame.row[number], len(found)
        looks = Looks(frame.appearances[row], frame.colours[row], frame.boxes[row][2:], frame.areas[row])
        for candidate in find_candidates(frame, looks, taken, masks_of, TRIES, least):
            mask = candidate.logits > 0
            is_free = int((mask & taken).sum()) < SAME_PLACE * int(mask.sum())
            if not (candidate.is_like(RIVAL_LIKENESS) and is_free and len(found) < room):
                continue
            appearance = mean_tokens(mask[None], frame.tokens)[0]
            if all(float(appearance @ other) < FOUND_LIKENESS for other in lost):
                found.append((number, candidate))
                taken = taken | mask
        in_vain = in_vain + 1 if len(found) == before else 0
    return found


def at_one_place(box: CentreBox, others: Collection[CentreBox]) -> bool:
    """Whether a box is at the place of one of the others."""
    return any(box_iou(box, other) >= SAME_PLACE for other in others)
