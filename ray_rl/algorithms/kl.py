"""Estimates of the divergence between the policy and another policy, on tokens that the policy sampled."""

from collections.abc import Callable
from typing import Literal, assert_never

from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]
KlEstimate = Callable[[Tensor, Tensor], Tensor]
"""`kl_estimate` with its settings: the log-probabilities of the policy and of the reference to the KL at each token."""

MAX_LOG_RATIO = 20.0
"""Bound of a log-ratio before exp. exp overflows float32 at 88.8; e^20 = 4.9e8 is already far outside any trust
region, and a gradient through it would be noise. Beyond the bound the gradient is 0."""


def kl_estimate(
    logprobs_N: Tensor,
    reference_logprobs_N: Tensor,
    estimator: KlEstimator,
    *,
    max_log_ratio: float = MAX_LOG_RATIO,
    bound: float | None = None,
    k2_gradient: bool = False,
) -> Tensor:
    """Returns an estimate of KL(policy || reference) at each token that the policy sampled.

    With d = reference - policy: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1.

    Source: Schulman 2020, "Approximating KL divergence". k1 and k3 are unbiased, k2 and k3 are never negative. The
    expected gradient of k1 is 0, so as a loss it adds only noise; that of k2 is the gradient of the divergence.
    Beyond a bound there is no gradient.

    Args:
        logprobs_N: float [N], differentiable.
        reference_logprobs_N: float [N], constant.
        estimator: which of the three.
        max_log_ratio: bound of d in k3. verl: 20; OpenRLHF and TRL: none (math.inf).
        bound: the estimate is clipped to +- this. verl: 10 for k3; OpenRLHF: 10 for all; TRL: None.
        k2_gradient: the value of the estimator with the gradient of k2 (verl's suffix "+"), an unbiased value with the
            gradient of the divergence.

    Returns:
        [N], in nats.
    """
    estimate_N = _estimate(reference_logprobs_N - logprobs_N, estimator, max_log_ratio)
    if bound is not None:
        estimate_N = estimate_N.clamp(-bound, bound)
    if not k2_gradient:
        return estimate_N
    k2_N = _estimate(reference_logprobs_N - logprobs_N, "k2", max_log_ratio)
    return k2_N - k2_N.detach() + estimate_N.detach()


def _estimate(log_ratio_N: Tensor, estimator: KlEstimator, max_log_ratio: float) -> Tensor:
    """Returns k1, k2 or k3 of d = reference - policy."""
    match estimator:
        case "k1":
            return -log_ratio_N
        case "k2":
            return 0.5 * log_ratio_N.square()
        case "k3":
            bounded_N = log_ratio_N.clamp(-max_log_ratio, max_log_ratio)
            return bounded_N.expm1() - bounded_N
        case _:
            assert_never(estimator)
