"""Equal and faster forms of Grounding DINO's modules: accelerate(model) switches a whole model to them.

Each class below replaces the forward pass of the class it derives from; parameters, their names and the results (up to
rounding) stay. Its docstring says why it is equal, and what is gained. Tests hold each against its plain form.
"""

from itertools import repeat
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .deformable_attention import MSDeformAttn, deformable_sample
from .fusion import BiAttentionBlock, BiMultiHeadAttention
from .geometry import Geometry, Shapes
from .swin import MLP, WindowAttention
from .transformer import EncoderLayer

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model) -> Model:
    """Give every module of a model its faster form, in place; return the model."""
    for module in model.modules():
        module.__class__ = FORMS.get(type(module), type(module))
    return model


# --- Fusion ------------------------------------------------------------------------------------------------


class FoldedBiMultiHeadAttention(BiMultiHeadAttention):
    """Fusion with the projections of the image tokens folded into the text's side.

    Few text tokens meet many image tokens, so every projection of the image tokens is moved to the text's side, by
    associativity:
        scores   (v Wq + bq) . k  =  v . (Wq k) + bq . k
        read_v   (p u) Ov         =  p (u Ov)
        read_l   a (v Wv + bv)    =  (a v) Wv + bv          as the weights a sum to one
    with k and u the projected keys and values of the text, p and a the attention weights over text and image. The h
    heads of L text tokens stand in one matrix of h * L rows.
    """

    def forward(self, v: Tensor, l: Tensor, valid_v: Tensor | None, valid_l: Tensor | None) -> tuple[Tensor, Tensor]:
        (B, L, _), h = l.shape, self.heads
        scores = self.scores(v, l)  # (B, h * L, S)
        over_text = scores.view(B, h, L, -1)
        if valid_l is not None:
            over_text = over_text.masked_fill(~valid_l[:, None, :, None], -torch.inf)
        over_text = over_text.softmax(2).flatten(1, 2)
        read_v = torch.baddbmm(self.out_v_proj.bias, over_text.transpose(1, 2), self.text_values(l))
        if valid_v is not None:
            scores = scores.masked_fill(~valid_v[:, None], -torch.inf)
        return read_v, self.read_image(scores.softmax(-1), v)

    def scores(self, v: Tensor, l: Tensor) -> Tensor:
        """(B, h * L, S): scaled dot products of the projected tokens."""
        key = self.split_heads(self.l_proj(l)) * self.scale  # (B, h, L, d)
        folded = key @ self.v_proj.weight.view(self.heads, -1, v.shape[-1])  # (h, d, C) -> (B, h, L, C)
        bias = key @ self.v_proj.bias.view(self.heads, -1, 1)  # (B, h, L, 1)
        return folded.flatten(1, 2) @ v.transpose(1, 2) + bias.flatten(1, 2)

    def text_values(self, l: Tensor) -> Tensor:
        """(B, h * L, C): each text token's value, already through the head's part of the output projection."""
        value = self.split_heads(self.values_l_proj(l))  # (B, h, L, d)
        output = self.out_v_proj.weight.view(l.shape[-1], self.heads, -1).permute(1, 2, 0)  # (h, d, C)
        return (value @ output).flatten(1, 2)

    def read_image(self, weights: Tensor, v: Tensor) -> Tensor:
        """weights (B, h * L, S) -> (B, L, C): mix the raw image tokens first, project the few results."""
        (B, _, C), h = v.shape, self.heads
        mixed = (weights @ v).view(B, h, -1, C)  # (B, h, L, C)
        read = mixed @ self.values_v_proj.weight.view(h, -1, C).transpose(1, 2)  # (h, C, d) -> (B, h, L, d)
        return self.out_l_proj(read.transpose(1, 2).flatten(2) + self.values_v_proj.bias)


class FusedBiAttentionBlock(BiAttentionBlock):
    """The scaled residual v + gamma * read_v in one pass, without a temporary of the size of all image tokens."""

    def forward(self, v: Tensor, l: Tensor, valid_v: Tensor | None, valid_l: Tensor | None) -> tuple[Tensor, Tensor]:
        v, l = self.layer_norm_v(v), self.layer_norm_l(l)
        read_v, read_l = self.attn(v, l, valid_v, valid_l)
        return torch.addcmul(v, self.gamma_v, read_v), torch.addcmul(l, self.gamma_l, read_l)


# --- Deformable attention ----------------------------------------------------------------------------------


class GatheredMSDeformAttn(MSDeformAttn):
    """Equation 3 as one weighted gather, where no gradient is wanted.

    A bilinear sample is a weighted sum of four cells, so the sum over levels, points and corners is a weighted sum of
    4 * levels * K rows of `value`: one `embedding_bag`. It needs no map of its own for each head, and its temporaries
    are row numbers and weights. Its gradient would have to sort those rows; with gradients the plain form runs.
    """

    def forward(self, query: Tensor, reference: Tensor, value: Tensor, shapes: Shapes, valid: Tensor | None) -> Tensor:
        return self.attend(query, reference, self.project_value(value, valid), shapes)

    def attend(self, query: Tensor, reference: Tensor, value: Tensor, shapes: Shapes) -> Tensor:
        """The forward pass for projected values (B, S, h, d)."""
        sample = deformable_sample if torch.is_grad_enabled() and value.requires_grad else gather_samples
        return self.output_proj(sample(value, shapes, *self.sampling_points(query, reference, shapes)))


def gather_samples(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The same as `deformable_sample`, as one gather of weighted rows."""
    (B, S, h, d), (_, Q, _, _, points) = value.shape, weights.shape
    width, height, start = level_table(shapes, points, value.device)
    x, y = locations.flatten(3, 4).unbind(-1)  # (B, Q, h, N), N = levels * points
    column, across = neighbours(x, width)  # (B, Q, h, 2, N)
    line, down = neighbours(y, height)
    # Row of the table (B * S * h, d) where cell (line, column) of the head's own map stands.
    image = torch.arange(B, device=value.device, dtype=torch.int32).view(B, 1, 1, 1, 1) * S
    head = torch.arange(h, device=value.device, dtype=torch.int32).view(h, 1, 1)
    line = (line * width + (start + image)) * h + head
    rows = line[..., :, None, :] + (column * h)[..., None, :, :]  # (B, Q, h, 2, 2, N)
    share = (weights.flatten(3).float()[..., None, :] * down)[..., :, None, :] * across[..., None, :, :]
    out = F.embedding_bag(
        rows.view(B * Q * h, -1),
        value.reshape(B * S * h, d),
        mode="sum",
        per_sample_weights=share.view(B * Q * h, -1).to(value.dtype),
    )
    return out.view(B, Q, h * d)


def level_table(shapes: Shapes, points: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Width, height and first row of the level that each of the levels * points samples reads, int32."""
    starts = [sum(h * w for h, w in shapes[:i]) for i in range(len(shapes))]
    columns = zip(*((w, h, start) for (h, w), start in zip(shapes, starts)))
    return tuple(torch.tensor(c, dtype=torch.int32, device=device).repeat_interleave(points) for c in columns)


def neighbours(coordinate: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The two cells (int32) on either side of a coordinate (a fraction of `size`), and the share of each.

    (B, Q, h, N) -> 2 x (B, Q, h, 2, N). A cell outside the map gets share 0, and any number inside it.
    """
    pixel = coordinate * size - 0.5
    low = pixel.floor()
    cells = torch.stack((low, low + 1), -2)
    share = torch.stack((low + 1 - pixel, pixel - low), -2) * ((cells >= 0) & (cells < size))
    # Clamped as integers, so that even a NaN of a diverged training names an existing row.
    return torch.minimum(cells.int().clamp_(min=0), size.int() - 1), share


# --- Token-wise work in parts ------------------------------------------------------------------------------

# On a CPU, temporaries of a few MB stay in its cache and reuse their memory, where large ones are mapped and faulted
# in anew in every layer. On a GPU nothing is split.
PART = 2**21  # numbers in the largest temporary: 8 MB in float32


def rows_at_once(x: Tensor, width: int) -> int:
    """How many tokens to treat at one time, when each needs a temporary of `width` numbers."""
    return max(1, PART // width) if x.device.type == "cpu" else max(1, x.numel())


class EncoderLayerInParts(EncoderLayer):
    """Some image tokens at a time: once all values are projected, the update of a token needs no other token."""

    def forward(self, x: Tensor, position: Tensor, geometry: Geometry) -> Tensor:
        value = self.self_attn.project_value(x, geometry.valid)
        rows = rows_at_once(x, self.linear1.out_features)
        parts = zip(*(t.split(rows, 1) for t in (x, position, geometry.reference)))
        return torch.cat([self.update(*part, value, geometry.shapes) for part in parts], 1)

    def update(self, x: Tensor, position: Tensor, reference: Tensor, value: Tensor, shapes: Shapes) -> Tensor:
        """The layer for n of the tokens: x and position (B, n, C), reference (B, n, levels, 2), value (B, S, h, d)."""
        x = self.norm1(x + self.self_attn.attend(x + position, reference, value, shapes))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x), inplace=True)))


class WindowAttentionInParts(WindowAttention):
    """Some windows at a time: no window sees another."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        windows, N, C = x.shape
        rows = rows_at_once(x, 3 * N * C)
        masks = repeat(None) if mask is None else mask.repeat(windows // len(mask), 1, 1).split(rows)
        return torch.cat([WindowAttention.forward(self, *part) for part in zip(x.split(rows), masks)])


class MLPInParts(MLP):
    """Some tokens at a time, in Swin's MLP."""

    def forward(self, x: Tensor) -> Tensor:
        parts = x.flatten(0, -2).split(rows_at_once(x, self.fc1.out_features))
        return torch.cat([MLP.forward(self, part) for part in parts]).unflatten(0, x.shape[:-1])


FORMS = {
    BiAttentionBlock: FusedBiAttentionBlock,
    BiMultiHeadAttention: FoldedBiMultiHeadAttention,
    MSDeformAttn: GatheredMSDeformAttn,
    EncoderLayer: EncoderLayerInParts,
    MLP: MLPInParts,
    WindowAttention: WindowAttentionInParts,
}
