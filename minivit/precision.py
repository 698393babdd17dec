"""The number format in which a model trains: autocast's dtype, chosen by the hardware."""

import torch

NARROW = 64  # channels: narrower models may lose more by conversion to bf16 on a CPU than its products gain
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
    if not hasattr(torch.cpu, "get_capabilities"):  # an older PyTorch
        older = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        return older is not None and bool(older())
    try:
        found = torch.cpu.get_capabilities()
    except RuntimeError:  # a processor that PyTorch cannot tell
        return False
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
