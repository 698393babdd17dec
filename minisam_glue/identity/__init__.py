"""Which mask is whose where look-alikes meet, hide and return: rules around SAM 2's tracker, without training.

SAM 2 decodes each object by itself. Where look-alikes cross, both masks cover both, the union is written to both
memories, and they never part again; and an object that was away for long stays absent. The rules here come between
the decoder and the memory (VideoTracker.settle), and change nothing where no two objects meet and none is lost:

    motion.py      where an object will be: a line through its last places (SAMURAI, arXiv 2411.11922)
    frame.py       the masks of a frame, their boxes, and what they look like: the mean image token inside
    meeting.py     two look-alikes whose masks overlap: their union is cut between the places where they should be, and
                   the cut masks are written to memory
    search.py      a lost object is looked for by its appearance, with box prompts and without memory
    rules.py       all of it in order; a mask that lies on another's object is taken away (from IoU 0.7 of the two, the
                   value of SAM 3's code, arXiv 2511.16719), and so is one that lies on something unlike its own
    notes.py       what the rules did on a frame, in words

Masks and boxes are in pixels of the low-resolution masks, (s, s); boxes are (x, y, w, h) with their centre at (x, y).
Left out: meetings of objects that do not look alike, which SAM 2 itself tells apart.
"""

from .frame import Frame
from .notes import Notes
from .rules import Identity, state_kind

__all__ = ["Frame", "Identity", "Notes", "state_kind"]
