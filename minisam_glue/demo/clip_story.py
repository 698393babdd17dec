"""The story of a generated clip: key frames with the masks of a tracker and the boxes that its rules predicted."""

import numpy as np
import torch

from ..render.story import Panel, key_frames
from ..sam2 import FrameResult, VideoTracker
from .scenes import Clip


def tell(tracker: VideoTracker, film: Clip, objects: list[int], name: str = "", count: int = 7) -> list[Panel]:
    """Track objects that are pointed out by their true boxes on the first frame, and show at most `count` frames.

    name: of the tracker or its setting, for the first title. Shown are the frames on which a meeting begins or ends, or
    a mask vanishes or comes back, and some between.
    """
    tracker.seek(0, film.frames[0])
    for i in objects:
        tracker.prompt(i, box=film.boxes[0, i])
    panels, before, moments = [], None, []
    for t, frame in enumerate(film.frames):
        result = tracker.track() if t == 0 else tracker.step(frame)
        panels.append(panel(tracker, frame, result))
        now = (meeting(tracker), tuple(panels[-1].masks.any((1, 2)).tolist()))
        moments += [t] if before not in (None, now) else []
        before = now
    shown = [panels[t] for t in key_frames(len(panels), moments, count)]
    shown[0].title = f"{name}: {shown[0].title}" if name else shown[0].title
    return shown


def meeting(tracker: VideoTracker) -> frozenset[int]:
    """The ids of objects that the tracker's rules take for look-alikes in a meeting; none without rules."""
    rules = getattr(tracker, "identity", None)
    return frozenset(rules.meeting) if rules is not None else frozenset()


def panel(tracker: VideoTracker, frame: np.ndarray, result: FrameResult) -> Panel:
    """A frame with its masks, object scores, and the boxes that the rules predict for the objects of a meeting."""
    side = tracker.model.config.image_size // 4
    scale = np.array((frame.shape[1], frame.shape[0])) / side
    predicted, members = {}, sorted(meeting(tracker))
    for number in members:
        x, y, w, h = tracker.identity.tracks[number].motion.predict(result.frame)
        predicted[number] = tuple(np.concatenate((scale * (x - w / 2, y - h / 2), scale * (x + w / 2, y + h / 2))))
    masks = result.masks().cpu().numpy()
    absent = [number for number, mask in zip(result.ids, masks) if not mask.any()]
    words = [f"{' and '.join(f'#{n}' for n in members)} meet"] if members else []
    words += [f"{', '.join(f'#{n}' for n in absent)} absent"] if absent else []
    scores = torch.sigmoid(result.object_score_logits).tolist()
    return Panel(frame, masks, result.ids, f"frame {result.frame}", scores, predicted, "; ".join(words))
