"""Metrics of tracked objects: found masks against the true ones of a clip.

J (region) and F (border) follow DAVIS (Perazzi et al., CVPR 2016). The others say what a mean hides: whether
look-alikes that met kept their names, whether what is gone has no mask, and whether what returns is found. Found and
true masks are bool (T, n, H, W); on frame 0 the objects were pointed out, so it counts in none of the means.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..support.reading import anything, fields, mapping, optional, real, sequence, text, whole
from .scenes import SMALLEST, Clip, extents

RIGHT = 0.5  # IoU from which a mask counts as on its object
ABSENCE = 3  # frames in a row without an object, at least, after which it returns
SOON = 5  # frames within which an object that returns should be found
OUTCOMES = ("both_right", "merged", "switched", "lost")


def broadcast_iou(found: Tensor, true: Tensor) -> Tensor:
    """IoU (...) of bool masks (..., H, W) that broadcast; 1 where both are empty."""
    union = (found | true).sum((-2, -1))
    return torch.where(union > 0, (found & true).sum((-2, -1)) / union.clamp(min=1), 1.0)


def borders(masks: Tensor) -> Tensor:
    """The pixels of bool masks (..., H, W) that differ from their right, lower or lower right neighbour."""
    beside = F.pad(masks.float(), (0, 1, 0, 1), mode="replicate") > 0.5
    return (masks ^ beside[..., :-1, 1:]) | (masks ^ beside[..., 1:, :-1]) | (masks ^ beside[..., 1:, 1:])


def boundary_f(found: Tensor, true: Tensor) -> Tensor:
    """F measure of the borders of bool masks (n, H, W): a border pixel is right within 0.8 % of the diagonal."""
    H, W = found.shape[1:]
    reach = int(np.ceil(0.008 * np.hypot(H, W)))
    offset = torch.arange(-reach, reach + 1)
    disc = (offset**2 + offset[:, None] ** 2 <= reach**2).float()[None, None]
    one, two = borders(found), borders(true)
    near_one, near_two = (F.conv2d(b.float()[:, None], disc, padding=reach)[:, 0] > 0 for b in (one, two))
    count = [b.flatten(1).sum(1) for b in (one & near_two, one, two & near_one, two)]
    precision, recall = count[0] / count[1].clamp(min=1), count[2] / count[3].clamp(min=1)
    f = 2 * precision * recall / (precision + recall).clamp(min=1e-9)
    return torch.where((count[1] == 0) & (count[3] == 0), 1.0, f)


def coverage(part: Tensor, whole: Tensor) -> Tensor:
    """Share (...) of the pixels of `whole` that lie in `part`, bool (..., H, W); 0 where `whole` is empty."""
    return (part & whole).sum((-2, -1)) / whole.sum((-2, -1)).clamp(min=1)


# --- Two look-alikes that meet -----------------------------------------------------------------------------


def meeting_span(true: Tensor) -> tuple[int, int] | None:
    """The first and the last frame on which the boxes of two objects' visible parts touch; true (T, 2, H, W)."""
    boxes, seen = extents(true.numpy()), true.flatten(2).any(2).all(1).numpy()
    low, high = np.maximum(*boxes[..., :2].swapaxes(0, 1)), np.minimum(*boxes[..., 2:].swapaxes(0, 1))
    frames = np.flatnonzero((low <= high).all(1) & seen)
    return (int(frames[0]), int(frames[-1])) if len(frames) else None


def outcome(found: Tensor, true: Tensor) -> str:
    """The outcome of a meeting: two masks (T, 2, H, W) after it, both of their objects visible on all these frames.

    merged: on more than half of the frames one mask covers at least half of both objects, or the two masks have an IoU
    of at least 0.5 with each other.
    both_right: else, the mean IoU of each mask with its own object is at least 0.5.
    switched: else, a mask has a higher mean IoU with the other object than with its own.
    lost: else; so a mask is empty, too small, or on neither of them.
    """
    covers = (coverage(found[:, :, None], true[:, None]) >= RIGHT).all(2).any(1)
    same = (broadcast_iou(found[:, 0], found[:, 1]) >= RIGHT) & found.flatten(2).any(2).all(1)
    if (covers | same).float().mean() > 0.5:
        return "merged"
    own, other = broadcast_iou(found, true).mean(0), broadcast_iou(found, true.flip(1)).mean(0)
    if (own >= RIGHT).all():
        return "both_right"
    return "switched" if (other > own).any() else "lost"


def meeting_metrics(found: Tensor, true: Tensor) -> dict[str, list[float]]:
    """The outcome of a meeting of two objects, as four shares, and J before, during and after it; else nothing."""
    span, seen = meeting_span(true), true.flatten(2).any(2).all(1)
    if span is None:
        return {}
    frame = torch.arange(len(true))
    after = (frame > span[1]) & seen
    if not after.any():
        return {}
    end, j = outcome(found[after], true[after]), broadcast_iou(found, true).mean(1)
    parts = {
        "before": (frame > 0) & (frame < span[0]),
        "during": (frame >= span[0]) & (frame <= span[1]),
        "after": after,
    }
    out = {name: [float(name == end)] for name in OUTCOMES}
    return out | {f"j_{name}": [float(j[rows].mean())] for name, rows in parts.items() if rows.any()}


# --- Absence and return ------------------------------------------------------------------------------------


def empty_when_absent(found: Tensor, true: Tensor) -> list[bool]:
    """Whether the mask is empty, for each frame on which the object can't be seen."""
    found, absent = found[1:], ~true[1:].flatten(2).any(2)
    return (~found[absent].flatten(1).any(1)).tolist()


def waits(found: Tensor, true: Tensor) -> list[int | None]:
    """Frames until the mask's IoU is at least 0.5, for each return of an object; None if that never comes.

    An object returns on the first frame on which its visible part is at least SMALLEST pixels long after ABSENCE frames
    or more without it. Returns that end within SOON frames, by the clip or by another absence, do not count.
    """
    out = []
    boxes = extents(true.numpy())
    sides, right = (boxes[..., 2:] - boxes[..., :2]).max(-1), (broadcast_iou(found, true) >= RIGHT).numpy()
    for length, good in zip(sides.T, right.T):
        gone = 0
        for t in range(1, len(length)):
            if gone >= ABSENCE and length[t] >= SMALLEST:
                away = np.flatnonzero(length[t:] == 0)
                span = good[t : t + away[0]] if len(away) else good[t:]
                if len(span) > SOON:
                    out.append(int(span.argmax()) if span.any() else None)
            gone = 0 if length[t] >= SMALLEST else gone + int(length[t] == 0)
    return out


def on_wrong_twin(found: Tensor, twins: Tensor) -> list[bool]:
    """Whether a mask (T, H, W) covers at least half of one of the twins (T, m, H, W), for each frame but the first."""
    return (coverage(found[:, None], twins) >= RIGHT).any(1)[1:].tolist()


# --- All of it ---------------------------------------------------------------------------------------------


@dataclass
class ClipMetrics:
    """Values of all clips, and of those of each kind; metrics() gives their means and how many there were.

    frames, seconds: how many frames were tracked, and how long that took; 0 if nobody measured it.
    """

    values: dict[str, dict[str, list]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    frames: int = 0
    seconds: float = 0.0

    def add(self, film: Clip, objects: list[int], found: Tensor, further: dict[str, list] | None = None) -> None:
        """Count the found masks (T, n, H, W) of these objects of a clip. further: more values of this clip, by name."""
        true = torch.from_numpy(film.masks[:, objects])
        new: dict[str, list] = (further or {}) | {
            "j": broadcast_iou(found, true)[1:].mean(0).tolist(),
            "f": [float(boundary_f(f, t).mean()) for f, t in zip(found[1:].unbind(1), true[1:].unbind(1))],
            "absent_empty": empty_when_absent(found, true),
            "waits": waits(found, true),
        }
        if len(film.leads) == 2 and set(film.leads) <= set(objects):
            pair = [objects.index(i) for i in film.leads]
            new |= meeting_metrics(found[:, pair], true[:, pair])
        if film.twins and film.leads[0] in objects:
            twins = torch.from_numpy(film.masks[:, list(film.twins)])
            new["wrong_twin"] = on_wrong_twin(found[:, objects.index(film.leads[0])], twins)
        for kind in ("", f"_{film.kind}"):
            for name, values in new.items():
                self.values[kind][name] += values

    def metrics(self) -> dict[str, float]:
        """J&F as jf, and the rest by name; a kind's end with its name, as in jf_crossing."""
        out = {f"jf{kind}": (mean(some["j"]) + mean(some["f"])) / 2 for kind, some in sorted(self.values.items())}
        for kind, some in sorted(self.values.items()):
            out |= {f"{name}{kind}": value for name, value in summary(some).items()}
        return out | ({"seconds_per_frame": self.seconds / self.frames} if self.frames else {})

    def merge(self, other: "ClipMetrics") -> None:
        """Take the clips of another one to these."""
        for kind, some in other.values.items():
            for name, values in some.items():
                self.values[kind][name] += values
        self.frames, self.seconds = self.frames + other.frames, self.seconds + other.seconds

    def as_json(self) -> dict:
        """All values, ready for json.dumps."""
        return {"values": self.values, "frames": self.frames, "seconds": self.seconds}

    @classmethod
    def from_json(cls, record: object, where: str) -> "ClipMetrics":
        """Read what as_json wrote. ValueError, which says where, if it is damaged."""
        METRICS(record, where)
        metrics = cls(frames=record["frames"], seconds=record["seconds"])
        for kind, some in record["values"].items():
            for name, values in some.items():
                metrics.values[kind][name] = list(values)
        return metrics


def value(item: object, where: str) -> None:
    """A number, or true or false."""
    if not isinstance(item, bool):
        real(item, where)


def values_by_name(some: object, where: str) -> None:
    """Lists of values by their names; among the waits None stands for a return that is never found."""
    mapping(text, anything)(some, where)
    for name, values in some.items():
        sequence(optional(value) if name == "waits" else value)(values, f"{where}[{name!r}]")


METRICS = fields(values=mapping(text, values_by_name), frames=whole(), seconds=real)


def summary(values: dict[str, list]) -> dict[str, float]:
    """Means of the values by name, and their numbers; what there was nothing of is left out.

    returns_found: share of the returns on which the object was found within SOON frames. return_frames: mean number of
    frames until it was found, of those that were.
    """
    out = {name: mean(values[name]) for name in sorted(values) if name != "waits" and values[name]}
    counts = {
        "clip_objects": "j",
        "absent_frames": "absent_empty",
        "meetings": "both_right",
        "returns": "waits",
        "twin_frames": "wrong_twin",
        "compared_clips": "same_masks",
    }
    out |= {name: len(values[of]) for name, of in counts.items() if values.get(of)}
    if waits := values.get("waits"):
        out["returns_found"] = mean([wait is not None and wait <= SOON for wait in waits])
        out["return_frames"] = mean([wait for wait in waits if wait is not None])
    return out


def mean(values: list | np.ndarray) -> float:
    """Mean of the values; 0 if there are none."""
    return float(np.mean(values)) if len(values) else 0.0
