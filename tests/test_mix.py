"""minivit/mix.py: what is mixed with what, how much, and how often."""

import pytest
import torch
import torch.nn.functional as F

from minivit.mix import cutmix, cutmix_box, draw_beta, kept_area, mix_batch, mixup, one_hot


def numbered_batch(count: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Image i is filled with the value i and belongs to class i."""
    images = torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 3, size, size)
    return images, one_hot(torch.arange(count), count)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_soft_targets_sum_to_one_in_batches_of_any_size(count, alphas):
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(count, 3, 8, 6), one_hot(torch.arange(count), 7, smoothing=0.1)
    for _ in range(20):
        mixed, soft = mix_batch(images, target, *alphas, 1.0, generator)
        assert mixed.shape == images.shape and soft.shape == target.shape
        torch.testing.assert_close(soft.sum(1), torch.ones(count))
        assert (soft >= 0).all()


def test_mixup_weighs_each_row_with_the_row_before():
    images, target = numbered_batch(3)
    mixed, soft = mixup(images, target, 0.7)
    expected = [0.3 * 2, 0.7 * 1, 0.7 * 2 + 0.3 * 1]
    torch.testing.assert_close(mixed[:, 0, 0, 0], torch.tensor(expected))
    torch.testing.assert_close(soft, torch.tensor([[0.7, 0, 0.3], [0.3, 0.7, 0], [0, 0.3, 0.7]]))


def test_cutmix_labels_are_the_shares_of_the_pixels():
    images, target = numbered_batch(3)
    mixed, soft = cutmix(images, target, (2, 7, 0, 3))
    for i in range(3):
        shares = torch.stack([(mixed[i, 0] == j).float().mean() for j in range(3)])
        torch.testing.assert_close(soft[i], shares)
    assert (mixed[0, :, 2:7, 0:3] == 2).all() and (images[0] == 0).all()  # pasted, and the input is as it was


def test_the_cutmix_box_has_the_area_of_lambda_until_it_is_clipped():
    assert cutmix_box(0.75, 16, 32, (8, 16)) == (4, 12, 8, 24)
    assert kept_area((4, 12, 8, 24), 16, 32) == 0.75
    assert cutmix_box(0.75, 16, 32, (0, 31)) == (0, 4, 23, 32)
    assert kept_area(cutmix_box(0.0, 9, 9, (4, 4)), 9, 9) == 0.0
    assert kept_area(cutmix_box(1.0, 9, 9, (4, 4)), 9, 9) == 1.0


def test_cutmix_boxes_lie_all_over_the_image():
    generator, pasted = torch.Generator().manual_seed(2), torch.zeros(16, 32)
    images, target = numbered_batch(2, 16)
    images = images.repeat(1, 1, 1, 2)
    for _ in range(1500):
        pasted += mix_batch(images, target, 0.0, 1.0, 1.0, generator)[0][0, 0] / 1500
    for halves in (pasted.mean(1).split(8), pasted.mean(0).split(16)):
        assert abs(halves[0].mean() - halves[1].mean()) < 0.05
        # With r = sqrt(1 - lambda) an edge is covered in E[r^2] / 2 - E[r^3] / 8 = 0.2 of the draws.
        assert 0.15 < min(halves[0].min(), halves[1].min()) < 0.25


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lambda_has_the_moments_of_beta(alpha):
    generator = torch.Generator().manual_seed(3)
    draws = torch.tensor([draw_beta(alpha, generator) for _ in range(4000)])
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs(draws.var() - 1 / (4 * (2 * alpha + 1))) < 0.01
    assert draws.min() >= 0 and draws.max() <= 1


def test_prob_is_the_share_of_mixed_batches_and_a_coin_picks_the_kind():
    generator, kinds = torch.Generator().manual_seed(1), {"none": 0, "mixup": 0, "cutmix": 0}
    images, target = numbered_batch(4, 16)
    for _ in range(600):
        mixed, _ = mix_batch(images, target, 1.0, 1.0, 0.6, generator)
        whole = (mixed == mixed[..., :1, :1]).all()  # mixup keeps a flat image flat
        kinds["none" if torch.equal(mixed, images) else "mixup" if whole else "cutmix"] += 1
    assert abs(kinds["mixup"] / 600 - 0.3) < 0.06 and abs(kinds["cutmix"] / 600 - 0.3) < 0.06


def test_draws_come_from_the_generator_alone():
    images, target = torch.randn(4, 3, 8, 8), one_hot(torch.arange(4), 4)
    before = torch.get_rng_state()
    first, again = (mix_batch(images, target, 1.0, 1.0, 1.0, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_smoothed_targets_give_torchs_label_smoothing():
    logits, labels = torch.randn(5, 10), torch.randint(10, (5,))
    ours = F.cross_entropy(logits, one_hot(labels, 10, 0.1))
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_negative_alphas_are_refused():
    with pytest.raises(ValueError, match="use 0"):
        mix_batch(*numbered_batch(2), -1.0, 0.0, 1.0, torch.Generator())


@pytest.mark.parametrize("images, targets", [(torch.float32, torch.long), (torch.uint8, torch.float32)])
def test_bytes_and_class_indices_are_not_mixed(images, targets):
    for alphas in ((0.8, 0.0), (0.0, 1.0)):
        with pytest.raises(ValueError, match="give float images, and soft targets"):
            mix_batch(
                torch.zeros(2, 3, 4, 4, dtype=images), torch.eye(2, dtype=targets), *alphas, 1.0, torch.Generator()
            )
