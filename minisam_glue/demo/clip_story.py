"""The story of a generated clip: key frames with the masks of a tracker and the boxes that its rules predicted."""

from collections.abc import Iterator

import numpy as np
import torch

from ..identity import Notes
from ..propagators import MemoryPropagator
from ..render.story import Panel, key_frames, panel_words
from ..sam2 import FrameResult, VideoTracker
from .scenes import Clip


def track_clip(tracker: VideoTracker, film: Clip, objects: list[int]) -> Iterator[FrameResult]:
    """Track objects that are pointed out by their true boxes on the first frame: the result of each frame."""
    tracker.seek(0, film.frames[0])
    for i in objects:
        tracker.prompt(i, box=film.boxes[0, i])
    yield tracker.track()
    yield from map(tracker.step, film.frames[1:])


def tell(tracker: VideoTracker, film: Clip, objects: list[int], name: str = "", count: int = 7) -> list[Panel]:
    """Track objects as track_clip does, and show at most `count` frames.

    name: of the tracker or its setting, for the first title. Shown are the frames on which a meeting begins or ends, or
    a mask vanishes or comes back, and some between.
    """
    panels, before, moments = [], None, []
    for t, (frame, result) in enumerate(zip(film.frames, track_clip(tracker, film, objects))):
        panels.append(panel(tracker, frame, result))
        now = (panels[-1].predicted.keys(), tuple(panels[-1].masks.any((1, 2)).tolist()))
        moments += [t] if before not in (None, now) else []
        before = now
    shown = [panels[t] for t in key_frames(range(len(panels)), moments, count)]
    shown[0].title = f"{name}: {shown[0].title}" if name else shown[0].title
    return shown


def panel(tracker: VideoTracker, frame: np.ndarray, result: FrameResult) -> Panel:
    """A frame with its masks, object scores, and what the tracker's rules predicted and did."""
    notes = tracker.notes(result) if isinstance(tracker, MemoryPropagator) else Notes()
    masks = result.masks().cpu().numpy()
    absent = [number for number, mask in zip(result.ids, masks) if not mask.any()]
    scores, words = torch.sigmoid(result.object_score_logits).tolist(), panel_words(notes.words, absent)
    rivals = [rival.box for rival in notes.rivals]
    return Panel(frame, masks, result.ids, f"frame {result.frame}", scores, notes.predicted, words, rivals)
