"""minivit/optim.py: which parameters decay, one AdamW step, and the schedules."""

import copy
import math

import pytest
import torch
from torch import nn

from minivit import muon, optim
from minivit.optim import adamw, one_cycle, param_groups, warmup_cosine, warmup_linear
from minivit.vit import VisionTransformer, ViTConfig

TINY = {"image_size": 8, "dim": 8, "depth": 2, "heads": 2, "layer_scale": 0.1}


@pytest.mark.parametrize(
    "config",
    [
        ViTConfig(**TINY, relative_bias="decomposed", class_attention=1, distillation=True),
        ViTConfig(**TINY, relative_bias="joint", stem="conv", mlp_conv=True, qk_temperature=True),
    ],
)
def test_only_the_weights_of_linear_and_convolution_layers_decay(config):
    model = VisionTransformer(config)
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    decay, no_decay = param_groups(model, 0.05)
    assert {id(p) for p in decay["params"]} == matrices
    assert decay["weight_decay"] == 0.05 and no_decay["weight_decay"] == 0
    assert len(decay["params"]) + len(no_decay["params"]) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    assert [len(group["params"]) for group in param_groups(model, 0.1)] == [0, 1]


def test_a_fused_step_equals_adamw_written_out():
    torch.manual_seed(0)
    model, betas, lr, decay = nn.Linear(3, 2), (0.9, 0.95), 0.01, 0.1
    optimizer = adamw(model, lr, decay, betas)
    want = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, second = ({name: torch.zeros_like(p) for name, p in want.items()} for _ in range(2))
    for step in (1, 2, 3):
        loss = model(torch.randn(4, 3)).square().mean()
        gradients = dict(zip(want, torch.autograd.grad(loss, list(model.parameters()))))
        for name, parameter in model.named_parameters():
            parameter.grad, g = gradients[name], gradients[name]
            first[name] = betas[0] * first[name] + (1 - betas[0]) * g
            second[name] = betas[1] * second[name] + (1 - betas[1]) * g * g
            step_size = first[name] / (1 - betas[0] ** step) / ((second[name] / (1 - betas[1] ** step)).sqrt() + 1e-8)
            want[name] = want[name] * (1 - lr * (decay if name == "weight" else 0)) - lr * step_size
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), want[name])
    assert optimizer.defaults["fused"]


def test_warmup_cosine_meets_its_corners():
    lr = [warmup_cosine(step, 100, 10, 0.1, 0.01, start_lr=0.02) for step in range(120)]
    assert lr[0] == 0.02 and lr[5] == pytest.approx(0.06) and lr[10] == 0.1
    assert lr[55] == pytest.approx(0.055) and lr[100:] == [0.01] * 20
    assert warmup_cosine(0, 10, 0, 0.1) == 0.1
    assert [warmup_cosine(step, 100, 10, 1e-7) for step in (0, 5, 10)] == [1e-7] * 3  # it never falls


def test_a_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="shorten the warm-up"):
        warmup_cosine(0, 10, 10, 0.1)


@pytest.mark.parametrize("total", [11, 97])
def test_one_cycle_equals_torchs_scheduler(total):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=total, pct_start=0.4)
    for step in range(total):
        assert one_cycle(step, total, 0.02, 0.4) == pytest.approx(optimizer.param_groups[0]["lr"])
        if step < total - 1:
            optimizer.step()
            scheduler.step()


def test_what_a_schedule_is_not_told_is_what_torch_and_deit_have():
    lr = [one_cycle(step, 100, 0.5) for step in range(100)]
    assert lr[0] == 0.5 / 25 and max(lr) == lr[29] == 0.5 and lr[-1] == pytest.approx(0.5 / 25 / 1e4)
    assert warmup_cosine(0, 100, 5, 0.1) == 1e-6 and warmup_cosine(100, 100, 5, 0.1) == 0
    assert adamw(nn.Linear(1, 1), 0.1).param_groups[0]["weight_decay"] == 0.05


@pytest.mark.parametrize("total", [1, 2, 3])
def test_one_cycle_works_for_runs_of_very_few_steps(total):
    lr = [one_cycle(step, total, 0.1) for step in range(total)]
    assert all(math.isfinite(value) and 0 < value <= 0.1 for value in lr)
    assert lr[0] == 0.1  # no room to climb


def test_the_linear_schedule_rises_to_the_rate_and_falls_to_zero():
    lr = [warmup_linear(step, 12, 2, 0.5) for step in range(13)]
    assert lr[:3] == pytest.approx([0.25, 0.5, 0.5])
    assert [a - b for a, b in zip(lr[2:], lr[3:])] == pytest.approx([0.05] * 10)
    assert lr[-1] == 0
    with pytest.raises(ValueError, match="12 warm-up steps do not fit into 12 steps"):
        warmup_linear(0, 12, 12, 0.5)


def wrong_moments(moment: torch.Tensor) -> dict[str, object]:
    """What a file may hold in place of a moment."""
    return {
        "half": moment[: len(moment) // 2],
        "number more": torch.cat([moment.flatten(), moment.flatten()[:1]]),
        "empty": moment.new_zeros(0),
        "one": moment.new_zeros(()),
        "turned": moment.mT.contiguous() if moment.ndim > 1 else moment[None],
        "repeated": moment.new_zeros(1).expand(2**40),
        "integer": moment.to(torch.int32),
        "nan": moment * float("nan"),
        "list": moment.tolist(),
        "none": None,
    }


@pytest.mark.parametrize("kind", [optim.adamw, muon.Muon])
def test_moments_of_another_shape_are_refused_before_a_fused_step_writes_beyond_them(kind):
    model = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Linear(48, 2))
    optimizer = kind(model, 1e-3)
    model(torch.randn(4, 64)).sum().backward()
    optimizer.step()
    good = copy.deepcopy(optimizer.state_dict())
    optim.load_moments(optimizer, copy.deepcopy(good))
    for number, moments in good["state"].items():
        for name in moments.keys() - {"step"}:
            for value in wrong_moments(moments[name]).values():
                changed = copy.deepcopy(good)
                changed["state"][number][name] = value
                with pytest.raises(ValueError, match=f"of parameter {number}"):
                    optim.load_moments(optimizer, changed)
        beyond = {"step": lambda step: 0 * step, "exp_avg_sq": torch.neg, "square": torch.neg}  # what can't be
        for name in moments.keys() & beyond.keys():
            changed = copy.deepcopy(good)
            changed["state"][number][name] = beyond[name](moments[name])
            with pytest.raises(ValueError, match=f"of parameter {number}"):
                optim.load_moments(optimizer, changed)
    for change in ({}, {"state": []}, {"param_groups": []}, {"param_groups": good["param_groups"][:1] * 2}):
        with pytest.raises(ValueError):
            optim.load_moments(optimizer, good | change if change else {})
    few = good["state"].copy()
    few.pop(0)
    with pytest.raises(ValueError, match="a state of 3 parameters, not of 4"):
        optim.load_moments(optimizer, good | {"state": few})
    optimizer.step()


def test_moments_come_into_the_layout_of_their_parameters_and_leave_the_settings():
    model = torch.nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    optimizer = optim.adamw(model, 1e-3)
    model(torch.randn(2, 4, 5, 5)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    expected = state["state"][0]["exp_avg"].clone()
    state["state"][0]["exp_avg"] = expected.contiguous()
    state["param_groups"][0] |= {"lr": 5.0, "betas": (2.0, "x"), "fused": None}
    optim.load_moments(optimizer, state)
    moment = optimizer.state[model.weight]["exp_avg"]
    assert torch.equal(moment, expected) and moment.stride() == model.weight.stride() != expected.contiguous().stride()
    assert optimizer.param_groups[0]["lr"] == 1e-3 and optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_layers_inside_a_wrapper_have_the_rates_that_they_have_alone():
    model = VisionTransformer(ViTConfig(image_size=8, dim=16, depth=2, heads=2))
    want = {id(p): group["gain"] for group in param_groups(model, 0.1, 0.5) for p in group["params"]}
    assert set(want.values()) == {1.0, 0.5, 0.25, 0.125}
    own = nn.ModuleDict({"backbone": model, "extra": nn.Linear(16, 3)})
    for wrapper in (torch.compile(model, backend="eager"), own):
        found = {id(p): group["gain"] for group in param_groups(wrapper, 0.1, 0.5) for p in group["params"]}
        extra = {id(p): 1.0 for p in own["extra"].parameters()} if wrapper is own else {}
        assert found == want | extra


def test_layer_decay_of_a_model_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="Sequential has none"):
        param_groups(nn.Sequential(nn.Linear(3, 3)), 0.1, 0.5)
