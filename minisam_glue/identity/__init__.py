"""Rules that keep object ids right where look-alikes (distractors) cross, hide and return.

They run between SAM 2's decoder and its memory (VideoTracker.settle); nothing is trained.

SAM 2 decodes each object by itself. Where look-alikes cross, both masks cover both, the union is written to both
memories, and they never part again; and an object that was away for long stays absent. The rules change nothing where
no object meets another one, or a rival, none is lost, and no mask goes over to something unlike its object:

    motion.py      where an object will be: a line through its last places (SAMURAI, arXiv 2411.11922)
    frame.py       the masks of a frame, their boxes, and how they look (../looks.py): image tokens and colours inside
    meeting.py     two look-alikes whose masks overlap: their union is cut between the places where they should be, and
                   the cut masks are written to memory
    rivals.py      look-alikes that nobody asked for: followed unseen, by boxes, so that objects meet them likewise
    search.py      box prompts without memory, at the places whose image tokens resemble a lost object
    rules.py       all rules in order. It also hides a mask that coincides with another object's (IoU 0.7, as in SAM 3's
                   code, arXiv 2511.16719), or that lies on something unlike its object
    notes.py       what the rules did on a frame, in words

Names: `number` is the id of an object, `t` the number of a frame.
Masks and boxes are in pixels of the low-resolution masks, (s, s); boxes are (x, y, w, h) with their centre at (x, y).
Left out: meetings of objects that do not look alike, which SAM 2 itself tells apart.
"""

from .frame import Frame
from .notes import Notes
from .rules import Identity, state_kind

__all__ = ["Frame", "Identity", "Notes", "state_kind"]
