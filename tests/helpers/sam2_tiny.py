"""A SAM 2 small enough for tests, with the formula weights of tests/parity.py."""

from dataclasses import replace
from functools import lru_cache

import parity
import torch

from minisam_glue.sam2 import SAM2, SAM2Config, accelerate
from minisam_glue.sam2.model import first_release

CONFIG = SAM2Config(embed_dim=8, stages=(1, 1, 2, 1), global_att_blocks=(3,), image_size=64)


@lru_cache
def tiny_model(image_size: int = 64, object_score: float = 5.0, first: bool = False, fast: bool = False) -> SAM2:
    """object_score: what is added to the score that says whether the object is there; first: SAM 2.0, not 2.1;
    fast: switched to its faster forms."""
    config = replace(CONFIG, image_size=image_size)
    model = SAM2(first_release(config) if first else config).eval()
    state = parity.formula_state({k: tuple(v.shape) for k, v in model.state_dict().items()})
    state["sam_mask_decoder.pred_obj_score_head.layers.2.bias"] += object_score
    model.load_state_dict(state)
    model.requires_grad_(False)
    return accelerate(model) if fast else model


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frames(count: int, height: int = 40, width: int = 56, seed: int = 0) -> list:
    """A bright square that moves over noise, uint8 (H, W, 3)."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for t in range(count):
        frame = torch.randint(0, 90, (height, width, 3), generator=generator, dtype=torch.uint8)
        frame[10:25, 5 + t % 30 : 20 + t % 30] += 140
        out.append(frame.numpy())
    return out
