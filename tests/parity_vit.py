"""The ViT family's golden cases: models, training, report. See parity.py."""

import parity_vit_models
import parity_vit_report
import parity_vit_training
import torch
from parity import Golden

FORMS = ("plain", "fast")
CASES = parity_vit_training.CASES | parity_vit_report.CASES
ONE_FORM = {*CASES, "timm_layerscale", "timm_relposbias", "posembed_interp", "timm_droppath"}


def run(golden: Golden, device: str, dtype: torch.dtype, fast: bool = False) -> dict:
    name = golden.meta["case"]
    if name in CASES:
        return CASES[name](golden, device, dtype)
    return parity_vit_models.CASES[name](parity_vit_models.Case(golden, device, dtype, fast))
