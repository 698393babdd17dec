"""Grounding DINO: an image and a caption -> boxes, each with a similarity to every token of the caption.

Paper: Liu et al., arXiv 2303.05499. Checkpoints and key names: IDEA-Research/GroundingDINO. Left out: training with
denoising queries. Prompts, thresholds and pixels are in detector.py, the transformer's steps in transformer.py.

    encode_text                    caption: BERT, a linear layer            -> text tokens (B, L, C)
    encode_image                   image: Swin, a convolution for each map  -> four maps, S cells in all
    enhance                        both: fusion and self-attention          -> memory (B, S, C), text memory (B, L, C)
    score_tokens, select_queries   memory . text memory                     -> the Q image tokens most like a text token
    refine                         initial boxes, decoder, heads            -> logits (B, Q, L), boxes (B, Q, 4)
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import load_strictly, without_weights
from ..support.reading import load_state_dict
from .bert import Bert, BertConfig, phrase_masks
from .deformable_attention import MSDeformAttn
from .geometry import Geometry, Shapes, build_geometry, inverse_sigmoid, shapes_on_levels
from .swin import Swin, SwinConfig
from .transformer import Text, Transformer, contrastive_logits

MAX_TEXT = 256  # tokens, [CLS] and [SEP] included: max_text_len of the official configurations

# Keys of published files that the model does without, and why.
IGNORED_KEYS = {
    "label_enc.weight": "denoising training",
    "bert.embeddings.position_ids": "0, 1, 2, ..., kept by old versions of transformers",
    "bert.pooler.dense.weight": "sentence vector, never used",
    "bert.pooler.dense.bias": "sentence vector, never used",
}


@dataclass(frozen=True)
class GroundingDINOConfig:
    """Sizes of a model; the defaults are those of the official configurations (groundingdino/config).

    `hidden_dim`: a multiple of 32 from 64 on; `separators`: ids of tokens that end a phrase.
    """

    swin: SwinConfig
    bert: BertConfig = field(default_factory=BertConfig)
    hidden_dim: int = 256
    feedforward_dim: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_queries: int = 900
    separators: tuple[int, ...] = (101, 102, 1012, 1029)  # [CLS] [SEP] . ?


PRESETS = {
    # groundingdino_swint_ogc.pth, 172 M parameters
    "swin-t": GroundingDINOConfig(SwinConfig(96, (2, 2, 6, 2), (3, 6, 12, 24), 7)),
    # groundingdino_swinb_cogcoor.pth, 232 M parameters
    "swin-b": GroundingDINOConfig(SwinConfig(128, (2, 2, 18, 2), (4, 8, 16, 32), 12)),
    # minisam_glue/demo, 2,485,354 parameters; the vocabulary is demo/vocab.txt
    "demo": GroundingDINOConfig(
        SwinConfig(24, (1, 2, 2, 1), (2, 4, 8, 8), 5),
        BertConfig(vocab_size=124, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=128, max_positions=256),
        hidden_dim=96,
        feedforward_dim=256,
        encoder_layers=3,
        decoder_layers=3,
        num_queries=60,
        separators=(2, 3, 5, 6),
    ),
}


@dataclass
class DetectorOutput:
    """Q queries of B images against L text tokens."""

    logits: Tensor  # (B, Q, L), before the sigmoid; -inf at padding
    boxes: Tensor  # (B, Q, 4), cxcywh as fractions of each image


class GroundingDINO(nn.Module):
    """The whole network. In training mode it returns the output of every head, for the loss."""

    def __init__(self, config: GroundingDINOConfig):
        super().__init__()
        C, channels = config.hidden_dim, config.swin.channels
        self.config = config
        self.backbone = nn.ModuleList([Swin(config.swin)])
        self.bert = Bert(config.bert)
        self.feat_map = nn.Linear(config.bert.hidden_size, C)
        convolutions = [nn.Conv2d(c, C, 1) for c in channels] + [nn.Conv2d(channels[-1], C, 3, stride=2, padding=1)]
        self.input_proj = nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(32, C)) for conv in convolutions)
        layers = config.encoder_layers, config.decoder_layers
        self.transformer = Transformer(C, config.feedforward_dim, *layers, config.num_queries)
        self.bbox_embed = self.transformer.decoder.bbox_embed  # official files hold it under both names
        self.initialise()

    def initialise(self) -> None:
        """Initialise as DINO does: matrices by Xavier, embeddings normal, box heads that move no box at first.

        BERT, Swin and the sampling points of deformable attention have their own initial values.
        """
        for module in (self.transformer, self.feat_map, self.input_proj):
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        for module in self.transformer.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        nn.init.normal_(self.transformer.level_embed)
        nn.init.normal_(self.transformer.tgt_embed.weight)
        for head in (self.bbox_embed[0], self.transformer.enc_out_bbox_embed):
            nn.init.zeros_(head.layers[-1].weight)
            nn.init.zeros_(head.layers[-1].bias)

    def encode_text(self, ids: Tensor, valid: Tensor) -> Text:
        """Token ids (B, L) and valid (B, L), False at padding -> Text of at most 256 tokens."""
        attention, positions = phrase_masks(ids, self.config.separators)
        ids, valid, positions = ids[:, :MAX_TEXT], valid[:, :MAX_TEXT], positions[:, :MAX_TEXT]
        attention = attention[:, None, :MAX_TEXT, :MAX_TEXT]
        return Text(self.feat_map(self.bert(ids, positions, attention)), valid, positions, attention)

    def encode_image(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> four maps (B, C, h, w), strides 8, 16, 32 and 64."""
        maps = self.backbone[0](images)
        return [proj(x) for proj, x in zip(self.input_proj, maps + maps[-1:])]

    def ground(self, levels: list[Tensor], image_shapes: tuple[Shapes, ...], text: Text) -> list[DetectorOutput]:
        """Maps of B images, the (h, w) in cells of each image on each level, and text -> the last output.

        In training mode: the outputs of all decoder layers, the last one first, then the encoder's.
        """
        memory, geometry, text = self.enhance(levels, image_shapes, text)
        candidates, scores = self.transformer.score_tokens(memory, geometry, text)
        return self.refine(memory, candidates, self.transformer.select_queries(scores, geometry), geometry, text)

    def enhance(
        self, levels: list[Tensor], image_shapes: tuple[Shapes, ...], text: Text
    ) -> tuple[Tensor, Geometry, Text]:
        """Maps and text, as for `ground` -> image memory (B, S, C), the geometry of its cells, and the text memory."""
        levels = self.pad_to_queries(levels)
        shapes = tuple(tuple(level.shape[-2:]) for level in levels)
        geometry = build_geometry(shapes, image_shapes, self.config.hidden_dim, levels[0].device)
        memory, features = self.transformer.encode(levels, geometry, text)
        return memory, geometry, Text(features, text.valid, text.positions, text.attention)

    def pad_to_queries(self, levels: list[Tensor]) -> list[Tensor]:
        """Add rows of padding to the last map of a tiny image: no fewer cells than queries."""
        missing = self.config.num_queries - sum(level.shape[-2:].numel() for level in levels)
        rows = max(0, math.ceil(missing / levels[-1].shape[-1]))
        return [*levels[:-1], F.pad(levels[-1], (0, 0, 0, rows))]

    def refine(
        self, memory: Tensor, candidates: Tensor, selected: Tensor, geometry: Geometry, text: Text
    ) -> list[DetectorOutput]:
        """Image memory and candidates (B, S, C), of which Q are selected, (B, Q) -> outputs, as from `ground`."""
        features, boxes = self.transformer.initial_boxes(candidates, selected, geometry)
        hidden, references = self.transformer.decode(memory, boxes, geometry, text)
        heads = reversed(range(len(hidden))) if self.training else [len(hidden) - 1]
        outputs = [self.head(hidden[i], references[i], i, text) for i in heads]
        if self.training:
            outputs.append(DetectorOutput(contrastive_logits(features, text), boxes.sigmoid()))
        return outputs

    def head(self, hidden: Tensor, reference: Tensor, layer: int, text: Text) -> DetectorOutput:
        """Output of decoder layer `layer`: its normed queries (B, Q, C), and the boxes (B, Q, 4) that entered it."""
        step = self.bbox_embed[layer](hidden).float()
        return DetectorOutput(contrastive_logits(hidden, text), (step + inverse_sigmoid(reference)).sigmoid())

    def forward(self, images: Tensor, text: Text, sizes: list[tuple[int, int]] | None = None) -> list[DetectorOutput]:
        """Normalised images (B, 3, H, W), zero-padded at the right and bottom -> outputs, as from `ground`.

        sizes: the (h, w) of each image before padding, in pixels; None where there is no padding. As in the official
        model the backbone sees the padding; the detector pads after it. Where the official code lets images of a batch
        alter each other later (masks of the text, choice of queries, position of queries), this one does not;
        tests/parity_groundingdino.py has the official ways.
        """
        levels = self.encode_image(images)
        shapes = tuple(tuple(level.shape[-2:]) for level in levels)
        if sizes is None:
            return self.ground(levels, (shapes,) * len(images), text)
        return self.ground(levels, shapes_on_levels(sizes, tuple(images.shape[-2:]), shapes), text)


def load(path: str | Path, preset: str = "swin-t") -> GroundingDINO:
    """Load an official checkpoint -> the model, in eval mode. ValueError if the file is not of this preset."""
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}: there are {', '.join(PRESETS)}")
    state = load_state_dict(path)
    with without_weights():
        model = GroundingDINO(PRESETS[preset])
    load_official(model, state)
    return model.eval()


def load_official(model: GroundingDINO, state: dict[str, Tensor]) -> None:
    """Load an official state dict, strictly but for IGNORED_KEYS. ValueError names keys that do not fit."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    wanted = model.state_dict()
    state = {key: value for key, value in state.items() if key in wanted or key not in IGNORED_KEYS}
    load_strictly(model, state)
