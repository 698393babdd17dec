"""The number format in which a model trains: autocast's dtype, chosen by the hardware, or by timing steps."""

import copy
import math
import time

import torch
from torch import Tensor, nn

from minivit.fast import accelerate

NARROW = 128  # channels: narrower models may lose more by conversion to bf16 than its products gain
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}  # by the words of --amp


def amp_of(dtype: torch.dtype) -> str:
    """The word of --amp for a dtype of autocast."""
    return next(amp for amp, other in DTYPES.items() if other == dtype)


def choose_precision(amp: str, device: torch.device) -> torch.dtype:
    """Choose the dtype of autocast.

    "auto": bf16 on a CPU or NVIDIA GPU that computes in it, fp16 on other NVIDIA GPUs, else float32 (Apple's GPUs too).
    """
    if amp != "auto":
        return DTYPES[amp]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else torch.float32


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 natively; where it does not, bf16 is far slower than fp32."""
    try:
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    except (AttributeError, RuntimeError):  # a PyTorch without this call
        return False


def bf16_is_faster(model: nn.Module, images: Tensor) -> bool:
    """Whether a training step of `model` takes less time in bf16 than in fp32 on this CPU.

    images: (B, 3, H, W), normalised. A copy of the model makes passes forward and backward, in turns; the fastest of
    three of each kind counts.
    """
    model = accelerate(copy.deepcopy(model).to(memory_format=torch.channels_last)).train()
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    for _ in range(3):
        for dtype in seconds:
            started = time.perf_counter()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                logits = model(images)
            logits.float().square().mean().backward()
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - started)
    return seconds[torch.bfloat16] < seconds[torch.float32]
