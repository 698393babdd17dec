"""BERT text encoder, without its pooler.

Paper: Devlin et al., arXiv 1810.04805. Key names are those of the detector's checkpoint (`bert.*`). The inputs differ
from plain BERT: position ids begin again in every phrase, and a mask lets a token attend to its own phrase only
("sub-sentence level text feature", Grounding DINO, arXiv 2303.05499, section 3.4). Left out: dropout, and the second
segment of a sentence pair (its embedding is in the checkpoint, and stays).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class BertConfig:
    """The defaults are bert-base-uncased."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512


def phrase_masks(ids: Tensor, separators: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Masks (B, L, L), True where a token may attend to another, and positions (B, L) within phrases, for ids (B, L).

    A phrase runs from after one separator to the next, which belongs to it. As in the official code, a separator in
    the last column closes no phrase: each token before it sees itself only, at position 0. This does not matter in the
    detector, whose captions end in a full stop and [SEP].

        [CLS]  red  car  .  dog  .  [SEP]
          0     0    1   2   0   1    0     positions; "red", "car" and "." see each other, "dog" sees its own "."
    """
    L = ids.shape[1]
    separator = torch.isin(ids, torch.tensor(separators, device=ids.device))
    phrase = separator.cumsum(1) - separator.long()  # separators before a token = the number of its phrase
    same = phrase[:, :, None] == phrase[:, None]  # (B, L, L)
    column = torch.arange(L, device=ids.device)
    closing = separator & (column > 0) & (column < L - 1)
    closed = (same & closing[:, None]).any(-1)
    positions = (column - same.int().argmax(-1)) * closed
    return same & closed[..., None] | torch.eye(L, dtype=torch.bool, device=ids.device), positions


class BertEmbeddings(nn.Module):
    """Sum of word, position and first-segment embeddings, normalised: ids and positions (B, L) -> (B, L, C)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_positions, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(2, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=1e-12)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        first_segment = self.token_type_embeddings.weight[0]
        return self.LayerNorm(self.word_embeddings(ids) + first_segment + self.position_embeddings(positions))


class BertLayer(nn.Module):
    """Self-attention and MLP (post-norm), (B, L, C) -> (B, L, C); the nested dictionaries spell the official keys."""

    def __init__(self, config: BertConfig):
        super().__init__()
        C, hidden, self.num_heads = config.hidden_size, config.intermediate_size, config.num_heads

        def dense_norm(inputs: int) -> nn.ModuleDict:
            return nn.ModuleDict({"dense": nn.Linear(inputs, C), "LayerNorm": nn.LayerNorm(C, eps=1e-12)})

        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict({name: nn.Linear(C, C) for name in ("query", "key", "value")}),
                "output": dense_norm(C),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(C, hidden)})
        self.output = dense_norm(hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention["output"]["LayerNorm"](x + self.attend(x, mask))
        hidden = F.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](x + self.output["dense"](hidden))

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """Multi-head self-attention with its output projection: (B, L, C) -> (B, L, C)."""
        B, L, C = x.shape
        project = self.attention["self"]
        # (B, L, C) -> (B, h, L, d)
        names = ("query", "key", "value")
        q, k, v = (project[name](x).view(B, L, self.num_heads, -1).transpose(1, 2) for name in names)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.attention["output"]["dense"](x.transpose(1, 2).reshape(B, L, C))


class Bert(nn.Module):
    """ids, positions (B, L) and mask (B, 1, L, L), True where a token may look -> (B, L, hidden_size)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.embeddings = BertEmbeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(BertLayer(config) for _ in range(config.num_layers))})
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        x = self.embeddings(ids, positions)
        for layer in self.encoder["layer"]:
            x = layer(x, mask)
        return x
