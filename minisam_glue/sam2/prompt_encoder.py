"""The prompt encoder of SAM 2: clicks, boxes and mask logits as tokens.

SAM: Kirillov et al., arXiv 2304.02643, appendix A; random Fourier features: Tancik et al., arXiv 2006.10739.
A box is two points with labels of their own, so there is one path for both. S is the side of the model's image in
pixels, N = (S / 16)^2 the number of image tokens, C their channels. Left out: the separate box input of SAM 1, which
SAM 2's predictors never use.
"""

import math

import torch
import torch.nn as nn
from torch import Tensor

from .layers import LayerNorm2d

# Point labels, as in SAM: -1 no point, 0 negative, 1 positive, 2 top-left corner, 3 bottom-right corner.
NO_POINT, NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = range(-1, 4)


class RandomFourier(nn.Module):
    """Random Fourier features of positions v in [0, 1] x [0, 1]: (..., 2) xy -> (..., dim).

    gamma(v) = [sin(2 pi B (2 v - 1)), cos(2 pi B (2 v - 1))], with a fixed B of normal random numbers, dim / 2 pairs,
    which the checkpoints hold. The paper of the features has the cosines first, and v itself in place of 2 v - 1.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", nn.init.normal_(torch.empty(2, dim // 2)))

    def forward(self, xy: Tensor) -> Tensor:
        # Written without a matrix product, so that autocast does not lower its precision.
        x, y = (2 * xy.float() - 1).split(1, -1)
        gx, gy = self.positional_encoding_gaussian_matrix.float()
        angle = 2 * math.pi * (x * gx + y * gy)
        return torch.cat((angle.sin(), angle.cos()), -1)


class PromptEncoder(nn.Module):
    """Points and labels -> sparse tokens; mask logits -> dense tokens to be added to the image's."""

    def __init__(self, dim: int, image_size: int):
        super().__init__()
        self.resize(image_size)
        self.pe_layer = RandomFourier(dim)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(  # (B, 1, S / 4, S / 4) -> (B, dim, S / 16, S / 16)
            nn.Conv2d(1, 4, 2, stride=2),
            LayerNorm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 16, 2, stride=2),
            LayerNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)

    def resize(self, image_size: int) -> None:
        """Take prompts on images of this side, in pixels."""
        self.image_size, self.grid = image_size, image_size // 16

    def embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """points (B, P, 2) xy in pixels of the model's image, labels (B, P) -> (B, P, C)."""
        table = torch.cat([self.not_a_point_embed.weight, *(e.weight for e in self.point_embeddings)])
        position = self.pe_layer((points + 0.5) / self.image_size)  # pixel centres
        position = torch.where((labels == NO_POINT)[..., None], 0, position)
        return position.to(table.dtype) + table[labels.long() + 1]

    def image_position(self) -> Tensor:
        """The positions of the image tokens, encoded as points are: (1, N, C)."""
        weight = self.no_mask_embed.weight
        centre = (torch.arange(self.grid, dtype=torch.float32, device=weight.device) + 0.5) / self.grid
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        return self.pe_layer(torch.stack((x, y), -1)).flatten(0, 1)[None].to(weight.dtype)

    def forward(self, points: Tensor, labels: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """points (B, P, 2), labels (B, P) with P >= 0, mask logits (B, 1, S / 4, S / 4) or None.

        Returns sparse (B, P + 1, C), whose last token stands for "no more points" (with no point at all there is
        no token), and dense (B, N, C), or (1, 1, C) without a mask.
        """
        if points.shape[1]:
            points = torch.cat((points, points.new_zeros(len(points), 1, 2)), 1)
            labels = torch.cat((labels, labels.new_full((len(labels), 1), NO_POINT)), 1)
        if mask is None:
            dense = self.no_mask_embed.weight[None]
        else:
            mask = mask.to(self.no_mask_embed.weight.dtype)
            dense = self.mask_downscaling(mask).flatten(2).mT  # (B, C, h, w) -> (B, N, C)
        return self.embed_points(points, labels), dense
