import math

import pytest
import torch

from ray_rl.algorithms.whiten import whiten
from tests.golden import reference, tensors

MASK = torch.tensor([True, True, False, True])
VALUES = torch.tensor([1.0, 2.0, 1e4, 6.0])


def test_one_two_six_by_hand():
    whitened = whiten(VALUES, MASK)
    assert whitened.tolist() == pytest.approx([-2 / math.sqrt(7), -1 / math.sqrt(7), 0.0, 3 / math.sqrt(7)])


def test_the_biased_variance_divides_by_the_count():
    assert whiten(VALUES, MASK, ddof=0).tolist() == pytest.approx([x / math.sqrt(14 / 3) for x in (-2, -1, 0, 3)])


def test_without_shift_the_mean_stays():
    assert whiten(VALUES, MASK, shift_mean=False).tolist() == pytest.approx(
        [3 - 2 / math.sqrt(7), 3 - 1 / math.sqrt(7), 0.0, 3 + 3 / math.sqrt(7)]
    )


def test_without_division_only_the_mean_goes():
    assert whiten(VALUES, MASK, divide_by_std=False).tolist() == [-2.0, -1.0, 0.0, 3.0]


def test_a_floor_leaves_a_variance_above_it_alone():
    assert whiten(VALUES, MASK, eps=7.0, eps_is_floor=True)[0].item() == pytest.approx(-2 / math.sqrt(7))
    assert whiten(VALUES, MASK, eps=9.0, eps_is_floor=True)[0].item() == pytest.approx(-2 / 3)
    assert whiten(VALUES, MASK, eps=9.0)[0].item() == pytest.approx(-2 / 4)


@pytest.mark.parametrize("values", [[0.9] * 7, [0.1], []])
def test_equal_values_a_single_one_and_none_give_exactly_zero(values):
    assert whiten(torch.tensor(values), torch.ones(len(values), dtype=torch.bool)).tolist() == [0.0] * len(values)


@pytest.mark.parametrize(("ddof", "eps_is_floor"), [(1, False), (0, True)])
def test_agrees_with_the_slow_reference(ddof, eps_is_floor):
    values_RT = tensors.logprobs_RT("extreme")
    actual_RT = whiten(values_RT, tensors.MASK_RT, ddof=ddof, eps_is_floor=eps_is_floor)
    expected = reference.whitened(tensors.flat(values_RT).tolist(), ddof, 1e-8, eps_is_floor)
    torch.testing.assert_close(tensors.flat(actual_RT), torch.tensor(expected), rtol=1e-6, atol=1e-6)
    assert not actual_RT[~tensors.MASK_RT].any()
