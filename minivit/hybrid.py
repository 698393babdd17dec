"""Hybrid models: the feature map of a convolutional network in place of an image's patches.

ViT: Dosovitskiy et al., arXiv 2010.11929, section 3.1, "Hybrid Architecture": each position of the map is a patch of
1x1, projected linearly to the width of the encoder. Two networks: a small one in the style of VGG (Simonyan and
Zisserman, arXiv 1409.1556, section 2.1), and the first stages of a ResNet-18 (resnet.py). Both see 32x32 images as
they are, and are trained with the encoder. Left out: maps of several stages at once, pretrained networks.
"""

import torch
from torch import Tensor, nn

from minivit.layers import halvings
from minivit.resnet import BasicBlock, conv, stage


class HybridEmbed(nn.Module):
    """Images (B, 3, H, W) to one token for each position of a feature map: (B, H/p * W/p, dim).

    Subclasses build `features`, from images to a map (B, C, H/p, W/p). ValueError for a patch size p that is no power
    of two.
    """

    def __init__(self, features: nn.Module, channels: int, dim: int):
        super().__init__()
        self.features = features
        self.proj = nn.Conv2d(channels, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x.contiguous(memory_format=torch.channels_last))  # (B, C, h, w)
        return self.proj(x).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, N, C)


class CNNEmbed(HybridEmbed):
    """A small CNN: two 3x3 convolutions at each resolution, max-pooling by 2 down to the patch grid.

    64 channels at first, twice as many after each pooling, 256 at most.
    """

    def __init__(self, patch: int, dim: int):
        layers: list[nn.Module] = []
        channels = 3
        for step in range(halvings(patch, "cnn") + 1):
            width = min(64 * 2**step, 256)
            layers += [nn.MaxPool2d(2)] if step else []
            layers += [*conv_norm(channels, width), *conv_norm(width, width)]
            channels = width
        super().__init__(nn.Sequential(*layers), channels, dim)


class ResNetEmbed(HybridEmbed):
    """The first stages of a ResNet-18 with the CIFAR stem: patch 1, 2, 4, 8 for one to four stages.

    The names in `features` are those of torch.nn.Sequential: stem convolution and norm, then the stages.
    """

    def __init__(self, patch: int, dim: int):
        stages = halvings(patch, "resnet18") + 1
        if stages > 4:
            raise ValueError(f"--patch {patch}: a ResNet-18 has maps of patches of 1, 2, 4 and 8 pixels")
        widths = [64, 64, 128, 256, 512][: stages + 1]
        blocks = [
            stage(BasicBlock, *pair, depth=2, stride=2 if i else 1) for i, pair in enumerate(zip(widths, widths[1:]))
        ]
        super().__init__(nn.Sequential(conv(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), *blocks), widths[-1], dim)
        for module in self.modules():
            if isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)  # each block starts as its shortcut, as in resnet.py


def conv_norm(c_in: int, c_out: int) -> list[nn.Module]:
    """3x3 convolution, batch normalisation, ReLU."""
    return [conv(c_in, c_out, 3), nn.BatchNorm2d(c_out), nn.ReLU()]
