"""minivit/ema.py: the decay ramp, what is averaged and what is copied."""

import pytest
import torch
from torch import nn

from minivit.ema import EMA, average_, decay_ramp


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def shake(model: nn.Module) -> None:
    """Other weights, and other running statistics."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.train()(torch.randn(4, 3, 2, 2))


def test_the_decay_ramps_and_then_stays():
    assert decay_ramp(50_000, 0.995, 0.9995, 100_000) == pytest.approx(0.99725)
    assert decay_ramp(100_000, 0.995, 0.9995, 100_000) == decay_ramp(500_000, 0.995, 0.9995, 100_000) == 0.9995
    assert decay_ramp(900, 0.9, 0.99, 0) == 0.99


def test_the_average_of_a_short_run_has_forgotten_the_weights_it_began_with():
    assert decay_ramp(0, 0.995, 0.9995, 100) == 0.1
    share = 1.0
    for step in range(40):
        share *= decay_ramp(step, 0.995, 0.9995, 40)
    assert share < 1e-6


def test_updates_follow_the_ramp_written_out():
    model = small_model()
    ema, want = EMA(model, 0.5, 0.9, 4), {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(7):
        shake(model)
        ema.update(model, step)
        decay = min(0.5 + 0.1 * step, 0.9, (1 + step) / (10 + step))
        want = {name: decay * want[name] + (1 - decay) * p.detach() for name, p in model.named_parameters()}
    for name, parameter in ema.module.named_parameters():
        torch.testing.assert_close(parameter, want[name])


def test_buffers_are_copied_not_averaged():
    model = small_model()
    ema = EMA(model, 0.9, 0.9)
    shake(model)
    ema.update(model, 0)
    for ours, theirs in zip(ema.module.buffers(), model.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_copy_is_for_inference_and_shares_no_memory():
    model = small_model()
    before = [p.detach().clone() for p in model.parameters()]
    ema = EMA(model)
    assert (ema.start, ema.end) == (0.995, 0.9995)
    average_(ema.module, nn.ModuleList([small_model()]), 0.0)
    assert not ema.module.training and model.training
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert all(p.requires_grad for p in model.parameters())
    next(ema.module.parameters()).zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_a_saved_average_goes_on_bit_for_bit():
    model = small_model()
    ema = EMA(model, 0.5, 0.9, 10)
    shake(model)
    ema.update(model, 0)
    resumed = EMA(small_model(), 0.5, 0.9, 10)
    resumed.load_state_dict(ema.state_dict())
    shake(model)
    for average in (ema, resumed):
        average.update(model, 1)
    for ours, theirs in zip(ema.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_decays_outside_zero_to_one_are_refused():
    with pytest.raises(ValueError, match="between 0"):
        EMA(nn.Linear(1, 1), 0.9, 1.5)
