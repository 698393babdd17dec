"""A teacher for distillation: a frozen model that is shown the views its student learns from.

The teacher labels the same augmented and mixed images as the student sees (Beyer et al., "Knowledge distillation: a
good teacher is patient and consistent", arXiv 2106.05237, section 3). It may have been trained on images of
another size or normalisation; its views are converted. Losses: losses.py. A teacher trained first: chain.py.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from minivit.checkpoint import RESNETS
from minivit.evaluate import resize

TRAIN = "train:"  # in front of the preset of a teacher that is trained first


class Teacher(nn.Module):
    """Logits (B, classes) of a model for images (B, 3, H, W) that are normalised for its student.

    model: is put into evaluation mode, and learns no more. own, students: mean and std, by channel, under which it was
    trained and under which the images are.
    """

    def __init__(self, model: nn.Module, own: Sequence[Sequence[float]], students: Sequence[Sequence[float]]):
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        (mean, std), (x_mean, x_std) = (torch.tensor(value, dtype=torch.float64) for value in (own, students))
        # x_std * x + x_mean = std * y + mean, with x the student's view of a pixel and y the teacher's
        self.same = [*map(tuple, own)] == [*map(tuple, students)]
        for name, value in (("scale", x_std / std), ("shift", (x_mean - mean) / std)):
            self.register_buffer(name, value.float().view(3, 1, 1))

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode, also as a part of a model that trains: no dropout, running means as they are."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        size = self.size_for(*x.shape[2:])
        if size != tuple(x.shape[2:]):
            x = resize(x, size)
        return self.model(x if self.same else x * self.scale + self.shift)

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """The size in which the model sees images of this one: its own, or theirs where it takes them.

        A ResNet takes any, and is trained on CIFAR's 32x32; smaller ones stay.
        """
        config = getattr(self.model, "config", None)
        if config is None:
            return min(height, 32), min(width, 32)
        return (height, width) if config.takes(height, width) else config.size


def fingerprint(model: nn.Module) -> str:
    """The SHA-256 of a model's weights, running means included: the same on every device, another for any others."""
    digest = hashlib.sha256()
    for weights in model.state_dict().values():
        digest.update(weights.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def teacher_file(teacher: Path, out: Path) -> Path:
    """The checkpoint of --teacher: the one that is named, or that of the teacher trained in the run folder `out`."""
    return teacher_folder(out) / "best.pt" if preset_to_train(teacher) else teacher


def teacher_folder(out: Path) -> Path:
    """The run folder of a teacher that is trained for the student in `out`."""
    return out / "teacher"


def preset_to_train(teacher: Path | None) -> str | None:
    """The preset of a teacher to be trained: "resnet18" of train:resnet18. None for a checkpoint.

    ValueError for another preset than a ResNet.
    """
    if not str(teacher).startswith(TRAIN):
        return None
    preset = str(teacher).removeprefix(TRAIN)
    if preset not in RESNETS:
        raise ValueError(f"--teacher {teacher}: give {' or '.join(TRAIN + name for name in RESNETS)}, or a checkpoint")
    return preset
