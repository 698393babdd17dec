"""A very small CLIPSeg with a tokenizer of its own, for the tests."""

import torch

from minisam_glue.clipseg.clip import CLIPConfig, TextConfig, VisionConfig
from minisam_glue.clipseg.model import CLIPSeg, CLIPSegConfig
from minisam_glue.clipseg.tokenizer import CLIPTokenizer

TOKENIZER = CLIPTokenizer([("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")])
CONFIG = CLIPSegConfig(
    CLIPConfig(
        VisionConfig(dim=32, num_layers=4, num_heads=2, mlp_dim=48, image_size=32, patch_size=8),
        TextConfig(dim=24, num_layers=2, num_heads=2, mlp_dim=48, vocab_size=len(TOKENIZER.ids), max_tokens=12),
        projection_dim=20,
    ),
    reduce_dim=16,
    extract_layers=(0, 1, 2),
    refined=True,
    decoder_mlp_dim=40,
)


def tiny_model(seed: int = 0) -> CLIPSeg:
    """Random weights, none of them zero, so that every part of the model matters."""
    torch.manual_seed(seed)
    model = CLIPSeg(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()
