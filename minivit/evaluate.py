"""Evaluate a model: logits of images, and the share of them that it gets right.

Test-time augmentation averages the probabilities of several views of an image: the image and its mirror, or the ten
crops of Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS 2012,
section 4.1. An ensemble averages those of several models (Lakshminarayanan et al., arXiv 1612.01474, section 2.4).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.augment import check_images, check_normalisation, normalise, reflect
from minivit.splits import Split

TTA = ("flip", "crops")


@dataclass(frozen=True)
class Evaluator:
    """The way images are shown to a model: normalised by mean and std, on a device, in a precision.

    mean, std: per channel, of values in [0, 1]. dtype: float32, or bfloat16 and float16 for autocast.
    """

    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device | str
    dtype: torch.dtype = torch.float32
    batch_size: int = 500

    def __post_init__(self):
        check_normalisation(self.mean, self.std)

    def predict(self, model: nn.Module, images: Tensor, tta: str | None = None) -> Tensor:
        """Logits (N, classes), float32, of uint8 images (N, 3, H, W). Puts the model into evaluation mode.

        tta: "flip" or "crops" for the log of the mean probability over these views; None for the image alone.
        """
        if tta is None:
            return self.scores(model, images)
        check_images(images)
        parts = images.split(self.batch_size)  # whose views are held, not those of all images
        return torch.cat([mean_probability([self.scores(model, v) for v in make_views(part, tta)]) for part in parts])

    def scores(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits (N, classes), float32, of uint8 images (N, 3, H, W) as they are. ValueError for other images."""
        check_images(images)
        model.eval()
        device = torch.device(self.device)
        autocast = torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)
        with torch.inference_mode(), autocast:
            parts = [self.part(model, part.to(device)) for part in images.split(self.batch_size)]
        return torch.cat(parts)  # outside of inference mode, whose tensors can't be learned from or changed

    def part(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits of images that go through the model together."""
        x = normalise(images, self.mean, self.std)
        return model(resize_to_model(x, model)).float()

    def accuracy(self, model: nn.Module, split: Split) -> float:
        """Share in [0, 1] of the images of `split` that `model` classifies correctly (top-1). ValueError for none."""
        return top1(self.predict(model, split.images), split.labels)


def mean_probability(scores: Sequence[Tensor]) -> Tensor:
    """Log of the mean of the probabilities softmax(scores), each (N, classes): logits of all views or models at once.

    A probability that is 0 in float32 counts as the smallest that is not, so that its log is finite.
    """
    mean = torch.stack([each.float().softmax(1) for each in scores]).mean(0)
    return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()


def make_views(images: Tensor, tta: str) -> list[Tensor]:
    """The views of images (N, 3, H, W) whose probabilities are averaged, all of their size. ValueError for another tta.

    "flip": the images and their mirror images. "crops": the centre and the four corners of the images with their
    border mirrored outwards by a sixteenth of their side (2 pixels of 32), each with its mirror image.
    """
    if tta not in TTA:
        raise ValueError(f"--tta is {tta!r}, not one of {', '.join(TTA)}")
    crops = [images]
    if tta == "crops":
        height, width = images.shape[2:]
        by = max(1, min(height, width) // 16)
        padded = reflect(images, by)
        crops += [padded[..., y : y + height, x : x + width] for y in (0, 2 * by) for x in (0, 2 * by)]
    return [view for crop in crops for view in (crop, crop.flip(3))]


def top1(scores: Tensor, labels: Tensor) -> float:
    """Share in [0, 1] of logits (N, classes) that are highest at the label (N,); rows with NaN are wrong.

    ValueError for N = 0, and for other shapes.
    """
    if labels.ndim != 1 or scores.ndim != 2 or len(labels) != len(scores):
        raise ValueError(
            f"logits are {tuple(scores.shape)}, labels {tuple(labels.shape)}: give logits (N, classes) and labels (N,)"
        )
    if not len(labels):
        raise ValueError("no labels: the accuracy of no images is not defined")
    right = (scores.argmax(1) == labels.to(scores.device)) & ~scores.isnan().any(1)
    return right.sum().item() / len(labels)


def resize_to_model(x: Tensor, model: nn.Module, side: int | None = None) -> Tensor:
    """Resize images (B, 3, H, W) to `side`, else to the model's input size.

    Data sets are kept small and enlarged batch by batch.
    """
    size = model.config.size if hasattr(model, "config") else tuple(x.shape[-2:])
    size = (side, side) if side else size
    return x if tuple(x.shape[-2:]) == size else resize(x, size)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) at another size, bicubic with antialiasing; for MPS, where PyTorch 2.6 cannot, on the CPU."""
    source = x.cpu() if x.device.type == "mps" else x
    return F.interpolate(source, size, mode="bicubic", antialias=True).to(x.device)
