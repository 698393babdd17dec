"""Image augmentation in batches, on the device of the images, each image with its own draw.

TrivialAugmentWide (arXiv 2103.10158) with torchvision's 14 operations and 31 strengths, random erasing
(arXiv 1708.04896), colour jitter, crop and flip. Random numbers are drawn on the CPU from an explicit
generator, so that they are the same on every device; the maths takes the drawn numbers as arguments.
Left out: expanding rotations, images that are not RGB, several erased boxes per image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit.reading import DEVIATIONS, MEANS, fields, one_of
from minivit.train_config import TRAIN_KINDS

PADDINGS = ("zero", "reflect")
KINDS = {"padding": one_of(PADDINGS)} | {name: TRAIN_KINDS[name] for name in ("crop", "jitter", "erasing", "rotate")}
OPS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
BINS = 31


@dataclass(frozen=True)
class Augment:
    """Augment and normalise uint8 images (B, 3, H, W) -> float32 images of the same shape.

    mean, std: per channel, of values in [0, 1]. crop: padding in pixels, 0 for off. jitter: the largest
    relative change of brightness, contrast and saturation (a quarter of it, in turns, of hue).
    erasing: the probability that a box of an image is set to the mean. padding: zeros, or the mirrored image.
    rotate: the largest turn in degrees, either way. ValueError for settings out of range, and for other images.
    """

    mean: Sequence[float]
    std: Sequence[float]
    crop: int = 0
    flip: bool = False
    trivial_augment: bool = False
    jitter: float = 0.0
    erasing: float = 0.0
    padding: Literal["zero", "reflect"] = "zero"
    rotate: float = 0.0

    def __post_init__(self):
        check_normalisation(self.mean, self.std)
        fields(**KINDS)({name: getattr(self, name) for name in KINDS}, "Augment")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        check_images(x)
        if self.crop:
            x = random_crop(x, self.crop, generator, self.padding)
        if self.flip:
            x = random_flip(x, generator)
        if self.rotate:
            x = random_rotation(x, self.rotate, generator)
        if self.trivial_augment:
            x = trivial_augment_wide(x, generator)
        if self.jitter:
            x = color_jitter(x, *draw_jitter(len(x), self.jitter, generator))
        x = normalise(x, self.mean, self.std)
        return random_erasing(x, self.erasing, generator) if self.erasing else x


def check_images(x: object) -> None:
    """ValueError unless these are uint8 images (B, 3, H, W)."""
    if not isinstance(x, Tensor) or x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] != 3:
        kind = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"images are {kind}: give uint8 tensors (B, 3, H, W); they are normalised here")


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """ValueError unless mean and std are three numbers each, of pixels from 0 to 1."""
    for name, values, kind in (("mean", mean, MEANS), ("std", std, DEVIATIONS)):
        kind([float(value) for value in values], f"the {name} of pixels from 0 to 1")


def normalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images (B, 3, H, W) of 0..255, uint8 or float -> (x / 255 - mean) / std in float32; mean, std of 0..1.

    ValueError for images of another shape.
    """
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != 3:
        kind = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"images are {kind}: give a tensor (B, 3, H, W)")
    mean, std = (
        255 * torch.tensor([float(v) for v in values], dtype=torch.float32, device=x.device).view(3, 1, 1)
        for values in (mean, std)
    )
    return x.sub(mean).div_(std)


# ---- geometry: crop and flip ---------------------------------------------------------------------------


def random_crop(x: Tensor, padding: int, generator: torch.Generator, mode: str = "zero") -> Tensor:
    """Pad images (B, 3, H, W) by `padding` pixels on each side and cut a window of their size from each.

    mode: "zero", or "reflect" for the mirrored border, which leaves no black bars.
    """
    return crop(x, padding, torch.randint(2 * padding + 1, (2, len(x)), generator=generator), mode)


def crop(x: Tensor, padding: int, offset: Tensor, mode: str = "zero") -> Tensor:
    """The windows of the padded images (B, 3, H, W) that start at row offset[0] and column offset[1], each (B,).

    ValueError for another mode than "zero" and "reflect".
    """
    if mode not in PADDINGS:
        raise ValueError(f"the padding is {mode!r}: give {' or '.join(PADDINGS)}")
    top, left = offset.to(x.device)
    # (B, 3, H + 2p, W + 2p) -> a view (B, 3, 2p + 1, 2p + 1, H, W) of all windows -> one window each
    padded = F.pad(x, [padding] * 4) if mode == "zero" else reflect(x, padding)
    windows = padded.unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)
    return windows[torch.arange(len(x), device=x.device), :, top, left]


def reflect(x: Tensor, padding: int) -> Tensor:
    """Images (B, 3, H, W) with their border mirrored outwards, the edge itself not repeated; any dtype."""
    rows, columns = (
        (torch.arange(-padding, side + padding, device=x.device).abs() - (side - 1)).abs().neg() + (side - 1)
        for side in x.shape[2:]
    )
    return x[:, :, rows][..., columns]


def random_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each of the images (B, 3, H, W) left to right with probability one half."""
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored.to(x.device), x.flip(3), x)


def random_rotation(x: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Turn each of the uint8 images (B, 3, H, W) about its centre by an angle drawn from -degrees..degrees.

    The nearest pixel, 0 outside of the image, as torchvision's RandomRotation.
    """
    return apply_op(x, "Rotate", degrees * (2 * torch.rand(len(x), generator=generator) - 1))


# ---- TrivialAugmentWide --------------------------------------------------------------------------------


def magnitude_table() -> Tensor:
    """Magnitudes (14 operations, 31 bins) of the "wide" space of arXiv 2103.10158, as torchvision's
    TrivialAugmentWide spaces them: shears as a slope, pixels, degrees, distances of an enhancement from factor 1, bits
    that are kept, a threshold of grey levels."""
    enhance, degrees = torch.linspace(0, 0.99, BINS), torch.linspace(0, 135, BINS)
    pixels, none = torch.linspace(0, 32, BINS), torch.zeros(BINS)
    bits = 8 - (torch.arange(BINS) / ((BINS - 1) / 6)).round()
    return torch.stack(
        [
            none,
            enhance,
            enhance,
            pixels,
            pixels,
            degrees,
            enhance,
            enhance,
            enhance,
            enhance,
            bits,
            torch.linspace(255, 0, BINS),
            none,
            none,
        ]
    )


MAGNITUDES = magnitude_table()
SIGNED = torch.tensor([name in OPS[1:10] for name in OPS])  # from ShearX to Sharpness


def trivial_augment_wide(x: Tensor, generator: torch.Generator) -> Tensor:
    """Apply one random operation of random strength to each of the uint8 images (B, 3, H, W)."""
    return apply_ops(x, *draw_ops(len(x), generator))


def draw_ops(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw operation numbers (B,) and signed magnitudes (B,): operation, bin and sign uniformly."""
    op, level, sign = (torch.randint(n, (count,), generator=generator) for n in (len(OPS), BINS, 2))
    return op, MAGNITUDES[op, level] * torch.where(SIGNED[op] & (sign == 1), -1.0, 1.0)


def apply_ops(x: Tensor, op: Tensor, magnitude: Tensor) -> Tensor:
    """Apply operation op[i] with magnitude[i], both on the CPU, to each uint8 image i; one batch for each operation."""
    order = op.argsort()
    counts, index = op.bincount(minlength=len(OPS)).tolist(), order.to(x.device)
    groups = zip(OPS, x[index].split(counts), magnitude[order].split(counts))
    changed = torch.cat([apply_op(images, name, strength) for name, images, strength in groups])
    return torch.empty_like(x).index_copy_(0, index, changed)


def apply_op(x: Tensor, op: str, magnitude: Tensor) -> Tensor:
    """Apply one operation of OPS to uint8 images (B, 3, H, W), each with its magnitude (B,).

    Bit for bit what torchvision does to a PIL image: mostly integer arithmetic, and so the same on every
    device. Shears, translations and rotations take the nearest pixel, and 0 outside of the image.
    Raises ValueError for an operation that is not in OPS.
    """
    if op not in OPS:
        raise ValueError(f"no operation {op!r}: choose from {', '.join(OPS)}")
    if len(x) == 0 or op == "Identity":
        return x
    if op in ("AutoContrast", "Equalize"):
        return _autocontrast(x) if op == "AutoContrast" else _equalize(x)
    if op in OPS[1:6]:
        return _warp_nearest(x, *inverse_affine(op, magnitude, *x.shape[2:]))
    magnitude = magnitude.to(x.device).view(-1, 1, 1, 1)
    if op == "Posterize":
        return x & (256 - 2 ** (8 - magnitude.int())).to(torch.uint8)
    if op == "Solarize":
        return torch.where(x < magnitude, x, 255 - x)
    base = _degenerate(x, op)  # what factor 0 gives; factor 1 gives the image, and 1 + magnitude goes beyond it
    return (base + (1 + magnitude) * (x.float() - base)).clamp_(0, 255).to(torch.uint8)


def _degenerate(x: Tensor, op: str) -> Tensor | int:
    """The image at factor 0 of Brightness, Sharpness, Color or Contrast: black, smooth, grey, or its mean grey."""
    if op == "Brightness":
        return 0
    if op == "Sharpness":
        return smooth(x)
    gray = _gray(x)
    if op == "Color":
        return gray
    total, count = gray.sum((1, 2, 3), keepdim=True), gray[0].numel()
    return (2 * total + count) // (2 * count)  # the rounded mean


def _gray(x: Tensor) -> Tensor:
    """Luma (ITU-R 601) of uint8 images (B, 3, H, W) as integers (B, 1, H, W), in 16.16 fixed point."""
    red, green, blue = x.int().split(1, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16


def smooth(x: Tensor) -> Tensor:
    """The 3 x 3 mean with weight 5 for the centre and 1 around it, rounded; the border stays as it is."""
    wide = x.short()
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
    wide = wide.clone()
    wide[:, :, 1:-1, 1:-1] = (total + 6) // 13  # rounded; 13 is odd, so there are no ties
    return wide


def _autocontrast(x: Tensor) -> Tensor:
    """Stretch each channel to 0..255; a channel of one value stays."""
    # PIL's table is in float64 (which Apple's GPUs lack) and truncates, so the order of its sums shows.
    device = _float64_device(x)
    low, high = (v.flatten(2).to(device).to(torch.float64) for v in (x.amin((2, 3), True), x.amax((2, 3), True)))
    level = torch.arange(256, device=device, dtype=torch.float64)
    scale = 255 / (high - low)
    table = torch.where(high > low, (level * scale + -low * scale).clamp(0, 255), level)
    return look_up(x, table.to(torch.uint8).to(x.device))


def _equalize(x: Tensor) -> Tensor:
    """Make each channel's histogram as flat as a table of 256 levels can."""
    levels = x.flatten(2).long()
    counts = torch.zeros(*x.shape[:2], 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    brightest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255
    table = (step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)
    table = torch.where(step > 0, table.clamp(max=255), torch.arange(256, device=x.device))
    return look_up(x, table.to(torch.uint8))


def look_up(x: Tensor, table: Tensor) -> Tensor:
    """Replace each pixel of (B, 3, H, W) by its entry of (B, 3, 256)."""
    return table.gather(2, x.flatten(2).long()).view_as(x)


def _float64_device(x: Tensor) -> torch.device:
    return torch.device("cpu") if x.device.type == "mps" else x.device


def inverse_affine(op: str, magnitude: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """A (B, 2, 2) and t (B, 2) in float64: output pixel p (x, y from the image's centre) shows input pixel A p + t."""
    m = magnitude.to(_float64_device(magnitude), torch.float64)
    A, t = torch.eye(2, dtype=m.dtype, device=m.device).repeat(len(m), 1, 1), m.new_zeros(len(m), 2)
    axis = 0 if op.endswith("X") else 1
    if op == "Rotate":  # counter-clockwise, in degrees
        # As PIL does, to 15 true decimals, which torch's rounding does not give; these are numbers, not images.
        angles = [math.radians(degrees % 360) for degrees in m.tolist()]
        cos, sin = (m.new_tensor([round(f(angle), 15) for angle in angles]) for f in (math.cos, math.sin))
        A = torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
    elif op.startswith("Translate"):
        t[:, axis] = -m.trunc()
    else:  # shears keep the top left corner, not the centre
        A[:, axis, 1 - axis] = m
        t[:, axis] = m * (height, width)[axis] / 2
    return A, t


def _warp_nearest(x: Tensor, A: Tensor, t: Tensor) -> Tensor:
    """Images (B, 3, H, W) resampled at A p + t, the nearest pixel, in 16.16 fixed point as PIL does it."""
    first = from_corner(x, A, t) + A.sum(2) / 2  # where the middle of the first pixel comes from
    A, first = ((65536 * value + 0.5).floor().long().to(x.device) for value in (A, first))
    column, row = (position >> 16 for position in positions(x, A, first, 0))
    return torch.where(is_inside(x, column, row), pick(x, column, row), 0)


def from_corner(x: Tensor, A: Tensor, t: Tensor) -> Tensor:
    """The t (B, 2) of the same map for pixel positions that count from the top left corner, not the centre."""
    centre = A.new_tensor([x.shape[3] / 2, x.shape[2] / 2])
    return t + ((A * -centre).sum(2) + centre)


def positions(x: Tensor, A: Tensor, t: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """Column and row, (B, 1, H, W) each, of A (p + shift) + t for every pixel p."""
    columns = torch.arange(x.shape[3], device=x.device) + shift
    rows = torch.arange(x.shape[2], device=x.device)[:, None] + shift
    A, t = A[..., None, None, None], t[..., None, None, None]
    return tuple(A[:, i, 0] * columns + A[:, i, 1] * rows + t[:, i] for i in (0, 1))


def is_inside(x: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Whether a pixel (column, row), each (B, 1, H, W), lies in the images (B, 3, H, W)."""
    return (row >= 0) & (row < x.shape[2]) & (column >= 0) & (column < x.shape[3])


def pick(x: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """The pixels (B, 3, H, W) at column and row (B, 1, H, W), those outside taken from the edge."""
    index = row.long().clamp(0, x.shape[2] - 1) * x.shape[3] + column.long().clamp(0, x.shape[3] - 1)
    return x.flatten(2).gather(2, index.flatten(2).expand(-1, 3, -1)).view_as(x)


# ---- colour jitter -------------------------------------------------------------------------------------


def draw_jitter(count: int, strength: float, generator: torch.Generator) -> list[Tensor]:
    """Factors of brightness, contrast and saturation in 1 +- strength, and turns of hue in +- strength / 4."""
    uniform = 2 * torch.rand(4, count, generator=generator) - 1
    return [*(1 + strength * uniform[:3]).clamp(min=0), uniform[3] * min(strength / 4, 0.5)]


def color_jitter(x: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Images (B, 3, H, W) of 0..255 -> the same in float32, not rounded, each with its factors (B,).

    In this order; the hue is turned by -0.5..0.5 of a full turn. torchvision's ColorJitter also shuffles the order.
    """
    brightness, contrast, saturation, hue = (
        value.to(x.device).view(-1, 1, 1, 1) for value in (brightness, contrast, saturation, hue)
    )
    x = (x * brightness).clamp(max=255)
    x = torch.lerp(_luma(x).mean((2, 3), keepdim=True), x, contrast).clamp(0, 255)
    x = torch.lerp(_luma(x), x, saturation).clamp(0, 255)
    return _turn_hue(x, hue)


def _luma(x: Tensor) -> Tensor:
    """Brightness (B, 1, H, W) of RGB (B, 3, H, W), with the weights of torchvision's rgb_to_grayscale."""
    return (x * x.new_tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def _turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """RGB -> hue, chroma and value, the hue turned, and back (the hexagon of Smith's HSV, 1978)."""
    red, green, blue = x.split(1, dim=1)
    value, chroma = x.amax(1, keepdim=True), x.amax(1, keepdim=True) - x.amin(1, keepdim=True)
    safe = chroma.where(chroma > 0, 1)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sector = (hue + 6 * turns + hue.new_tensor([5, 3, 1]).view(3, 1, 1)) % 6
    return value - chroma * torch.minimum(sector, 4 - sector).clamp(0, 1)


# ---- random erasing ------------------------------------------------------------------------------------


def random_erasing(
    x: Tensor,
    p: float,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> Tensor:
    """Set one box of each of the normalised images (B, 3, H, W) to 0, their mean, with probability p.

    scale: the box's share of the area. ratio: its height over its width, log-uniform. The defaults are those of
    torchvision's RandomErasing; the paper goes up to 0.4 of the area and fills boxes with random values.
    """
    boxes = draw_boxes(len(x), *x.shape[2:], generator, scale, ratio)
    boxes *= torch.rand(len(x), 1, generator=generator) < p
    return erase(x, boxes)


def erase(x: Tensor, boxes: Tensor) -> Tensor:
    """Set boxes (B, 4) of images (B, 3, H, W) to 0: top, left, height, width in pixels."""
    top, left, height, width = boxes.to(x.device)[..., None, None, None].unbind(1)
    row, column = torch.arange(x.shape[2], device=x.device)[:, None], torch.arange(x.shape[3], device=x.device)
    inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
    return x.masked_fill(inside, 0)


def draw_boxes(
    count: int,
    height: int,
    width: int,
    generator: torch.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Tensor:
    """Boxes (B, 4): top, left, height, width. The first of ten sizes that fits, anywhere; all 0 if none does."""
    area, shape, position = torch.rand(3, count, 10, generator=generator, dtype=torch.float64)
    area = scale[0] + (scale[1] - scale[0]) * area
    shape = math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * shape
    size = box_size(area, shape.exp(), height, width)  # (B, 10, 2)
    room = torch.tensor([height, width]) - size
    fits = (room > 0).all(2)
    first = (torch.arange(count), fits.int().argmax(1))
    corner = (position[:, :2] * (room[first] + 1)).long()
    return torch.cat([corner, size[first]], dim=1) * fits.any(1, keepdim=True)


def box_size(area: Tensor, ratio: Tensor, height: int, width: int) -> Tensor:
    """Height and width in pixels (..., 2) of boxes with a share of the image's area and a ratio height / width."""
    pixels = area * height * width
    return torch.stack([(pixels * ratio).sqrt(), (pixels / ratio).sqrt()], dim=-1).round().long()
