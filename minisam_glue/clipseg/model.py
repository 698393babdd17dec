"""CLIPSeg: an image and a phrase, or a picture of the object -> a heat map of where it is.

Paper: Lüddecke and Ecker, arXiv 2112.10003. A small transformer decodes activations of three layers of CLIP's image
encoder, modulated (FiLM, arXiv 1709.07871) by the phrase's place in CLIP's space. Key names are those of the
published checkpoints, CIDAS/clipseg-*. Phrases and pixels are the business of heat_mapper.py.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import load_strictly, without_weights
from ..support.reading import load_state_dict
from .clip import CLIP, CLIPConfig, EncoderLayer, TextConfig, VisionConfig

# What published files hold beyond the model: 0, 1, 2, ..., kept by old versions of transformers.
IGNORED_KEYS = ("clip.text_model.embeddings.position_ids", "clip.vision_model.embeddings.position_ids")


@dataclass(frozen=True)
class CLIPSegConfig:
    """Sizes of a model.

    reduce_dim: channels of the decoder (D in the paper). extract_layers: layers of the image encoder, from 0, whose
    outputs are decoded (S in the paper; the published weights take 3, 6 and 9, the official experiments 3, 7 and 9).
    conditional_layer: step of the decoder at which the phrase comes in. refined: a 3 x 3 convolution and two transposed
    ones make pixels of patches, in place of one transposed convolution; not in the paper, but in the later weights.
    """

    clip: CLIPConfig = field(default_factory=CLIPConfig)
    reduce_dim: int = 64
    extract_layers: tuple[int, ...] = (3, 6, 9)
    conditional_layer: int = 0
    refined: bool = False
    decoder_heads: int = 4
    decoder_mlp_dim: int = 2048


PRESETS = {
    "rd64-refined": CLIPSegConfig(refined=True),  # 150,747,746 parameters
    "rd64": CLIPSegConfig(),  # 150,693,890 parameters
    "rd16": CLIPSegConfig(reduce_dim=16),  # 149,884,418 parameters
    # minisam_glue/demo, 1,639,114 parameters; the vocabulary is demo.clip_tokenizer()
    "demo": CLIPSegConfig(
        CLIPConfig(
            VisionConfig(dim=128, num_layers=6, num_heads=4, mlp_dim=512, image_size=256, patch_size=8),
            TextConfig(dim=64, num_layers=2, num_heads=4, mlp_dim=256, vocab_size=630, max_tokens=77),
            projection_dim=64,
        ),
        reduce_dim=48,
        extract_layers=(1, 3, 5),
        refined=True,
        decoder_mlp_dim=192,
    ),
}


class DecoderLayer(EncoderLayer):
    """Post-norm transformer layer with ReLU: (B, N, R) -> (B, N, R)."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int):
        super().__init__(dim, num_heads, mlp_dim, F.relu)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.layer_norm1(x + self.self_attn(x, mask))
        return self.layer_norm2(x + self.feed_forward(x))


def upsampling(channels: int, patch_size: int, refined: bool) -> nn.Module:
    """Features of patches (B, R, h, w) -> logits of pixels (B, 1, H, W), with R channels (reduce_dim)."""
    if not refined:
        return nn.ConvTranspose2d(channels, 1, patch_size, stride=patch_size)
    # The strides multiply to patch_size. In transformers both are patch_size // 4, which does so for 16 alone.
    first, second = patch_size // 4, 4
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(channels, channels // 2, first, stride=first),
        nn.ReLU(),
        nn.ConvTranspose2d(channels // 2, 1, second, stride=second),
    )


class Decoder(nn.Module):
    """Activations and conditions -> logits of a heat map for each of P conditions (figure 2 of the paper).

    FiLM multiplies and adds to the channels of each token what linear layers make of the condition. Here R is
    reduce_dim (the paper's D), E the size of CLIP's common space, and N = h * w: the class token is decoded, too, and
    dropped last.
    """

    def __init__(self, config: CLIPSegConfig):
        super().__init__()
        R, E, depth = config.reduce_dim, config.clip.projection_dim, len(config.extract_layers)
        vision = config.clip.vision
        self.patch_size, self.conditional_layer = vision.patch_size, config.conditional_layer
        self.film_mul = nn.Linear(E, R)
        self.film_add = nn.Linear(E, R)
        self.transposed_convolution = upsampling(R, vision.patch_size, config.refined)
        self.reduces = nn.ModuleList(nn.Linear(vision.dim, R) for _ in range(depth))
        self.layers = nn.ModuleList(DecoderLayer(R, config.decoder_heads, config.decoder_mlp_dim) for _ in range(depth))

    def forward(self, activations: list[Tensor], conditions: Tensor, grid: tuple[int, int]) -> Tensor:
        """Activations (B, 1 + N, C), the deepest last; conditions (B or 1, P, E); grid (h, w) -> (B, P, H, W)."""
        B, P = len(activations[0]), conditions.shape[1]
        x = 0
        steps = zip(reversed(activations), self.reduces, self.layers)
        for step, (activation, reduce, layer) in enumerate(steps):
            x = x + reduce(activation)[:, None]  # (B, P or 1, 1 + N, R)
            if step == self.conditional_layer:
                x = self.film_mul(conditions)[:, :, None] * x + self.film_add(conditions)[:, :, None]
            x = layer(x.flatten(0, 1)).unflatten(0, (B, -1))
        x = x[:, :, 1:].flatten(0, 1).mT.unflatten(2, grid)  # without the class token: (B * P, R, h, w)
        return self.transposed_convolution(x).view(B, P, *(side * self.patch_size for side in grid))


class CLIPSeg(nn.Module):
    """The whole network: an image is encoded once for all its conditions."""

    def __init__(self, config: CLIPSegConfig):
        super().__init__()
        self.config = config
        self.clip = CLIP(config.clip)
        self.decoder = Decoder(config)

    def encode_image(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> the activations that the decoder reads, (B, 1 + N, C) each.

        Layers behind the last of them are not run. ValueError if H or W is no multiple of the patch size.
        """
        layers = self.config.extract_layers
        states = self.clip.vision_model.hidden_states(images, depth=1 + max(layers))
        return [states[1 + layer] for layer in layers]

    def decode(self, activations: list[Tensor], conditions: Tensor, size: tuple[int, int]) -> Tensor:
        """Activations of B images of size (H, W), and conditions -> logits (B, P, H, W).

        conditions: (P, E) for all images, or (B, P, E). They are outputs of clip.encode_text or clip.encode_image, or
        any mixture of them (section 3 of the paper); their length matters.
        """
        conditions = conditions if conditions.ndim == 3 else conditions[None]
        patch = self.config.clip.vision.patch_size
        return self.decoder(activations, conditions, (size[0] // patch, size[1] // patch))

    def forward(self, images: Tensor, conditions: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) and conditions (P, E) or (B, P, E) -> logits (B, P, H, W)."""
        return self.decode(self.encode_image(images), conditions, images.shape[-2:])


def load(path: str | Path, preset: str = "rd64-refined") -> CLIPSeg:
    """A published checkpoint -> the model, in eval mode. ValueError if the file is not of this preset."""
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}: there are {', '.join(PRESETS)}")
    state = load_state_dict(path)
    with without_weights():
        model = CLIPSeg(PRESETS[preset])
    load_official(model, state)
    return model.eval()


def load_official(model: CLIPSeg, state: dict[str, Tensor]) -> None:
    """Put a published state dict in place, strictly but for IGNORED_KEYS. ValueError names what does not fit."""
    state = {key: value for key, value in state.items() if key not in IGNORED_KEYS}
    load_strictly(model, state)
