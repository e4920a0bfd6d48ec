"""An algorithm that `ray_rl` does not have: the advantages of MaxRL with the loss of TOPR."""

import torch
from torch import Tensor

from ray_rl.algorithms.importance import over_sequence


def advantages(scores_PG: Tensor, is_scored_PG: Tensor) -> Tensor:
    """Returns (r - mean_G(r)) / mean_G(r), for scores that are not negative; 0 in a group of zeros.

    A rare success counts more than by GRPO's division by the standard deviation.
    Source: MaxRL, arXiv:2602.02710. The mean is that of the scored completions.
    """
    mean_P1 = scores_PG.sum(1, keepdim=True) / is_scored_PG.sum(1, keepdim=True).clamp(min=1)
    return (scores_PG - mean_P1) / mean_P1.clamp(min=1e-6)


def surrogate(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, row_N: Tensor, *, largest: float
) -> tuple[Tensor, Tensor]:
    """Returns -w A logprob: w = 1 where A >= 0, else the ratio of the whole completion, at most `largest`.

    A bad completion pushes less the more unlikely it has become, and a good one is never cut off.
    Source: TOPR, arXiv:2503.14286, with `largest` = 1.
    """
    ratio_N = over_sequence(logprobs_N.detach() - old_logprobs_N, row_N, "sum").exp()
    weights_N = torch.where(advantages_N < 0, ratio_N.clamp(max=largest), 1.0)
    return -weights_N * advantages_N * logprobs_N, (advantages_N < 0) & (ratio_N > largest)
