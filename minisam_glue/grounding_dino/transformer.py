"""The detector's transformer: feature enhancer, language-guided query selection, cross-modality decoder.

Paper: Grounding DINO, arXiv 2303.05499, sections 3.1 to 3.3 and figure 3; boxes are refined as in DINO, arXiv
2203.03605. B images, S image tokens (cells of all levels), L text tokens, Q queries, C channels; "memory" is DETR's
word for what the encoder gives. Left out: dropout, denoising queries, and the options that no published weights use.

The order of steps is that of the official code, which the weights were trained with. It differs from the paper's text
in two places: an encoder layer begins with the fusion, its self-attentions follow; and in a decoder layer the queries
read the text before the image.

The text tokens meet the image four times:
    Encoder              fusion in every layer: image tokens read text tokens, and text tokens read image tokens
    score_tokens         each image token is scored by its best text token; select_queries takes the places of the
                         highest: queries start there, with a content that is learned and the same for all images
    DecoderLayer         ca_text in every layer: each query reads the text tokens, after the other queries
    contrastive_logits   the answer: the dot product of each final query with each text token
The score of a phrase is that of its best token (phrase_scores in detector.py).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import MLP
from .deformable_attention import MSDeformAttn
from .fusion import BiAttentionBlock
from .geometry import Geometry, box_embedding, inverse_sigmoid, sine_embedding

LEVELS, POINTS, HEADS = 4, 4, 8  # the same in all published models


@dataclass
class Text:
    """Encoded captions of L tokens."""

    features: Tensor  # (B, L, C)
    valid: Tensor  # (B, L), False at padding
    positions: Tensor  # (B, L), from 0 in every phrase
    attention: Tensor  # (B, 1 or h, L, L), True where a token may look: its own phrase


def contrastive_logits(x: Tensor, text: Text) -> Tensor:
    """Dot products of queries or image tokens x (B, N, C) with text tokens -> logits (B, N, L), -inf at padding."""
    return (x @ text.features.transpose(1, 2)).masked_fill(~text.valid[:, None], -torch.inf)


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
        """x and position (B, L, C), mask broadcasting to (B, h, L, L), True = attend -> (B, L, C)."""
        at = x + position
        x = self.norm1(x + self.self_attn(at, at, x, mask))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class EncoderLayer(nn.Module):
    """Deformable self-attention of the image tokens over all levels, and an MLP (post-norm)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.self_attn = MSDeformAttn(dim, LEVELS, HEADS, POINTS)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor, geometry: Geometry) -> Tensor:
        """x and position (B, S, C) -> (B, S, C)."""
        x = self.norm1(x + self.self_attn(x + position, geometry.reference, x, geometry.shapes, geometry.valid))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class Encoder(nn.Module):
    """Feature enhancer (section 3.1): in each layer fusion, then text self-attention, then image self-attention."""

    def __init__(self, dim: int, hidden: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, hidden) for _ in range(layers))
        # Text and fusion have half of the image's heads and of its inner width, as in the official code.
        self.text_layers = nn.ModuleList(TextLayer(dim, HEADS // 2, hidden // 2) for _ in range(layers))
        self.fusion_layers = nn.ModuleList(BiAttentionBlock(dim, hidden // 2, HEADS // 2) for _ in range(layers))

    def forward(self, x: Tensor, position: Tensor, geometry: Geometry, text: Text) -> tuple[Tensor, Tensor]:
        """Image tokens x and their position (B, S, C) -> image memory (B, S, C) and text memory (B, L, C)."""
        l = text.features
        text_position = sine_embedding(text.positions, l.shape[-1]).to(l.dtype)
        for layer, text_layer, fusion in zip(self.layers, self.text_layers, self.fusion_layers):
            x, l = fusion(x, l, geometry.valid, text.valid)
            l = text_layer(l, text_position, text.attention)
            x = layer(x, position, geometry)
        return x, l


class DecoderLayer(nn.Module):
    """Cross-modality decoder layer (section 3.3): queries attend to each other, the text and the image (post-norm)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.cross_attn = MSDeformAttn(dim, LEVELS, HEADS, POINTS)
        self.ca_text = Attention(dim, HEADS)
        self.self_attn = Attention(dim, HEADS)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.catext_norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, position: Tensor, boxes: Tensor, memory: Tensor, geometry: Geometry, text: Text
    ) -> Tensor:
        """x, position (B, Q, C); boxes (B, Q, levels, 4) cxcywh as fractions of the canvas; memory (B, S, C) -> x."""
        at = x + position
        x = self.norm2(x + self.self_attn(at, at, x))
        x = self.catext_norm(x + self.ca_text(x + position, text.features, text.features, text.valid[:, None, None]))
        x = self.norm1(x + self.cross_attn(x + position, boxes, memory, geometry.shapes, geometry.valid))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class Decoder(nn.Module):
    """Refine queries and their boxes layer by layer; `bbox_embed` is one head, shared by all layers.

    The position of a query is made of its box (`ref_point_head`), as in DAB-DETR, arXiv 2201.12329.
    """

    def __init__(self, dim: int, hidden: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.ref_point_head = MLP(2 * dim, dim, dim)
        self.bbox_embed = nn.ModuleList([MLP(dim, dim, dim, 4)] * layers)

    def forward(
        self, x: Tensor, boxes: Tensor, memory: Tensor, geometry: Geometry, text: Text
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Queries x (B, Q, C), boxes (B, Q, 4) cxcywh as fractions of each image.

        -> the normed output of every layer, and the boxes that entered every layer and left the last. The last ones are
        not the answer: GroundingDINO.head counts that from the normed output.
        """
        ratios = geometry.valid_ratios.repeat(1, 1, 2)[:, None]  # (B, 1, levels, 4), image -> canvas
        hidden, references = [], [boxes]
        for layer, head in zip(self.layers, self.bbox_embed):
            position = self.ref_point_head(self.embed_boxes(boxes, geometry).to(x.dtype))
            x = layer(x, position, boxes[:, :, None] * ratios, memory, geometry, text)
            hidden.append(self.norm(x))
            references.append((head(x).float() + inverse_sigmoid(boxes)).sigmoid())
            # The next layer starts from these boxes without their gradient. Its answer is counted from the undetached
            # ones (GroundingDINO.head), so that its loss teaches this layer, too: "look forward twice" in DINO.
            boxes = references[-1].detach()
        return hidden, references

    def embed_boxes(self, boxes: Tensor, geometry: Geometry) -> Tensor:
        """Sine embedding (B, Q, 2C) of boxes as fractions of each image (officially of the canvas of the batch)."""
        return box_embedding(boxes, self.norm.normalized_shape[0])


class Transformer(nn.Module):
    """Level maps and text -> refined queries: encode, score_tokens, select_queries, initial_boxes, decode."""

    def __init__(self, dim: int, hidden: int, encoder_layers: int, decoder_layers: int, queries: int):
        super().__init__()
        self.encoder = Encoder(dim, hidden, encoder_layers)
        self.decoder = Decoder(dim, hidden, decoder_layers)
        self.level_embed = nn.Parameter(torch.empty(LEVELS, dim))
        self.tgt_embed = nn.Embedding(queries, dim)  # what a query holds before it has seen anything
        self.enc_output = nn.Linear(dim, dim)
        self.enc_output_norm = nn.LayerNorm(dim)
        self.enc_out_bbox_embed = MLP(dim, dim, dim, 4)

    def encode(self, levels: list[Tensor], geometry: Geometry, text: Text) -> tuple[Tensor, Tensor]:
        """Maps (B, C, h, w) -> image memory (B, S, C) and text memory (B, L, C)."""
        x = torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2)  # (B, C, S) -> (B, S, C)
        level = torch.cat([e.expand(h * w, -1) for e, (h, w) in zip(self.level_embed, geometry.shapes)])  # (S, C)
        return self.encoder(x, geometry.position.to(x.dtype) + level, geometry, text)

    def score_tokens(self, memory: Tensor, geometry: Geometry, text: Text) -> tuple[Tensor, Tensor]:
        """Scored tokens (B, S, C), one per image token, and scores (B, S): the best logit of any text token."""
        candidates = self.enc_output_norm(self.enc_output(memory.masked_fill(~geometry.usable[..., None], 0)))
        return candidates, contrastive_logits(candidates, text).amax(-1)

    def select_queries(self, scores: Tensor, geometry: Geometry) -> Tensor:
        """Indices (B, Q) of the Q image tokens of highest score (section 3.2, equation 1, with score_tokens).

        Padding comes last, so that a batch selects what each of its images alone would (not so in the official code).
        """
        if geometry.valid is not None:
            scores = scores.masked_fill(~geometry.valid, -torch.inf)
        return scores.topk(self.tgt_embed.num_embeddings).indices

    def initial_boxes(self, candidates: Tensor, selected: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Features (B, Q, C) of the selected (B, Q) tokens, and their boxes (B, Q, 4) cxcywh before the sigmoid.

        A box is the proposal at the token, moved and resized by a head.
        """
        features = candidates.gather(1, selected[..., None].expand(-1, -1, candidates.shape[-1]))
        proposals = geometry.proposals.gather(1, selected[..., None].expand(-1, -1, 4))
        return features, self.enc_out_bbox_embed(features).float() + proposals

    def decode(
        self, memory: Tensor, boxes: Tensor, geometry: Geometry, text: Text
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Refine learned queries, which start at boxes (B, Q, 4) before the sigmoid; returns what Decoder does.

        Only the place of a query comes from the selected tokens, its content is learned: DINO's mixed query selection.
        """
        queries = self.tgt_embed.weight.expand(len(memory), -1, -1)
        return self.decoder(queries, boxes.detach().sigmoid(), memory, geometry, text)
