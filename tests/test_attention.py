import pytest
import torch

from minivit.attention import (
    Attention,
    ClassAttention,
    DecomposedPositionBias,
    RelativePositionBias,
    TokenBias,
    explicit_attention,
)


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return module


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_fused_attention_equals_the_explicit_path(with_bias, qk_norm):
    attention = randomise(Attention(24, 3, qk_norm=qk_norm))
    x, bias = torch.randn(2, 7, 24), torch.randn(1, 3, 7, 7) if with_bias else None
    fused = attention(x, bias)
    attention.fused = False
    torch.testing.assert_close(fused, attention(x, bias), atol=1e-5, rtol=1e-5)


def test_explicit_attention_is_the_formula_of_the_paper():
    q, k, v = torch.randn(3, 1, 1, 4, 8, dtype=torch.float64).unbind(0)
    weights = [[torch.exp(q[0, 0, i] @ k[0, 0, j] / 8**0.5) for j in range(4)] for i in range(4)]
    expected = torch.stack([sum(w * v[0, 0, j] for j, w in enumerate(row)) / sum(row) for row in weights])
    torch.testing.assert_close(explicit_attention(q, k, v)[0, 0], expected)


@pytest.mark.parametrize("tokens", [1, 2])
def test_folded_class_attention_equals_keys_and_values_written_out(tokens):
    attention = randomise(ClassAttention(24, 3)).double()
    x, bias = torch.randn(2, 7, 24, dtype=torch.float64), torch.randn(1, 3, tokens, 7, dtype=torch.float64)
    folded = attention(x, tokens, bias)
    grads = torch.autograd.grad(folded.square().sum(), list(attention.parameters()))
    attention.fused = False
    explicit = attention(x, tokens, bias)
    torch.testing.assert_close(folded, explicit, atol=1e-10, rtol=1e-10)
    for a, b in zip(grads, torch.autograd.grad(explicit.square().sum(), list(attention.parameters()))):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-8)


def test_class_attention_updates_only_the_tokens_but_reads_every_patch():
    attention, x = randomise(ClassAttention(16, 2)), torch.randn(1, 6, 16, requires_grad=True)
    out = attention(x, 2)
    assert out.shape == (1, 2, 16)
    out.sum().backward()
    assert (x.grad.abs().sum(-1) > 0).all()


def test_decomposed_bias_is_the_joint_table_of_row_plus_column_scores():
    grid, heads = (3, 4), 2
    decomposed, joint = randomise(DecomposedPositionBias(grid, heads)), RelativePositionBias(grid, heads)
    table = decomposed.row_table[:, None] + decomposed.col_table[None]  # (2h - 1, 2w - 1, heads)
    joint.relative_position_bias_table.data = table.reshape(-1, heads)
    torch.testing.assert_close(decomposed(), joint())


def test_decomposed_bias_depends_on_the_offset_alone_and_tells_directions_apart():
    bias = randomise(DecomposedPositionBias((3, 3), 1))()[0, 0]
    assert bias[0, 4] == bias[4, 8]  # both one down, one across
    assert bias[0, 1] != bias[1, 0] and bias[0, 1] != bias[0, 3]


def test_special_tokens_have_scores_of_their_own_whatever_the_patch():
    bias = randomise(DecomposedPositionBias((2, 2), 3, tokens=2))
    rows = bias()
    assert rows.shape == (1, 3, 6, 6)
    torch.testing.assert_close(rows[:, :, :2], bias.token_rows())
    assert (rows[..., 0, 2:] == rows[..., 0, 2:3]).all() and (rows[..., 2:, 1] == rows[..., 2:3, 1]).all()
    assert (rows[..., 0, 2] != rows[..., 1, 2]).all() and (rows[..., 0, 2] != rows[..., 2, 0]).all()
    assert isinstance(bias.token_rows, TokenBias)


def test_heads_that_do_not_divide_the_width_are_named():
    for module in (Attention, ClassAttention):
        with pytest.raises(ValueError, match="width 10 does not divide into 3 heads"):
            module(10, 3)
    with pytest.raises(ValueError, match="one special token at most"):
        RelativePositionBias((2, 2), 1, tokens=2)
