"""Parts of a Vision Transformer: patch embedding, MLP, stochastic depth, LayerScale.

Patch embedding: Dosovitskiy et al., arXiv 2010.11929, section 3.1. Convolutional stem: Xiao et al.,
arXiv 2106.14881, and CCT, arXiv 2104.05704. Depth-wise convolution in the MLP: LocalViT, arXiv
2104.05707. LayerScale: CaiT, arXiv 2103.17239, section 2. Stochastic depth: Huang et al., arXiv 1603.09382,
with a draw for each sample, as timm has it (the paper: for each batch).
Attribute names are timm's, so that its checkpoints load as they are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Cut images into p x p patches and project each linearly: (B, 3, H, W) -> (B, H/p * W/p, dim).

    The products x_p E of ViT's equation 1, as a convolution whose stride is its kernel size.
    """

    def __init__(self, patch: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, N, C)


def halvings(patch: int, stem: str) -> int:
    """The number of halvings that make one position of a patch. ValueError if its side is no power of two."""
    if patch & (patch - 1):
        raise ValueError(f"--patch {patch}: --stem {stem} needs a patch size that is a power of two")
    return patch.bit_length() - 1


class ConvStem(nn.Module):
    """Patch embedding by overlapping 3x3 convolutions: (B, 3, H, W) -> (B, H/p * W/p, dim).

    The first convolution keeps the resolution (Xiao et al. halve from the first one on); each further one halves
    it, until one position is one patch p x p; a 1x1 projection follows. Convolutions bring the locality that a
    transformer would have to learn from more images than small data sets have. ValueError if p is not a power of
    two, or `dim` too small for the narrowest convolution, which has dim / 4 channels (patch 2: dim / 2).
    """

    def __init__(self, patch: int, dim: int):
        super().__init__()
        widths = [dim // 2 ** min(i, 2) for i in range(halvings(patch, "conv"), 0, -1)] + [dim]
        if not min(widths):
            raise ValueError(f"--dim {dim}: a convolutional stem needs at least 4")
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(zip([3] + widths, widths)):
            stride = 1 if i == 0 else 2  # the first keeps the full resolution
            layers += [nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.GELU()]
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Conv2d(dim, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(x.contiguous(memory_format=torch.channels_last))
        return self.proj(x).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, N, C)


class MLP(nn.Module):
    """Linear layer, activation, linear layer: (B, N, C) -> (B, N, C).

    conv: add a residual 3x3 depth-wise convolution over the patch grid before the activation (LocalViT has it
    without the residual). Class and distillation tokens, which come first in the sequence, have no place on the
    grid and skip it.
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0, conv: bool = False, activation: str = "gelu"):
        super().__init__()
        self.activation = {"gelu": F.gelu, "silu": F.silu}[activation]
        self.fc1 = nn.Linear(dim, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if conv else None
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = dropout

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        x = self.fc1(x)
        if self.conv is not None and grid is not None:
            x = x + self._mix_neighbours(x, grid)
        x = F.dropout(self.activation(x), self.dropout, self.training)
        return F.dropout(self.fc2(x), self.dropout, self.training)

    def _mix_neighbours(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        B, N, C = x.shape
        T = N - grid[0] * grid[1]  # special tokens
        patches = x[:, T:].transpose(1, 2).reshape(B, C, *grid)  # (B, N, C) -> (B, C, h, w), channels last
        mixed = self.conv(patches).flatten(2).transpose(1, 2)
        return F.pad(mixed, (0, 0, T, 0))


class LayerScale(nn.Module):
    """A learned gain per channel on a residual branch, small at the start: y = x * gamma."""

    def __init__(self, dim: int, init: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.to(x.dtype)


def make_layer_scale(dim: int, init: float | None) -> nn.Module:
    """LayerScale with the gain `init`, or nothing if that is None."""
    return nn.Identity() if init is None else LayerScale(dim, init)


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch for a whole sample with probability p, scale the rest by 1/(1-p)."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0 or not self.training:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.p
        return x * (keep / (1 - self.p)).to(x.dtype)


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """The drop probability of each block: linear from 0 at the first to `rate` at the last, as in timm and DeiT.

    The paper's rule is linear, too, and starts at rate / depth.
    """
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def sincos_2d(grid: tuple[int, int], dim: int) -> Tensor:
    """Fixed 2-D position embedding (h * w, dim): sines and cosines of the column, then of the row.

    As in MAE's code (arXiv 2111.06377); in MoCo v3's (arXiv 2104.02057) the row comes first. Each of the four parts has
    dim / 4 frequencies, from 1 to about 1 / 10000. ValueError if 4 does not divide `dim`.
    """
    if dim % 4:
        raise ValueError(f"a 2-D sine-cosine embedding needs a width divisible by 4, not {dim}")
    frequency = 1 / 10000 ** (torch.arange(dim // 4) / (dim // 4))
    rows, cols = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [p.reshape(-1, 1) * frequency for p in (cols, rows)]  # each (h * w, dim / 4)
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)
