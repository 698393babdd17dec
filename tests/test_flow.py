"""Farneback's flow: exact on polynomials, as accurate as OpenCV's on the golden pairs, and total on odd pictures."""

import math

import numpy as np
import parity
import parity_flow
import pytest
import torch

from minisam_glue import flow
from minisam_glue.flow import box_sum, correlate, farneback, grey, inconsistency, polynomial_expansion, warp

GOLDEN = parity.ROOT / "golden" / "clipseg"
PAIRS = ("translation", "rotation", "zoom", "rotzoom_shift", "moving_square", "big_256")


def frames_of(golden) -> list[torch.Tensor]:
    return [golden.input(name)[None] for name in ("frame1", "frame2")]


@pytest.mark.parametrize("case", PAIRS)
def test_the_end_point_error_is_at_most_that_of_opencv(case):
    golden = parity.Golden.load(GOLDEN / f"flow_{case}.npz")
    reference = golden.config["epe"].get("levels3", golden.config["epe"])["mean"]
    flow = parity_flow.last(farneback(*frames_of(golden)))
    assert (flow - parity_flow.true_flow(golden)).norm(dim=-1).mean() <= 1.05 * reference


def test_the_expansion_of_a_quadratic_picture_is_its_coefficients():
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    x, y = x - 16, y - 12
    picture = 7 + 2 * x - 3 * y + 0.5 * x**2 + 0.25 * y**2 - 0.75 * x * y
    found = polynomial_expansion(picture[None], 5, 1.2)[0, :, 12, 16]
    assert torch.allclose(found, torch.tensor([2, -3, 0.5, 0.25, -0.75]), atol=1e-3)


def test_pictures_of_a_batch_do_not_change_each_other():
    golden = [parity.Golden.load(GOLDEN / f"flow_{case}.npz") for case in ("translation", "zoom")]
    pairs = [frames_of(one) for one in golden]
    together = farneback(*(torch.cat(side) for side in zip(*pairs)))
    for row, pair in zip(together, pairs):
        assert torch.allclose(row, farneback(*pair)[0], atol=1e-4)


def test_a_frame_that_does_not_change_has_no_motion():
    picture = parity.Golden.load(GOLDEN / "flow_zoom.npz").input("frame1")[None]
    flow = farneback(picture, picture)
    assert flow.abs().max() < 0.1  # as OpenCV's, which takes the last row and column for outside
    assert flow[..., 25:-25, 25:-25].abs().max() < 1e-3
    assert farneback(torch.zeros(1, 40, 50), torch.full((1, 40, 50), 9)).abs().max() < 1e-6


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (40, 2), (3, 3), (33, 65)])
def test_pictures_of_any_size_have_a_finite_flow(size):
    one, two = torch.randint(0, 256, (2, 1, *size), generator=torch.Generator().manual_seed(0))
    flow = farneback(one, two)
    assert flow.shape == (1, 2, *size) and flow.isfinite().all()
    assert inconsistency(flow, flow).isfinite().all()


def test_warping_reads_values_where_the_flow_points():
    values = torch.arange(20.0).view(1, 1, 4, 5)
    flow = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 4, 5)
    moved = warp(values, flow)[0, 0]
    assert torch.allclose(moved[:2, :4], values[0, 0, 2:, 1:], atol=1e-5)
    assert not moved[2:].any() and not moved[:, 4].any()
    assert torch.allclose(warp(values, flow, padding="border")[0, 0, :, 4], values[0, 0, [2, 3, 3, 3], 4], atol=1e-5)


def test_there_and_back_is_consistent_only_where_both_flows_agree():
    there = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 6, 8)
    assert inconsistency(there, -there)[0, :, 1:].max() < 1e-6
    assert torch.allclose(inconsistency(there, there)[0, :, :-1], torch.tensor(2.0))


@pytest.mark.parametrize("width", [1, 2, 7, 15, 16])
def test_box_sums_are_sums_of_neighbours(width):
    values = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    for dim in (-2, -1):
        assert torch.allclose(box_sum(values, width, dim), correlate(values, torch.ones(width), dim), atol=1e-5)


def test_flow_is_computed_in_float32_inside_autocast_too():
    pictures = torch.randint(0, 256, (2, 1, 40, 50), generator=torch.Generator().manual_seed(0)).float()
    colours = torch.randint(0, 256, (1, 4, 5, 3), generator=torch.Generator().manual_seed(0))
    want, bright = farneback(*pictures), grey(colours)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(farneback(*pictures), want) and torch.equal(grey(colours), bright)


def test_brightness_is_that_of_luma():
    assert np.allclose(grey(torch.tensor([[[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]])), [[[76.245, 149.685, 29.07]]])


@pytest.mark.parametrize(
    "wrong",
    [
        *({"pyr_scale": 1}, {"levels": -1}, {"winsize": 0}, {"iterations": 0}, {"poly_n": 0}, {"poly_sigma": 0}),
        *({"levels": math.inf}, {"iterations": 3.0}, {"poly_n": 5.0}, {"poly_sigma": 0.05}, {"poly_sigma": math.nan}),
    ],
)
def test_a_parameter_out_of_range_is_named(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is"):
        farneback(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), **wrong)
    with pytest.raises(ValueError, match="pictures are"):
        farneback(torch.zeros(1, 8, 8), torch.zeros(1, 8, 9))


def test_a_default_device_of_a_moment_leaves_no_tables_there():
    pictures = torch.rand(2, 1, 40, 40)
    for table in (flow.expansion_kernels, flow.window_taps):
        table.cache_clear()
    with torch.device("meta"):
        assert all(part.device.type == "cpu" for part in (*flow.expansion_kernels(5, 1.1), flow.window_taps(15, False)))
        assert flow.smooth(pictures[0], 0).isfinite().all()
    assert farneback(pictures[:1, 0], pictures[1:, 0]).isfinite().all()
