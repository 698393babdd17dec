"""CLIP: two transformers whose outputs live in one space, one for images and one for text.

Paper: Radford et al., arXiv 2103.00020; the vision side is a ViT (arXiv 2010.11929). Key names are those of the
published CLIPSeg checkpoints. Left out: dropout (there is none) and the contrastive loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class VisionConfig:
    """The defaults are ViT-B/16. image_size: side in pixels of the images that the positions were learned for."""

    dim: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    image_size: int = 224
    patch_size: int = 16


@dataclass(frozen=True)
class TextConfig:
    """The defaults are the text side of ViT-B/16.

    end_token: the id whose feature stands for the text; None takes the highest id, which is the end token in CLIP's
    own vocabulary.
    """

    dim: int = 512
    num_layers: int = 12
    num_heads: int = 8
    mlp_dim: int = 2048
    vocab_size: int = 49408
    max_tokens: int = 77
    end_token: int | None = None


@dataclass(frozen=True)
class CLIPConfig:
    """projection_dim: size of the common space."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    projection_dim: int = 512


def quick_gelu(x: Tensor) -> Tensor:
    """GELU as openai/CLIP approximates it (QuickGELU): x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention: (B, N, C) -> (B, N, C). mask: bool, True = attend, broadcast to (B, h, N, N)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        B, N, C = x.shape
        # (B, N, C) -> (B, h, N, d)
        q, k, v = (
            proj(x).view(B, N, self.num_heads, -1).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(x.transpose(1, 2).reshape(B, N, C))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer: attention and MLP, each added to its input. (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, activation: Callable[[Tensor], Tensor] = quick_gelu):
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.layer_norm1 = nn.LayerNorm(dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, mlp_dim), "fc2": nn.Linear(mlp_dim, dim)})
        self.layer_norm2 = nn.LayerNorm(dim)
        self.activation = activation

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.mlp["fc2"](self.activation(self.mlp["fc1"](x)))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.feed_forward(self.layer_norm2(x))


def encoder(config: VisionConfig | TextConfig) -> nn.ModuleDict:
    """The layers, under the official key name."""
    layers = (EncoderLayer(config.dim, config.num_heads, config.mlp_dim) for _ in range(config.num_layers))
    return nn.ModuleDict({"layers": nn.ModuleList(layers)})


class VisionEmbeddings(nn.Module):
    """Patches as tokens behind a class token, with learned positions: (B, 3, H, W) -> (B, 1 + N, C), N = H W / patch^2.

    ValueError if H or W is no multiple of the patch size.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.patch_size, self.grid_size = config.patch_size, config.image_size // config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(config.dim))
        self.patch_embedding = nn.Conv2d(3, config.dim, config.patch_size, stride=config.patch_size, bias=False)
        self.position_embedding = nn.Embedding(1 + self.grid_size**2, config.dim)

    def forward(self, images: Tensor) -> Tensor:
        B, _, H, W = images.shape
        if H % self.patch_size or W % self.patch_size:
            raise ValueError(f"image of {H} x {W} pixels: both sides must be multiples of {self.patch_size}")
        patches = self.patch_embedding(images).flatten(2).mT  # (B, C, h, w) -> (B, N, C)
        tokens = torch.cat((self.class_embedding.expand(B, 1, -1), patches), 1)
        return tokens + self.positions(H // self.patch_size, W // self.patch_size)

    def positions(self, h: int, w: int) -> Tensor:
        """Positions of a grid of h x w patches, (1 + h * w, C), resized from the learned grid where that differs."""
        table, side = self.position_embedding.weight, self.grid_size
        if (h, w) == (side, side):
            return table
        grid = table[1:].view(1, side, side, -1).permute(0, 3, 1, 2)  # (S * S, C) -> (1, C, S, S)
        grid = F.interpolate(grid, size=(h, w), mode="bicubic", align_corners=False)
        return torch.cat((table[:1], grid[0].flatten(1).mT))


class VisionTransformer(nn.Module):
    """The image encoder: normalised images (B, 3, H, W) -> (B, C), the final class token."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.dim)  # spelled so in the checkpoints
        self.encoder = encoder(config)
        self.post_layernorm = nn.LayerNorm(config.dim)

    def hidden_states(self, images: Tensor, depth: int | None = None) -> list[Tensor]:
        """The normalised embedding, then the output of each of the first `depth` layers (default: all)."""
        states = [self.pre_layrnorm(self.embeddings(images))]
        for layer in self.encoder["layers"][:depth]:
            states.append(layer(states[-1]))
        return states

    def forward(self, images: Tensor) -> Tensor:
        return self.post_layernorm(self.hidden_states(images)[-1][:, 0])


class TextTransformer(nn.Module):
    """The text encoder: ids (B, L), padded at the right -> (B, C), the feature at the end token.

    A token sees itself and what precedes it, so that padding behind the end token changes nothing.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.end_token = config.end_token
        self.embeddings = nn.ModuleDict(
            {
                "token_embedding": nn.Embedding(config.vocab_size, config.dim),
                "position_embedding": nn.Embedding(config.max_tokens, config.dim),
            }
        )
        self.encoder = encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.dim)

    def hidden_states(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """The embedding, then the output of each layer. mask: bool, True = attend, broadcast to (B, h, L, L)."""
        L = ids.shape[1]
        positions = self.embeddings["position_embedding"].weight[:L]
        states = [self.embeddings["token_embedding"](ids) + positions]
        for layer in self.encoder["layers"]:
            states.append(layer(states[-1], mask))
        return states

    def end_position(self, ids: Tensor) -> Tensor:
        """The position at which each text ends, (B,): its first end token."""
        return (ids if self.end_token is None else (ids == self.end_token).int()).argmax(1)

    def forward(self, ids: Tensor) -> Tensor:
        B, L = ids.shape
        causal = torch.ones(L, L, dtype=torch.bool, device=ids.device).tril()
        x = self.final_layer_norm(self.hidden_states(ids, causal)[-1])
        return x[torch.arange(B, device=ids.device), self.end_position(ids)]


class CLIP(nn.Module):
    """CLIP: both encoders and their projections into the common space."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # log(1 / 0.07) at first, section 2.5
        self.text_model = TextTransformer(config.text)
        self.vision_model = VisionTransformer(config.vision)
        self.visual_projection = nn.Linear(config.vision.dim, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(config.text.dim, config.projection_dim, bias=False)

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, projection_dim), of any length."""
        return self.visual_projection(self.vision_model(images))

    def encode_text(self, ids: Tensor) -> Tensor:
        """ids (B, L), padded at the right -> (B, projection_dim), of any length."""
        return self.text_projection(self.text_model(ids))

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, T), how well B images fit T texts: scaled cosines, as the pseudocode of the paper's figure 3."""
        image, text = (F.normalize(x, dim=-1) for x in (self.encode_image(images), self.encode_text(ids)))
        return self.logit_scale.exp() * image @ text.T
