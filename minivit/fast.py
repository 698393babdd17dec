"""Equal and faster forms of a model's parts, switched on for a whole model: `accelerate(model)`.

The classes of attention.py, cait.py and vit.py are the papers' formulas. Each class here subclasses
one of them, keeps its parameters and their names, and computes the same function with less work; its
docstring has the algebra, and where the formula is the faster one after all. Checkpoints fit both. The
trainer and the command line switch the forms on; for reading, exporting or changing a model none is needed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.attention import Attention, Temperature, merge_heads, split_heads
from minivit.cait import ClassAttention, TalkingHeadsAttention
from minivit.layers import MLP, DropPath, LayerScale
from minivit.position_bias import DecomposedPositionBias, RelativePositionBias, TokenBias
from minivit.vit import Block, VisionTransformer

# In fp32 on two cores of an EPYC (Zen 3) attention over so few tokens trains 1.0 to 2.4 times as fast by the formula,
# on one core a whole step of our presets 0.96 to 1.12 times; over 257 tokens the formula takes twice as long.
FEW_TOKENS = 100


class FusedAttention(Attention):
    """Self-attention through PyTorch's fused kernel, which never holds the (N, N) scores of a head in memory.

    Training on a CPU stays with the formula in bf16, where the fused kernel's backward pass takes two to three
    times as long, and for few tokens, where the kernel gains nothing from a second core. So does torch.export: the
    kernel returns (B, h, N, d) laid out in memory as (B, N, h, d), so that merging the heads becomes a view, which
    fails once ONNX's exporter has replaced the kernel by products that return another layout.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if is_exporting() or (v.requires_grad and trains_faster_by_the_formula(v)):
            return super().attend(q, k, v, bias)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))


class FoldedClassAttention(ClassAttention):
    """Class-attention that never forms keys and values.

    T queries meet T + N keys, and T is much smaller than N. With k = W_k x + b_k and v = W_v x + b_v,

        q . k_n = (W_k^T q) . x_n + q . b_k     and     sum_n a_n v_n = W_v (sum_n a_n x_n) + b_v,

    since the weights a_n sum to one. q . b_k is the same for all n, so the softmax takes it out. This
    moves both projections from T + N tokens to T * h vectors. Layers that is_as_built refuses stay with the formula.
    """

    def forward(self, x: Tensor, tokens: int, bias: Tensor | None = None) -> Tensor:
        if not is_as_built(self):
            return super().forward(x, tokens, bias)
        h, C = self.heads, x.shape[-1]
        q = split_heads(self.q(x[:, :tokens]), h)  # (B, h, T, d)
        d = q.shape[-1]
        w_k, w_v = self.kv.weight.view(2, h, d, C).unbind(0)  # each (h, d, C)
        b_v = self.kv.bias.view(2, h, 1, d)[1]
        queries = torch.einsum("bhtd,hdc->bhtc", q * d**-0.5, w_k)  # W_k^T q
        scores = torch.einsum("bhtc,bnc->bhtn", queries, x)  # (B, h, T, T + N)
        if bias is not None:
            scores = scores + bias
        weights = scores.softmax(dim=-1).to(x.dtype)
        means = torch.einsum("bhtn,bnc->bhtc", weights, x)  # sum_n a_n x_n
        out = torch.einsum("bhtc,hdc->bhtd", means, w_v) + b_v
        return F.dropout(self.proj(merge_heads(out)), self.dropout, self.training)


class HeadTokensTransformer(VisionTransformer):
    """A Vision Transformer whose last block computes only the tokens that a head reads.

    With pool "cls" and no class-attention tail the heads read the T special tokens alone. Outputs of the
    last block at the patches then reach no logit, so their queries, output projections and MLP are not
    computed. Keys and values of all tokens are. `features` still returns all tokens, and a last block that
    is_as_built refuses computes all of them.
    """

    def forward(self, x: Tensor, each_head: bool = False) -> Tensor | tuple[Tensor, ...]:
        if not self.skips_patches:
            return super().forward(x, each_head)
        grid = self.grid_of(x)
        x = self.embed(x)
        for block in self.blocks[:-1]:
            x = self.through(block, x, grid)
        logits = self.heads(self.norm(run_block(self.blocks[-1], x, self.config.tokens, grid)))
        return logits if each_head else sum(logits) / len(logits)

    @property
    def skips_patches(self) -> bool:
        """Whether the last block computes the special tokens alone."""
        reads_few = self.config.pool == "cls" and not self.config.class_attention
        return reads_few and len(self.blocks) > 0 and is_as_built(self.blocks[-1])


def unused_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that no logit depends on, which get no gradient: of the convolution over the patches in the last
    MLP, where only the special tokens go through that block."""
    skips_patches = isinstance(model, HeadTokensTransformer) and model.skips_patches
    return [*model.blocks[-1].mlp.conv.parameters()] if skips_patches and model.config.mlp_conv else []


def run_block(block: Block, x: Tensor, tokens: int, grid: tuple[int, int]) -> Tensor:
    """Compute block(x, grid)[:, :tokens] of x (B, T + N, C), and nothing else: (B, T, C)."""
    bias = block.bias(grid) if block.bias is not None else None
    x = x[:, :tokens] + block.drop_path(block.ls1(run_attention(block.attn, block.norm1(x), tokens, bias)))
    return x + block.drop_path(block.ls2(block.mlp(block.norm2(x))))


def run_attention(attention: Attention, x: Tensor, tokens: int, bias: Tensor | None) -> Tensor:
    """Compute attention(x, bias)[:, :tokens] of x (B, T + N, C): queries of T tokens, keys and values of all."""
    C = x.shape[-1]
    weight, offset = attention.qkv.weight, attention.qkv.bias
    q_offset, kv_offset = (None, None) if offset is None else (offset[:C], offset[C:])
    q = F.linear(x[:, :tokens], weight[:C], q_offset)
    k, v = F.linear(x, weight[C:], kv_offset).chunk(2, dim=-1)
    q, k, v = (split_heads(t, attention.heads) for t in (q, k, v))
    bias = None if bias is None else bias[:, :, :tokens]
    out = attention.attend(attention.q_norm(q), attention.k_norm(k), v, bias)
    return F.dropout(attention.proj(merge_heads(out)), attention.dropout, attention.training)


FORMS: dict[type[nn.Module], type[nn.Module]] = {
    Attention: FusedAttention,
    ClassAttention: FoldedClassAttention,
    VisionTransformer: HeadTokensTransformer,
}


def accelerate(model: nn.Module) -> nn.Module:
    """Give each part of `model` its faster form, in place, and return the model. Parameters and names stay."""
    for module in model.modules():
        if type(module) in FORMS:
            module.__class__ = FORMS[type(module)]
    return model


def decelerate(model: nn.Module) -> nn.Module:
    """Give each part of `model` its formula back, in place, and return the model."""
    formulas = {fast: plain for plain, fast in FORMS.items()}
    for module in model.modules():
        module.__class__ = formulas.get(type(module), type(module))
    return model


PARTS = {
    *(Block, Attention, TalkingHeadsAttention, FusedAttention, ClassAttention, FoldedClassAttention, Temperature),
    *(MLP, LayerScale, DropPath, RelativePositionBias, DecomposedPositionBias, TokenBias),
    *(nn.Linear, nn.LayerNorm, nn.Conv2d, nn.Identity),
}


def is_as_built(module: nn.Module) -> bool:
    """Whether all parts of a module are of its own classes, without hooks.

    Forms that read the weights of layers, or compute fewer tokens, are equal for these alone. A layer with an adapter,
    in int8 or pruned, a block of another kind, one whose outputs are watched and one with a forward of its own have to
    be called.
    """
    return all(type(part) in PARTS and not has_hooks(part) and "forward" not in vars(part) for part in module.modules())


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks run before or after this module, forward or backward."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(map(len, hooks))


def is_exporting() -> bool:
    """Whether torch.export traces the model; PyTorch 2.6 does not tell."""
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()


def trains_faster_by_the_formula(v: Tensor) -> bool:
    """Whether a CPU trains faster by the formula of attention than by the fused kernel, with values v (B, h, N, d)."""
    in_low_precision = torch.is_autocast_enabled("cpu") or v.dtype in (torch.bfloat16, torch.float16)
    return v.device.type == "cpu" and (in_low_precision or v.shape[-2] <= FEW_TOKENS)
