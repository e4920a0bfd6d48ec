"""Importance weights that correct for the gap between the engine that sampled and the trainer that learns.

The engine computes the policy with other kernels, and perhaps an older version of it: w = p_trainer / p_engine of the
sampled tokens. Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training".
"""

from typing import Literal, assert_never

import torch
from torch import Tensor

from ray_rl.algorithms.kl import MAX_LOG_RATIO


def importance_weights(
    old_logprobs_N: Tensor,
    rollout_logprobs_N: Tensor,
    row_N: Tensor,
    *,
    over: Literal["token", "sum", "mean"],
    low: float,
    high: float,
    outside: Literal["truncate", "mask"],
) -> tuple[Tensor, Tensor]:
    """Returns the constant factor of each token's loss.

    Log-ratios are bounded at +-20 before exp.

    Args:
        old_logprobs_N: float [N], of the trainer before the update.
        rollout_logprobs_N: float [N], of the engine when it sampled.
        row_N: int64 [N], sequence of each token; a sequence must lie in one micro-batch.
        over: whose ratio: that of the token, or that of its sequence by the sum or the mean of its log-ratios.
        low: smallest ratio that is used as it is, >= 0.
        high: largest ratio that is used as it is.
        outside: a ratio beyond the bounds becomes the bound (truncate) or 0 (mask).

    Returns:
        Weights [N], and bool [N]: whether the bounds changed the weight.
    """
    log_ratio_N = (old_logprobs_N - rollout_logprobs_N).detach()
    if over != "token":
        log_ratio_N = over_sequence(log_ratio_N, row_N, over)
    ratio_N = log_ratio_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    match outside:
        case "truncate":
            weights_N = ratio_N.clamp(low, high)
        case "mask":
            weights_N = torch.where((ratio_N >= low) & (ratio_N <= high), ratio_N, 0.0)
        case _:
            assert_never(outside)
    return weights_N, weights_N != ratio_N


def over_sequence(values_N: Tensor, row_N: Tensor, over: Literal["sum", "mean"]) -> Tensor:
    """Returns for each token the sum or the mean over the tokens of its row; differentiable."""
    index_N: Tensor
    counts: Tensor
    _, index_N, counts = torch.unique(row_N, return_inverse=True, return_counts=True)
    sums = values_N.new_zeros(len(counts)).index_add(0, index_N, values_N)
    return (sums / counts if over == "mean" else sums)[index_N]
