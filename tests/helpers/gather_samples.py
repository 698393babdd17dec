"""The samples of deformable attention as its fast form takes them, with the arguments of the plain form."""

from torch import Tensor

from minisam_glue.grounding_dino.deformable_attention import Shapes
from minisam_glue.grounding_dino.fast import gather_pixels, lay_out, level_sizes


def gather_samples(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The same as `deformable_sample`, by gathers from one table."""
    pixels = locations * level_sizes(shapes, value.device)[:, None] - 0.5  # (B, Q, h, levels, K, 2)
    return gather_pixels(lay_out(value, shapes), shapes, pixels.flatten(3, 4), weights.flatten(3))
