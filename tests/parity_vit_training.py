"""Golden cases of the training parts: mixing, losses, schedules, averages, augmentation.

Where torchvision, timm and DeiT differ in a convention (who is mixed with whom, what a sum is divided
by, which decay an update uses), the case here says how theirs is had from ours.
"""

import re

import numpy as np
import torch
from helpers.one_cycle import one_cycle_lr, one_cycle_momentum
from helpers.tensor_ops import WARPS, apply_tensor_op, warp_bilinear
from torch import nn

from minivit import augment, ema, losses, mix, optim

# ---- mixup and CutMix ----------------------------------------------------------------------------------


def train_mixup_cutmix(golden, device, dtype) -> dict:
    x, y = golden.input("x").to(device, dtype), golden.input("y").to(device)
    out = {}
    for name, spec in golden.config.items():
        classes = golden.outputs[f"{name}_y"].size // len(y)
        if "lam" in spec:
            images, target = mix.mixup(x, mix.one_hot(y, classes), spec["lam"])
        else:
            left, top, right, bottom = map(int, spec["box"])
            images, target = mix.cutmix(x, mix.one_hot(y, classes), (top, bottom, left, right))
        out |= {f"{name}_x": images.flatten()[::7], f"{name}_y": target}
    for lam in {name.rpartition("_")[2] for name in golden.config}:
        out |= timm_boxes(lam, x.shape[2:], 5 + golden.meta.get("seed_offset", 0))
        for smoothing in (0.0, 0.1):
            out[f"timm_target_{lam}_s{smoothing}"] = timm_target(mix.one_hot(y, classes, smoothing), float(lam))
    return out


def timm_boxes(lam: str, size: tuple[int, int], seed: int) -> dict:
    """timm's three draws of a box from numpy's stream; a margin keeps the centre away from the border."""
    np.random.seed(seed)
    whole = mix.cutmix_box(float(lam), *size, (size[0] // 2, size[1] // 2))
    sides = (whole[1] - whole[0], whole[3] - whole[2])

    def box(margin: float) -> tuple:
        low = [int(margin * side) for side in sides]
        return mix.cutmix_box(float(lam), *size, tuple(np.random.randint(m, n - m) for m, n in zip(low, size)))

    out = {f"timm_bbox_{lam}": np.array(box(0.0)), f"timm_bbox_{lam}_margin": np.array(box(0.1))}
    last = box(0.0)
    return out | {f"timm_bbox_lam_{lam}": np.array([*last, mix.kept_area(last, *size)])}


def timm_target(target: torch.Tensor, lam: float) -> torch.Tensor:
    """timm mixes with the reversed batch: for the pair (own, partner) rolling and reversing are the same."""
    pairs = [torch.stack(pair) for pair in zip(target, target.flip(0))]
    return torch.stack([mix.mixup(torch.zeros(2, device=pair.device), pair, lam)[1][0] for pair in pairs])


# ---- losses --------------------------------------------------------------------------------------------


def train_losses(golden, device, dtype) -> dict:
    logits, teacher, dist_logits = (golden.input(n).to(device, dtype) for n in ("logits", "teacher", "dist_logits"))
    classes = logits.shape[1]
    hard, smooth = (mix.one_hot(golden.input("target").to(device), classes, s) for s in (0.0, 0.1))
    soft_ce = losses.soft_cross_entropy(logits, golden.input("soft").to(device))
    smooth_ce = losses.soft_cross_entropy(logits, smooth)
    out = {
        "soft_ce": soft_ce,
        "soft_ce_torch": soft_ce,
        "ls0.1_torch": smooth_ce,
        "ls0.1_timm": smooth_ce,
        "ce": losses.soft_cross_entropy(logits, hard),
    }
    for T in (1.0, 2.0, 4.0):
        out[f"kd_T{T}"] = losses.soft_distillation(logits, teacher, T)
        out[f"kd_deit_T{T}"] = losses.soft_distillation(dist_logits, teacher, T) / classes
    for alpha in (0.1, 0.5):
        out[f"deit_hard_a{alpha}"] = losses.distillation_loss(logits, dist_logits, teacher, smooth, alpha)
        # DeiT divides by the number of classes too: the base keeps its weight, the distillation has 1 / C of it.
        ours = losses.distillation_loss(logits, dist_logits, teacher, smooth, alpha, 3.0)
        extra = alpha * losses.soft_distillation(dist_logits, teacher, 3.0) * (1 - 1 / classes)
        out[f"deit_soft_a{alpha}_T3"] = ours - extra
    with torch.enable_grad():
        leaf = logits.clone().requires_grad_()
        out["kd_T2.0_grad"] = torch.autograd.grad(losses.soft_distillation(leaf, teacher, 2.0), leaf)[0]
    return out


# ---- schedules -----------------------------------------------------------------------------------------


def train_schedules(golden, device, dtype) -> dict:
    steps, out = range(40), {}
    for name, spec in golden.config.items():
        if name.startswith("onecycle"):
            total = spec.get("total_steps") or spec["epochs"] * spec["steps_per_epoch"]
            if spec.get("three_phase") or spec.get("anneal_strategy") == "linear":
                out[name] = [one_cycle_lr(i, total, spec) for i in steps]
            else:
                shape = {k: v for k, v in spec.items() if k in ("pct_start", "div_factor", "final_div_factor")}
                out[name] = [optim.one_cycle(i, total, spec["max_lr"], **shape) for i in steps]
            out[f"{name}_momentum"] = [one_cycle_momentum(i, total, spec) for i in steps]
    # LinearLR starts at 0.01 of the base rate, 0.1; then CosineAnnealingLR over 35 steps.
    out["seq_warmup_cosine"] = [optim.warmup_cosine(i, 40, 5, 0.1, 1e-4, 0.001) for i in steps]
    prefix, plain = golden.config["timm_cosine_warmup_prefix"], golden.config["timm_cosine_warmup"]
    out["timm_cosine_warmup_prefix"] = [timm_cosine(i, prefix, prefix["t_initial"] + prefix["warmup_t"]) for i in steps]
    # Without the prefix the cosine has run since step 0, behind the warm-up.
    out["timm_cosine_warmup"] = [timm_cosine(i, plain, plain["t_initial"], i < plain["warmup_t"]) for i in steps]
    return {name: np.array(values) for name, values in out.items()}


def timm_cosine(step: int, spec: dict, total: int, warmup: bool = True) -> float:
    warmup_steps = spec["warmup_t"] if warmup else 0
    return optim.warmup_cosine(step, total, warmup_steps, 0.1, spec["lr_min"], spec["warmup_lr_init"])


# ---- exponential moving average ------------------------------------------------------------------------


def train_ema(golden, device, dtype) -> dict:
    kinds = {"v3_const": (False, 0), "v3_warmup": (True, 0), "v3_warmup_after5": (True, 5)}
    trajectory, out = golden.input("traj").to(device), {}
    updates = range(1, len(trajectory))
    for name, (warmup, after) in kinds.items():
        decays = [timm_decay(step, warmup, after) for step in updates]
        rows = follow(trajectory, decays)
        # timm averages floating-point buffers as it does parameters.
        out |= {name: rows["w"], f"{name}_buffer": rows["second"], f"{name}_decay": np.array(decays)}
    out["v3_const_nostep"] = follow(trajectory, [0.9 for _ in updates])["w"]
    swa = follow(trajectory, [0.0] + [0.9 for _ in updates[1:]])  # swa_utils: the first update copies
    return out | {"swa_ema": swa["w"], "swa_ema_buffer": swa["buffer"]}


def timm_decay(step: int, warmup: bool, update_after: int) -> float:
    """timm's decay at an update: 0 until update_after, then 0.9 or the warm-up 1 - (1 + s)^(-2/3) towards it."""
    s = step - update_after - 1
    if s <= 0:
        return 0.0
    return min(1 - (1 + s) ** (-2 / 3), 0.9) if warmup else 0.9


def follow(trajectory: torch.Tensor, decays: list[float]) -> dict[str, torch.Tensor]:
    """The averages of a model that walks along `trajectory`: w, a second parameter at 2 w, and a buffer at 2 w."""
    model = nn.ParameterDict({"w": trajectory[0].clone(), "second": 2 * trajectory[0]})
    model.register_buffer("buffer", 2 * trajectory[0])
    average = ema.EMA(model).module
    rows = {"w": [], "second": [], "buffer": []}
    for position, decay in zip(trajectory[1:], decays):
        for value, target in ((model["w"], position), (model["second"], 2 * position), (model.buffer, 2 * position)):
            value.copy_(target)
        ema.average_(average, model, decay)
        for name in rows:
            rows[name].append(getattr(average, name).clone())
    return {name: torch.stack(values) for name, values in rows.items()}


# ---- augmentation --------------------------------------------------------------------------------------


def train_trivialaugment(golden, device, dtype) -> dict:
    """Every stored result by its name: operation, bin, n for a negative sign, and whose rounding."""
    image = golden.input("image").permute(2, 0, 1)[None].to(device)  # (32, 32, 3) -> (1, 3, 32, 32)
    out = {}
    for name in golden.outputs:
        op, level, negative, bilinear, like = re.fullmatch(r"(\w+?)_(\d+)(n?)(_bilinear)?_(pil|tensor)", name).groups()
        magnitude = augment.MAGNITUDES[augment.OPS.index(op), int(level)] * (-1 if negative else 1)
        fill = 128 if bilinear else 0
        if like == "tensor":
            changed = apply_tensor_op(image.cpu(), op, magnitude[None], bool(bilinear), fill)
        elif bilinear and op in WARPS:
            changed = warp_bilinear(image, op, magnitude[None], fill)
        else:
            changed = augment.apply_op(image, op, magnitude[None])
        out[name] = changed[0].permute(1, 2, 0).cpu().numpy()
    return out


def train_random_erasing(golden, device, dtype) -> dict:
    offset, tv, timm = golden.meta.get("seed_offset", 0), golden.config["tv"], golden.config["timm"]
    x, out = golden.input("x"), {}
    for seed in range(6):
        torch.manual_seed(seed + offset)
        out[f"tv_params_{seed}"] = torchvision_box(x.shape[1:], tv)
    torch.manual_seed(offset)
    out["tv_stats"] = box_stats(torch.stack([torchvision_box(x.shape[1:], tv) for _ in range(4000)]), x[0].numel())
    torch.manual_seed(3 + offset)
    torch.rand(1)  # whether to erase at all
    erased = augment.erase(torch.ones_like(x[None]), torchvision_box(x.shape[1:], tv)[None])
    out["tv_erased_mask"] = (erased[0, 0] == 0).to(torch.uint8)
    ratio = (timm["min_aspect"], 1 / timm["min_aspect"])
    generator = torch.Generator().manual_seed(offset)
    boxes = augment.draw_boxes(20000, *x.shape[1:], generator, (timm["min_area"], timm["max_area"]), ratio)
    area = boxes[:, 2] * boxes[:, 3] / x[0].numel()
    out["timm_area_stats"] = np.array([area.mean(), area.min(), area.max(), (area == 0).double().mean()])
    return out


def torchvision_box(size: tuple[int, int], spec: dict) -> torch.Tensor:
    """One of our boxes from torchvision's order of draws: area, ratio, and where they fit, top and left."""
    log_ratio = torch.tensor(spec["ratio"]).log()
    for _ in range(10):
        area = torch.empty(1).uniform_(*spec["scale"]).double()
        ratio = torch.empty(1).uniform_(*log_ratio.tolist()).exp().double()
        sides = augment.box_size(area, ratio, *size)[0].tolist()
        if sides[0] < size[0] and sides[1] < size[1]:
            corner = [int(torch.randint(whole - side + 1, (1,))) for whole, side in zip(size, sides)]
            return torch.tensor(corner + sides)
    return torch.zeros(4, dtype=torch.long)


def box_stats(boxes: torch.Tensor, pixels: int) -> np.ndarray:
    """Mean, least and largest share of the area; mean and standard deviation of log(height / width)."""
    height, width = boxes[:, 2:].double().numpy().T
    area, ratio = height * width / pixels, np.log(height / width)
    return np.array([area.mean(), area.min(), area.max(), ratio.mean(), ratio.std()])


CASES = {
    case.__name__: case
    for case in (
        train_mixup_cutmix,
        train_losses,
        train_schedules,
        train_ema,
        train_trivialaugment,
        train_random_erasing,
    )
}
