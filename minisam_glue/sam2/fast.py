"""Equal and faster forms of SAM 2's modules. accelerate(model) switches a whole model to them.

    model = accelerate(load("sam2.1_hiera_small.pt"))

Each class here has the parameters and the arguments of the plain class that it stands for, and gives the same
numbers up to rounding; its docstring says why. They are made for inference: gradients pass, but where that would
need another path the plain one is taken; so it is where a linear layer was replaced (LoRA, int8) or has a hook.
Convolutions of the neck and the decoder are read, not called: give them no hooks.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..layers import as_built
from .hiera import Hiera, HieraBlock, from_windows, max_pool, to_windows
from .layers import Attention, LayerNorm2d, sine_position_2d
from .mask_decoder import STABILITY, MaskDecoder, stability
from .memory import POSITION_WEIGHT, MemoryAttention, RotaryAttention, axial_angles
from .memory_bank import POINTERS, MemorySelection
from .model import SAM2, ImageFeatures

FEW = 16  # up to this many prompt tokens the folded attention does fewer multiplications than the plain one
CPU_TOKENS = 4096  # of a map, that a CPU's cache holds with what a block makes of them


class FewTokensAttention(Attention):
    """Attention where a few prompt tokens meet a whole image: the projections of the image move to the tokens.

    Tokens to image: q . (W k + b) = (W^T q) . k + q . b, and q . b shifts all scores of a query alike, so that
    softmax does not see it. As the weights of a query sum to one, sum_j w_j (W v_j + b) = W (sum_j w_j v_j) + b.
    Image to tokens: (W q + b) . k = q . (W^T k) + b . k; and the output projection of a sum over few tokens is the
    sum of their projected values. No projected copy of the image is made.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not len(q) or not len(k):  # no prompts at all: there is nothing to save
            return super().forward(q, k, v)
        if not as_built(self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            return super().forward(q, k, v)
        if q.shape[1] <= FEW and q.shape[1] < k.shape[1] and len(k) in (1, len(q)):  # else q is one small image
            return self.token_to_image(q, k, v)
        if k.shape[1] <= FEW and k.shape[1] < q.shape[1]:
            return self.image_to_token(q, k, v)
        return super().forward(q, k, v)

    def per_head(self, projection: nn.Linear) -> Tensor:
        """The weight (h * d, C) of a projection as (h, d, C)."""
        return projection.weight.unflatten(0, (self.heads, -1))

    def token_to_image(self, tokens: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """tokens (B, N, C), k and v (B or 1, M, C) -> (B, N, C)."""
        q = self.split(self.q_proj(tokens))  # (B, h, N, d)
        q = q * q.shape[-1] ** -0.5 @ self.per_head(self.k_proj)  # (B, h, N, C)
        # With one image for all, (B, h, N, C) becomes (1, B * h * N, C): a single product.
        weights = (q.reshape(k.shape[0], -1, q.shape[-1]) @ k.mT).softmax(-1)
        x = (weights @ v).view_as(q) @ self.per_head(self.v_proj).mT  # (B, h, N, d)
        return self.out_proj(x.transpose(1, 2).flatten(2) + self.v_proj.bias)

    def image_to_token(self, image: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """image (B or 1, M, C), k and v (B, N, C) -> (B, M, C)."""
        B, N, _ = k.shape
        k = self.split(self.k_proj(k))  # (B, h, N, d)
        k = k * k.shape[-1] ** -0.5
        bias = (k @ self.q_proj.bias.unflatten(0, (self.heads, -1, 1))).view(B, 1, -1)  # (B, 1, h * N)
        k = (k @ self.per_head(self.q_proj)).flatten(1, 2)  # (B, h * N, C)
        weights = (image @ k.mT + bias).unflatten(-1, (self.heads, N)).softmax(-1).flatten(-2)  # (B, M, h * N)
        v = self.split(self.v_proj(v)) @ self.out_proj.weight.T.unflatten(0, (self.heads, -1))  # (B, h, N, C)
        return weights @ v.flatten(1, 2) + self.out_proj.bias


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # a table made while tracking must serve training too
def rotary_table(grid: int, dim: int, device: torch.device) -> Tensor:
    """Unit complex numbers (N, dim / 2) whose angles are those of axial_angles."""
    angles = axial_angles(grid, dim, device)
    return torch.polar(torch.ones_like(angles), angles)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def sine_table(grid: int, dim: int, device: torch.device) -> Tensor:
    """sine_position_2d of a square grid, which is the same for each frame of a video."""
    return sine_position_2d(grid, grid, dim, device)


def rotate_complex(x: Tensor, table: Tensor) -> Tensor:
    """Turn each pair of channels (2 i, 2 i + 1) of x (..., N, dim), as a complex number times table[:, i]."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


class FastRotaryAttention(RotaryAttention):
    """Rotary attention with complex numbers from a table, and off CUDA with values that are summed first.

    (a + i b)(cos + i sin) = (a cos - b sin) + i (a sin + b cos) turns a pair of channels. The angles depend on the size
    of the map alone. And as the weights of a query sum to one, sum_j w_j (W v_j + b) = W (sum_j w_j v_j) + b: memories
    have fewer channels, officially a quarter.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, pointers: int = 0) -> Tensor:
        if torch.compiler.is_compiling() or q.device.type == "mps":  # complex numbers are not at home there
            return super().forward(q, k, v, pointers)
        q, k = self.q_proj(q), self.k_proj(k)
        N, M, dim = q.shape[1], k.shape[1] - pointers, q.shape[2]
        table = rotary_table(round(N**0.5), dim, q.device)
        maps = rotate_complex(k[:, :M].unflatten(1, (-1, N)), table)  # (B, F * N, d) -> (B, F, N, d)
        q, k = rotate_complex(q, table), torch.cat((maps.flatten(1, 2), k[:, M:]), 1)
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v, self.v_proj.weight))
        if q.is_cuda or wanted or v.shape[2] == dim:
            return self.attend(q, k, self.v_proj(v))
        return self.out_proj(self.v_proj(weighted_sum(q * dim**-0.5, k, v)))


def weighted_sum(q: Tensor, k: Tensor, v: Tensor, rows: int = 512, columns: int = 2048) -> Tensor:
    """softmax(q k^T) v for q (B or 1, N, C), k (B, M, C), v (B, M, c), in tiles of scores that fit into a cache.

    The softmax is the online one of Milakov and Gimelshein, arXiv 1805.02867: when a tile brings a new maximum,
    the sums so far are scaled to it. Each object is computed by itself. It works in place: no gradients.
    """
    out = v.new_empty(len(k), q.shape[1], v.shape[2])
    for b in range(len(k)):
        tiles = list(zip(k[b].split(columns), v[b].split(columns)))
        for i, queries in enumerate(q[b % len(q)].split(rows)):
            top = torch.full((len(queries), 1), -torch.inf, dtype=torch.float32, device=q.device)
            total, result = torch.zeros_like(top), 0.0
            for keys, values in tiles:
                scores = (queries @ keys.T).float()
                before, top = top, torch.maximum(top, scores.amax(1, keepdim=True))
                weights, rescale = scores.sub_(top).exp_(), (before - top).exp()
                total = total * rescale + weights.sum(1, keepdim=True)
                result = result * rescale + weights.to(values.dtype) @ values
            out[b, i * rows : (i + 1) * rows] = result / total
    return out


class SeparableHiera(Hiera):
    """The trunk with its position embedding stretched by two matrix products.

    Bicubic interpolation is linear along each axis: for the embedding P of a channel it is A P B^T, and A is the
    interpolation of an identity matrix. Both products are small beside the sampling of every pixel.
    """

    def position(self, height: int, width: int) -> Tensor:
        coarse, window = self.pos_embed.float()[0], self.pos_embed_window.float()[0]  # (C, h, w), (C, s, s)
        size = window.shape[-1]
        with torch.autocast(coarse.device.type, enabled=False):
            coarse = bicubic_matrix(coarse, 1, height) @ coarse @ bicubic_matrix(coarse, 2, width).T
        tiles = coarse.view(-1, height // size, size, width // size, size) + window[:, None, :, None]
        return tiles.view(1, -1, height, width).permute(0, 2, 3, 1).to(self.pos_embed.dtype)


def bicubic_matrix(x: Tensor, axis: int, length: int) -> Tensor:
    """The matrix (length, n) that stretches this axis of x, of length n, as F.interpolate does."""
    identity = torch.eye(x.shape[axis], dtype=x.dtype, device=x.device)[None, None]
    return F.interpolate(identity, size=(length, x.shape[axis]), mode="bicubic")[0, 0]


class StripHieraBlock(HieraBlock):
    """A windowed block that works on a few rows of windows at a time, and does not project padding.

    Windows do not see each other, and all else works on single tokens: strips of whole windows can go through the
    block one after the other. On a CPU a strip stays in the cache.
    Tokens of the padding are zeros, W 0 + b = b: only the others are projected, and the bias is added to all.
    What attention makes of them is dropped before the output projection.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not self.window:
            return self.update(x)
        rows = max(1, CPU_TOKENS // (self.window * x.shape[2])) * self.window
        return torch.cat([self.update(strip) for strip in x.split(rows, 1)], 1)

    def update(self, x: Tensor) -> Tensor:
        """The plain block. Its sums and norms are in the precision of x, its products in that of their weights."""
        precision = next(self.attn.qkv.parameters()).dtype
        y = self.norm1(x).to(precision)
        x = (max_pool(self.proj(y)).to(x.dtype) if self.q_pool else x) + self.attend(y)
        return x + self.mlp(self.norm2(x).to(precision))

    def attend(self, x: Tensor) -> Tensor:
        H, W = x.shape[1:3]
        if not self.window or not (H % self.window or W % self.window) or not as_built(self.attn.qkv):
            return super().attend(x)
        qkv = to_windows(F.linear(x, self.attn.qkv.weight), self.window) + self.attn.qkv.bias
        H, W = (side // 2 if self.q_pool else side for side in (H, W))
        return self.attn.proj(from_windows(self.attn.attend(*qkv.chunk(3, -1)), H, W))


class NestedMaskDecoder(MaskDecoder):
    """The decoder with its finest maps in nested order: for each image token its 2 x 2 children, for each of them
    its 2 x 2 children.

    A 2 x 2 transposed convolution of stride 2 makes four cells of each cell, and sees no other: it is one matrix
    product whose output has the children last. Norm, activation and the product with the masks' weights work on
    single cells, in any order. So only finished masks are brought to raster order, and of those no more are made
    than are returned.
    """

    def upscale(self, image: Tensor, feat_s0: Tensor, feat_s1: Tensor) -> Tensor:
        """image (B, N, C), feat_s0 (B or 1, h, w, 4, 4, c0), feat_s1 (B or 1, h, w, 4, c1) -> (B, h, w, 4, 4, c0)."""
        deconv1, norm, act, deconv2, act = self.output_upscaling
        x = image.unflatten(1, feat_s1.shape[1:3])  # (B, N, C) -> (B, h, w, C)
        x = act(norm_last(norm, conv_transpose_2x2(deconv1, x) + feat_s1))
        return act(conv_transpose_2x2(deconv2, x) + feat_s0)

    def render(self, upscaled: Tensor, weights: Tensor) -> Tensor:
        """upscaled (B, h, w, 4, 4, c0), weights (B, M, c0) -> mask logits (B, M, 4 h, 4 w)."""
        masks = (weights @ upscaled.flatten(1, 4).mT).flatten(0, 1).unflatten(1, upscaled.shape[1:5])
        return depth_to_space(depth_to_space(masks)).unflatten(0, (-1, weights.shape[1]))

    def choose_masks(
        self, upscaled: Tensor, mask_tokens: Tensor, ious: Tensor, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Choose masks; none is rendered that is not returned: the fallback only where it is needed."""
        weights = self.hypernetworks(mask_tokens)
        if multimask:
            return self.render(upscaled, weights[:, 1:]), ious[:, 1:]
        masks, chosen = self.render(upscaled, weights[:, :1]), ious[:, :1]
        rows = (stability(masks[:, 0]) < STABILITY).nonzero()[:, 0]
        if len(rows) and not self.training:
            best = 1 + ious[rows, 1:].argmax(1)
            better = self.render(upscaled[rows], weights[rows, best][:, None])
            masks, chosen = masks.index_copy(0, rows, better), chosen.index_copy(0, rows, ious[rows, best][:, None])
        return masks, chosen


def conv_transpose_2x2(conv: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A 2 x 2 transposed convolution of stride 2 as a product: (..., C) -> (..., 4, C'), children row by row."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (C, C', 2, 2) -> (4 C', C)
    return F.linear(x, weight, conv.bias.repeat(4)).unflatten(-1, (4, -1))


def norm_last(norm: LayerNorm2d, x: Tensor) -> Tensor:
    """A LayerNorm2d on a tensor whose channels come last."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def space_to_depth(x: Tensor) -> Tensor:
    """(B, 2 h, 2 w, ...) -> (B, h, w, 4, ...): the cells of each 2 x 2 square, row by row."""
    x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, h, 2, w, 2, ...)
    return x.transpose(2, 3).flatten(3, 4)


def depth_to_space(x: Tensor) -> Tensor:
    """(B, h, w, 4, ...) -> (B, 2 h, 2 w, ...): the inverse of space_to_depth."""
    x = x.unflatten(3, (2, 2)).transpose(2, 3)  # (B, h, 2, w, 2, ...)
    return x.flatten(3, 4).flatten(1, 2)


class SharedMemoryAttention(MemoryAttention):
    """The self-attention of the first layer sees the frame alone: it is computed once for all objects."""

    def self_attend(self, frame: Tensor, position: Tensor) -> Tensor:
        """The self-attended frame: (B or 1, N, C)."""
        return self.layers[0].attend_to_frame(frame + POSITION_WEIGHT * position.to(frame.dtype))

    def forward(
        self,
        frame: Tensor,
        position: Tensor,
        memory: Tensor,
        memory_position: Tensor,
        pointers: int,
        self_attended: Tensor | None = None,
    ) -> Tensor:
        """Attend as MemoryAttention does; with the self-attended frame, if it is known."""
        x = self.self_attend(frame, position) if self_attended is None else self_attended
        memory, memory_position = memory.to(frame.dtype), memory_position.to(frame.dtype)
        memory_with_position = memory + memory_position
        for i, layer in enumerate(self.layers):
            x = layer.attend_to_frame(x) if i else x
            x = layer.attend_to_memory(x, memory_with_position, memory, pointers)
        return self.norm(x)


@dataclass
class FastImageFeatures(ImageFeatures):
    """high_res is in nested order, (B, h, w, 4, 4, c0) and (B, h, w, 4, c1)."""

    self_attended: Tensor | None = None  # (B, N, C), made by the first object that needs it


class FastSAM2(SAM2):
    """The model with features that are ready for its fast modules.

    The neck's two finest levels and the decoder's convolutions after them are 1 x 1, with nothing in between:
    V (W x + b) + c = (V W) x + (V b + c) is one product, to fewer channels: officially an eighth and a quarter.
    """

    def encode_image(self, images: Tensor) -> FastImageFeatures:
        """Encode as SAM2 does; the finer maps are in nested order."""
        trunk, decoder = self.image_encoder.trunk, self.sam_mask_decoder
        stages = trunk(images.to(trunk.pos_embed.dtype))
        convs = [level.conv for level in reversed(self.image_encoder.neck.convs)]
        s0 = space_to_depth(space_to_depth(folded_product(convs[0], decoder.conv_s0, stages[0])))
        s1 = space_to_depth(folded_product(convs[1], decoder.conv_s1, stages[1]))
        fine, coarse = (convs[i](stages[i].permute(0, 3, 1, 2)) for i in (2, 3))
        tokens = (fine + F.interpolate(coarse, scale_factor=2.0, mode="nearest")).flatten(2).mT
        return FastImageFeatures(tokens.to(self.no_mem_embed.dtype), (s0, s1))

    def condition_on_memory(
        self, features: FastImageFeatures, selections: list[MemorySelection], pointer_count: int = POINTERS
    ) -> Tensor:
        """Condition as SAM2 does; the self-attended frame is kept for the next object."""
        position = self.grid_position(self.config.dim)
        if features.self_attended is None:
            features.self_attended = self.memory_attention.self_attend(features.tokens, position)
        memory = self.memory_inputs(selections, pointer_count)
        return self.memory_attention(features.tokens, position, *memory, features.self_attended)

    def grid_position(self, dim: int) -> Tensor:
        """The position of SAM2, kept from frame to frame."""
        return sine_table(self.config.image_size // 16, dim, self.device)


def folded_product(first: nn.Conv2d, second: nn.Conv2d, x: Tensor) -> Tensor:
    """Two 1 x 1 convolutions as one product: (B, H, W, C) -> (B, H, W, C')."""
    weight = second.weight.flatten(1)
    return F.linear(x, weight @ first.weight.flatten(1), weight @ first.bias + second.bias)


FORMS = {
    Attention: FewTokensAttention,
    RotaryAttention: FastRotaryAttention,
    Hiera: SeparableHiera,
    HieraBlock: StripHieraBlock,
    MaskDecoder: NestedMaskDecoder,
    MemoryAttention: SharedMemoryAttention,
    SAM2: FastSAM2,
}


def accelerate(model: SAM2) -> SAM2:
    """Switch all modules of a model, in place, to their equal and faster forms; weights and their names stay."""
    for module in model.modules():
        module.__class__ = FORMS.get(type(module), type(module))
    return model


def compile_model(model: SAM2) -> SAM2:
    """Compile the heavy parts in place with torch.compile; the first calls are slow, the masks stay the same."""
    model.image_encoder.trunk.compile(dynamic=False)
    model.memory_encoder.compile()
    model.memory_attention.compile(dynamic=True)  # the memory grows during the first frames
    return model
