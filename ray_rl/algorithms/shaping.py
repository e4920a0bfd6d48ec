"""Shapes the score of a completion before advantages are estimated."""

import torch
from torch import Tensor

from ray_rl.algorithms.whiten import whiten


def shaped(
    scores_R: Tensor,
    lengths_R: Tensor,
    *,
    max_tokens: int,
    overlong_share: float,
    overlong_penalty: float,
    per_token: bool,
    rescale: bool,
) -> Tensor:
    """Returns scores after the soft punishment of length, division by length and rescaling, in this order.

    Clipping comes later: after the baseline of the group, where there is one (OpenRLHF).

    Args:
        scores_R: float [R]; nan where a completion was not scored, and it stays nan.
        lengths_R: int [R], sampled tokens of each rollout, > 0.
        max_tokens: the largest number of tokens of a completion.
        overlong_share: the last share of `max_tokens`, over which the score falls (see `overlong_fraction`); 0: it does
            not fall.
        overlong_penalty: what the score loses at the limit.
        per_token: divide by the number of sampled tokens.
        rescale: divide by the standard deviation over the batch (see `rescaled`).

    Returns:
        [R] in the dtype of the scores.
    """
    if overlong_share > 0:
        scores_R = scores_R - overlong_penalty * overlong_fraction(
            lengths_R, max_tokens=max_tokens, share=overlong_share
        ).to(scores_R.dtype)
    if per_token:
        scores_R = scores_R / lengths_R
    return rescaled(scores_R) if rescale else scores_R


def overlong_fraction(lengths_R: Tensor, *, max_tokens: int, share: float) -> Tensor:
    """Returns how far a completion reaches into the last `share` of the limit: 0 before it, 1 at the limit.

    Source: DAPO, arXiv:2503.14476, equation 13: (length - (max - buffer)) / buffer, buffer = share * max.

    Args:
        lengths_R: int [R], sampled tokens of each rollout.
        max_tokens: limit of a completion.
        share: the last part of the limit, in (0, 1).

    Returns:
        float64 [R] in [0, 1].
    """
    buffer = share * max_tokens
    return ((lengths_R.double() - (max_tokens - buffer)) / buffer).clamp(0.0, 1.0)


def rescaled(scores_R: Tensor) -> Tensor:
    """Returns scores with variance 1 and their own mean (TRL's whiten_rewards); nan stays nan."""
    is_scored_R = ~scores_R.isnan()
    return whiten(scores_R, is_scored_R, shift_mean=False).masked_fill(~is_scored_R, torch.nan)
