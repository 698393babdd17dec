"""Maps of what a Vision Transformer looks at: attention of each block, and its product over all blocks (rollout).

Attention rollout: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", arXiv 2005.00928. It follows how
the tokens are mixed, and nothing else: values, MLPs and the class that is meant do not enter. A bright patch is one
whose token reaches the head, not a proof of what decided. With a convolutional stem a token has seen more than its
patch. B is batch, h heads, T special tokens, N patches.
"""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit.fast import decelerate
from minivit.vit import VisionTransformer

DARK = 0.2  # brightness of the patch with the smallest share, in spotlight


@torch.no_grad()
def attention_maps(model: VisionTransformer, images: Tensor) -> list[Tensor]:
    """The attention weights of each block, float32, for normalised images (B, 3, H, W).

    (B, h, T + N, T + N), query by key, special tokens first; (B, h, N, N) where these enter late, and
    (B, h, T, T + N) of a class-attention block. Rows sum to one, but for talking heads, which are mixed afterwards.
    The model itself is not changed. ValueError for another model, and for images that it does not take.
    """
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"attention is a Vision Transformer's, and this model is a {type(model).__name__}")
    plain = decelerate(copy.deepcopy(model)).eval()
    maps: list[Tensor] = []
    for block in (*plain.blocks, *plain.class_blocks):
        block.attn.attend = recorder(block.attn.attend, maps)
    plain.features(images)
    return maps


def recorder(attend: Callable[..., Tensor], maps: list[Tensor]) -> Callable[..., Tensor]:
    """The `attend` of an attention, which adds its weights (B, h, Q, N) to `maps` at each call."""

    def attend_and_record(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        identity = torch.eye(k.shape[2], dtype=v.dtype, device=v.device).expand(*k.shape[:2], -1, -1)
        maps.append(attend(q, k, identity, bias).float())  # weights @ I
        return attend(q, k, v, bias)

    return attend_and_record


def rollout(maps: Sequence[Tensor]) -> Tensor:
    """The share of each token before the first block in each token after the last one: (B, T + N, T + N).

    With A_l the mean over the heads of block l, and the residual connection, which brings half of a token,

        R = (A_L + I) / 2 ... (A_2 + I) / 2 (A_1 + I) / 2,

    whose rows sum to one. Weights of talking heads may be negative: their absolute values count, as shares. Tokens that
    a block does not change have their row of I. maps: of attention_maps. ValueError for none.
    """
    if not maps:
        raise ValueError("there is no attention to follow: the model has no blocks")
    size = max(weights.shape[-1] for weights in maps)
    identity = torch.eye(size, device=maps[0].device)
    result = identity.expand(len(maps[0]), -1, -1)
    for weights in maps:
        mean = weights.abs().mean(dim=1)
        mean = mean / mean.sum(dim=-1, keepdim=True).clamp(min=1e-12)
        queries, keys = mean.shape[1:]
        first = size - keys  # special tokens that have not entered yet
        step = identity.repeat(len(mean), 1, 1)
        step[:, first : first + queries, first:] = (mean + identity[first : first + queries, first:]) / 2
        result = step @ result
    return result


def relevance(model: VisionTransformer, images: Tensor) -> Tensor:
    """The share of each patch in what the heads read, by rollout: (B, H / patch, W / patch), at least 0.

    images: normalised, (B, 3, H, W). The shares of an image sum to one, less what is left of special tokens.
    ValueError as for attention_maps and rollout.
    """
    read, config = rollout(attention_maps(model, images)), model.config
    T = config.tokens
    heads = [read[:, 0] if config.pool == "cls" else read[:, T:].mean(dim=1)]
    if config.distillation:
        heads.append(read[:, T - 1])
    return torch.stack(heads).mean(dim=0)[:, T:].unflatten(1, model.grid_of(images))


def spotlight(image: Tensor, shares: Tensor) -> Tensor:
    """A picture of uint8 (3, H, W) beside itself in the light of shares (h, w): uint8 (3, H, 2 W).

    The patch with the largest share keeps its brightness, the one with the smallest has a fifth of it, however
    little they differ.
    """
    span = (shares.max() - shares.min()).clamp(min=1e-12)
    light = ((shares - shares.min()) / span)[None, None].cpu()
    light = F.interpolate(light, image.shape[1:], mode="bilinear")[0, 0]  # (h, w) -> (H, W)
    lit = (image.cpu() * (DARK + (1 - DARK) * light)).round().to(torch.uint8)
    return torch.cat([image.cpu(), lit], dim=2)
