"""What an official ViT checkpoint says about its model, and positions resampled in the ways that are not ours."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit.vit import ViTConfig


def infer_config(state: dict[str, Tensor], heads: int | None = None) -> ViTConfig:
    """The configuration that a state dict (under our names) was made with, read off its shapes.

    The number of heads leaves no trace in the shapes: 64 channels each in ViT and DeiT, 48 in CaiT.
    """
    dim, _, patch, _ = state["patch_embed.proj.weight"].shape
    full, tail = (
        1 + max((int(name.split(".")[1]) for name in state if name.startswith(prefix)), default=-1)
        for prefix in ("blocks.", "class_blocks.")
    )
    distillation = "dist_token" in state
    positions = state["pos_embed"].shape[1] - (0 if tail else 1 + distillation)
    tail_mlp = len(state["class_blocks.0.mlp.fc1.weight"]) / dim if tail else ViTConfig.tail_mlp_ratio
    scale = 0.1 if "blocks.0.ls1.gamma" in state else None
    return ViTConfig(
        image_size=math.isqrt(positions) * patch,
        patch=patch,
        classes=len(state["head.weight"]),
        dim=dim,
        depth=full + tail,
        heads=heads or dim // (48 if tail else 64),
        mlp_ratio=len(state["blocks.0.mlp.fc1.weight"]) / dim,
        distillation=distillation,
        class_attention=tail,
        tail_mlp_ratio=tail_mlp,
        tokens_enter_late=bool(tail),
        talking_heads="blocks.0.attn.proj_l.weight" in state,
        qk_norm="blocks.0.attn.q_norm.weight" in state,
        layer_scale=scale,
        pool="mean" if "fc_norm.weight" in state else "cls",
    )


def resize_positions(embedding: Tensor, tokens: int, grid: tuple[int, int], align_corners: bool) -> Tensor:
    """Bicubic without antialiasing: torchvision aligns the corners, transformers doesn't."""
    patches = embedding[:, tokens:]
    side = math.isqrt(patches.shape[1])
    image = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, grid, mode="bicubic", align_corners=align_corners)
    return torch.cat([embedding[:, :tokens], image.flatten(2).transpose(1, 2)], dim=1)
