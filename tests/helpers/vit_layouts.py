"""A tiny ViT's weights, written as each publisher writes them: the way back from our names."""

import re
from pathlib import Path

import numpy as np
import torch
from parity import formula_state
from torch import Tensor

from minivit.vit import VisionTransformer, ViTConfig

TINY = ViTConfig(image_size=8, patch=4, classes=3, dim=16, depth=2, heads=2)


def tiny_state(config: ViTConfig = TINY) -> dict[str, Tensor]:
    """Formula weights under our names."""
    return formula_state({name: tuple(value.shape) for name, value in VisionTransformer(config).state_dict().items()})


def renamed(state: dict[str, Tensor], table: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Names with the first pattern that matches replaced."""
    out = {}
    for name, tensor in state.items():
        old, new = next((pair for pair in table if re.search(pair[0], name)), ("$", ""))
        out[re.sub(old, new, name)] = tensor
    return out


TORCHVISION = [
    (r"^cls_token", "class_token"),
    (r"^pos_embed", "encoder.pos_embedding"),
    (r"^patch_embed\.proj", "conv_proj"),
    (r"^blocks\.(\d+)\.norm(\d)", r"encoder.layers.encoder_layer_\1.ln_\2"),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_"),
    (r"^blocks\.(\d+)\.attn\.proj", r"encoder.layers.encoder_layer_\1.self_attention.out_proj"),
    (r"^blocks\.(\d+)\.mlp\.fc1", r"encoder.layers.encoder_layer_\1.mlp.0"),
    (r"^blocks\.(\d+)\.mlp\.fc2", r"encoder.layers.encoder_layer_\1.mlp.3"),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "heads.head."),
]
HUGGING_FACE = [
    (r"^cls_token", "embeddings.cls_token"),
    (r"^dist_token", "embeddings.distillation_token"),
    (r"^pos_embed", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"^blocks\.(\d+)\.norm1", r"encoder.layer.\1.layernorm_before"),
    (r"^blocks\.(\d+)\.norm2", r"encoder.layer.\1.layernorm_after"),
    (r"^blocks\.(\d+)\.attn\.(query|key|value)", r"encoder.layer.\1.attention.attention.\2"),
    (r"^blocks\.(\d+)\.attn\.proj", r"encoder.layer.\1.attention.output.dense"),
    (r"^blocks\.(\d+)\.mlp\.fc1", r"encoder.layer.\1.intermediate.dense"),
    (r"^blocks\.(\d+)\.mlp\.fc2", r"encoder.layer.\1.output.dense"),
    (r"^norm\.", "layernorm."),
]
SINCE_5 = [  # transformers 5
    (r"^encoder\.layer\.(\d+)\.attention\.attention\.(.)[a-z]+", r"layers.\1.attention.\2_proj"),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense", r"layers.\1.attention.o_proj"),
    (r"^encoder\.layer\.(\d+)\.intermediate\.dense", r"layers.\1.mlp.fc1"),
    (r"^encoder\.layer\.(\d+)\.output\.dense", r"layers.\1.mlp.fc2"),
    (r"^encoder\.layer\.(\d+)", r"layers.\1"),
]
GOOGLE = [
    (r"^cls_token", "cls"),
    (r"^pos_embed", "Transformer/posembed_input/pos_embedding"),
    (r"^patch_embed\.proj\.", "embedding/"),
    (r"^blocks\.(\d+)\.norm1\.", r"Transformer/encoderblock_\1/LayerNorm_0/"),
    (r"^blocks\.(\d+)\.norm2\.", r"Transformer/encoderblock_\1/LayerNorm_2/"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"Transformer/encoderblock_\1/MultiHeadDotProductAttention_1/out/"),
    (r"^blocks\.(\d+)\.attn\.(\w+)\.", r"Transformer/encoderblock_\1/MultiHeadDotProductAttention_1/\2/"),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"Transformer/encoderblock_\1/MlpBlock_3/Dense_0/"),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"Transformer/encoderblock_\1/MlpBlock_3/Dense_1/"),
    (r"^norm\.", "Transformer/encoder_norm/"),
    (r"^head\.", "head/"),
]
BIG_VISION = [
    (r"Transformer/posembed_input/", ""),
    (r"LayerNorm_2", "LayerNorm_1"),
    (r"MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
    (r"MlpBlock_3", "MlpBlock_0"),
]


def apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The projection attn.qkv as the three that it is made of."""
    out = {}
    for name, tensor in state.items():
        parts = zip(("query", "key", "value"), tensor.chunk(3)) if ".qkv." in name else [("qkv", tensor)]
        out |= {name.replace(".qkv.", f".{part}."): value for part, value in parts}
    return out


def torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return renamed(state, TORCHVISION)


def hugging_face(state: dict[str, Tensor], prefix: str = "vit.", since_5: bool = False) -> dict[str, Tensor]:
    """Names of transformers 4 or 5; the heads stand beside the model, which has the prefix."""
    heads = {"head_dist.": "distillation_classifier."}
    heads["head."] = "cls_classifier." if "dist_token" in state else "classifier."
    body = renamed(apart({n: t for n, t in state.items() if not n.startswith("head")}), HUGGING_FACE)
    out = {prefix + name: tensor for name, tensor in (renamed(body, SINCE_5) if since_5 else body).items()}
    for old, new in heads.items():
        out |= {name.replace(old, new): tensor for name, tensor in state.items() if name.startswith(old)}
    return out


def google(state: dict[str, Tensor], prefix: str = "") -> dict[str, np.ndarray]:
    """Names and axes of google-research/vision_transformer."""
    out, heads = {}, (TINY.heads, -1)
    for name, tensor in renamed(apart(state), GOOGLE).items():
        matrix, array = name.endswith("weight") and "orm" not in name.split("/")[-2], tensor.numpy()
        if re.search("query|key|value", name):
            array = (tensor.T.unflatten(1, heads) if matrix else tensor.unflatten(0, heads)).numpy()
        elif "/out/" in name and matrix:
            array = tensor.T.unflatten(0, heads).numpy()
        elif matrix:
            array = (tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T).numpy()
        name = name.replace("weight", "kernel" if matrix else "scale")
        out[prefix + name] = array
    return out


def save(path: Path, content: dict) -> Path:
    """A .npz file of arrays, or what torch.save makes."""
    np.savez(path, **content) if path.suffix == ".npz" else torch.save(content, path)
    return path
