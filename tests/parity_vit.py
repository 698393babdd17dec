"""The ViT family's golden cases: models, training, report. See parity.py."""

import parity_vit_models
import parity_vit_report
import parity_vit_training
import torch
from parity import Golden

CASES = parity_vit_models.CASES | parity_vit_training.CASES | parity_vit_report.CASES


def run(golden: Golden, device: str, dtype: torch.dtype) -> dict:
    return CASES[golden.meta["case"]](golden, device, dtype)
