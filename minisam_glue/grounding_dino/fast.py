"""Equal and faster forms of Grounding DINO's modules: accelerate(model) switches a whole model to them.

Each class below replaces the forward pass of the class it derives from; parameters, their names and the results (up to
rounding) stay. Its docstring says why it is equal, and what is gained. Tests hold each against its plain form.
"""

from itertools import repeat
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import as_built
from .deformable_attention import MSDeformAttn
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
        if not as_built(self.v_proj, self.values_v_proj, self.out_v_proj):
            return super().forward(v, l, valid_v, valid_l)
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
    """Equation 3 as weighted gathers from one table, where no gradient is wanted.

    A bilinear sample is a weighted sum of four cells, so the sum over levels and points is the sum of N = levels * K
    rows of the table for each of the four corners: four calls of `embedding_bag` (its gradient would have to sort the
    rows; with gradients the plain form runs). `lay_out` puts all levels into one map of one width, with zeros between
    them. So one row number per sample is enough: the other three corners have the same number in the table shifted by
    1, W and W + 1 rows, and a corner outside its level falls on a zero, so that no masks are needed. On a CPU at small
    sizes this takes a third of the time of four numbers and masks for each sample.
    """

    def forward(self, query: Tensor, reference: Tensor, value: Tensor, shapes: Shapes, valid: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() or query.device.type == "mps":  # which has no embedding_bag before PyTorch 2.10
            return super().forward(query, reference, value, shapes, valid)
        return self.attend(query, reference, lay_out(self.project_value(value, valid), shapes), shapes)

    def attend(self, query: Tensor, reference: Tensor, canvas: Tensor, shapes: Shapes) -> Tensor:
        """The forward pass for projected values that are laid out, without gradients."""
        pixels, weights = self.sampling_pixels(query, reference, shapes)
        return self.output_proj(gather_pixels(canvas, shapes, pixels, weights))

    def sampling_pixels(self, query: Tensor, reference: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
        """Points of sampling_points, with locations (B, Q, h, N, 2) in cells of each level, and weights (B, Q, h, N).

        location * size - 1/2, with the size multiplied in before heads and points multiply the work: a reference point
        becomes point * size - 1/2 + offset, and a box centre * size - 1/2 + offset * (side * size / 2K).
        """
        sizes = level_sizes(shapes, query.device)
        offsets = self.sampling_offsets(query).float().unflatten(-1, (self.heads, -1))  # (B, Q, h, N * 2)
        pixels = self.for_all_points(reference[..., :2] * sizes - 0.5)
        if reference.shape[-1] == 4:
            offsets *= self.for_all_points(reference[..., 2:] * sizes * (0.5 / self.points))
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)
        return (offsets + pixels).unflatten(-1, (-1, 2)), weights

    def for_all_points(self, x: Tensor) -> Tensor:
        """(B, Q, levels, 2) -> (B, Q, 1, N * 2): the same for the K points of a level."""
        return x[:, :, None, :, None].expand(-1, -1, -1, -1, self.points, -1).flatten(3)


def level_sizes(shapes: Shapes, device: torch.device) -> Tensor:
    """(levels, 2): width and height, in cells."""
    return torch.tensor(shapes, dtype=torch.float32, device=device).flip(-1)


def first_rows(shapes: Shapes) -> list[int]:
    """Row of the canvas of `lay_out` where each level begins: after one row of zeros, and one between levels."""
    return [1 + sum(height + 1 for height, _ in shapes[:i]) for i in range(len(shapes))]


def lay_out(value: Tensor, shapes: Shapes) -> Tensor:
    """Values (B, S, h, d) of all levels on one canvas (B, h, rows, W, d), below each other and zero around each.

    One column of zeros separates the rows: it is left of one row and right of the row above. Two more rows are
    at the end, because the lower right corner of a sample below the last level is read too (with weight 0).
    """
    B, _, h, d = value.shape
    rows, W = first_rows(shapes), max(width for _, width in shapes) + 1
    canvas = value.new_zeros(B, h, rows[-1] + shapes[-1][0] + 3, W, d)
    levels = value.split([height * width for height, width in shapes], 1)
    for level, row, (height, width) in zip(levels, rows, shapes):
        canvas[:, :, row : row + height, 1 : 1 + width] = level.unflatten(1, (height, width)).permute(0, 3, 1, 2, 4)
    return canvas


def gather_pixels(canvas: Tensor, shapes: Shapes, pixels: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of samples: pixels (B, Q, h, N, 2), the points of a level in a row, weights (B, Q, h, N).

    canvas: from `lay_out` -> (B, Q, h * d).
    """
    (B, h, rows, W, d), (_, Q, _, N) = canvas.shape, weights.shape
    sizes = level_sizes(shapes, canvas.device).repeat_interleave(N // len(shapes), 0)  # (N, 2)
    # Whatever is further outside than one cell reads zeros like what is one cell outside.
    pixels = pixels.clamp(torch.full_like(sizes, -1), sizes)
    low = pixels.floor()
    x, y = (pixels - low).unbind(-1)  # how far to the right, and down
    starts = torch.tensor([row * W + 1 for row in first_rows(shapes)], dtype=torch.int32, device=canvas.device)
    maps = torch.arange(B * h, dtype=torch.int32, device=canvas.device).view(B, 1, h, 1) * (rows * W)
    table = canvas.view(-1, d)
    cell = torch.add(low[..., 0], low[..., 1], alpha=W).int()
    cell += maps + starts.repeat_interleave(N // len(shapes))
    # Even a NaN of a diverged training must name an existing row.
    cell = cell.clamp_(0, len(table) - W - 2).view(-1, N)
    lower = weights.float() * y
    upper = weights - lower
    lower_right, upper_right = lower * x, upper * x
    shares = (upper - upper_right, 0), (upper_right, 1), (lower - lower_right, W), (lower_right, W + 1)
    out = sum(
        F.embedding_bag(cell, table[step:], mode="sum", per_sample_weights=share.view(-1, N).to(table.dtype)).float()
        for share, step in shares
    )
    return out.to(canvas.dtype).view(B, Q, h * d)


# --- Token-wise work in parts ------------------------------------------------------------------------------

# On a CPU, temporaries of a few MB stay in its cache and reuse their memory, where large ones are mapped and faulted
# in anew in every layer. On a GPU nothing is split.
PART = 2**21  # numbers in the largest temporary: 8 MB in float32


def rows_at_once(x: Tensor, width: int) -> int:
    """The number of tokens to treat at one time, when each needs a temporary of `width` numbers."""
    return max(1, PART // width) if x.device.type == "cpu" else max(1, x.numel())


class EncoderLayerInParts(EncoderLayer):
    """Some image tokens at a time: once all values are projected, the update of a token needs no other token."""

    def forward(self, x: Tensor, position: Tensor, geometry: Geometry) -> Tensor:
        if torch.is_grad_enabled() or x.device.type == "mps":  # as above
            return super().forward(x, position, geometry)
        canvas = lay_out(self.self_attn.project_value(x, geometry.valid), geometry.shapes)
        rows = rows_at_once(x, self.linear1.out_features)
        parts = zip(*(t.split(rows, 1) for t in (x, position, geometry.reference)))
        return torch.cat([self.update(*part, canvas, geometry.shapes) for part in parts], 1)

    def update(self, x: Tensor, position: Tensor, reference: Tensor, canvas: Tensor, shapes: Shapes) -> Tensor:
        """The layer for n of the tokens: x and position (B, n, C), reference (B, n, levels, 2); canvas: of all."""
        x = self.norm1(x + self.self_attn.attend(x + position, reference, canvas, shapes))
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
