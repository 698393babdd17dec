"""Images per second of a training step (forward, backward, AdamW): ours against the peers.

    python benchmarks/train_throughput.py                                      # CPU, fp32, batch 64
    python benchmarks/train_throughput.py --device cuda --dtype bfloat16 --batch-size 512

All models have one shape (32x32 images, patch 4, dim 256, depth 12, 8 heads, MLP ratio 4, 10 classes),
the same dtype and threads, and the same fused AdamW. Rounds are interleaved, so that a machine whose
speed drifts slows all of them alike; the median is printed, with the fastest and slowest round, its
ratio to the fastest peer's median, and the share of the matrix product rate measured in between.
Peers that are not installed (`pip install -e ".[bench]"`) are left out by name.
"""

import argparse
import dataclasses
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minivit.fast import accelerate
from minivit.optim import adamw
from minivit.vit import PRESETS, VisionTransformer

SHAPE = PRESETS["vit-d256-l12"]


def ours() -> nn.Module:
    return VisionTransformer(SHAPE)


def ours_with_tail() -> nn.Module:
    """The last four blocks update the class token only."""
    return VisionTransformer(dataclasses.replace(SHAPE, class_attention=4))


def timm_vit() -> nn.Module:
    import timm

    return timm.models.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=256, depth=12, num_heads=8, num_classes=10
    )


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer as ViT

    return ViT(image_size=32, patch_size=4, num_layers=12, num_heads=8, hidden_dim=256, mlp_dim=1024, num_classes=10)


def vit_pytorch_vit() -> nn.Module:
    from vit_pytorch import ViT

    return ViT(image_size=32, patch_size=4, num_classes=10, dim=256, depth=12, heads=8, mlp_dim=1024, dim_head=32)


def transformers_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            config = ViTConfig(
                hidden_size=256,
                num_hidden_layers=12,
                num_attention_heads=8,
                intermediate_size=1024,
                image_size=32,
                patch_size=4,
                num_labels=10,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
            self.vit = ViTForImageClassification._from_config(config, attn_implementation="sdpa")

        def forward(self, x):
            return self.vit(x).logits

    return Logits()


PEERS = {
    "timm": timm_vit,
    "torchvision": torchvision_vit,
    "vit-pytorch": vit_pytorch_vit,
    "transformers": transformers_vit,
}
OURS = {"minivit": ours, "minivit, class-attention tail": ours_with_tail}


class Step:
    """One training step of a model on fixed images, timed."""

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype):
        self.model, self.x, self.y, self.dtype = accelerate(model.to(x.device).train()), x, y, dtype
        self.optimizer = adamw(self.model, 1e-4)

    def __call__(self) -> float:
        start = time.perf_counter()
        with torch.autocast(self.x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = F.cross_entropy(self.model(self.x).float(), self.y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        synchronise(self.x.device)
        return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of a large matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, n, n, device=device, dtype=dtype).unbind(0)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        a @ b
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def step_flops(step: Step) -> float:
    """Operations that one image's forward and backward pass takes in this model: matrix products, attention's included.

    Attention is written out for that: the counter does not know the fused kernel of a CPU.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step.model(step.x[:1]).sum().backward()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    x = torch.randn(args.batch_size, 3, 32, 32, device=device)
    y = torch.randint(0, 10, (args.batch_size,), device=device)
    steps = {}
    for name, build in {**PEERS, **OURS}.items():
        try:
            steps[name] = Step(build(), x, y, dtype)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    flops = {name: step_flops(step) for name, step in steps.items()}
    for step in steps.values():
        step(), step()
    seconds, rates = {name: [] for name in steps}, []
    for _ in range(args.rounds):
        for name, step in steps.items():
            seconds[name].append(step())
        rates.append(matmul_rate(device, dtype))
    print(
        f"{platform.machine()}, {args.threads} threads, {args.device}, {args.dtype}, batch {args.batch_size}, "
        f"{args.rounds} rounds, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )
    print(f"matrix products: {statistics.median(rates) / 1e9:.0f} GFLOP/s")
    fastest = min(statistics.median(times) for name, times in seconds.items() if name in PEERS)
    for name, times in seconds.items():
        speeds = sorted(args.batch_size / t for t in times)
        ratio = fastest / statistics.median(times)
        share = statistics.median(args.batch_size * flops[name] / t / r for t, r in zip(times, rates))
        print(
            f"{name:<32}{statistics.median(speeds):8.1f} img/s  ({speeds[0]:.1f} - {speeds[-1]:.1f})"
            f"  {ratio:.3f}x the fastest peer  {flops[name] / 1e9:.2f} GFLOP an image  {share:.0%} of the matmul rate"
        )


if __name__ == "__main__":
    main()
