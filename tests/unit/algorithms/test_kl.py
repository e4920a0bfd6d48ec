import math

import pytest
import torch

from ray_rl.algorithms.kl import kl_estimate
from tests.golden import reference, tensors

ESTIMATORS = ["k1", "k2", "k3"]


def test_the_three_estimates_of_a_policy_half_as_likely_as_the_reference():
    new, ref = torch.tensor([math.log(0.25)]), torch.tensor([math.log(0.5)])
    assert kl_estimate(new, ref, "k1").item() == pytest.approx(-math.log(2))
    assert kl_estimate(new, ref, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_estimate(new, ref, "k3").item() == pytest.approx(2 - math.log(2) - 1)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_policies_are_at_distance_zero(estimator):
    logprobs_N = torch.tensor([-0.1, -5.0, -90.0])
    assert kl_estimate(logprobs_N, logprobs_N, estimator).tolist() == [0.0] * 3


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_expectation_is_the_divergence(estimator):
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    ref = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    exact = (policy * (policy / ref).log()).sum()
    assert (policy * kl_estimate(policy.log(), ref.log(), estimator)).sum().item() == pytest.approx(exact.item())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_agrees_with_the_slow_reference_out_to_25_nats(estimator):
    new_N, ref_N = (tensors.flat(tensors.logprobs_RT(kind)) for kind in ("extreme", "reference"))
    expected = [reference.kl(n, r, estimator) for n, r in zip(new_N.tolist(), ref_N.tolist(), strict=True)]
    actual = kl_estimate(new_N, ref_N, estimator)
    assert torch.isfinite(actual).all()
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_gradient_is_that_of_finite_differences(estimator):
    new_N = torch.linspace(-9, -0.5, 7, dtype=torch.float64, requires_grad=True)
    ref_N = torch.linspace(-1, -8, 7, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: kl_estimate(x, ref_N, estimator), new_N)


def test_k3_beyond_the_bound_is_finite_and_has_no_gradient():
    new_N = torch.tensor([-100.0, -0.5], requires_grad=True)
    kl_N = kl_estimate(new_N, torch.tensor([-0.5, -100.0]), "k3")
    kl_N.sum().backward()
    assert kl_N.tolist() == pytest.approx([math.exp(20) - 21, math.exp(-20) + 19], rel=1e-6)
    assert new_N.grad.tolist() == [0.0, 0.0]


def test_an_unknown_estimator_is_refused():
    with pytest.raises(AssertionError):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


def test_an_estimate_is_clipped_on_request():
    kl_N = kl_estimate(torch.tensor([-20.0, -0.5]), torch.tensor([-0.5, -20.0]), "k1", bound=10.0)
    assert kl_N.tolist() == [-10.0, 10.0]


def test_the_bound_of_the_log_ratio_can_be_removed():
    kl = kl_estimate(torch.tensor([-25.0]), torch.zeros(1), "k3", max_log_ratio=math.inf)
    assert kl.item() == pytest.approx(math.exp(25) - 26, rel=1e-6)


def test_the_gradient_of_k2_under_the_value_of_k3():
    new_N = torch.tensor([-1.0, -3.0], requires_grad=True)
    kl_N = kl_estimate(new_N, torch.tensor([-2.0, -2.5]), "k3", k2_gradient=True)
    kl_N.sum().backward()
    assert kl_N.tolist() == pytest.approx([math.exp(-1) + 1 - 1, math.exp(0.5) - 0.5 - 1])
    assert new_N.grad.tolist() == [1.0, -0.5]
