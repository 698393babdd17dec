import pytest
import torch

from minivit.attention import Attention, scaled_dot_product_attention
from minivit.cait import ClassAttention
from minivit.position_bias import DecomposedPositionBias, RelativePositionBias, TokenBias


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return module


def test_attention_is_the_formula_of_the_paper():
    q, k, v = torch.randn(3, 1, 1, 4, 8, dtype=torch.float64).unbind(0)
    weights = [[torch.exp(q[0, 0, i] @ k[0, 0, j] / 8**0.5) for j in range(4)] for i in range(4)]
    expected = torch.stack([sum(w * v[0, 0, j] for j, w in enumerate(row)) / sum(row) for row in weights])
    torch.testing.assert_close(scaled_dot_product_attention(q, k, v)[0, 0], expected)


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
