"""A very small Grounding DINO with a vocabulary of its own, for the tests."""

import torch

from minisam_glue.grounding_dino.bert import BertConfig
from minisam_glue.grounding_dino.model import GroundingDINO, GroundingDINOConfig
from minisam_glue.grounding_dino.swin import SwinConfig
from minisam_glue.grounding_dino.tokenizer import SPECIAL, WordPieceTokenizer

WORDS = ("red", "green", "blue", "square", "car", "dog", "cat", "traffic", "light", "on", "grass", "a", "the")
TOKENS = [*SPECIAL, ".", "?", "##s", *WORDS, *"bcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "0123456789")]
TOKENIZER = WordPieceTokenizer(TOKENS)
CONFIG = GroundingDINOConfig(
    SwinConfig(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 4), window_size=4),
    BertConfig(
        vocab_size=len(TOKENS), hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64, max_positions=256
    ),
    hidden_dim=64,
    feedforward_dim=64,
    encoder_layers=1,
    decoder_layers=2,
    num_queries=10,
    separators=tuple(TOKENIZER.ids[token] for token in ("[CLS]", "[SEP]", ".", "?")),
)


def tiny_model(seed: int = 0) -> GroundingDINO:
    """Random weights, none of them zero, so that every part of the model matters."""
    torch.manual_seed(seed)
    model = GroundingDINO(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()
