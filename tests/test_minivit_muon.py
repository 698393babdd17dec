import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from minivit.muon import Muon, hidden_matrices, newton_schulz
from minivit.resnet import resnet18
from minivit.vit import PRESETS, VisionTransformer

TINY = dataclasses.replace(PRESETS["cifar-fast"], image_size=8, patch=4, dim=16, depth=1, heads=2)


def test_classifiers_are_no_hidden_matrices_in_whatever_model():
    for model in (VisionTransformer(TINY), resnet18(num_classes=7)):
        sizes = {weight.shape[0] for weight in hidden_matrices(model)}
        assert sizes and not sizes & {7, 10}


@pytest.mark.parametrize("preset", ["vit-d128-l6", "cifar-small", "hybrid-cnn", "cifar-fast"])
def test_the_first_convolution_is_no_hidden_matrix(preset):
    learns_all = {"whiten": preset != "cifar-fast"}
    model = VisionTransformer(dataclasses.replace(PRESETS[preset], image_size=16, depth=1, **learns_all))
    first = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3]
    chosen = {id(weight) for weight in hidden_matrices(model)}
    assert len(first) == 1 and id(first[0]) not in chosen and chosen


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_newton_schulz_drives_all_singular_values_towards_one(shape):
    torch.manual_seed(0)
    matrix = torch.randn(1, *shape)
    before, after = torch.linalg.svdvals(matrix)[0], torch.linalg.svdvals(newton_schulz(matrix, 5))[0]
    assert before.max() / before.min() > 3
    assert 0.6 < after.min() and after.max() < 1.3


def test_newton_schulz_keeps_the_singular_vectors():
    torch.manual_seed(0)
    matrix = torch.randn(1, 6, 9)
    U, _, Vh = torch.linalg.svd(matrix[0], full_matrices=False)
    core = U.T @ newton_schulz(matrix, 5)[0] @ Vh.T
    torch.testing.assert_close(core, core.diag().diag(), atol=1e-4, rtol=0)


def reference_step(weights, momenta, moments, grads, step):
    """The same two rules in plain float64, one weight at a time, with the settings of the test below."""
    lr, adamw_lr, beta = 0.03, 3e-3, 0.85
    for name, w in weights.items():
        g = grads[name]
        if name in momenta:
            momenta[name] = beta * momenta[name] + (1 - beta) * g
            x = (beta * momenta[name] + (1 - beta) * g).flatten(1)
            x = x / torch.linalg.matrix_norm(x)
            for _ in range(3):
                x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
            root = w.shape[0] ** 0.5
            weights[name] = w * root / w.norm() - lr * root * (x / x.norm()).view_as(w)
        else:
            m, v = moments[name]
            m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g**2
            moments[name] = m, v
            weights[name] = w - adamw_lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.98**step)).sqrt() + 1e-8)


def test_muon_equals_a_plain_reference_over_several_steps():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(20, 7), nn.LayerNorm(7), nn.Linear(7, 5)).double()
    optimizer = Muon(model, dtype=torch.float64)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    momenta = {n: torch.zeros_like(w) for n, w in weights.items() if w.ndim > 1}
    moments = {n: (torch.zeros_like(w), torch.zeros_like(w)) for n, w in weights.items() if w.ndim == 1}
    for step in range(1, 6):
        x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - 1).square().sum().backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
        reference_step(weights, momenta, moments, grads, step)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), weights[name], atol=1e-10, rtol=1e-9)


def test_adamw_inside_muon_equals_pytorchs():
    torch.manual_seed(0)
    ours, theirs = nn.LayerNorm(6).double(), nn.LayerNorm(6).double()
    a = Muon(ours, adamw_lr=3e-3)
    b = torch.optim.AdamW(theirs.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    for _ in range(5):
        x = torch.randn(4, 6, dtype=torch.float64)
        for model, optimizer in ((ours, a), (theirs, b)):
            optimizer.zero_grad()
            model(x).pow(3).sum().backward()
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q, atol=1e-12, rtol=1e-10)


def test_hidden_matrices_are_the_weights_between_the_pixels_and_the_head():
    model = VisionTransformer(dataclasses.replace(TINY, mlp_conv=True))
    chosen = {id(w) for w in hidden_matrices(model)}
    names = {n for n, p in model.named_parameters() if id(p) in chosen}
    assert {"patch_embed.stages.0.down.conv.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc2.weight"} <= names
    assert not names & {"patch_embed.whiten.conv.weight", "head.weight", "pos_embed", "blocks.0.mlp.conv.weight"}


def test_a_muon_that_was_saved_and_loaded_steps_on_bit_for_bit():
    def run(model, optimizer, steps):
        for step in steps:
            x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = VisionTransformer(TINY)
    optimizer = Muon(model)
    run(model, optimizer, range(3))
    again = VisionTransformer(TINY)
    again.load_state_dict(model.state_dict())
    other = Muon(again)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(model, optimizer, range(3, 6))
    run(again, other, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_a_network_with_gradients_or_matrices_of_zeros_learns_and_stays_finite():
    torch.manual_seed(0)
    x = torch.randn(4, 5)
    for first in (False, True):  # no gradient reaches the first matrix while the second is 0, nor the other way round
        model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.Linear(6, 5, bias=False))
        nn.init.zeros_(model[0 if first else 1].weight)
        optimizer = Muon(model)
        for _ in range(3):
            optimizer.zero_grad()
            (model(x) - x).square().sum().backward()
            optimizer.step()
        assert all(weight.isfinite().all() and weight.any() for weight in model.parameters())


class Counted(TorchDispatchMode):
    """Counts the operations that compute, without views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **kwargs or {})


def test_a_step_takes_as_many_operations_for_four_blocks_as_for_one():
    counts = []
    for depth in (1, 4):
        model = VisionTransformer(dataclasses.replace(TINY, depth=depth))
        optimizer = Muon(model)
        for _ in range(2):
            model(torch.randn(2, 3, 8, 8)).square().sum().backward()
            with Counted() as counted:
                optimizer.step()
        counts.append(counted.count)
    assert counts[0] == counts[1] < 400


def test_muon_steps_by_a_closure_as_pytorchs_optimizers_do():
    model, other = VisionTransformer(TINY), VisionTransformer(TINY)
    other.load_state_dict(model.state_dict())
    optimizer, plain, x = Muon(model), Muon(other), torch.randn(2, 3, 8, 8)

    def closure():
        loss = model(x).square().sum()
        loss.backward()
        return loss

    want = other(x).square().sum()
    want.backward()
    plain.step()
    assert torch.equal(optimizer.step(closure), want)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


def test_the_head_inside_a_wrapper_is_a_head():
    model = VisionTransformer(TINY)
    for wrapper in (torch.compile(model, backend="eager"), torch.nn.ModuleDict({"module": model})):
        assert {id(w) for w in hidden_matrices(wrapper)} == {id(w) for w in hidden_matrices(model)}


def test_parameters_in_place_of_the_model_are_refused():
    with pytest.raises(ValueError, match="takes the model"):
        Muon(VisionTransformer(TINY).parameters())
