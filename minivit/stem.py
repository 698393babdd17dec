"""A convolutional stem for training in minutes: whitened pixels, max-pooling, batch normalisation.

Whitening by a frozen first layer, pooling before the norm and the activation: Jordan, "94% on CIFAR-10 in 3.29
Seconds on a Single GPU", arXiv 2404.00498, section 3, after David Page's and tysam-code/hlb-CIFAR10's networks.
Residual 3x3 convolutions: He et al., arXiv 1512.03385. Changed: SiLU, which costs less on a CPU, in place of GELU.
Batch normalisation learns its scale, and its running mean follows by 0.3 and not 0.4. Left out: the learned bias of the
whitening layer, convolutions that start as the identity.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 2  # side in pixels of the neighbourhoods that are whitened


class WhiteningStem(nn.Module):
    """Images (B, 3, H, W), normalised, to one token for each patch: (B, H/patch * W/patch, dim).

    Whitened 2x2 neighbourhoods, of which there are (H - 1) x (W - 1), then a stage for each halving down to the
    patches: the first has 64 channels, the others `dim`. whiten: False for a first layer that learns like the others.
    ValueError for a patch other than 4, 8, 16, ...
    """

    def __init__(self, patch: int, dim: int, depth: int = 1, whiten: bool = True):
        super().__init__()
        halvings = patch.bit_length() - 1
        if patch < 4 or patch != 2**halvings:
            raise ValueError(
                f"the whitening stem halves an image two times or more, to patches of 4, 8, 16 pixels, not {patch}: "
                f"--patch {4 if patch < 6 else 8} or --stem conv"
            )
        self.whiten = Whitening() if whiten else nn.Conv2d(3, Whitening.channels, KERNEL, bias=False)
        widths = [Whitening.channels, 64] + [dim] * (halvings - 1)
        self.stages = nn.ModuleList(Stage(c_in, c_out, depth) for c_in, c_out in zip(widths, widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.whiten(x.contiguous(memory_format=torch.channels_last)))  # (B, 24, H - 1, W - 1)
        for stage in self.stages:
            x = stage(x)
        return x.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, N, C)


class Stage(nn.Module):
    """Halve a map (B, c_in, H, W) by a 3x3 convolution and max-pooling, then add `depth` residual 3x3 convolutions.

    The map, (B, c_out, H/2, W/2), is pooled before it is activated: a quarter of the work.
    """

    def __init__(self, c_in: int, c_out: int, depth: int):
        super().__init__()
        self.down = ConvNorm(c_in, c_out, pool=True)
        self.mixes = nn.ModuleList(ConvNorm(c_out, c_out) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        for mix in self.mixes:
            x = x + mix(x)
        return x


class ConvNorm(nn.Module):
    """3x3 convolution, max-pooling by 2 (rounded up) if asked for, batch normalisation, SiLU."""

    def __init__(self, c_in: int, c_out: int, pool: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2, ceil_mode=True) if pool else nn.Identity()
        self.norm = nn.BatchNorm2d(c_out, momentum=0.3)  # few steps in all: the running mean has to keep up

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.pool(self.conv(x))))


class Whitening(nn.Module):
    """A frozen 2x2 convolution, (B, 3, H, W) -> (B, 24, H - 1, W - 1).

    It gives twelve uncorrelated channels of about equal variance, and their negatives, since an activation follows.
    The filters are eigenvectors of the mean of p p^T over 2x2 patches p (12 numbers; their covariance where images have
    mean 0), divided by the root of their eigenvalues. `fit` sets them from images, which the trainer sees to; until
    then they are drawn at random.
    """

    channels = 2 * 3 * KERNEL**2

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, self.channels, KERNEL, bias=False).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)

    @property
    def is_random(self) -> bool:
        """Whether the filters are those that were drawn: frozen, and not from `fit`, here or before they were saved,
        whose second half is the first with the other sign."""
        first, second = self.conv.weight.chunk(2)
        return not (self.conv.weight.requires_grad or torch.equal(first, -second))

    @torch.no_grad()
    def fit(self, parts: Iterable[Tensor], eps: float = 5e-4) -> None:
        """Set the filters from normalised images, given in parts (N, 3, H, W) of which one is held at a time.

        `eps` is added to the eigenvalues, so that directions in which images hardly differ are not blown up. Its value
        is that of airbench94_muon.py (init_whiten). ValueError for parts of another kind, and for none.
        """
        products = count = 0
        for images in parts:
            if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or not images.numel():
                raise ValueError(f"a part is {images.dtype} {tuple(images.shape)}: give normalised images (N, 3, H, W)")
            patches = images.unfold(2, KERNEL, 1).unfold(3, KERNEL, 1)  # (N, 3, H - 1, W - 1, k, k)
            patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * KERNEL**2).double()
            products, count = products + patches.T @ patches, count + len(patches)
        if not count:
            raise ValueError("no images: give at least one")
        values, vectors = torch.linalg.eigh(products / count)
        filters = (vectors / (values + eps).sqrt()).T.reshape(-1, 3, KERNEL, KERNEL)
        self.conv.weight.copy_(torch.cat([filters, -filters]))
