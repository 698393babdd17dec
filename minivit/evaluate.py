"""Evaluate a model: scores for images, and the share of them that it gets right."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.augment import normalise
from minivit.data import Split


@dataclass(frozen=True)
class Evaluator:
    """How images are shown to a model: normalised by mean and std, on a device, in a precision.

    mean, std: per channel, of values in [0, 1]. dtype: float32, or bfloat16 and float16 for autocast.
    """

    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device
    dtype: torch.dtype = torch.float32
    batch_size: int = 500

    @torch.inference_mode()
    def predict(self, model: nn.Module, images: Tensor) -> Tensor:
        """Scores (N, classes), float32, of uint8 images (N, 3, H, W). Puts the model into evaluation mode."""
        model.eval()
        scores = []
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            for part in images.split(self.batch_size):
                x = normalise(part.to(self.device), self.mean, self.std)
                scores.append(model(resize_to_model(x, model)).float())
        return torch.cat(scores)

    def accuracy(self, model: nn.Module, split: Split) -> float:
        """Share in [0, 1] of the images of `split` that `model` classifies correctly (top-1)."""
        return top1(self.predict(model, split.images), split.labels)


def top1(scores: Tensor, labels: Tensor) -> float:
    """Share in [0, 1] of scores (N, classes) that are highest at the label (N,)."""
    return (scores.argmax(1) == labels.to(scores.device)).double().mean().item()


def resize_to_model(x: Tensor, model: nn.Module, side: int | None = None) -> Tensor:
    """Resize images (B, 3, H, W) to `side`, or to what the model takes; so small data sets stay small in memory."""
    size = model.config.size if hasattr(model, "config") else tuple(x.shape[-2:])
    size = (side, side) if side else size
    return x if tuple(x.shape[-2:]) == size else F.interpolate(x, size, mode="bicubic", antialias=True)
