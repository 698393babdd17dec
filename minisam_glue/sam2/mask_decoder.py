"""The mask decoder of SAM 2: a two-way transformer between prompt tokens and image tokens, and its heads.

SAM: arXiv 2304.02643, appendix A; object score and stability fallback: SAM 2, arXiv 2408.00714, appendix D.1.
The finest maps are kept in nested order: for each image token its 2 x 2 children, for each of those its 2 x 2
children. The upscaling is then plain matrix products, and only finished masks are brought to raster order.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..layers import MLP
from .layers import Attention, LayerNorm2d

# A single mask is stable if its area changes by less than this ratio when the threshold moves by +-DELTA logits.
STABILITY, DELTA = 0.98, 0.05
HEAD = 32  # channels per head of the tokens' attention to themselves; half of it between tokens and image


def nest(x: Tensor, grid: int) -> Tensor:
    """A map (B, H, W, C) -> (B, grid * grid, cells, C), the cells of a token in nested order."""
    B, H, _, C = x.shape
    if H == 2 * grid:  # rows (h, i), columns (w, j)
        return x.view(B, grid, 2, grid, 2, C).transpose(2, 3).reshape(B, grid * grid, 4, C)
    x = x.view(B, grid, 2, 2, grid, 2, 2, C)  # rows (h, i, k), columns (w, j, l)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(B, grid * grid, 16, C)


def unnest(x: Tensor, grid: int) -> Tensor:
    """(B, M, grid * grid, 16) in nested order -> (B, M, 4 * grid, 4 * grid) in raster order."""
    B, M = x.shape[:2]
    x = x.view(B, M, grid, grid, 2, 2, 2, 2)  # h, w, i, j, k, l
    return x.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(B, M, 4 * grid, 4 * grid)


class TwoWayBlock(nn.Module):
    """Tokens look at themselves, then at the image; the image looks at the tokens."""

    def __init__(self, dim: int, mlp_dim: int, first: bool):
        super().__init__()
        self.first, heads = first, dim // HEAD
        self.self_attn = Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, heads, inner=dim // 2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim, dim)
        self.norm3 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, heads, inner=dim // 2)
        self.norm4 = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, T, C), image (B or 1, N, C); the image comes back as (B, N, C)."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        placed = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image.read(tokens + token_pe, placed, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token.write(placed, tokens + token_pe, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Tokens read from the image and write to it, twice, and read once more."""

    def __init__(self, dim: int, mlp_dim: int):
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, mlp_dim, first=i == 0) for i in range(2))
        self.final_attn_token_to_image = Attention(dim, dim // HEAD, inner=dim // 2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """image (B or 1, N, C), image_pe (1, N, C), tokens (B, T, C) -> tokens (B, T, C), image (B, N, C).

        While the image is one for all prompts, the first layer projects it once.
        """
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        looked = self.final_attn_token_to_image.read(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + looked), image


@dataclass
class Decoded:
    """masks: logits (B, M, 4 h, 4 w); ious (B, M): predicted quality, 0 to 1; tokens (B, M, C): the masks' own;
    presence (B,): logit, positive where the object is there."""

    masks: Tensor
    ious: Tensor
    tokens: Tensor
    presence: Tensor


class MaskDecoder(nn.Module):
    """Image and prompt tokens -> one mask, or three for ambiguous prompts.

    With width w the maps of stride 8 have c1 = w C / 4 channels, and those of stride 4 have c0 = w C / 8.
    """

    def __init__(self, dim: int, mlp_dim: int, width: int = 1):
        super().__init__()
        c1, c0 = width * dim // 4, width * dim // 8
        self.transformer = TwoWayTransformer(dim, mlp_dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(4, dim)  # 0: the single mask, 1-3: the three
        self.obj_score_token = nn.Embedding(1, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, c1, 2, stride=2),
            LayerNorm2d(c1),
            nn.GELU(),
            nn.ConvTranspose2d(c1, c0, 2, stride=2),
            nn.GELU(),
        )
        self.conv_s0 = nn.Conv2d(dim, c0, 1)
        self.conv_s1 = nn.Conv2d(dim, c1, 1)
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim, c0) for _ in range(4))
        self.iou_prediction_head = MLP(dim, dim, dim, 4)
        self.pred_obj_score_head = MLP(dim, dim, dim, 1)

    def upscale(self, image: Tensor, s0: Tensor, s1: Tensor) -> Tensor:
        """image (B, N, C), s0 (1, N, 16, c0), s1 (1, N, 4, c1) -> (B, N, 16, c0), nested."""
        first, norm, _, second, _ = self.output_upscaling
        x = F.gelu(norm_last(norm, double(first, image) + s1))
        # (B, N, 4, 4, c0) -> (B, N, 16, c0)
        return F.gelu(double(second, x).flatten(2, 3) + s0)

    def hyper(self, tokens: Tensor, first: int) -> Tensor:
        """The weights of masks first, first + 1, ... from their tokens: (B, M, C) -> (B, M, c0)."""
        mlps = self.output_hypernetworks_mlps[first : first + tokens.shape[1]]
        return torch.stack([mlp(token) for mlp, token in zip(mlps, tokens.unbind(1))], 1)

    def render(self, up: Tensor, hyper: Tensor) -> Tensor:
        """up (B, N, 16, c0), hyper (B, M, c0) -> mask logits (B, M, 4 h, 4 w)."""
        B, N, cells, _ = up.shape
        masks = hyper @ up.flatten(1, 2).mT  # (B, M, N * 16)
        return unnest(masks.view(B, -1, N, cells), round(N**0.5))

    def best(self, up: Tensor, tokens: Tensor, ious: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the three masks only the one with the highest predicted IoU: mask, iou, index among 1-3 from 0."""
        index = ious[:, 1:].argmax(1)
        row = torch.arange(len(index), device=index.device)
        hyper = self.hyper(tokens[:, 1:], 1)[row, index]
        return self.render(up, hyper[:, None]), ious[row, 1 + index][:, None], index

    def single(self, up: Tensor, tokens: Tensor, ious: Tensor) -> tuple[Tensor, Tensor]:
        """The single mask, or where it is unstable (except in training) the best of three."""
        masks, ious1 = self.render(up, self.hyper(tokens[:, :1], 0)), ious[:, :1]
        if self.training:
            return masks, ious1
        unstable = (stability(masks[:, 0]) < STABILITY).nonzero().squeeze(1)
        if len(unstable):
            better, better_ious, _ = self.best(up[unstable], tokens[unstable], ious[unstable])
            masks, ious1 = masks.index_copy(0, unstable, better), ious1.index_copy(0, unstable, better_ious)
        return masks, ious1

    def forward(
        self,
        image: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        high: tuple[Tensor, Tensor],
        multimask: bool,
        best_only: bool = False,
    ) -> Decoded:
        """image (B or 1, N, C) with the dense prompt added, sparse (B, P, C), high = (s0, s1) as in upscale.

        multimask: three masks, or with best_only the best of them. Otherwise one, in training always the single mask.
        """
        own = torch.cat((self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight))
        tokens = torch.cat((own.expand(len(sparse), -1, -1), sparse), 1)
        tokens, image = self.transformer(image, image_pe, tokens)
        presence = self.pred_obj_score_head(tokens[:, 0]).squeeze(1)
        ious = self.iou_prediction_head(tokens[:, 1]).sigmoid()
        tokens = tokens[:, 2:6]
        up = self.upscale(image, *high)
        if not multimask:
            masks, ious = self.single(up, tokens, ious)
            return Decoded(masks, ious, tokens[:, :1], presence)
        if best_only:
            masks, ious, index = self.best(up, tokens, ious)
            chosen = tokens[torch.arange(len(index), device=index.device), 1 + index]
            return Decoded(masks, ious, chosen[:, None], presence)
        return Decoded(self.render(up, self.hyper(tokens[:, 1:], 1)), ious[:, 1:], tokens[:, 1:], presence)


def double(conv: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A 2 x 2 transposed convolution of stride 2 as a product: (..., C) -> (..., 4, C'), nested order."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (C, C', 2, 2) -> (4 C', C)
    return F.linear(x, weight, conv.bias.repeat(4)).unflatten(-1, (4, -1))


def norm_last(norm: LayerNorm2d, x: Tensor) -> Tensor:
    """A LayerNorm2d on a tensor whose channels come last."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def stability(masks: Tensor) -> Tensor:
    """Area above +DELTA over area above -DELTA of (B, H, W) logits; 1 where both are empty."""
    inner, outer = ((masks > t).flatten(1).sum(1).float() for t in (DELTA, -DELTA))
    return torch.where(outer > 0, inner / outer, 1.0)
