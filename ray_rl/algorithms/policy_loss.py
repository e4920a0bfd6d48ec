"""The policy's loss on the loss tokens of a micro-batch.

Tokens are flat: N is the number of loss tokens in the micro-batch, in any order, and `row_N` says whose they are. A new
loss is one function in `surrogates.py`, one class in `config/losses.py` and one `case` in `training/configured.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_rl.algorithms.kl import KlEstimate, kl_estimate
from ray_rl.algorithms.surrogates import Surrogate, probability_ratio

Correction = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""`importance_weights` with its settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss:
    """Settings of `policy_loss`."""

    surrogate: Surrogate
    correction: Correction | None
    """None: no correction for the gap between trainer and engine."""
    kl: KlEstimate
    """The estimate of the KL penalty in the loss."""
    entropy_coefficient: float
    """Weight of the mean token entropy, maximised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """The arrays of the loss tokens of a micro-batch. N may be 0."""

    logprobs_N: Tensor
    """float32, differentiable: of the policy as it is now."""
    old_logprobs_N: Tensor | None = None
    """float32: of the policy before the update. None: equal to `logprobs_N`, so the ratio is 1 everywhere."""
    reference_logprobs_N: Tensor | None = None
    """float32: of the frozen reference. None: no KL term."""
    advantages_N: Tensor
    """float32."""
    entropy_N: Tensor | None = None
    """float32, of the policy's distribution; differentiable if there is an entropy bonus. None: not computed."""
    rollout_logprobs_N: Tensor | None = None
    """float32: of the engine when it sampled. None: no correction."""
    weights_N: Tensor
    """float32: weight in the reduction, from `reduce.token_weights`."""
    row_N: Tensor
    """int64: rollout that the token belongs to, for losses over whole sequences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSum:
    """Sums over a micro-batch, to be divided by the count of the whole optimizer step."""

    loss_sum: Tensor
    """Scalar, differentiable: everything that is optimised, weighted. Divide by the global `reduce.reduction_count`."""
    weight: float
    """Sum of the weights: this micro-batch's share of the count."""
    totals: dict[str, float]
    """Weighted sums by metric name; total / weight is the mean under the same reduction as the loss."""
    maxima: dict[str, float]
    """Largest values by metric name; empty if there are no tokens."""


def policy_loss(settings: PolicyLoss, inputs: LossInputs, *, kl_coefficient: float = 0.0) -> LossSum:
    """Returns the sum over tokens of weight * (surrogate + kl_coefficient * KL - entropy_coefficient * entropy).

    Metrics: policy/loss (the surrogate alone), policy/clip_fraction, policy/kl_old_k3 (how far the update has moved
    the policy), policy/ratio_max, and, if their inputs are given, policy/kl_reference, policy/entropy,
    policy/correction_mean and policy/correction_bounded_fraction.

    Args:
        settings: surrogate, correction, KL and entropy; the reduction is already in the weights of the inputs.
        inputs: the loss tokens of a micro-batch.
        kl_coefficient: the coefficient of the KL penalty at this step.

    Raises:
        ValueError: a coefficient is positive and the input that it multiplies is missing.
    """
    old_logprobs_N = inputs.logprobs_N.detach() if inputs.old_logprobs_N is None else inputs.old_logprobs_N
    surrogate_N, is_clipped_N = settings.surrogate(inputs.logprobs_N, old_logprobs_N, inputs.advantages_N, inputs.row_N)
    terms = {"policy/loss": surrogate_N, "policy/clip_fraction": is_clipped_N}
    if settings.correction is not None:
        surrogate_N = _corrected(settings.correction, surrogate_N, inputs, old_logprobs_N, terms)
    loss_N = _with_penalties(surrogate_N, settings, inputs, terms, kl_coefficient)
    with torch.no_grad():
        terms["policy/kl_old_k3"] = kl_estimate(old_logprobs_N, inputs.logprobs_N, "k3")
        ratio_N = probability_ratio(inputs.logprobs_N, old_logprobs_N)
    return _sums(loss_N, inputs.weights_N, terms, {"policy/ratio_max": ratio_N})


def _corrected(
    correction: Correction, surrogate_N: Tensor, inputs: LossInputs, old_logprobs_N: Tensor, terms: dict[str, Tensor]
) -> Tensor:
    """Returns the surrogate times the importance weights of trainer against engine (verl: after clipping)."""
    if inputs.rollout_logprobs_N is None:
        raise ValueError("algorithm.correction needs the log-probabilities of the engine; set it to null without them")
    factor_N, is_bounded_N = correction(old_logprobs_N, inputs.rollout_logprobs_N, inputs.row_N)
    terms["policy/correction_mean"] = factor_N
    terms["policy/correction_bounded_fraction"] = is_bounded_N
    return factor_N * surrogate_N


def _with_penalties(
    surrogate_N: Tensor, settings: PolicyLoss, inputs: LossInputs, terms: dict[str, Tensor], kl_coefficient: float
) -> Tensor:
    """Returns the surrogate with the KL penalty and the entropy bonus, and adds both to the terms."""
    loss_N = surrogate_N
    if inputs.reference_logprobs_N is not None:
        kl_N = settings.kl(inputs.logprobs_N, inputs.reference_logprobs_N)
        terms["policy/kl_reference"] = kl_N
        loss_N = loss_N + kl_coefficient * kl_N
    elif kl_coefficient > 0:
        raise ValueError(
            f"the KL coefficient is {kl_coefficient} but the batch has no reference log-probabilities; "
            "compute them before the update, or set algorithm.kl.coefficient to 0"
        )
    if inputs.entropy_N is not None:
        terms["policy/entropy"] = inputs.entropy_N
        loss_N = loss_N - settings.entropy_coefficient * inputs.entropy_N
    elif settings.entropy_coefficient > 0:
        raise ValueError(
            f"algorithm.entropy_coefficient={settings.entropy_coefficient} but no entropy was computed; "
            "compute it with its gradient, or set the coefficient to 0"
        )
    return loss_N


def _sums(loss_N: Tensor, weights_N: Tensor, terms: dict[str, Tensor], extremes: dict[str, Tensor]) -> LossSum:
    """Returns weighted sums, copied to the host in one transfer: separate transfers would each wait for the device."""
    with torch.no_grad():
        sums = [weights_N.sum(), *((weights_N * term_N).sum() for term_N in terms.values())]
        peaks = [value_N.amax() for value_N in extremes.values()] if len(weights_N) else []
        values = torch.stack([value.float() for value in (*sums, *peaks)]).tolist()
    return LossSum(
        loss_sum=(weights_N * loss_N).sum(),
        weight=values[0],
        totals=dict(zip(terms, values[1 : 1 + len(terms)], strict=True)),
        maxima=dict(zip(extremes, values[1 + len(terms) :], strict=False)),
    )
