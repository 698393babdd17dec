"""The mask decoder of SAM 2: a two-way transformer between prompt tokens and image tokens, and its heads.

SAM: Kirillov et al., arXiv 2304.02643, appendix A; object score and high-resolution features: SAM 2, arXiv
2408.00714, section 4. The fallback from an unstable single mask is in neither paper: it is that of the official
MaskDecoder (_dynamic_multimask_via_stability), which its predictors switch on. Left out: dropout.

Shapes: B prompts or objects, T tokens of a prompt, N = h * w image tokens, C channels, M masks; the decoder's maps are
4 h x 4 w.
"""

from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from ..layers import MLP
from .layers import Attention, LayerNorm2d

# A single mask is stable if its area above +DELTA logits is at least this share of that above -DELTA. The values are
# those of build_sam2 in facebookresearch/sam2 (dynamic_multimask_stability_thresh and _delta).
STABILITY, DELTA = 0.98, 0.05
HEAD = 32  # channels per head of the tokens' attention to themselves (officially 8 heads); half of it with the image


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, then to the image, and go through an MLP; then the image attends to the tokens.

    Each step ends in a residual and a layer norm (post-norm). Between tokens and image attention has half the width.
    """

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
        """tokens (B, T, C), image (B or 1, N, C) -> both as (B, ...). Positions are added to queries and keys."""
        if self.first:  # tokens equal token_pe here: no residual, and no positions a second time
            tokens = self.norm1(self.self_attn(tokens, tokens, tokens))
        else:
            q = tokens + token_pe
            tokens = self.norm1(tokens + self.self_attn(q, q, tokens))
        image_with_pe = image + image_pe
        attended = self.cross_attn_token_to_image(tokens + token_pe, image_with_pe, image)
        tokens = self.norm2(tokens + attended)
        tokens = self.norm3(tokens + self.mlp(tokens))
        attended = self.cross_attn_image_to_token(image_with_pe, tokens + token_pe, tokens)
        return tokens, self.norm4(image + attended)


class TwoWayTransformer(nn.Module):
    """Two two-way blocks, and a final attention from tokens to image."""

    def __init__(self, dim: int, mlp_dim: int):
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, mlp_dim, first=i == 0) for i in range(2))
        self.final_attn_token_to_image = Attention(dim, dim // HEAD, inner=dim // 2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """image (B or 1, N, C), image_pe (1, N, C), tokens (B, T, C) -> tokens (B, T, C), image (B, N, C)."""
        token_pe = tokens  # prompts carry their positions: the tokens as they come serve as positions in all layers
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image


class Decoded(NamedTuple):
    """The answers of the mask decoder to B prompts."""

    masks: Tensor  # (B, M, 4 h, 4 w): logits
    ious: Tensor  # (B, M): predicted quality of each mask, 0 to 1
    tokens: Tensor  # (B, M, C): the masks' own tokens; a fallback mask keeps the token of the single mask
    object_score_logits: Tensor  # (B,): positive where the object is in the picture


class MaskDecoder(nn.Module):
    """Image tokens and prompt tokens -> one mask, or three for ambiguous prompts.

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

    def upscale(self, image: Tensor, feat_s0: Tensor, feat_s1: Tensor) -> Tensor:
        """image (B, N, C), feat_s0 (B or 1, c0, 4 h, 4 w), feat_s1 (B or 1, c1, 2 h, 2 w) -> (B, c0, 4 h, 4 w)."""
        deconv1, norm, act, deconv2, act = self.output_upscaling
        h, w = (side // 2 for side in feat_s1.shape[-2:])
        x = image.mT.unflatten(2, (h, w))  # (B, N, C) -> (B, C, h, w)
        x = act(norm(deconv1(x) + feat_s1))
        return act(deconv2(x) + feat_s0)

    def hypernetworks(self, mask_tokens: Tensor) -> Tensor:
        """The weights that make a mask of the upscaled map, one set per token: (B, 4, C) -> (B, 4, c0)."""
        tokens = mask_tokens.unbind(1)
        return torch.stack([mlp(token) for mlp, token in zip(self.output_hypernetworks_mlps, tokens)], 1)

    def render(self, upscaled: Tensor, weights: Tensor) -> Tensor:
        """upscaled (B, c0, 4 h, 4 w), weights (B, M, c0) -> mask logits (B, M, 4 h, 4 w)."""
        return (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])

    def choose_masks(
        self, upscaled: Tensor, mask_tokens: Tensor, ious: Tensor, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Render the masks of all four tokens, and return those that are asked for, with their IoUs (B, M)."""
        masks = self.render(upscaled, self.hypernetworks(mask_tokens))
        if multimask:
            return masks[:, 1:], ious[:, 1:]
        if self.training:
            return masks[:, :1], ious[:, :1]
        return stable_mask(masks, ious)

    def forward(
        self, image: Tensor, image_pe: Tensor, sparse: Tensor, high_res: tuple[Tensor, Tensor], multimask: bool
    ) -> Decoded:
        """image (B or 1, N, C) with the dense prompt added, sparse (B, P, C), high_res = (feat_s0, feat_s1).

        multimask: three masks. Otherwise one: the single mask, or where that is unstable, except in training, the
        best of the three.
        """
        # Tokens of the decoder's own, 1 + 1 + 4, then those of the prompts: (B, 6 + P, C).
        own = torch.cat((self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight))
        tokens = torch.cat((own.expand(len(sparse), -1, -1), sparse), 1)
        tokens, image = self.transformer(image, image_pe, tokens)
        object_score_logits = self.pred_obj_score_head(tokens[:, 0]).squeeze(1)
        ious = self.iou_prediction_head(tokens[:, 1]).sigmoid()
        tokens = tokens[:, 2:6]
        masks, ious = self.choose_masks(self.upscale(image, *high_res), tokens, ious, multimask)
        return Decoded(masks, ious, tokens[:, 1:] if multimask else tokens[:, :1], object_score_logits)


def stable_mask(masks: Tensor, ious: Tensor) -> tuple[Tensor, Tensor]:
    """The single mask of (B, 4, H, W), or where it is unstable the best of the three: (B, 1, H, W), IoU (B, 1)."""
    stable = stability(masks[:, 0]) >= STABILITY
    index = torch.where(stable, 0, 1 + ious[:, 1:].argmax(1))[:, None]  # (B, 1)
    return masks.take_along_dim(index[..., None, None], 1), ious.take_along_dim(index, 1)


def stability(masks: Tensor) -> Tensor:
    """Area above +DELTA over area above -DELTA of (B, H, W) logits; 1 where both are empty."""
    inner, outer = ((masks > t).flatten(1).sum(1).float() for t in (DELTA, -DELTA))
    return torch.where(outer > 0, inner / outer, 1.0)
