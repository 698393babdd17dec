"""AdamW on the right parameters (arXiv 1711.05101), and learning rates as pure functions of the step.

warmup_cosine follows SGDR, arXiv 1608.03983, equation 5 (one cycle, no restarts; the warm-up is not its);
warmup_linear falls along a line instead; one_cycle follows arXiv 1708.07120, with the two phases and the cosines
of torch's OneCycleLR in place of the paper's straight lines. A schedule holds no state, so resuming needs the step
alone; steps count from 0, and the value is what that step uses. Left out: momentum schedules. Muon: muon.py.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn

from minivit.finetune import layers_above
from minivit.reading import anything, fields, mapping, refuse, sequence, tensor, whole

# Parameters of two and more dimensions that are no weight matrices: weight decay would only pull them to zero.
NO_DECAY = (
    # Special tokens and absolute positions.
    "cls_token",
    "dist_token",
    "pos_embed",
    # Relative positions.
    "relative_position_bias_table",
    "row_table",
    "col_table",
    "token_to_patch",
    "patch_to_token",
    "token_to_token",
    # The learned factor on the scores of attention.
    "temperature",
)


def param_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """Two parameter groups: weight decay for weight matrices and convolutions; none for biases, norms and NO_DECAY.

    layer_decay below 1 makes two for each layer of a VisionTransformer, whose rates have the factor `gain`: 1 for norm
    and heads, layer_decay for the last block, its square for the block before, and so on (see finetune.py). Your loop
    multiplies by it: group["lr"] = rate * group["gain"]. ValueError if there is no VisionTransformer in the model.
    """
    groups = {(1.0, matrices): [] for matrices in (True, False)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gain = 1.0 if layer_decay == 1 else layer_decay ** layers_above(name, model)
            is_matrix = parameter.ndim >= 2 and name.rpartition(".")[2] not in NO_DECAY
            groups.setdefault((gain, is_matrix), []).append(parameter)
    return [
        {"params": members, "weight_decay": weight_decay if matrices else 0.0, "gain": gain}
        for (gain, matrices), members in groups.items()
    ]


def adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.999),
    layer_decay: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW over param_groups, with the rate lr * gain in each, PyTorch's fused implementation on CPUs and NVIDIA GPUs.

    A schedule of your own sets group["lr"] = rate * group["gain"].
    """
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in model.parameters())
    groups = [{**group, "lr": lr * group["gain"]} for group in param_groups(model, weight_decay, layer_decay)]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)


def load_moments(optimizer: torch.optim.Optimizer, state: object, unused: Sequence[nn.Parameter] = ()) -> None:
    """Take over the moments from a state_dict() of the same optimizer; its rates and settings stay as they are.

    unused: parameters that get no gradient, and so need no moments. ValueError if the moments are not of these
    parameters: a fused step would read and write beyond moments that are smaller.
    """
    groups = optimizer.state_dict()["param_groups"]
    fields(state=mapping(whole(), anything), param_groups=sequence(fields(params=sequence(whole())), len(groups)))(
        state, "the optimizer"
    )
    if any(list(saved["params"]) != own["params"] for saved, own in zip(state["param_groups"], groups)):
        raise ValueError("the optimizer is of other parameters")
    parameters = {
        number: (parameter, group)
        for group, own in zip(optimizer.param_groups, groups)
        for parameter, number in zip(group["params"], own["params"])
    }
    without = {id(parameter) for parameter in unused}
    needed = {number for number, (parameter, _) in parameters.items() if id(parameter) not in without}
    if state["state"] and not needed <= state["state"].keys() <= parameters.keys():  # none before the first step
        raise ValueError(f"the optimizer has a state of {len(state['state'])} parameters, not of {len(needed)}")
    moments = {n: checked_moments(*parameters[n], saved, n) for n, saved in state["state"].items()}
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def checked_moments(parameter: nn.Parameter, group: dict, saved: object, number: int) -> dict:
    """The moments of one parameter, in its layout in memory. ValueError if they have other names or shapes."""
    moment = tensor(*parameter.shape)
    kinds = {"step": first_or_later, "exp_avg": moment, "exp_avg_sq": moment}  # torch's AdamW
    if "momentum" in group:  # Muon's matrices
        kinds = {"momentum": moment}
    elif "fused" not in group:  # Muon's other parameters
        kinds = {"step": whole(1), "mean": moment, "square": moment}
    where = f"the optimizer's state of parameter {number}"
    fields(**kinds)(saved, where)
    if any(name in kinds and bool((saved[name] < 0).any()) for name in ("exp_avg_sq", "square")):
        raise ValueError(f"{where} has a mean of squares below 0")
    return {
        name: torch.empty_like(parameter).copy_(saved[name]) if kind is moment else copy.deepcopy(saved[name])
        for name, kind in kinds.items()
    }


def first_or_later(value: object, where: str) -> None:
    """The number of a step as AdamW keeps it: a tensor."""
    tensor()(value, where)
    if value < 1:
        refuse(value.item(), where, "at least 1")


def warmup_cosine(
    step: int, total_steps: int, warmup_steps: int, base_lr: float, min_lr: float = 0.0, start_lr: float = 1e-6
) -> float:
    """Linear from start_lr, or base_lr if that is less, to base_lr over warmup_steps, then half a cosine to min_lr at
    total_steps.

    ValueError if the warm-up is as long as the run.
    """
    check_warmup(warmup_steps, total_steps)
    if step < warmup_steps:
        start_lr = min(start_lr, base_lr)
        return start_lr + (base_lr - start_lr) * step / warmup_steps
    if step >= total_steps:
        return min_lr
    return _anneal(base_lr, min_lr, (step - warmup_steps) / (total_steps - warmup_steps))


def warmup_linear(step: int, total_steps: int, warmup_steps: int, base_lr: float) -> float:
    """Linear from base_lr / warmup_steps to base_lr over warmup_steps, then linear to 0 at total_steps.

    ValueError if the warm-up is as long as the run.
    """
    check_warmup(warmup_steps, total_steps)
    if step < warmup_steps:
        return base_lr * (step + 1) / warmup_steps
    return base_lr * max(total_steps - step, 0) / (total_steps - warmup_steps)


def check_warmup(warmup_steps: int, total_steps: int) -> None:
    """ValueError if the warm-up is as long as the run."""
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"{warmup_steps} warm-up steps do not fit into {total_steps} steps: shorten the warm-up")


def one_cycle(
    step: int,
    total_steps: int,
    max_lr: float,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> float:
    """Half a cosine up from max_lr / div_factor to max_lr, then half a cosine down to the start / final_div_factor.

    pct_start: share of the steps in which the rate rises; ValueError for what is no share. The last step, total_steps -
    1, has the lowest rate.
    """
    if not 0 <= pct_start <= 1:
        raise ValueError(f"pct_start is {pct_start}: give a share from 0 to 1")
    start = max_lr / div_factor
    end = start / final_div_factor
    peak = max(pct_start * total_steps - 1, 0.0)  # a run of very few steps starts at the peak
    if step <= peak:
        return _anneal(start, max_lr, step / peak if peak else 1.0)
    if step < total_steps - 1:
        return _anneal(max_lr, end, (step - peak) / (total_steps - 1 - peak))
    return end


def _anneal(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` (share 0) to `end` (share 1)."""
    return start + (end - start) * (1 - math.cos(math.pi * share)) / 2
