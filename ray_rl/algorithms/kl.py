"""How far the policy is from another policy, estimated on the policy's own tokens."""

from typing import Literal, assert_never

from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]

MAX_LOG_RATIO = 20.0
"""Bound of a log-ratio before exp. exp overflows float32 at 88.8; e^20 = 4.9e8 is already far outside any trust
region, and a gradient through it would be noise. Beyond the bound the gradient is 0."""


def kl_estimate(logprobs_N: Tensor, reference_logprobs_N: Tensor, estimator: KlEstimator) -> Tensor:
    """KL(policy || reference) at each token that the policy sampled, estimated.

    With d = reference - policy: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1.

    Source: Schulman 2020, "Approximating KL divergence". k1 and k3 are unbiased, k2 and k3 are never negative. The
    expected gradient of k1 is 0, so as a loss it adds only noise; that of k2 is the gradient of the divergence.
    d is bounded by `MAX_LOG_RATIO` in k3 alone, value and gradient; no estimate is clamped.

    Args:
        logprobs_N: float [N], differentiable.
        reference_logprobs_N: float [N], constant.
        estimator: which of the three.

    Returns:
        [N], in nats.
    """
    log_ratio_N = reference_logprobs_N - logprobs_N
    match estimator:
        case "k1":
            return -log_ratio_N
        case "k2":
            return 0.5 * log_ratio_N.square()
        case "k3":
            bounded_N = log_ratio_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
            return bounded_N.expm1() - bounded_N
        case _:
            assert_never(estimator)
