import math

import pytest
import torch

from ray_rl.algorithms.value_loss import clipped_value_loss, explained_variance

VALUES_N = torch.tensor([1.0, 1.0, 0.1])
OLD_N = torch.tensor([0.0, 0.0, 0.0])
RETURNS_N = torch.tensor([2.0, 0.0, 1.0])


def test_the_larger_of_the_free_and_the_clipped_error_counts():
    loss_N, is_clipped_N = clipped_value_loss(VALUES_N, OLD_N, RETURNS_N, clip=0.5)
    assert loss_N.tolist() == pytest.approx([0.5 * 1.5**2, 0.5, 0.5 * 0.9**2])
    assert is_clipped_N.tolist() == [True, False, False]


def test_a_value_that_moved_past_the_bound_towards_its_target_has_no_gradient():
    values_N = VALUES_N.clone().requires_grad_()
    clipped_value_loss(values_N, OLD_N, RETURNS_N, clip=0.5)[0].sum().backward()
    assert values_N.grad.tolist() == pytest.approx([0.0, 1.0, -0.9])


def test_without_clip_it_is_half_the_squared_error():
    loss_N, is_clipped_N = clipped_value_loss(VALUES_N, OLD_N, RETURNS_N, clip=None)
    assert loss_N.tolist() == pytest.approx([0.5, 0.5, 0.405])
    assert not is_clipped_N.any()


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_gradient_is_that_of_finite_differences(clip):
    generator = torch.Generator().manual_seed(0)
    values_N, old_N, returns_N = torch.randn(3, 30, dtype=torch.float64, generator=generator)
    values_N.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: clipped_value_loss(v, old_N, returns_N, clip=clip)[0], values_N)


def test_explained_variance_of_a_perfect_a_constant_and_a_contrary_critic():
    returns, mask = torch.tensor([0.0, 2.0, 1e4]), torch.tensor([True, True, False])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.full((3,), 5.0), returns, mask) == 0.0
    assert explained_variance(-returns, returns, mask) == -3.0


def test_explained_variance_of_returns_that_do_not_vary_is_nan():
    ones = torch.ones(3)
    assert math.isnan(explained_variance(ones, ones, ones.bool()))
    assert math.isnan(explained_variance(ones, ones, ~ones.bool()))
