import math

import pytest
import torch

from ray_rl.algorithms.supervised import supervised_loss

KINDS = pytest.mark.parametrize("kind", ["cross_entropy", "dft"])


def test_the_sum_of_the_cross_entropies_and_their_number():
    sums = supervised_loss(torch.tensor([0.5, 0.25, 1.0]).log(), "cross_entropy")
    assert sums.loss_sum.item() == pytest.approx(math.log(2) + math.log(4))
    assert sums.means == {
        "loss": (pytest.approx(math.log(8)), 3.0),
        "cross_entropy": (pytest.approx(math.log(8)), 3.0),
    }


def test_dft_weighs_each_token_by_its_probability_and_not_its_gradient():
    logprobs_N = torch.tensor([0.5, 0.25]).log().requires_grad_()
    sums = supervised_loss(logprobs_N, "dft")
    sums.loss_sum.backward()
    assert logprobs_N.grad.tolist() == pytest.approx([-0.5, -0.25])
    assert sums.means["loss"] == (pytest.approx(0.5 * math.log(2) + 0.25 * math.log(4)), 2.0)
    assert sums.means["cross_entropy"] == (pytest.approx(math.log(8)), 2.0)


# DFT's gradient is not that of its value: its weight is held constant. The test above has it by hand.
def test_the_gradient_is_that_of_finite_differences():
    logprobs_N = torch.linspace(-9, -0.1, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: supervised_loss(x, "cross_entropy").loss_sum, logprobs_N)


@KINDS
def test_the_split_into_micro_batches_changes_nothing(kind):
    whole_N, split_N = (torch.linspace(-9, -0.1, 20, requires_grad=True) for _ in range(2))
    whole = supervised_loss(whole_N, kind)
    whole.loss_sum.backward()
    parts = [supervised_loss(part_n, kind) for part_n in split_N.split([7, 0, 12, 1])]
    sum(part.loss_sum for part in parts).backward()
    torch.testing.assert_close(split_N.grad, whole_N.grad, rtol=0, atol=0)
    for name, (total, count) in whole.means.items():
        assert sum(part.means[name][0] for part in parts) == pytest.approx(total)
        assert sum(part.means[name][1] for part in parts) == count


@KINDS
def test_no_tokens_are_a_loss_of_zero_that_can_be_differentiated(kind):
    logprobs_N = torch.zeros(0, requires_grad=True)
    sums = supervised_loss(logprobs_N, kind)
    sums.loss_sum.backward()
    assert sums.loss_sum.item() == 0.0
    assert sums.means == {"loss": (0.0, 0.0), "cross_entropy": (0.0, 0.0)}
    assert logprobs_N.grad.shape == (0,)


def test_a_kind_that_does_not_exist_is_an_error():
    with pytest.raises(AssertionError):
        supervised_loss(torch.zeros(1), "hinge")
