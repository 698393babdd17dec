"""Golden cases of the ViT models and their parts: our modules with the official formula weights."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from helpers.vit_checkpoints import infer_config, resize_positions
from parity import Golden
from torch import Tensor, nn

from minivit.attention import Attention
from minivit.cait import ClassAttention, ClassBlock, TalkingHeadsAttention
from minivit.fast import accelerate
from minivit.layers import DropPath, LayerScale, drop_path_rates
from minivit.layouts import to_our_names
from minivit.position_bias import RelativePositionBias
from minivit.pretrained import load_state, resize_position_embedding
from minivit.vit import Block, VisionTransformer, ViTConfig


@dataclass
class Case:
    """One golden file, and how our modules are run on it: device, precision, plain or fast form."""

    golden: Golden
    device: str
    dtype: torch.dtype
    fast: bool = False

    @property
    def config(self) -> dict:
        return self.golden.config

    def input(self, name: str) -> Tensor:
        return self.golden.input(name).to(self.device, self.dtype)

    def weights(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The formula, with LayerScale's gains at 0.3 + 0.1 noise as the files' notes ask."""
        gains = ("gamma_1", "gamma_2", "gamma")
        state = {name: self.golden.formula(name, shape) for name, shape in shapes.items()}
        return {name: value + 0.3 * (name.rpartition(".")[2] in gains) for name, value in state.items()}

    def place(self, module: nn.Module) -> nn.Module:
        """The module on the device, in the precision and form of this run."""
        module = module.to(self.device, self.dtype).eval()
        return accelerate(module) if self.fast else module


def official_names(c: dict, prefix_tokens: int, late: bool = False) -> dict[str, tuple[int, ...]]:
    """timm's state-dict entries of a ViT, DeiT or CaiT of this configuration."""
    dim, hidden, patch = c["embed_dim"], int(c["embed_dim"] * c["mlp_ratio"]), c["patch_size"]
    patches, h = (c["img_size"] // patch) ** 2, c["num_heads"]
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, patches + (0 if late else prefix_tokens), dim)}
    if prefix_tokens == 2:
        shapes |= {"dist_token": (1, 1, dim)} | linear("head_dist", c["num_classes"], dim)
    shapes |= {"patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)}
    for i in range(c["depth"]):
        shapes |= block_names(f"blocks.{i}.", dim, hidden)
        if late:
            shapes |= talking_names(f"blocks.{i}.attn.", h) | gains(f"blocks.{i}.", dim)
        if "init_values" in c:
            shapes |= {f"blocks.{i}.{ls}.gamma": (dim,) for ls in ("ls1", "ls2")}
        if c.get("qk_norm"):
            shapes |= {f"blocks.{i}.attn.{n}_norm.{p}": (dim // h,) for n in "qk" for p in ("weight", "bias")}
    for i in range(2 if late else 0):
        name = f"blocks_token_only.{i}."
        shapes |= class_block_names(name, dim, 4 * dim)  # CaiT's tail keeps its own MLP ratio, 4
    return shapes | norm("norm", dim) | linear("head", c["num_classes"], dim)


def linear(name: str, out: int, into: int) -> dict:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, dim: int) -> dict:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def gains(prefix: str, dim: int) -> dict:
    return {f"{prefix}gamma_1": (dim,), f"{prefix}gamma_2": (dim,)}


def talking_names(prefix: str, heads: int) -> dict:
    return linear(f"{prefix}proj_l", heads, heads) | linear(f"{prefix}proj_w", heads, heads)


def block_names(prefix: str, dim: int, hidden: int) -> dict:
    return (
        norm(f"{prefix}norm1", dim)
        | linear(f"{prefix}attn.qkv", 3 * dim, dim)
        | linear(f"{prefix}attn.proj", dim, dim)
        | norm(f"{prefix}norm2", dim)
        | linear(f"{prefix}mlp.fc1", hidden, dim)
        | linear(f"{prefix}mlp.fc2", dim, hidden)
    )


def class_block_names(prefix: str, dim: int, hidden: int) -> dict:
    names = block_names(prefix, dim, hidden) | gains(prefix, dim)
    for part in ("weight", "bias"):
        names.pop(f"{prefix}attn.qkv.{part}")
    for projection in "qkv":
        names |= linear(f"{prefix}attn.{projection}", dim, dim)
    return names


def timm_model(
    case: Case, prefix_tokens: int, late: bool = False, rename: dict[str, str] | None = None
) -> VisionTransformer:
    """Our model with formula weights under timm's names; `rename` replaces official name beginnings."""
    names = official_names(case.config, prefix_tokens, late)
    for old, new in (rename or {}).items():
        names = {name.replace(old, new, 1) if name.startswith(old) else name: shape for name, shape in names.items()}
    return model_of(case, case.weights(names))


def model_of(case: Case, official: dict[str, Tensor]) -> VisionTransformer:
    """Our model with the weights of an official state dict."""
    state = to_our_names(official)
    model = VisionTransformer(infer_config(state, case.config["num_heads"]))
    assert load_state(model, state) == []
    return case.place(model)


def vit(case: Case) -> dict:
    x = case.input("x")
    model = timm_model(case, 1)
    out = {"tokens": model.features(x), "logits": model(x)}
    if "logits_avgpool" in case.golden.outputs:
        out["logits_avgpool"] = timm_model(case, 1, rename={"norm.": "fc_norm."})(x)
    return out


def deit(case: Case) -> dict:
    x, model = case.input("x"), timm_model(case, 2)
    heads = model(x, each_head=True)
    return {"tokens": model.features(x), "logits_eval": model(x), "head_cls": heads[0], "head_dist": heads[1]}


def cait(case: Case) -> dict:
    x, model = case.input("x"), timm_model(case, 1, late=True)
    return {"tokens": model.features(x), "logits": model(x)}


def torchvision_state(case: Case) -> dict[str, Tensor]:
    """Formula weights under torchvision's names, for a configuration in torchvision's or timm's words."""
    c = case.config
    dim, patch = c.get("hidden_dim", c.get("embed_dim")), c["patch_size"]
    hidden = c.get("mlp_dim") or int(dim * c["mlp_ratio"])
    depth, patches = c.get("num_layers", c.get("depth")), (c.get("image_size", c.get("img_size")) // patch) ** 2
    names = {
        "class_token": (1, 1, dim),
        "encoder.pos_embedding": (1, patches + 1, dim),
        "conv_proj.weight": (dim, 3, patch, patch),
        "conv_proj.bias": (dim,),
    }
    for i in range(depth):
        p = f"encoder.layers.encoder_layer_{i}."
        names |= norm(f"{p}ln_1", dim) | {
            f"{p}self_attention.in_proj_weight": (3 * dim, dim),
            f"{p}self_attention.in_proj_bias": (3 * dim,),
        }
        names |= linear(f"{p}self_attention.out_proj", dim, dim) | norm(f"{p}ln_2", dim)
        names |= linear(f"{p}mlp.0", hidden, dim) | linear(f"{p}mlp.3", dim, hidden)
    names |= norm("encoder.ln", dim) | linear("heads.head", c["num_classes"], dim)
    return case.weights(names)


def torchvision_vit(case: Case) -> dict:
    x = case.input("x")
    model = model_of(case, torchvision_state(case))
    out = {
        "tokens_in": model.embed(x),
        "tokens_out": model.features(x),
        "tokens": model.features(x),
        "logits": model(x),
    }
    y = out["tokens_in"]
    for i, block in enumerate(model.blocks):
        out[f"block_{i}"] = y = block(y, model.config.grid)
    return out


# ---- parts -------------------------------------------------------------------------------------------


def with_formula(
    case: Case,
    module: nn.Module,
    official: dict[str, tuple[int, ...]],
    name_of: Callable[[dict], dict] = lambda state: state,
) -> nn.Module:
    module.load_state_dict(name_of(case.weights(official)))
    return case.place(module)


def under(prefix: str) -> Callable[[dict], dict]:
    """CaiT's renaming works on whole models: put a part where it belongs, rename, take the part out again."""

    def name_of(state: dict) -> dict:
        ours = to_our_names({f"{prefix}{name}": tensor for name, tensor in state.items()})
        return {name.split(".", 2)[2]: tensor for name, tensor in ours.items()}

    return name_of


def class_attention(case: Case) -> dict:
    dim = case.config["dim"]
    names = {k: v for projection in ("q", "k", "v", "proj") for k, v in linear(projection, dim, dim).items()}

    def name_of(state: dict) -> dict:
        keys, values = ({p: state.pop(f"{n}.{p}") for p in ("weight", "bias")} for n in "kv")
        return state | {f"kv.{p}": torch.cat([keys[p], values[p]]) for p in ("weight", "bias")}

    module = with_formula(case, ClassAttention(dim, case.config["num_heads"]), names, name_of)
    return {"y": module(case.input("x"), 1)}


def talking_heads(case: Case) -> dict:
    dim, heads = case.config["dim"], case.config["num_heads"]
    names = linear("qkv", 3 * dim, dim) | linear("proj", dim, dim) | talking_names("", heads)
    return {"y": with_formula(case, TalkingHeadsAttention(dim, heads), names)(case.input("x"))}


def cait_config(c: dict) -> ViTConfig:
    return ViTConfig(
        image_size=16,
        patch=4,
        dim=c["dim"],
        heads=c["num_heads"],
        mlp_ratio=c["mlp_ratio"],
        class_attention=2,
        tail_mlp_ratio=c["mlp_ratio"],
        tokens_enter_late=True,
        talking_heads=True,
        layer_scale=0.1,
        norm_eps=1e-5,
    )


def cait_block(case: Case) -> dict:
    dim, hidden = case.config["dim"], int(case.config["dim"] * case.config["mlp_ratio"])
    names = block_names("", dim, hidden) | gains("", dim) | talking_names("attn.", case.config["num_heads"])
    cait = {"blocks_token_only.": torch.empty(0)}  # what tells the layout apart

    def name_of(state: dict) -> dict:
        ours = to_our_names({f"blocks.0.{name}": tensor for name, tensor in state.items()} | cait)
        return {name.split(".", 2)[2]: tensor for name, tensor in ours.items() if name.startswith("blocks.0.")}

    block = with_formula(case, Block(cait_config(case.config), 0.0, 0), names, name_of)
    return {"y": block(case.input("x"), (4, 4))}


def cait_class_block(case: Case) -> dict:
    dim, hidden = case.config["dim"], int(case.config["dim"] * case.config["mlp_ratio"])
    block = with_formula(
        case,
        ClassBlock(dim, case.config["num_heads"], hidden, layer_scale=0.1, norm_eps=1e-5),
        class_block_names("", dim, hidden),
        under("blocks_token_only.0."),
    )
    return {"y": block(case.input("x_cls"), case.input("x"))}


def layer_scale(case: Case) -> dict:
    dim = case.config["dim"]
    module = with_formula(case, LayerScale(dim, 0.1), {"gamma": (dim,)})
    return {"y": module(case.input("x")), "init_gamma": LayerScale(4, 1e-5).gamma}


def relative_position_bias(case: Case) -> dict:
    out = {}
    for name, c in case.config.items():
        bias = with_formula(
            case, RelativePositionBias(tuple(c["window_size"]), c["num_heads"], c["prefix_tokens"]), c["keys"]
        )
        out |= {
            f"{name}_index": bias.index.flatten(),
            f"{name}_table": bias.relative_position_bias_table,
            f"{name}_bias": bias(),
        }
    return out | {"w4_added": case.input("attn") + out["w4_bias"]}


def window_attention(case: Case) -> dict:
    """Swin's windows are a batch of small images; its shift mask joins the bias."""
    c, x = case.config, case.input("x")
    dim, heads, grid = c["dim"], c["num_heads"], tuple(c["window_size"])
    attention = with_formula(case, Attention(dim, heads), linear("qkv", 3 * dim, dim) | linear("proj", dim, dim))
    table = {"relative_position_bias_table": ((2 * grid[0] - 1) * (2 * grid[1] - 1), heads)}
    bias = with_formula(case, RelativePositionBias(grid, heads), table)()
    mask = case.input("mask")
    masks = mask.repeat(len(x) // len(mask), 1, 1).unsqueeze(1)  # window b takes mask b % windows: (B, 1, N, N)
    return {"y_nomask": attention(x, bias), "y_mask": attention(x, bias + masks)}


def position_embeddings(case: Case) -> dict:
    out = {}
    for name in case.golden.outputs:
        kind, *rest = name.split("_")
        tokens = int(rest[0][3:]) if kind == "timm" else 1
        grid = tuple(int(n) for n in rest[1 if kind == "timm" else 0].split("x"))
        embedding = case.golden.input(f"pre{tokens}").to(case.device)
        if name.endswith("_aa"):
            out[name] = resize_position_embedding(embedding, tokens, grid)
        else:
            out[name] = resize_positions(embedding, tokens, grid, align_corners=kind == "tv")
    return out


def drop_path(case: Case) -> dict:
    """Random: the share kept, what a kept sample is multiplied by, and the mean; and the rates over depth.

    The file's own 20,000 draws stray by up to 0.013; with many more of ours, only that remains.
    """
    torch.manual_seed(0)
    n, out = 100 * case.config["n"], {"rates_depth6_0.2": np.array(drop_path_rates(0.2, 6))}
    for name in case.golden.outputs:
        if not name.startswith(("p0", "tv_row")):
            continue
        p = float(name.removeprefix("tv_row").removeprefix("p").removesuffix("_noscale"))
        y = DropPath(p).train()(torch.ones(n, 2))
        assert torch.equal(y[:, 0], y[:, 1])  # a sample shares its fate
        kept = y[y > 0].mean() if "noscale" not in name else torch.tensor(1.0)
        stats = torch.stack([(y[:, 0] > 0).double().mean(), kept.double(), y.double().mean()])
        out[name] = kept if "noscale" in name else stats[: case.golden.outputs[name].size]
    return out


CASES = {
    "timm_vit_tiny": vit,
    "timm_vit_tiny_layerscale": vit,
    "timm_deit_distilled_tiny": deit,
    "timm_cait_tiny": cait,
    "tv_vit_tiny": torchvision_vit,
    "timm_vit_tiny_from_tv": torchvision_vit,
    "timm_cait_class_attn": class_attention,
    "timm_cait_talking_head": talking_heads,
    "timm_cait_block": cait_block,
    "timm_cait_block_class_attn": cait_class_block,
    "timm_layerscale": layer_scale,
    "timm_relposbias": relative_position_bias,
    "timm_swin_window_attn": window_attention,
    "posembed_interp": position_embeddings,
    "timm_droppath": drop_path,
}
