"""CaiT's parts: talking heads for the blocks over all tokens, class-attention for the last blocks.

CaiT: Touvron et al., "Going deeper with Image Transformers", arXiv 2103.17239, section 3 and figure 2.
Talking heads: Shazeer et al., arXiv 2003.02436. CaiT has two stages. In the first, self-attention, the
patches attend to each other. In the second, the class-attention tail, only the special tokens (class,
distillation) change, and the patches stay as the first stage left them. In the paper the special tokens
join at the second stage (ViTConfig.tokens_enter_late); otherwise they go through the first one too.

Compared with self-attention over T special tokens and N patches, class-attention leaves out:

- the queries of the patches: only the T special tokens have queries, so the scores are T x (T + N), not
  (T + N) x (T + N), and the cost grows linearly with N;
- every update of the patches: no attention output, no residual and no MLP for them. The MLP of the
  block sees T tokens.

Nothing is left out of what the special tokens read: keys and values come from all T + N tokens, after the
block's own layer norm. Talking heads, normalised queries and keys, a learned temperature, projections
without biases, and SiLU and the convolution in the MLP are options of the full blocks alone.
Different from CaiT's code: stochastic depth, which there has one rate in all full blocks and none in the tail,
rises linearly through both, and dropout acts in both.
B is batch, C channels, h heads, d channels per head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.attention import Attention, check_heads, merge_heads, scaled_dot_product_attention, split_heads
from minivit.layers import MLP, DropPath, make_layer_scale


class TalkingHeadsAttention(Attention):
    """Self-attention whose heads are mixed linearly before and after the softmax: (B, N, C) -> (B, N, C).

    The position bias is added after the first mix. The paper's projections have no biases; CaiT's code has them.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float = 0.0,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        qk_temperature: bool = False,
        biases: bool = True,
    ):
        super().__init__(dim, heads, dropout, qk_norm, norm_eps, qk_temperature, biases)
        self.proj_l = nn.Linear(heads, heads)  # CaiT's names: mixes the logits
        self.proj_w = nn.Linear(heads, heads)  # mixes the weights

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, h, Q, N)
        scores = mix_heads(scores, self.proj_l)
        if bias is not None:
            scores = scores + bias
        return mix_heads(scores.softmax(dim=-1), self.proj_w) @ v


def mix_heads(x: Tensor, linear: nn.Linear) -> Tensor:
    """Apply a linear layer over the heads of (B, h, Q, N)."""
    return linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ClassAttention(nn.Module):
    """Attention of the T special tokens to all tokens, themselves included: (B, T + N, C) -> (B, T, C).

    With the paper's names, and x_class for all T tokens (the paper has one):

        z = [x_class, x_patches]
        Q = W_q x_class + b_q,   K = W_k z + b_k,   V = W_v z + b_v
        A = softmax(Q K^T / sqrt(C / h)),   out = W_o A V + b_o

    `q` is W_q, `kv` W_k and W_v, `proj` W_o. ValueError if `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.dropout = dropout
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, tokens: int, bias: Tensor | None = None) -> Tensor:
        """x: (B, T + N, C), the special tokens first; tokens: T, their number; bias broadcasts to (B, h, T, T + N)."""
        q = split_heads(self.q(x[:, :tokens]), self.heads)  # (B, h, T, d): queries of the special tokens only
        k, v = (split_heads(t, self.heads) for t in self.kv(x).chunk(2, dim=-1))  # each (B, h, T + N, d)
        out = self.attend(q, k, v, bias)  # (B, h, T, d)
        return F.dropout(self.proj(merge_heads(out)), self.dropout, self.training)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of queries to keys, by head. q: (B, h, T, d); k, v: (B, h, T + N, d) -> (B, h, T, d)."""
        return scaled_dot_product_attention(q, k, v, bias)


class ClassBlock(nn.Module):
    """Block of the class-attention tail: special tokens (B, T, C), patches (B, N, C) -> new special tokens (B, T, C).

    hidden: channels inside the MLP. drop_path: probability of dropping a branch. layer_scale: the gain
    at the start, None for no LayerScale. position_bias: a module that gives scores (1, h, T, T + N).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm_eps: float = 1e-6,
        position_bias: nn.Module | None = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = ClassAttention(dim, heads, dropout)
        self.bias = position_bias
        self.ls1 = make_layer_scale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, hidden, dropout)
        self.ls2 = make_layer_scale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, special: Tensor, patches: Tensor) -> Tensor:
        """The patches are read and not changed, so the caller passes the same ones to the next block."""
        x = self.norm1(torch.cat([special, patches], dim=1))  # (B, T + N, C)
        bias = self.bias() if self.bias is not None else None
        special = special + self.drop_path(self.ls1(self.attn(x, special.shape[1], bias)))
        return special + self.drop_path(self.ls2(self.mlp(self.norm2(special))))
