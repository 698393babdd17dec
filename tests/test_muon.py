"""The optimiser of the demo trainings."""

import torch
import torch.nn as nn

from minisam_glue.demo.muon import Muon, matrices_of, newton_schulz


def test_singular_values_become_about_one_and_their_directions_stay():
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 12, 40), (2, 40, 12), (1, 16, 16)):
        matrices = torch.randn(shape, generator=generator)
        out = newton_schulz(matrices)
        u, _, v = torch.linalg.svd(matrices, full_matrices=False)
        inner = u.mT @ out @ v.mT
        values = torch.linalg.svdvals(out)
        assert out.shape == shape and 0.6 < values.min() and values.max() < 1.3
        assert (inner.diagonal(dim1=1, dim2=2) > 0.6).all()
        assert (inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))).abs().max() < 0.05


def test_an_update_is_that_of_its_formula():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(8, 3, 2, 2))  # as a matrix (8, 12)
    optimizer = Muon([weight], lr=0.1, momentum=0.9)
    first, second = torch.randn(2, 8, 3, 2, 2)
    for gradient, ahead in (
        (first, 0.1 * first + 0.9 * 0.1 * first),
        (second, 0.1 * second + 0.9 * (0.9 * 0.1 * first + 0.1 * second)),
    ):
        before, weight.grad = weight.detach().clone(), gradient
        optimizer.step()
        step = newton_schulz(ahead.flatten(1)[None])[0].view_as(weight) * 0.1 * 0.2 * 12**0.5
        assert torch.allclose(weight, before - step, atol=1e-6)


def test_an_update_is_as_large_as_one_of_adamw():
    torch.manual_seed(0)
    for shape in ((64, 64), (32, 128), (128, 32)):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape)
        Muon([weight], lr=1.0).step()
        assert 0.12 < weight.detach().square().mean().sqrt() < 0.28  # AdamW's are about 0.2 (arXiv 2502.16982)


def test_it_takes_the_matrices_and_leaves_embeddings_thin_layers_and_vectors():
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(8, 8),
            "convolution": nn.Conv2d(8, 16, 3),
            "thin": nn.Linear(16, 4),
            "norm": nn.LayerNorm(8),
            "depthwise": nn.Conv2d(16, 16, 3, groups=16),
            "embedding": nn.Embedding(32, 16),
            "attention": nn.MultiheadAttention(8, 2),
        }
    )
    model["twice"] = model["linear"]
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert [names[id(weight)] for weight in matrices_of(model)] == [
        "linear.weight",
        "convolution.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    ]


def test_weights_of_one_shape_are_updated_as_if_each_were_alone():
    torch.manual_seed(0)
    together, alone = ([nn.Parameter(torch.zeros(8, 16)) for _ in range(3)] for _ in range(2))
    for one, other in zip(together[:2], alone):  # the third has no gradient
        one.grad = torch.randn(8, 16)
        other.grad = one.grad.clone()
        Muon([other], lr=0.1).step()
    Muon(together, lr=0.1).step()
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(together, alone))
    assert not together[2].any()
