"""The contribution of each token to the policy's loss: one function per paper.

Each takes flat tensors [N] over loss tokens: `logprobs_N`, differentiable; `old_logprobs_N` and `advantages_N`,
constant; and `row_N`, the sequence of each token. Each returns the loss [N], to be minimised and not yet reduced, and
bool [N]: a bound changed the gradient of the token. R = exp(logprob - old logprob), and A is the advantage.
"""

from collections.abc import Callable
from typing import Literal, assert_never

import torch
from torch import Tensor

from ray_rl.algorithms.described import described
from ray_rl.algorithms.importance import over_sequence
from ray_rl.algorithms.kl import MAX_LOG_RATIO
from ray_rl.errors import ConfigError

Surrogate = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""One of the functions below with its settings."""


def probability_ratio(logprobs_N: Tensor, old_logprobs_N: Tensor, *, max_log_ratio: float = MAX_LOG_RATIO) -> Tensor:
    """Returns R = exp(logprob - old), the difference bounded so that exp cannot overflow; no gradient beyond it.

    verl and OpenRLHF bound it at 20 as well; TRL does not (math.inf).
    """
    return (logprobs_N - old_logprobs_N).clamp(-max_log_ratio, max_log_ratio).exp()


def clipped_surrogate(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    row_N: Tensor,
    *,
    clip: tuple[float, float],
    dual_clip: float | None = None,
    ratio_cap: float | None = None,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> tuple[Tensor, Tensor]:
    """Returns PPO's pessimistic objective as a loss: max(-A * R, -A * clip(R, 1 - low, 1 + high)).

    Source: PPO, arXiv:1707.06347, equation 7; unequal bounds are DAPO's clip-higher, arXiv:2503.14476, section 3.1.

    Args:
        logprobs_N: float [N], differentiable.
        old_logprobs_N: float [N], constant.
        advantages_N: float [N], constant.
        row_N: not used.
        clip: low in [0, 1) and high >= 0, distances from 1.
        dual_clip: c > 1 bounds the loss of a negative advantage at -A * c (arXiv:1912.09729). verl: 3,
            always; OpenRLHF: None.
        ratio_cap: R = min(R, cap) before all else, whatever the sign (TRL's `delta`).
        max_log_ratio: see `probability_ratio`.

    Returns:
        Loss [N], and bool [N]: a bound of `clip` or `dual_clip` decides the loss, so that the token has no gradient.
    """
    ratio_N = probability_ratio(logprobs_N, old_logprobs_N, max_log_ratio=max_log_ratio)
    if ratio_cap is not None:
        ratio_N = ratio_N.clamp(max=ratio_cap)
    return _pessimistic(ratio_N, advantages_N, clip, dual_clip)


def gspo_surrogate(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    row_N: Tensor,
    *,
    clip: tuple[float, float],
    gradient: Literal["token", "sequence"] = "token",
    max_log_ratio: float = MAX_LOG_RATIO,
) -> tuple[Tensor, Tensor]:
    """Returns PPO's objective with one ratio per sequence: R = exp(mean over its tokens of logprob - old).

    Source: GSPO, arXiv:2507.18071, sections 4.1 (sequence) and 4.3 (token). To be reduced by sequence_mean.
    Where A is constant over a sequence, both forms have the same gradient.

    Args:
        logprobs_N: float [N], differentiable.
        old_logprobs_N: float [N], constant.
        advantages_N: float [N], constant.
        row_N: int64 [N], sequence of each token; a sequence must lie in one micro-batch.
        clip: low and high, distances from 1; the paper uses 3e-4 and 4e-4.
        gradient: through the token's own log-probability (GSPO-token, verl) or through the mean (OpenRLHF).
        max_log_ratio: bound of the mean log-ratio. verl: 10, above only; OpenRLHF: none.

    Returns:
        As `clipped_surrogate`.
    """
    mean_N = over_sequence(logprobs_N - old_logprobs_N, row_N, "mean")
    match gradient:
        case "token":
            log_ratio_N = logprobs_N - logprobs_N.detach() + mean_N.detach()
        case "sequence":
            log_ratio_N = mean_N
        case _:
            assert_never(gradient)
    return _pessimistic(log_ratio_N.clamp(-max_log_ratio, max_log_ratio).exp(), advantages_N, clip, None)


def cispo_surrogate(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    row_N: Tensor,
    *,
    bounds: tuple[float, float],
    max_log_ratio: float = MAX_LOG_RATIO,
) -> tuple[Tensor, Tensor]:
    """Returns REINFORCE weighted by a bounded ratio: -stop_gradient(clip(R, low, high)) * A * logprob.

    Source: CISPO, MiniMax-M1, arXiv:2506.13585, section 3.1. No token loses its gradient.

    Args:
        logprobs_N: float [N], differentiable.
        old_logprobs_N: float [N], constant.
        advantages_N: float [N], constant.
        row_N: not used.
        bounds: the bounds of the ratio itself, not distances from 1. verl: (1 - low, 1 + high); TRL: (0, epsilon_high).
        max_log_ratio: see `probability_ratio`.

    Returns:
        Loss [N], and bool [N]: the weight was bounded.
    """
    low, high = bounds
    ratio_N = probability_ratio(logprobs_N.detach(), old_logprobs_N, max_log_ratio=max_log_ratio)
    return -ratio_N.clamp(low, high) * advantages_N * logprobs_N, (ratio_N < low) | (ratio_N > high)


def sapo_surrogate(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    row_N: Tensor,
    *,
    temperature_positive: float = 1.0,
    temperature_negative: float = 1.05,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> tuple[Tensor, Tensor]:
    """Returns a soft gate instead of the clip: -A * sigmoid(tau * (R - 1)) * 4 / tau, tau by sign of A.

    Source: SAPO, arXiv:2511.20347. To be reduced by sequence_mean. At R = 1 the gradient is that of
    the policy gradient. A = 0 takes the negative temperature, and does not matter.

    Args:
        logprobs_N: float [N], differentiable.
        old_logprobs_N: float [N], constant.
        advantages_N: float [N], constant.
        row_N: not used.
        temperature_positive: tau where A > 0.
        temperature_negative: tau otherwise; larger, so that unlikely tokens push less.
        max_log_ratio: see `probability_ratio`.
    """
    ratio_N = probability_ratio(logprobs_N, old_logprobs_N, max_log_ratio=max_log_ratio)
    tau_N = torch.where(advantages_N > 0, temperature_positive, temperature_negative).to(ratio_N.dtype)
    return -advantages_N * torch.sigmoid(tau_N * (ratio_N - 1.0)) * 4.0 / tau_N, _never(old_logprobs_N)


def gpg_surrogate(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, row_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns REINFORCE, -A * logprob, without ratio and bounds.

    Source: GPG, arXiv:2504.02546; its advantages are `advantages.gpg_advantages`.
    """
    return -advantages_N * logprobs_N, _never(old_logprobs_N)


def users_surrogate(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    row_N: Tensor,
    *,
    name: str,
    function: Surrogate,
) -> tuple[Tensor, Tensor]:
    """Returns what a user's function returns. Whether it is finite is seen later, on the loss of the whole step.

    Args:
        logprobs_N: float [N], differentiable.
        old_logprobs_N: float [N], constant.
        advantages_N: float [N], constant.
        row_N: int64 [N], sequence of each token.
        name: names the function in errors.
        function: the function with its settings.

    Raises:
        ConfigError: it did not return float [N] and bool [N].
    """
    # `old_logprobs_N` may share its memory with `logprobs_N`, and the function may write into its arguments.
    returned = function(logprobs_N, old_logprobs_N.clone(), advantages_N.clone(), row_N.clone())
    match returned:
        case Tensor() as loss_N, Tensor() as is_clipped_N:
            has_shapes = loss_N.shape == is_clipped_N.shape == logprobs_N.shape
            if has_shapes and loss_N.is_floating_point() and is_clipped_N.dtype == torch.bool:
                return loss_N, is_clipped_N
    raise ConfigError(
        f"{name}: the loss returned {described(returned)} for {len(logprobs_N)} tokens; return (loss_N, is_clipped_N): "
        "one floating-point number for each token, not their sum or mean, and one bool for each token"
    )


def _never(values_N: Tensor) -> Tensor:
    return torch.zeros_like(values_N, dtype=torch.bool)


def _pessimistic(
    ratio_N: Tensor, advantages_N: Tensor, clip: tuple[float, float], dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    """Returns the larger loss of the free and the clipped ratio, and where the gradient is cut."""
    low, high = clip
    free_N = -advantages_N * ratio_N
    bounded_N = -advantages_N * ratio_N.clamp(1.0 - low, 1.0 + high)
    loss_N, is_clipped_N = torch.maximum(free_N, bounded_N), bounded_N > free_N
    if dual_clip is not None:
        ceiling_N = -advantages_N * dual_clip
        is_dual_N = (advantages_N < 0) & (loss_N > ceiling_N)
        loss_N, is_clipped_N = torch.where(is_dual_N, ceiling_N, loss_N), is_clipped_N | is_dual_N
    return loss_N, is_clipped_N
