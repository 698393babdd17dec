"""Memory of SAM 2: encoder, attention over memories, and the bank of an object.

arXiv 2408.00714, section 4 and appendix D.1; rotary position embedding: Su et al., arXiv 2104.09864, in its
axial form of Heo et al., arXiv 2403.13298. A bank holds prompted frames, the last six memories and fifteen
object pointers. Left out: dropout, and the random choice of memories that training makes.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .layers import Attention, LayerNorm2d

SLOTS = 7  # temporal embeddings: six recent memories and one shared by all prompted frames
POINTERS = 16  # pointers of prompted frames aside, offsets below this are attended to


class MaskDownSampler(nn.Module):
    """Mask (B, 1, S, S) -> (B, dim, S / 16, S / 16)."""

    def __init__(self, dim: int):
        super().__init__()
        self.encoder = nn.Sequential()
        widths = [min(width, dim) for width in (1, 4, 16, 64, 256)]
        for width, wider in zip(widths, widths[1:]):
            conv = nn.Conv2d(width, wider, 3, stride=2, padding=1)
            self.encoder.extend([conv, LayerNorm2d(wider), nn.GELU()])
        self.encoder.append(nn.Conv2d(widths[-1], dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)


class ConvNeXtBlock(nn.Module):
    """Liu et al., arXiv 2201.03545, on (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = LayerNorm2d(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)
        y = self.pwconv2(F.gelu(self.pwconv1(y))) * self.gamma
        return x + y.permute(0, 3, 1, 2)


class Fuser(nn.Module):
    """Two ConvNeXt blocks that mix the frame and its mask."""

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.ModuleList(ConvNeXtBlock(dim) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class MemoryEncoder(nn.Module):
    """Frame features and masks -> memory tokens."""

    def __init__(self, dim: int, mem_dim: int):
        super().__init__()
        self.mask_downsampler = MaskDownSampler(dim)
        self.pix_feat_proj = nn.Conv2d(dim, dim, 1)
        self.fuser = Fuser(dim)
        self.out_proj = nn.Conv2d(dim, mem_dim, 1)

    def forward(self, frame: Tensor, masks: Tensor) -> Tensor:
        """frame (1, N, C), masks (B, 1, S, S) scaled to +-10 -> (B, N, mem_dim). The frame is projected once."""
        masks = self.mask_downsampler(masks.to(self.out_proj.weight.dtype))
        frame = self.pix_feat_proj(frame.mT.unflatten(2, masks.shape[2:]))  # (1, N, C) -> (1, C, h, w)
        return self.out_proj(self.fuser(frame + masks)).flatten(2).mT


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # a table made while tracking must serve training too
def rotary_table(grid: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (N, dim) for a grid x grid map, laid out for rotate: x fast, y slow."""
    frequency = 10000.0 ** -(torch.arange(0, dim, 4, dtype=torch.float32, device=device) / dim)
    cell = torch.arange(grid * grid, device=device)
    angle = torch.cat(((cell % grid)[:, None] * frequency, (cell // grid)[:, None] * frequency), 1)  # (N, dim / 2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + dim / 2]) of (..., N, dim) by its angle."""
    return torch.addcmul(x * cos.to(x.dtype), x.roll(x.shape[-1] // 2, -1), sin.to(x.dtype))


class RotaryAttention(Attention):
    """One-head attention with axial rotary positions on queries and on all keys but the last few (pointers)."""

    def forward(self, x: Tensor, k: Tensor, v: Tensor, pointers: int = 0) -> Tensor:
        """x (B or 1, N, C), k and v (B, F * N + pointers, Ck) -> (B, N, C)."""
        N, M = x.shape[1], k.shape[1] - pointers
        cos, sin = rotary_table(round(N**0.5), self.q_proj.out_features, x.device)
        # Weights come with even and odd channels as pairs. Both sides are reordered to halves: the products agree.
        order = torch.arange(self.q_proj.out_features, device=x.device).view(-1, 2).T.flatten()
        q = rotate(F.linear(x, self.q_proj.weight[order], self.q_proj.bias[order]), cos, sin)
        k = F.linear(k, self.k_proj.weight[order], self.k_proj.bias[order])
        turned = rotate(k[:, :M].unflatten(1, (-1, N)), cos, sin).flatten(1, 2)
        k = torch.cat((turned, k[:, M:]), 1) if pointers else turned
        if q.is_cuda or q.requires_grad or self.v_proj.in_features == q.shape[-1]:
            q = q.expand(len(k), -1, -1)[:, None]
            return self.out_proj(F.scaled_dot_product_attention(q, k[:, None], self.v_proj(v)[:, None]).squeeze(1))
        # Off CUDA, values are summed before their projection: a quarter of the channels, and the weights sum to one.
        # It works in place, so training takes the fused way.
        return self.out_proj(self.v_proj(weighted_sum(q * self.scale, k, v)))


@torch.compiler.disable  # loops of many lengths
def weighted_sum(q: Tensor, k: Tensor, v: Tensor, rows: int = 512, columns: int = 2048) -> Tensor:
    """softmax(q k^T) v for q (B or 1, N, C), k (B, M, C), v (B, M, c), in tiles of scores that fit into a cache.

    The softmax is the online one of Milakov and Gimelshein, arXiv 1805.02867: when a tile brings a new maximum,
    the sums so far are scaled to it. Each object is computed by itself.
    """
    out = v.new_empty(len(k), q.shape[1], v.shape[2])
    for b in range(len(k)):
        tiles = list(zip(k[b].split(columns), v[b].split(columns)))
        for i, queries in enumerate(q[b % len(q)].split(rows)):
            top = torch.full((len(queries), 1), -torch.inf, device=q.device)
            total, result = torch.zeros_like(top), 0.0
            for keys, values in tiles:
                scores = (queries @ keys.T).float()
                before, top = top, torch.maximum(top, scores.amax(1, keepdim=True))
                weights, shrink = scores.sub_(top).exp_(), (before - top).exp()
                total = total * shrink + weights.sum(1, keepdim=True)
                result = result * shrink + weights.to(values.dtype) @ values
            out[b, i * rows : (i + 1) * rows] = result / total
    return out


class MemoryAttentionLayer(nn.Module):
    """The frame attends to itself, then to the memories; then an MLP."""

    def __init__(self, dim: int, mem_dim: int, mlp_dim: int):
        super().__init__()
        self.self_attn = RotaryAttention(dim)
        self.cross_attn_image = RotaryAttention(dim, kv_dim=mem_dim)
        self.linear1 = nn.Linear(dim, mlp_dim)
        self.linear2 = nn.Linear(mlp_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def look_at_frame(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        return x + self.self_attn(y, y, y)

    def look_at_memory(self, x: Tensor, memory: Tensor, placed: Tensor, pointers: int) -> Tensor:
        """x (B or 1, N, C); memory (B, M, c) and the same with its positions added -> (B, N, C)."""
        x = x + self.cross_attn_image(self.norm2(x), placed, memory, pointers)
        return x + self.linear2(F.relu(self.linear1(self.norm3(x))))


class MemoryAttention(nn.Module):
    """Frame tokens look at themselves and at the memories, in each layer."""

    def __init__(self, dim: int, mem_dim: int, mlp_dim: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(MemoryAttentionLayer(dim, mem_dim, mlp_dim) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def begin(self, frame: Tensor, position: Tensor) -> Tensor:
        """The first look at the frame itself, one for all objects: frame (1, N, C), position (N, C) -> (1, N, C).

        In training the objects may be of B frames: (B, N, C) here and for x in forward.
        """
        return self.layers[0].look_at_frame(frame + 0.1 * position.to(frame.dtype))

    def forward(self, x: Tensor, memory: Tensor, memory_position: Tensor, pointers: int) -> Tensor:
        """x (1, N, C) from begin; memory (B, M, c) with memory_position (1, M, c), of which the last `pointers` are
        object pointers -> (B, N, C)."""
        placed = memory + memory_position.to(memory.dtype)
        for i, layer in enumerate(self.layers):
            if i > 0:
                x = layer.look_at_frame(x)
            x = layer.look_at_memory(x, memory, placed, pointers)
        return self.norm(x)


@dataclass
class FrameMemory:
    """What a frame leaves behind for one object. tokens and logits are dropped when no later frame needs them."""

    pointer: Tensor  # (C,)
    presence: Tensor  # (), logit
    tokens: Tensor | None  # (N, mem_dim), bfloat16
    logits: Tensor | None  # (S / 4, S / 4)


@dataclass
class Recall:
    """The memories that one object shows to one frame, in the order of the model's input.

    recent: (temporal slot, memory), slot 0 for prompted frames, 6 for the newest; pointers: (offset in frames, memory).
    """

    recent: list[tuple[int, FrameMemory]]
    pointers: list[tuple[int, FrameMemory]]

    @property
    def layout(self) -> tuple:
        """Objects of equal layout can be stacked."""
        return tuple(slot for slot, _ in self.recent), tuple(offset for offset, _ in self.pointers)


@dataclass
class MemoryBank:
    """The memories of one object by frame index: prompted frames in the order of their prompts, and tracked ones."""

    prompted: dict[int, FrameMemory] = field(default_factory=dict)
    tracked: dict[int, FrameMemory] = field(default_factory=dict)

    def get(self, frame: int) -> FrameMemory | None:
        return self.prompted.get(frame) or self.tracked.get(frame)

    def nearest_prompted(self, frame: int, limit: int | None) -> list[int]:
        """At most `limit` prompted frames: the nearest before, the nearest from `frame` on, then the nearest others."""
        if limit is None or len(self.prompted) <= limit:
            return list(self.prompted)
        chosen = [
            max((t for t in self.prompted if t < frame), default=None),
            min((t for t in self.prompted if t >= frame), default=None),
        ]
        chosen = [t for t in chosen if t is not None]
        others = sorted((t for t in self.prompted if t not in chosen), key=lambda t: abs(t - frame))
        return chosen + others[: limit - len(chosen)]

    def recall(self, frame: int, reverse: bool, stride: int, limit: int | None, pointer_count: int) -> Recall:
        """What `frame` attends to when time runs forwards or in reverse."""
        sign = -1 if reverse else 1
        chosen = [t for t in self.nearest_prompted(frame, limit) if t != frame]
        # Prompted frames that were not chosen still count as ordinary neighbours.
        past = {t: m for t, m in self.prompted.items() if t not in chosen and t != frame} | self.tracked
        recent = [(0, self.prompted[t]) for t in chosen]
        for slot in range(1, SLOTS):
            memory = past.get(neighbour(frame, SLOTS - slot, sign, stride))
            if memory and memory.tokens is not None:
                recent.append((slot, memory))
        pointers = [((frame - t) * sign, self.prompted[t]) for t in chosen if (frame - t) * sign >= 0]
        pointers += [(d, past[frame - d * sign]) for d in range(1, pointer_count) if frame - d * sign in past]
        return Recall(recent, pointers)

    def forget(self, frame: int, stride: int, limit: int | None) -> None:
        """Drop what no frame from `frame` on, in either direction, will look at."""
        keep = self.nearest_prompted(frame, limit)
        for bank, kept in ((self.prompted, keep), (self.tracked, [])):
            for t in [t for t in bank if t not in kept and abs(t - frame) >= max(POINTERS, (SLOTS - 2) * stride + 2)]:
                del bank[t]
        for t, memory in self.tracked.items():
            memory.logits = memory.logits if t == frame else None
            if abs(t - frame) > (SLOTS - 2) * stride + 1:
                memory.tokens = None


def neighbour(frame: int, steps: int, sign: int, stride: int) -> int:
    """The frame that is `steps` memories back: the previous frame, then every stride-th one."""
    if steps == 1:
        return frame - sign
    nearest = (frame - 2) // stride * stride if sign > 0 else -(-(frame + 2) // stride) * stride
    return nearest - sign * (steps - 2) * stride
