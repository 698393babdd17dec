"""How what is inside a mask looks: by SAM 2's image tokens, and by its colour in the light of the frame."""

import torch
import torch.nn.functional as F
from torch import Tensor

FAINT = 1e-4  # times the length of a usual token: a mean below it is rounding
MOST_LIGHT = 4.0  # factor by which two lights may differ at most
DARK = 0.02  # added to both lights: in the dark their ratio says nothing


def mean_tokens(masks: Tensor, tokens: Tensor) -> Tensor:
    """The mean of tokens (N, C), a square of the picture's, inside bool masks (n, s, s), of length 1: (n, C).

    Zeros where there is nothing to compare: for a mask without pixels, or where the mean is 0, as of tokens less their
    mean in a mask that covers the picture, or not finite.
    """
    grid = round(len(tokens) ** 0.5)
    weights = F.adaptive_avg_pool2d(masks.to(tokens.dtype)[:, None], grid).flatten(1)
    means = weights @ tokens / weights.sum(1, keepdim=True).clamp(min=1e-6)
    length, usual = means.norm(dim=1, keepdim=True), tokens.norm(dim=1).mean()
    return torch.where(length > FAINT * usual, F.normalize(means, dim=1), 0.0)


def token_likeness(seen: Tensor, known: Tensor) -> Tensor:
    """The cosines (n,) of n mean tokens (n, C) and one (C,), all of length 1; 1 where one of them says nothing."""
    return torch.where(seen.any(1) & known.any(), seen @ known, 1.0)


def mean_colours(masks: Tensor, image: Tensor) -> Tensor:
    """The mean colour, 0 to 1, of an image (3, s, s) inside bool masks (n, s, s), and the image's light, which is its
    median brightness: (n, 4). Black for a mask without pixels.

    What fills more than half of an image sets its light: of its brightness nothing is known.
    """
    inside = masks.to(image.dtype).flatten(1)
    colours = inside @ image.flatten(1).T / inside.sum(1, keepdim=True).clamp(min=1)
    return torch.cat((colours, image.mean(0).median().expand(len(masks), 1)), 1)


def colour_distance(seen: Tensor, known: Tensor) -> Tensor:
    """The distance (n,) of n colours (n, 4) from one (4,), both as mean_colours has them.

    The lesser of two: of the colours as they are, and of `seen` scaled to the light of `known`. For a frame may have
    become darker, or only show something darker around the object.
    """
    light = ((known[3] + DARK) / (seen[:, 3] + DARK)).clamp(1 / MOST_LIGHT, MOST_LIGHT)
    same, other = seen[:, :3] - known[:3], light[:, None] * seen[:, :3] - known[:3]
    return torch.minimum(same.norm(dim=1), other.norm(dim=1))
