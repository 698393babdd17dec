"""ResNet-18 and ResNet-50: a convolutional teacher for distillation, and a backbone for hybrid models.

He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, sections 3.3 and 4.1 (figure 5, table 1).
With stem="imagenet" keys and numbers are torchvision's; with stem="cifar" a 3 x 3 convolution of stride 1 and no
pooling keep the resolution of 32 x 32 images (the stem of the paper's section 4.2, on the wider networks of
section 4.1). Left out: the 6n+2 networks of section 4.2, dilation, grouped and wide variants.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias (the norm that follows has one) that keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut of a block: None for the identity, a strided 1 x 1 convolution (option B) if the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions: (B, in_channels, H, W) -> (B, width, H / stride, W / stride). Figure 5, left."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = projection(in_channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1: (B, in_channels, H, W) -> (B, 4 * width, H / stride, W / stride). Figure 5, right.

    The stride is on the 3 x 3 convolution, as in torchvision; the paper has it on the first 1 x 1.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = projection(in_channels, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """Four stages of `layers` blocks, mean pooling and a linear head: images (B, 3, H, W) -> (B, num_classes).

    stem: "cifar" (3 x 3, stride 1) or "imagenet" (7 x 7, stride 2, then a 3 x 3 max-pool of stride 2).
    ValueError for another stem or another number of stages.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        num_classes: int = 10,
        stem: str = "cifar",
    ):
        super().__init__()
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"unknown stem {stem!r}: use 'cifar' (32 x 32 images) or 'imagenet' (224 x 224)")
        if len(layers) != 4 or min(layers) < 1:
            raise ValueError(f"layers is {list(layers)}: give four stages of at least one block, as [2, 2, 2, 2]")
        self.num_features = 512 * block.expansion
        imagenet = stem == "imagenet"
        self.conv1 = conv(3, 64, 7, stride=2) if imagenet else conv(3, 64, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else nn.Identity()
        self.layer1 = stage(block, 64, 64, layers[0], stride=1)
        self.layer2 = stage(block, 64 * block.expansion, 128, layers[1], stride=2)
        self.layer3 = stage(block, 128 * block.expansion, 256, layers[2], stride=2)
        self.layer4 = stage(block, 256 * block.expansion, 512, layers[3], stride=2)
        self.fc = nn.Linear(self.num_features, num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Convolutions: He et al., arXiv 1502.01852, fan-out. The last norm of each block starts at scale 0, so that
        the block starts as its shortcut (Goyal et al., arXiv 1706.02677, section 5.1)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) -> (B, 64, H, W) with the CIFAR stem, (B, 64, H / 4, W / 4) with ImageNet's."""
        return self.maxpool(F.relu(self.bn1(self.conv1(x))))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) -> the last map (B, num_features, H / s, W / s); s is 8 (CIFAR stem) or 32 (ImageNet)."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).mean(dim=(2, 3)))  # (B, C, H, W) -> (B, C) -> (B, num_classes)


def stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, depth: int, stride: int
) -> nn.Sequential:
    """`depth` blocks; the first one changes width and resolution."""
    out_channels = width * block.expansion
    return nn.Sequential(block(in_channels, width, stride), *(block(out_channels, width) for _ in range(depth - 1)))


def resnet18(num_classes: int = 10, stem: str = "cifar") -> ResNet:
    """ResNet-18: 11,173,962 parameters for CIFAR-10; 11,689,512 as torchvision has it (1000 classes, ImageNet stem)."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, stem)


def resnet50(num_classes: int = 10, stem: str = "cifar") -> ResNet:
    """ResNet-50: 23,520,842 parameters for CIFAR-10; 25,557,032 as torchvision has it (1000 classes, ImageNet stem)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, stem)
