"""Key names of published Vision Transformers, and their way to ours, which are timm's.

| layout | known by | class token, positions | patch projection | block i | query, key, value | output | head |
|---|---|---|---|---|---|---|---|
| timm, DeiT, ours | `patch_embed.proj.weight` | `cls_token`, `pos_embed` | `patch_embed.proj` | `blocks.i.` | one: `attn.qkv` | `attn.proj` | `head`, `head_dist` |
| CaiT | `blocks_token_only.` | the same | the same | and `blocks_token_only.i.` | `attn.k`, `attn.v` there | the same | `head` |
| torchvision | `conv_proj.weight` | `class_token`, `encoder.pos_embedding` | `conv_proj` | `encoder.layers.encoder_layer_i.` | one: `self_attention.in_proj_` | `self_attention.out_proj` | `heads.head` |
| Hugging Face | `embeddings.patch_embeddings.projection.weight` | `embeddings.cls_token`, `.position_embeddings` | `.patch_embeddings.projection` | `encoder.layer.i.`, since 5.0 `layers.i.` | `attention.attention.query` ..., since 5.0 `attention.q_proj` ... | `attention.output.dense`, `attention.o_proj` | `classifier`, `cls_classifier` |
| Google (.npz) | `embedding/kernel` | `cls`, `Transformer/posembed_input/pos_embedding` | `embedding` | `Transformer/encoderblock_i/` | `MultiHeadDotProductAttention_1/query` ... | `.../out` | `head` |

Names and shapes are those of timm 1.0, torchvision 0.29, transformers 4 and 5, google-research/vision_transformer and
google-research/big_vision. Google's kernels have their inputs first: (rows, columns, in, out), (in, heads, d) of a
query, (heads, d, out) of the output, (in, out). All may stand behind a prefix such as `module.` (DataParallel),
`model.` (Lightning) or `vit.` (Hugging Face). Left out: big_vision's models with other heads than the class token's.
"""  # noqa: E501 (a table)

import re

import torch
import torch.nn.functional as F
from torch import Tensor

# Old name -> ours, as patterns, tried in this order.
Table = list[tuple[str, str]]
TORCHVISION: Table = [
    (r"class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"conv_proj", "patch_embed.proj"),
    (r"encoder\.layers\.encoder_layer_(\d+)", r"blocks.\1"),
    (r"ln_([12])", r"norm\1"),
    (r"self_attention\.in_proj_", "attn.qkv."),
    (r"self_attention\.out_proj", "attn.proj"),
    (r"mlp\.(0|linear_1)\.", "mlp.fc1."),
    (r"mlp\.(3|linear_2)\.", "mlp.fc2."),
    (r"encoder\.ln", "norm"),
    (r"heads\.head", "head"),
]
CAIT: Table = [(r"blocks_token_only\.", "class_blocks."), (r"gamma_([12])", r"ls\1.gamma")]
HUGGING_FACE: Table = [
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.distillation_token", "dist_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"attention\.attention\.(q|k|v)(?:uery|ey|alue)\.", r"attn.\1."),
    (r"attention\.([qkv])_proj\.", r"attn.\1."),
    (r"attention\.(?:output\.dense|o_proj)\.", "attn.proj."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"^layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
]
GOOGLE: Table = [
    (r"^cls$", "cls_token"),
    (r"^(?:Transformer/posembed_input/)?pos_embedding$", "pos_embed"),
    (r"^embedding/", "patch_embed.proj/"),
    (r"^Transformer/encoderblock_(\d+)/", r"blocks.\1."),
    (r"^Transformer/encoder_norm/", "norm/"),
    (r"LayerNorm_0/", "norm1/"),
    (r"LayerNorm_[12]/", "norm2/"),
    (r"MultiHeadDotProductAttention_[01]/(q|k|v)(?:uery|ey|alue)/", r"attn.\1/"),
    (r"MultiHeadDotProductAttention_[01]/out/", "attn.proj/"),
    (r"MlpBlock_[03]/Dense_0/", "mlp.fc1/"),
    (r"MlpBlock_[03]/Dense_1/", "mlp.fc2/"),
    (r"/(?:kernel|scale)$", ".weight"),
    (r"/bias$", ".bias"),
]
TABLES = {"timm": [], "CaiT": CAIT, "torchvision": TORCHVISION, "Hugging Face": HUGGING_FACE, "Google": GOOGLE}
FIRST = {  # the weights of the patch projection, by which a layout and the prefix in front of its names are known
    "patch_embed.proj.weight": "timm",
    "conv_proj.weight": "torchvision",
    "embeddings.patch_embeddings.projection.weight": "Hugging Face",
    "embedding/kernel": "Google",
}
UNUSED = r"(pooler|pre_logits)\b"  # layers behind the last norm, left behind in fine-tuning (ViT, section 3.2)


def layout_of(state: dict[str, Tensor]) -> tuple[str, str]:
    """The layout of a state dict, a key of TABLES, and the prefix of its names. "timm" and "" for unknown ones.

    ValueError if it holds several models.
    """
    found = [(name.removesuffix(key), layout) for key, layout in FIRST.items() for name in state if ends(name, key)]
    if len(found) > 1:
        prefixes = " and ".join(repr(prefix) for prefix, _ in found)
        raise ValueError(f"it holds several models, under {prefixes}: save one of them alone")
    prefix, layout = found[0] if found else ("", "timm")
    if layout == "timm" and any(name.startswith(f"{prefix}blocks_token_only.") for name in state):
        layout = "CaiT"
    return layout, prefix


def ends(name: str, key: str) -> bool:
    """Whether a name is a key, or a prefix with a dot or slash at its end, and the key."""
    return name == key or name.endswith(("." + key, "/" + key))


def to_our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of any layout to our parameter names. ValueError if its parts do not fit together."""
    layout, prefix = layout_of(state)
    if layout == "Google" and prefix:  # beside the weights there is the optimizer's state
        state = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    if layout == "Google":
        state = {name: torch_layout(name, tensor) for name, tensor in state.items()}
    ours, old = {}, {}
    for name, tensor in state.items():
        new = rename(name, TABLES[layout])
        if new in ours:
            raise ValueError(f"{old[new]} and {name} of the file stand for the same weights, {new}: leave one out")
        ours[new], old[new] = tensor, name
    join_projections(ours, r"^blocks\.\d+\.attn\.", "q", "k", "v")
    join_projections(ours, r"^class_blocks\.\d+\.attn\.", "k", "v")
    positions = ours.get("pos_embed")
    if "pos_embedding" in state and "cls_token" in ours and positions is not None and positions.ndim == 3:
        ours["pos_embed"] = F.pad(positions, (0, 0, 1, 0))  # big_vision adds none to the class token
    if any(re.match(r"pre_logits\b", name) for name in ours):  # this head reads that layer's output
        ours = {name: tensor for name, tensor in ours.items() if not name.startswith("head.")}
    return ours


def rename(name: str, table: Table) -> str:
    """Apply all substitutions of a table to a name."""
    for old, new in table:
        name = re.sub(old, new, name)
    return name


def torch_layout(name: str, tensor: Tensor) -> Tensor:
    """An array of Google's under its own name, its axes in PyTorch's order."""
    if re.search(r"/(query|key|value)/", name) and tensor.ndim > 1:
        return tensor.flatten(1).T if name.endswith("kernel") else tensor.flatten()  # (in, h, d), (h, d)
    if not name.endswith("kernel"):
        return tensor
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)  # (rows, columns, in, out) -> (out, in, rows, columns)
    return tensor.flatten(0, -2).T if tensor.ndim > 1 else tensor  # (h, d, out), (in, out) -> (out, in)


def join_projections(state: dict[str, Tensor], where: str, *parts: str) -> None:
    """Join projections that a file has one by one, in place: attn.q, attn.k and attn.v become attn.qkv.

    ValueError if one is missing or has another shape.
    """
    for first in [name for name in state if re.match(rf"{where}{parts[0]}\.", name)]:
        stem, kind = re.fullmatch(rf"(.*\.attn\.){parts[0]}\.(.*)", first).groups()
        names = [f"{stem}{part}.{kind}" for part in parts]
        shapes = {state[name].shape if name in state else None for name in names}
        if len(shapes) > 1 or not state[first].ndim:
            raise ValueError(f"{', '.join(names)} of the file do not fit together")
        state[f"{stem}{''.join(parts)}.{kind}"] = torch.cat([state.pop(name) for name in names])
