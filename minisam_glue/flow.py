"""Dense optical flow from polynomial expansion, warping along it, and a check in both directions.

    flow = farneback(one, two)            # one(p) ~ two(p + flow(p)), in pixels
    moved = warp(masks, farneback(two, one))    # masks (B, 1, H, W) of pictures one, where they lie in pictures two

G. Farneback, "Two-Frame Motion Estimation Based on Polynomial Expansion", SCIA 2003. Around each pixel a picture is
nearly a quadratic polynomial,

    f(x) = x^T A x + b^T x + c,

and where f2(x) = f1(x - d) equal coefficients give A2 = A1 and b2 = b1 - 2 A1 d, so that A d = -(b2 - b1) / 2. With a
flow d' that is known so far the second picture is looked at where it leads, x' = x + d'(x):

    A = (A1(x) + A2(x')) / 2,    b = -(b2(x') - b1(x)) / 2 + A d',    d = (sum w A^T A)^-1 sum w A^T b,

least squares over a window w around each pixel, from coarse to fine. The names of the parameters, the weights at the
edge of the picture, the constants and how the pyramid is made are those of OpenCV's calcOpticalFlowFarneback
(modules/video/src/optflowgf.cpp). All computations are float32, on the device of the pictures (in the convolutions
of an NVIDIA GPU TF32, as PyTorch has it by default: some thousandths of a pixel). Left out: the initial flow as an
argument.
"""

import math
from functools import lru_cache
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor

# Constants of OpenCV's implementation.
SMALLEST = 32  # pixels of the shorter side of a level of the pyramid
EDGE = (0.14, 0.14, 0.4472, 0.4472, 0.4472)  # confidence in the coefficients of the outermost pixels
REGULAR = 1e-3  # added to the determinant: no texture, no motion
LEAST_SIGMA = 0.1  # pixels: under narrower weights the neighbours vanish, and no polynomial can be fitted
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def farneback(
    one: Tensor,
    two: Tensor,
    pyr_scale: float = 0.5,
    levels: int = 3,
    winsize: int = 15,
    iterations: int = 3,
    poly_n: int = 5,
    poly_sigma: float = 1.2,
    gaussian: bool = False,
) -> Tensor:
    """The flow (B, 2, H, W), x then y in pixels, from pictures `one` to `two`: grey (B, H, W), from 0 to 255. Of values
    from 0 to 1 next to nothing would be found: the constants are made for 255.

    pyr_scale: size of each level of the pyramid, relative to the one below. levels: levels above the picture itself;
    those of less than 32 pixels are left out. winsize: side of the window in which the flow is taken as constant;
    gaussian: the window falls off like a Gaussian instead of ending sharply. iterations: on each level. poly_n,
    poly_sigma: pixels on each side that the polynomial is fitted to, and the deviation of their weights.
    ValueError for numbers out of range or pictures of different shapes.
    """
    _check(one, two, pyr_scale, levels, winsize, iterations, poly_n, poly_sigma)
    pictures, batch = torch.cat((one, two)).float(), len(one)  # (2B, H, W)
    window = window_taps(winsize, gaussian)
    flow = None
    with torch.autocast(one.device.type, enabled=False):  # 16 bits are too few to solve for d
        for scale, size in reversed(list(pyramid(one.shape[-2:], pyr_scale, levels))):
            level = resize(smooth(pictures, (1 / scale - 1) / 2)[:, None], size)[:, 0]
            first, second = polynomial_expansion(level, poly_n, poly_sigma).split(batch)
            if flow is None:
                flow = first.new_zeros(batch, 2, *size)
            else:
                flow = resize(flow, size) / pyr_scale
            for _ in range(iterations):
                flow = update_flow(first, second, flow, window)
    return flow


def grey(pictures: Tensor) -> Tensor:
    """RGB (B, H, W, 3), uint8 -> brightness (B, H, W), float32, 0 to 255."""
    with torch.autocast(pictures.device.type, enabled=False):
        return pictures.float() @ torch.tensor(LUMA, dtype=torch.float32, device=pictures.device)


# --- Pyramid -----------------------------------------------------------------------------------------------


def pyramid(size: tuple[int, int], pyr_scale: float, levels: int) -> list[tuple[float, tuple[int, int]]]:
    """The scale and (height, width) of each level, the picture itself first."""
    scales = [1.0]
    while len(scales) <= levels and min(size) * scales[-1] * pyr_scale >= SMALLEST:
        scales.append(scales[-1] * pyr_scale)
    return [(scale, tuple(round(side * scale) for side in size)) for scale in scales]


def smooth(pictures: Tensor, sigma: float) -> Tensor:
    """Blur pictures (N, H, W) by a Gaussian of deviation sigma, over about 5 sigma pixels, an odd number, 3 at least.

    With sigma 0 the weights are 1/4, 1/2, 1/4, as OpenCV has them.
    """
    half = max(round(5 * sigma) | 1, 3) // 2
    x = torch.arange(-half, half + 1, dtype=torch.float32, device="cpu")
    taps = torch.exp(-(x**2) / (2 * sigma**2)) if sigma else x.new_tensor([0.25, 0.5, 0.25])
    mode = "reflect" if min(pictures.shape[-2:]) > half else "replicate"
    padded = F.pad(pictures[:, None], (half, half, half, half), mode=mode)[:, 0]
    taps = taps / taps.sum()
    return correlate(correlate(padded, taps, -2), taps, -1)


def resize(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), bilinear."""
    same = values.shape[-2:] == torch.Size(size)
    return values if same else F.interpolate(values, size, mode="bilinear", align_corners=False)


def correlate(values: Tensor, taps: Tensor, dim: int) -> Tensor:
    """The weighted sum of neighbours along one axis (-2 or -1), which gets shorter by the taps (n,) less one.

    A sum of shifted pictures, which on a CPU is several times as fast as conv2d with few channels.
    """
    length = values.shape[dim] - len(taps) + 1
    total = torch.zeros_like(values.narrow(dim, 0, length))
    for k, weight in enumerate(taps.tolist()):
        if weight:
            total.add_(values.narrow(dim, k, length), alpha=weight)
    return total


# --- Polynomials -------------------------------------------------------------------------------------------


@lru_cache
def expansion_kernels(n: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Kernels (3, 1, 2n + 1, 1) and (5, 3, 1, 2n + 1): down the columns, then along the rows (the paper's section 2).

    Least squares with weights g(x) g(y) of the monomials m_i = 1, x, y, x^2, y^2, xy: coefficients G^-1 <m, f>, where
    G_ij = <m_i, m_j>. All inner products are separable: g, y g and y^2 g are applied down the columns, then g, x g and
    x^2 g along the rows, where G^-1 is multiplied in.
    """
    x = torch.arange(-n, n + 1, dtype=torch.float64, device="cpu")
    g = torch.exp(-(x**2) / (2 * sigma**2))
    g = g / g.sum()
    taps = g * torch.stack((x**0, x, x**2))  # (3, 2n + 1)
    moments = [float((g * x**k).sum()) for k in range(5)]
    powers = [(0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1)]  # of x and y
    G = x.new_tensor([[moments[a + c] * moments[b + d] for c, d in powers] for a, b in powers])
    rows = x.new_zeros(6, 3, len(x))
    for column, (a, b) in zip(torch.linalg.inv(G).T, powers):
        rows[:, b] += column[:, None] * taps[a]
    return taps.float()[:, None, :, None], rows[1:, :, None].float()


def polynomial_expansion(pictures: Tensor, n: int, sigma: float) -> Tensor:
    """Pictures (N, H, W) -> the coefficients (N, 5, H, W) of x, y, x^2, y^2 and xy around each pixel."""
    columns, rows = (kernel.to(pictures.device) for kernel in expansion_kernels(n, sigma))
    padded = F.pad(pictures[:, None], (n, n, n, n), mode="replicate")
    return F.conv2d(F.conv2d(padded, columns), rows)


# --- Flow --------------------------------------------------------------------------------------------------


def update_flow(first: Tensor, second: Tensor, flow: Tensor, window: Tensor) -> Tensor:
    """One iteration: coefficients (B, 5, H, W) of both pictures and a flow d' (B, 2, H, W) -> a better flow d."""
    H, W = flow.shape[-2:]
    x, y = places(flow)
    inside = ((x >= 0) & (x < W - 1) & (y >= 0) & (y < H - 1)).float()[:, None]
    moved = sample(second, x, y)
    # A = (A1(x) + A2(x')) / 2; beyond the edge nothing is known of the second picture, and A = A1.
    axx, ayy, axy = torch.lerp(first[:, 2:], moved[:, 2:], inside / 2).unbind(1)
    axy = axy / 2  # the coefficient of xy is twice the entry of A beside its diagonal
    bx, by = ((first[:, :2] - moved[:, :2] * inside) / 2).unbind(1)
    dx, dy = flow.unbind(1)
    bx, by = bx + axx * dx + axy * dy, by + axy * dx + ayy * dy  # + A d'
    A_A = axx * axx + axy * axy, axx * axy + axy * ayy, axy * axy + ayy * ayy  # A^T A: its entries 11, 12 and 22
    A_b = axx * bx + axy * by, axy * bx + ayy * by  # A^T b
    # The weights are of coefficients; a product has two.
    products = torch.stack((*A_A, *A_b), 1) * edge_weights(H, W, flow.device) ** 2
    g11, g12, g22, h1, h2 = average(products, window).unbind(1)
    determinant = g11 * g22 - g12**2 + REGULAR
    return torch.stack(((g22 * h1 - g12 * h2) / determinant, (g11 * h2 - g12 * h1) / determinant), 1)  # d


def edge_weights(H: int, W: int, device: torch.device) -> Tensor:
    """(H, W): 1, less towards the edge, where the polynomials are fitted to pixels that are not there."""
    sides = []
    for length in (H, W):
        edge = torch.tensor(EDGE[:length], dtype=torch.float32, device=device)
        weights = edge.new_ones(length)
        weights[: len(edge)] *= edge
        weights[length - len(edge) :] *= edge.flip(0)
        sides.append(weights)
    return sides[0][:, None] * sides[1]


@lru_cache
def window_taps(winsize: int, gaussian: bool) -> Tensor:
    """The weights (2 * (winsize // 2) + 1,) of a window along one axis."""
    half = winsize // 2
    x = torch.arange(-half, half + 1, dtype=torch.float32, device="cpu")
    weights = torch.exp(-(x**2) / (2 * (0.3 * half) ** 2)) if gaussian and half else torch.ones_like(x)
    return weights / weights.sum()


def average(values: Tensor, window: Tensor) -> Tensor:
    """Weighted means (B, C, H, W) over a separable window around each pixel; edges are repeated."""
    half = len(window) // 2
    padded = F.pad(values, (half, half, half, half), mode="replicate")
    if (window == window[0]).all():
        return box_sum(box_sum(padded, len(window), -2), len(window), -1) * float(window[0] ** 2)
    return correlate(correlate(padded, window, -2), window, -1)


def box_sum(values: Tensor, width: int, dim: int) -> Tensor:
    """The sums of `width` neighbours along one axis: those of 2, 4, 8 ... are made of each other, and then added."""
    length = values.shape[dim] - width + 1
    total, start, sums, span = None, 0, values, 1
    while span <= width:
        if width & span:  # a bit of the width: the next `span` neighbours
            part = sums.narrow(dim, start, length)
            total = part if total is None else total + part
            start += span
        if 2 * span <= width:
            size = sums.shape[dim] - span
            sums = sums.narrow(dim, 0, size) + sums.narrow(dim, span, size)
        span *= 2
    return total


# --- Along a flow ------------------------------------------------------------------------------------------


def places(flow: Tensor) -> tuple[Tensor, Tensor]:
    """The places that the pixels of a flow (B, 2, H, W) go to: x and y, each (B, H, W), in pixels."""
    H, W = flow.shape[-2:]
    x, y = torch.arange(W, device=flow.device), torch.arange(H, device=flow.device)
    return flow[:, 0] + x, flow[:, 1] + y[:, None]


def sample(values: Tensor, x: Tensor, y: Tensor, mode: str = "bilinear", padding: str = "border") -> Tensor:
    """Values (B, C, H, W) at x and y, each (B, h, w), in pixels; bilinear or nearest."""
    H, W = values.shape[-2:]
    grid = torch.stack((x * (2 / max(W - 1, 1)) - 1, y * (2 / max(H - 1, 1)) - 1), -1)
    if padding == "border" and grid.device.type == "mps":  # which knows no border before PyTorch 2.13: the same by hand
        grid, padding = grid.clamp(-1, 1), "zeros"
    return F.grid_sample(values, grid, mode, padding, align_corners=True)


def warp(values: Tensor, flow: Tensor, mode: str = "bilinear", padding: str = "zeros") -> Tensor:
    """Backward warping: values (B, C, H, W) at p + flow(p) for each pixel p.

    mode: bilinear or nearest. padding: beyond the edge zeros, or border: the nearest pixel. ValueError for values that
    are not of the flow's size.
    """
    if values.ndim != 4 or flow.ndim != 4 or values.shape[2:] != flow.shape[2:]:
        raise ValueError(f"values {tuple(values.shape)}, flow {tuple(flow.shape)}: give (B, C, H, W) and (B, 2, H, W)")
    return sample(values.float(), *places(flow), mode, padding)


def inconsistency(forward: Tensor, backward: Tensor) -> Tensor:
    """Length of backward(p) + forward(p + backward(p)), (B, H, W), in pixels: 0 where the two flows agree.

    Both flows are (B, 2, H, W). Large where something is covered or uncovered, or where a flow is wrong.
    """
    return (warp(forward, backward) + backward).norm(dim=1)


def _check(one, two, pyr_scale, levels, winsize, iterations, poly_n, poly_sigma) -> None:
    """ValueError for arguments of farneback that make no sense."""
    if one.ndim != 3 or one.shape != two.shape or not one.numel():
        raise ValueError(
            f"pictures are (B, H, W), both alike and not empty, not {tuple(one.shape)}, {tuple(two.shape)}"
        )
    if not 0 < pyr_scale < 1:
        raise ValueError(f"pyr_scale is {pyr_scale}: give a number between 0 and 1")
    for name, value, least in (
        ("levels", levels, 0),
        ("winsize", winsize, 1),
        ("iterations", iterations, 1),
        ("poly_n", poly_n, 1),
    ):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} is {value}: give a whole number from {least}")
    if not LEAST_SIGMA <= poly_sigma < math.inf:
        raise ValueError(f"poly_sigma is {poly_sigma}: give a number from {LEAST_SIGMA} on")
