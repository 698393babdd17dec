"""Masks as arrays: bounding box, overlap, erosion, connected components, and run lengths in the form of COCO.

"Microsoft COCO: Common Objects in Context" (arXiv 1405.0312) names no format for run lengths: the runs and the
compressed string are those that pycocotools writes (rleEncode and rleToString of its maskApi.c). Left out: merging and
areas of encoded masks, polygons. The small holes of SAM 2's masks: sam2/components.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DIGITS = 7  # of 5 bits, at most, in a number of the string: enough for differences of runs below 2**32
MOST_PIXELS = 1 << 32  # of a mask: pycocotools counts in 32 bits


def as_bool(mask: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """A mask as bool; of whole numbers all but 0 belong to it, such as the 255 of a picture.

    ValueError for floats other than 0 and 1: logits and probabilities have thresholds of their own.
    """
    is_float = mask.is_floating_point() if isinstance(mask, Tensor) else mask.dtype.kind not in "biu"
    if is_float and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"a mask of {mask.dtype}: give bool, such as logits > 0 or probabilities > 0.5")
    return mask if mask.dtype in (torch.bool, np.dtype(bool)) else mask != 0


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """The pixels (left, top, right, bottom), the last two exclusive, that bound a bool mask (H, W); None if empty."""
    mask = as_bool(mask)
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def box_around(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The box xyxy around a mask (H, W); zeros if it is empty."""
    return tuple(map(float, mask_box(mask) or (0, 0, 0, 0)))


def boxes_of(masks: Tensor) -> Tensor:
    """The boxes (n, 4), xyxy, around bool masks (n, h, w); of the whole picture for an empty one, where
    box_around has zeros: they may become prompts."""
    masks, sides = as_bool(masks), []
    for axis in (1, 2):  # columns, then rows
        line = masks.any(axis).int()
        sides.append((line.argmax(1), line.shape[1] - line.flip(1).argmax(1)))
    (left, right), (top, bottom) = sides
    return torch.stack((left, top, right, bottom), 1).float()


def mask_iou(one: Tensor, other: Tensor) -> Tensor:
    """Bool masks (n, h, w) and (m, h, w) -> intersection over union (n, m); 0 where both are empty.

    ValueError for masks of other sizes, and for floats.
    """
    if one.ndim != 3 or other.ndim != 3 or one.shape[1:] != other.shape[1:]:
        raise ValueError(f"masks are {tuple(one.shape)} and {tuple(other.shape)}: give (n, h, w) and (m, h, w)")
    a, b = as_bool(one).flatten(1).float(), as_bool(other).flatten(1).float()
    both = a @ b.T
    return both / (a.sum(1)[:, None] + b.sum(1) - both).clamp(min=1)


def erode(mask: np.ndarray, steps: int) -> np.ndarray:
    """Bool (H, W) without the `steps` pixels along its edge; what is beyond the array counts as outside.

    Erosion by a square and a diamond in turn, which together are nearly a disc.
    """
    core = np.pad(as_bool(mask), 1)
    for step in range(min(steps, max(mask.shape))):  # nothing is left after that many
        rows = core[:, 1:-1] & core[:, :-2] & core[:, 2:]
        both = rows[1:-1] & core[:-2, 1:-1] & core[2:, 1:-1] if step % 2 else rows[1:-1] & rows[:-2] & rows[2:]
        core[1:-1, 1:-1] = both
    return core[1:-1, 1:-1]


# --- Connected components ----------------------------------------------------------------------------------


def large_parts(mask: np.ndarray, share: float = 0.0, least: float = 1) -> np.ndarray:
    """Bool (H, W) without the connected parts of less than `least` pixels, or less than `share` of the largest one."""
    parts = label_components(mask)
    areas = np.bincount(parts.ravel())
    areas[0] = 0  # what is outside
    return (areas >= max(1, least, share * areas.max()))[parts]


@dataclass
class Components:
    """Measures of n components. areas (n,) pixels; boxes (n, 4) xyxy, right and bottom exclusive; centroids (n, 2) xy,
    means of pixel indices."""

    areas: np.ndarray
    boxes: np.ndarray
    centroids: np.ndarray


def label_components(mask: np.ndarray, connectivity: int = 8) -> np.ndarray:
    """Bool (H, W) -> int32 (H, W): 0 outside, 1, 2, ... on each component, in raster order of its first pixel.

    Runs of a row are joined with the runs of the row above that they touch: with 8 also at a corner, with 4 at a side.
    ValueError for another connectivity.
    """
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity is {connectivity}: give 8, or 4 for sides alone")
    H, W = mask.shape
    change = np.diff(np.pad(as_bool(mask).astype(np.int8), ((0, 0), (1, 1))), axis=1)
    row, start = np.nonzero(change == 1)  # runs, in raster order
    end = np.nonzero(change == -1)[1]  # exclusive
    corner, stride = int(connectivity == 8), W + 3
    above = (row - 1) * stride
    first = np.searchsorted(row * stride + end, above + start - corner, "right")
    count = (np.searchsorted(row * stride + start, above + end + corner, "left") - first).clip(min=0)
    lower = np.repeat(np.arange(len(row)), count)
    upper = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    roots = join(len(row), lower, upper)
    number = 1 + np.unique(roots, return_inverse=True)[1].reshape(-1)
    steps = np.zeros(H * W + 1, np.int32)
    steps[row * W + start] += number.astype(np.int32)
    steps[row * W + end] -= number.astype(np.int32)
    return np.cumsum(steps[:-1], dtype=np.int32).reshape(H, W)


def join(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The least member of the set of each of `count` items, where items a[i] and b[i] are in one set."""
    root = np.arange(count)
    while True:
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        if (low == high).all():
            return root
        np.minimum.at(root, high, low)
        while (root[root] != root).any():
            root = root[root]


def measure_components(labels: np.ndarray) -> Components:
    """Labels (H, W) from label_components -> areas, boxes and centroids, in the order of the labels."""
    n = labels.max(initial=0)
    y, x = np.nonzero(labels)
    index = labels[y, x] - 1
    areas = np.bincount(index, minlength=n)
    low, high = np.full((n, 2), max(labels.shape)), np.zeros((n, 2), int)
    np.minimum.at(low, index, np.stack((x, y), 1))
    np.maximum.at(high, index, np.stack((x, y), 1) + 1)
    sums = np.stack([np.bincount(index, weights=axis, minlength=n) for axis in (x, y)], 1)
    return Components(areas, np.concatenate((low, high), 1), sums / np.maximum(areas, 1)[:, None])


# --- Run lengths -------------------------------------------------------------------------------------------


def encode_rle(mask: np.ndarray) -> dict:
    """Bool (H, W) -> {"size": [H, W], "counts": compressed string}, as pycocotools does. ValueError if not 2-d."""
    mask = as_bool(np.asarray(mask))
    if mask.ndim != 2:
        raise ValueError(f"a mask to encode is (H, W), not {mask.shape}")
    flat = mask.T.ravel()  # column after column
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends = np.concatenate((np.zeros(flat[:1].sum(), int), changes, [flat.size]))  # runs begin with one of background
    return {"size": list(mask.shape), "counts": _to_string(np.diff(ends, prepend=0))}


def decode_rle(rle: dict) -> np.ndarray:
    """{"size": [H, W], "counts": str, bytes or list of runs} -> bool (H, W). ValueError if it is damaged."""
    (height, width), runs = rle_size(rle), rle_runs(rle)
    flat = np.repeat(np.arange(runs.size) % 2 == 1, runs)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def rle_runs(rle: dict) -> np.ndarray:
    """The lengths of the runs (n,), background first, without the mask itself. ValueError as of decode_rle."""
    height, width = rle_size(rle)
    counts = rle["counts"]
    runs = _from_string(counts) if isinstance(counts, (str, bytes)) else _checked(counts)
    if runs.size and (runs.min() < 0 or runs.max() > height * width) or runs.sum() != height * width:
        raise ValueError(f"damaged run lengths: they do not add up to {height} x {width} pixels")
    return runs


def rle_size(rle: dict) -> tuple[int, int]:
    """(height, width). ValueError if that is none."""
    if not isinstance(rle, dict) or not {"size", "counts"} <= rle.keys():
        raise ValueError('run lengths are {"size": [height, width], "counts": ...}')
    size = rle["size"]
    whole = isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size)
    if not whole or min(size) < 0 or size[0] * size[1] >= MOST_PIXELS:
        raise ValueError(f"damaged run lengths: no mask has the size {size!r:.80}")
    return tuple(size)


def _checked(counts: Sequence[int]) -> np.ndarray:
    runs = np.asarray(counts)
    if runs.ndim != 1 or runs.size and runs.dtype.kind not in "iu":
        raise ValueError("run lengths are a string or a list of whole numbers")
    return runs.astype(int)


def _to_string(runs: np.ndarray) -> str:
    """Runs (n,), from the fourth on less the one two before; 5 bits a character, lowest first, bit 6 if more follow."""
    rest = runs.copy()
    rest[3:] -= runs[1:-2]
    digits, used = [], [np.ones(len(runs), bool)]
    while used[-1].any():
        low = rest & 31
        rest = rest >> 5
        more = used[-1] & (rest != np.where(low & 16, -1, 0))  # bit 5 of the last character is the sign
        digits.append(low + 32 * more + 48)
        used.append(more)
    characters = np.stack(digits, 1).astype(np.uint8)[np.stack(used[:-1], 1)]  # (n, digits) -> those used, in order
    return characters.tobytes().decode("ascii")


def _from_string(text: str | bytes) -> np.ndarray:
    """The inverse of `_to_string`. ValueError for a character that can't be there, or a number that is cut off."""
    data = np.frombuffer(text.encode("utf-8") if isinstance(text, str) else text, np.uint8).astype(int) - 48
    if data.size and (data.min() < 0 or data.max() > 63):
        raise ValueError("damaged run lengths: a character that is none of '0' to 'o'")
    last = np.flatnonzero(data < 32)
    if data.size and (not last.size or last[-1] != data.size - 1):
        raise ValueError("damaged run lengths: the last number is cut off")
    first = np.concatenate(([0], last[:-1] + 1)) if last.size else last
    lengths = last - first + 1
    if lengths.size and lengths.max() > DIGITS:
        raise ValueError(f"damaged run lengths: a number of {lengths.max()} characters")
    shifts = 5 * (np.arange(data.size) - np.repeat(first, lengths))
    runs = np.add.reduceat((data & 31) << shifts, first) if data.size else data
    runs -= (data[last] & 16) >> 4 << 5 * lengths
    for start in (1, 2):  # the first run has none two before it that counts
        runs[start::2] = np.cumsum(runs[start::2])
    return runs
