"""minivit/optim.py: which parameters decay, one AdamW step, and the schedules."""

import math

import pytest
import torch
from torch import nn

from minivit.optim import adamw, one_cycle, param_groups, warmup_cosine, warmup_linear
from minivit.vit import VisionTransformer, ViTConfig

TINY = {"image_size": 8, "dim": 8, "depth": 2, "heads": 2, "layer_scale": 0.1}


@pytest.mark.parametrize(
    "config",
    [
        ViTConfig(**TINY, relative_bias="decomposed", class_attention=1, distillation=True),
        ViTConfig(**TINY, relative_bias="joint", stem="conv", mlp_conv=True),
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
