"""The detector's transformer: feature enhancer, language-guided query selection, cross-modality decoder.

Paper: Grounding DINO, arXiv 2303.05499, sections 3.2 to 3.4 and figure 3; the boxes follow DINO,
arXiv 2203.03605. Left out: dropout, denoising queries, and the options that no published weights use.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import MLP
from .chunks import rows_at_once
from .deformable_attention import MSDeformAttn
from .fusion import BiAttentionBlock
from .geometry import Geometry, Shapes, box_embedding, inverse_sigmoid, sine_embedding


@dataclass
class Text:
    """Encoded captions. `attention` is True where a token may look: its own phrase."""

    features: Tensor  # (B, L, C)
    real: Tensor  # (B, L), False at padding
    positions: Tensor  # (B, L), from 0 in every phrase
    attention: Tensor  # (B, 1 or h, L, L)


def contrastive_logits(x: Tensor, text: Text) -> Tensor:
    """Dot products of queries (B, Q, C) with the text tokens: (B, Q, L), -inf at padding."""
    return (x @ text.features.transpose(1, 2)).masked_fill(~text.real[:, None], -torch.inf)


class Attention(nn.Module):
    """Multi-head attention with the key names of nn.MultiheadAttention, batch first, without its dropout."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """query (B, Q, C), key and value (B, N, C), mask broadcasting to (B, h, Q, N), True = attend."""
        projections = zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3))
        # (B, N, C) -> (B, h, N, d)
        q, k, v = (F.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2) for x, w, b in projections)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class TextLayer(nn.Module):
    """Self-attention of the text tokens, each within its own phrase (post-norm)."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        at = x + position
        x = self.norm1(x + self.self_attn(at, at, x, mask))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x), inplace=True)))


class EncoderLayer(nn.Module):
    """Deformable self-attention of the image tokens (post-norm)."""

    def __init__(self, dim: int, heads: int, hidden: int, levels: int, points: int):
        super().__init__()
        self.self_attn = MSDeformAttn(dim, levels, heads, points)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor, geometry: Geometry) -> Tensor:
        value = self.self_attn.project(x, geometry.mask)
        rows = rows_at_once(x, self.linear1.out_features)
        parts = zip(*(t.split(rows, 1) for t in (x, position, geometry.reference)))
        return torch.cat([self.update(*part, value, geometry.shapes) for part in parts], 1)

    def update(self, x: Tensor, position: Tensor, reference: Tensor, value: Tensor, shapes: Shapes) -> Tensor:
        """The layer, for some of the tokens."""
        x = self.norm1(x + self.self_attn.attend(x + position, reference, value, shapes))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x), inplace=True)))


class Encoder(nn.Module):
    """Feature enhancer: in each layer fusion, then text self-attention, then image self-attention."""

    def __init__(self, dim: int, heads: int, hidden: int, layers: int, levels: int, points: int):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, hidden, levels, points) for _ in range(layers))
        self.text_layers = nn.ModuleList(TextLayer(dim, heads // 2, hidden // 2) for _ in range(layers))
        self.fusion_layers = nn.ModuleList(BiAttentionBlock(dim, hidden // 2, heads // 2) for _ in range(layers))

    def forward(self, x: Tensor, position: Tensor, geometry: Geometry, text: Text) -> tuple[Tensor, Tensor]:
        """x (B, S, C) -> image memory (B, S, C) and text memory (B, L, C)."""
        l = text.features
        text_position = sine_embedding(text.positions, l.shape[-1]).to(l.dtype)
        for layer, text_layer, fusion in zip(self.layers, self.text_layers, self.fusion_layers):
            x, l = fusion(x, l, geometry.mask, ~text.real)
            l = text_layer(l, text_position, text.attention)
            x = layer(x, position, geometry)
        return x, l


class DecoderLayer(nn.Module):
    """Queries look at each other, at the text, and at the image (post-norm)."""

    def __init__(self, dim: int, heads: int, hidden: int, levels: int, points: int):
        super().__init__()
        self.cross_attn = MSDeformAttn(dim, levels, heads, points)
        self.ca_text = Attention(dim, heads)
        self.self_attn = Attention(dim, heads)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.catext_norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, position: Tensor, boxes: Tensor, memory: Tensor, geometry: Geometry, text: Text
    ) -> Tensor:
        """x, position (B, Q, C); boxes (B, Q, levels, 4) as fractions of the canvas; text: that of the encoder."""
        at = x + position
        x = self.norm2(x + self.self_attn(at, at, x))
        x = self.catext_norm(x + self.ca_text(x + position, text.features, text.features, text.real[:, None, None]))
        x = self.norm1(x + self.cross_attn(x + position, boxes, memory, geometry.shapes, geometry.mask))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x), inplace=True)))


class Decoder(nn.Module):
    """Refine the boxes layer by layer; `bbox_embed` is one head, shared by all layers."""

    def __init__(self, dim: int, heads: int, hidden: int, layers: int, levels: int, points: int):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, hidden, levels, points) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.ref_point_head = MLP(2 * dim, dim, dim)
        self.bbox_embed = nn.ModuleList([MLP(dim, dim, dim, 4)] * layers)

    def forward(
        self, x: Tensor, boxes: Tensor, memory: Tensor, geometry: Geometry, text: Text
    ) -> tuple[list[Tensor], list[Tensor]]:
        """x (B, Q, C), boxes (B, Q, 4) cxcywh as fractions of each image.

        -> the normed output of every layer, and the boxes that entered every layer and left the last.
        """
        ratios = geometry.valid_ratios.repeat(1, 1, 2)[:, None]  # (B, 1, levels, 4), image -> canvas
        hidden, references = [], [boxes]
        for layer, head in zip(self.layers, self.bbox_embed):
            position = self.ref_point_head(self.embed_boxes(boxes, geometry).to(x.dtype))
            x = layer(x, position, boxes[:, :, None] * ratios, memory, geometry, text)
            hidden.append(self.norm(x))
            references.append((head(x).float() + inverse_sigmoid(boxes)).sigmoid())
            boxes = references[-1].detach()  # each layer learns its own step
        return hidden, references

    def embed_boxes(self, boxes: Tensor, geometry: Geometry) -> Tensor:
        """(B, Q, 2C), from fractions of the image; the official code takes those of the canvas of a batch."""
        return box_embedding(boxes, self.norm.normalized_shape[0])


class Transformer(nn.Module):
    """Level maps and text -> refined queries."""

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        encoder_layers: int,
        decoder_layers: int,
        queries: int,
        levels: int,
        points: int,
    ):
        super().__init__()
        self.encoder = Encoder(dim, heads, hidden, encoder_layers, levels, points)
        self.decoder = Decoder(dim, heads, hidden, decoder_layers, levels, points)
        self.level_embed = nn.Parameter(torch.empty(levels, dim))
        self.tgt_embed = nn.Embedding(queries, dim)
        self.enc_output = nn.Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        self.enc_out_bbox_embed = MLP(dim, dim, dim, 4)

    def encode(self, levels: list[Tensor], geometry: Geometry, text: Text) -> tuple[Tensor, Tensor]:
        """Maps (B, C, h, w) -> image memory (B, S, C) and text memory (B, L, C)."""
        x = torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)  # (B, C, S) -> (B, S, C)
        level = torch.cat([e.expand(h * w, -1) for e, (h, w) in zip(self.level_embed, geometry.shapes)])  # (S, C)
        return self.encoder(x, geometry.position.to(x.dtype) + level, geometry, text)

    def rate_cells(self, memory: Tensor, geometry: Geometry, text: Text) -> tuple[Tensor, Tensor]:
        """Every cell as a candidate query (B, >= S, C), and its best similarity to a text token (B, >= S)."""
        x = memory.masked_fill(~geometry.usable[..., None], 0)
        x = F.pad(x, (0, 0, 0, geometry.proposals.shape[1] - x.shape[1]))
        x = self.enc_output_norm(self.enc_output(x))
        return x, contrastive_logits(x, text).amax(-1)

    def choose(self, rating: Tensor, geometry: Geometry) -> Tensor:
        """The best cells, (B, Q). Filler comes last, so that a batch chooses as each of its images alone would.

        In the official code padding ties with real cells of unusable proposals, and can precede usable ones.
        """
        return rating.masked_fill(geometry.filler, -torch.inf).topk(self.tgt_embed.num_embeddings).indices

    def propose(self, candidates: Tensor, chosen: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """The chosen (B, Q) cells: their features (B, Q, C), and boxes (B, Q, 4) before the sigmoid."""
        features = candidates.gather(1, chosen[..., None].expand(-1, -1, candidates.shape[-1]))
        proposals = geometry.proposals.gather(1, chosen[..., None].expand(-1, -1, 4))
        return features, self.enc_out_bbox_embed(features).float() + proposals

    def decode(
        self, memory: Tensor, boxes: Tensor, geometry: Geometry, text: Text
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Start from learned queries at boxes (B, Q, 4), before the sigmoid; see Decoder."""
        queries = self.tgt_embed.weight.expand(len(memory), -1, -1)
        return self.decoder(queries, boxes.detach().sigmoid(), memory, geometry, text)
