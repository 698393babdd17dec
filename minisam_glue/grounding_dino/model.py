"""Grounding DINO: an image and a caption -> boxes, each with a similarity to every token of the caption.

Paper: Liu et al., arXiv 2303.05499. Checkpoints and key names: IDEA-Research/GroundingDINO. Left out:
training with denoising queries. Prompts, thresholds and pixels are the business of detector.py.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .bert import Bert, BertConfig, phrase_masks
from .geometry import Geometry, Shapes, build_geometry, inverse_sigmoid, scaled_valid
from .swin import Swin, SwinConfig
from .transformer import Text, Transformer, contrastive_logits

LEVELS, POINTS, HEADS = 4, 4, 8  # the same in all published models
MAX_TEXT = 256  # tokens, [CLS] and [SEP] included

# What published files hold beyond the model: key -> why we do without it.
IGNORED_KEYS = {
    "label_enc.weight": "denoising training",
    "bert.embeddings.position_ids": "0, 1, 2, ..., kept by old versions of transformers",
    "bert.pooler.dense.weight": "sentence vector, never used",
    "bert.pooler.dense.bias": "sentence vector, never used",
}


@dataclass(frozen=True)
class GroundingDINOConfig:
    """Sizes of a model. `hidden_dim`: a multiple of 32 from 64 on; `separators`: ids of tokens that end a phrase."""

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
class Prediction:
    """Q queries of B images against L text tokens."""

    logits: Tensor  # (B, Q, L), before the sigmoid; -inf at padding
    boxes: Tensor  # (B, Q, 4), cxcywh as fractions of each image


class GroundingDINO(nn.Module):
    """The whole network. In training mode it returns what every head predicts, for the loss."""

    def __init__(self, config: GroundingDINOConfig):
        super().__init__()
        C, channels = config.hidden_dim, config.swin.channels
        self.config = config
        self.backbone = nn.ModuleList([Swin(config.swin)])
        self.bert = Bert(config.bert)
        self.feat_map = nn.Linear(config.bert.hidden_size, C)
        convolutions = [nn.Conv2d(c, C, 1) for c in channels] + [nn.Conv2d(channels[-1], C, 3, stride=2, padding=1)]
        self.input_proj = nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(32, C)) for conv in convolutions)
        self.transformer = Transformer(
            C,
            HEADS,
            config.feedforward_dim,
            config.encoder_layers,
            config.decoder_layers,
            config.num_queries,
            LEVELS,
            POINTS,
        )
        self.bbox_embed = self.transformer.decoder.bbox_embed  # official files hold it under both names
        self.initialise()

    def initialise(self) -> None:
        """As DINO is initialised: Xavier, embeddings normal, boxes that start where their references are."""
        for module in (self.transformer, self.feat_map, self.input_proj):
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    nn.init.xavier_uniform_(parameter)
        for module in self.transformer.modules():
            if hasattr(module, "sampling_offsets"):
                module.reset_parameters()
        nn.init.normal_(self.transformer.level_embed)
        nn.init.normal_(self.transformer.tgt_embed.weight)
        for head in (self.bbox_embed[0], self.transformer.enc_out_bbox_embed):
            nn.init.zeros_(head.layers[-1].weight)
            nn.init.zeros_(head.layers[-1].bias)

    def encode_text(self, ids: Tensor, real: Tensor) -> Text:
        """ids (B, L) and real (B, L), False at padding -> Text of at most 256 tokens."""
        attention, positions = phrase_masks(ids, self.config.separators)
        ids, real, positions = ids[:, :MAX_TEXT], real[:, :MAX_TEXT], positions[:, :MAX_TEXT]
        attention = attention[:, None, :MAX_TEXT, :MAX_TEXT]
        return Text(self.feat_map(self.bert(ids, positions, attention)), real, positions, attention)

    def encode_image(self, images: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> four maps (B, C, h, w), strides 8, 16, 32 and 64."""
        maps = self.backbone[0](images)
        return [proj(x) for proj, x in zip(self.input_proj, maps + maps[-1:])]

    def ground(self, levels: list[Tensor], valid: tuple[Shapes, ...], text: Text) -> list[Prediction]:
        """Maps of B images, their valid cells per level, and text -> the last prediction.

        In training mode: the predictions of all decoder layers, the last one first, then the encoder's.
        """
        memory, geometry, text = self.enhance(levels, valid, text)
        candidates, rating = self.transformer.rate_cells(memory, geometry, text)
        return self.refine(memory, candidates, self.transformer.choose(rating, geometry), geometry, text)

    def enhance(self, levels: list[Tensor], valid: tuple[Shapes, ...], text: Text) -> tuple[Tensor, Geometry, Text]:
        """Maps and text, as for `ground` -> image memory (B, S, C), the geometry of its cells, and the text memory."""
        shapes, config = tuple(tuple(level.shape[-2:]) for level in levels), self.config
        geometry = build_geometry(shapes, valid, config.hidden_dim, config.num_queries, levels[0].device)
        memory, words = self.transformer.encode(levels, geometry, text)
        return memory, geometry, Text(words, text.real, text.positions, text.attention)

    def refine(
        self, memory: Tensor, candidates: Tensor, chosen: Tensor, geometry: Geometry, text: Text
    ) -> list[Prediction]:
        """Image memory and candidates (B, S, C), of which Q are chosen, (B, Q) -> predictions, as from `ground`."""
        features, start = self.transformer.propose(candidates, chosen, geometry)
        hidden, references = self.transformer.decode(memory, start, geometry, text)
        heads = reversed(range(len(hidden))) if self.training else [len(hidden) - 1]
        predictions = [self.head(hidden[i], references[i], i, text) for i in heads]
        if self.training:
            predictions.append(Prediction(contrastive_logits(features, text), start.sigmoid()))
        return predictions

    def head(self, hidden: Tensor, reference: Tensor, layer: int, text: Text) -> Prediction:
        """What decoder layer `layer` says, from its normed output and the boxes (B, Q, 4) that entered it."""
        step = self.bbox_embed[layer](hidden).float()
        return Prediction(contrastive_logits(hidden, text), (step + inverse_sigmoid(reference)).sigmoid())

    def forward(self, images: Tensor, text: Text, sizes: list[tuple[int, int]] | None = None) -> list[Prediction]:
        """Normalised images (B, 3, H, W), zero-padded at the right and bottom; sizes: the (h, w) before padding.

        As in the official model the backbone sees the padding; the detector pads after it. Where the official
        code lets images of a batch alter each other later (masks of the text, choice of queries, position of
        queries), this one does not; tests/parity_groundingdino.py has the official ways.
        """
        levels = self.encode_image(images)
        shapes = tuple(tuple(level.shape[-2:]) for level in levels)
        canvas = tuple(images.shape[-2:])
        return self.ground(levels, scaled_valid(sizes or [canvas] * len(images), canvas, shapes), text)


def load(path: str | Path, preset: str = "swin-t") -> GroundingDINO:
    """An official checkpoint -> the model, in eval mode. ValueError if the file is not of this preset."""
    if preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}: there are {', '.join(PRESETS)}")
    file = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        model = GroundingDINO(PRESETS[preset])
    load_official(model, file.get("model", file))
    return model.eval()


def load_official(model: GroundingDINO, state: dict[str, Tensor]) -> None:
    """Put an official state dict in place, strictly but for IGNORED_KEYS. ValueError names what does not fit."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    wanted = model.state_dict()
    state = {key: value for key, value in state.items() if key in wanted or key not in IGNORED_KEYS}
    wrong = {
        "missing": wanted.keys() - state.keys(),
        "not known": state.keys() - wanted.keys(),
        "of another shape": {k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape},
    }
    if any(wrong.values()):
        report = "; ".join(f"{len(keys)} {what}, such as {min(keys)}" for what, keys in wrong.items() if keys)
        raise ValueError(f"the checkpoint is not of this model: {report}. Choose the preset that fits the file")
    model.load_state_dict(state, assign=True)
