"""Our optical flow on the golden files: a function per kind of case, each returning {output name: value}."""

import numpy as np
import parity
import torch

from minisam_glue.flow import farneback, inconsistency, places, sample, warp

VARIANTS = {  # outputs of a case -> the parameters that differ from the file's
    "flow": {},
    "flow_l0_i1": {"levels": 0, "iterations": 1},
    "flow_l0_i3": {"levels": 0},
    "flow_n7_s1.5": {"poly_n": 7, "poly_sigma": 1.5},
    "flow_gauss": {"gaussian": True},
    "flow_w9_l2": {"winsize": 9, "levels": 2},
} | {f"flow_levels{n}": {"levels": n} for n in (0, 1, 2, 4)}


def run(golden, device, dtype):
    if golden.meta["case"] == "flow_warp_mask":
        return warped(golden, device)
    one, two = (golden.input(name)[None].to(device) for name in ("frame1", "frame2"))
    settings = {name: value for name, value in golden.config["farneback"].items() if name != "flags"}
    wanted = {name: VARIANTS[name] for name in golden.outputs if name in VARIANTS}
    found = {name: last(farneback(one, two, **settings | change)) for name, change in wanted.items()}
    for name, value in found.items():
        if golden.outputs[name].size < value.numel() and name not in golden.meta["subsample"]:
            found[name] = value.reshape(-1)[::5]  # of these the file holds every fifth number
    if "true_flow" in golden.outputs:
        found["true_flow"] = true_flow(golden)
    return found


def last(flow):
    """(1, 2, H, W) -> (H, W, 2)."""
    return flow[0].permute(1, 2, 0).contiguous()


def true_flow(golden) -> torch.Tensor:
    """The motion (H, W, 2) from which the frames were made: an affine map, or a square that moves."""
    if "affine" in golden.stored:
        H, W = golden.stored["frame1"].shape
        y, x = np.mgrid[:H, :W]
        points = np.stack((x, y, np.ones_like(x)), -1)
        return torch.from_numpy(points @ golden.stored["affine"].T - points[..., :2])
    return golden.input("mask1").bool()[..., None] * torch.tensor(golden.config["shift"], dtype=torch.float32)


def warped(golden, device):
    """The mask of the square along the flow; a smooth picture; and where flow and way back disagree."""
    flow = golden.input("bflow").permute(2, 0, 1)[None].to(device)
    mask = golden.input("mask1")[None, None].float().to(device)
    H, W = mask.shape[-2:]
    y, x = (torch.arange(n, device=device, dtype=torch.float32) for n in (H, W))
    soft = (0.5 + 0.5 * torch.sin(x / 9) * torch.cos(y[:, None] / 7))[None, None]
    px, py = places(flow)
    linear = warp(mask, flow)
    found = {
        "mask_nearest": warp(mask, flow, "nearest").to(torch.uint8),
        "mask_linear": linear,
        "mask_linear_thr": (linear >= 0.5).to(torch.uint8),
        "soft_linear_const0": warp(soft, flow),
        "soft_linear_replicate": sample(soft, px + 20, py - 15),
    }
    square = parity.Golden.load(parity.ROOT / "golden" / "clipseg" / "flow_moving_square.npz")  # of the same frames
    forward = torch.from_numpy(square.outputs["flow"]).permute(2, 0, 1)[None].to(device)
    return found | {"fb_error": inconsistency(forward, flow)}
