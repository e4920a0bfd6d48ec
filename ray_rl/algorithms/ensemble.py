"""Combines the scores of several reward models into one. Axis M is models."""

from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray

Combination = Literal["mean", "min", "mean_minus_std"]


def combined(scores_MR: NDArray[np.float32], how: Combination, *, k: float = 0.0) -> NDArray[np.float32]:
    """Returns one score per rollout: the mean over the models, their minimum, or mean - k * std.

    Source: arXiv:2310.02743. min is its worst-case optimisation. Its uncertainty-weighted one subtracts a multiple of
    the variance; ours uses the standard deviation (ddof 0), which has the unit of the scores. Computed in float64. If
    all models agree (so also for a single model), every kind returns exactly their score. Scores are not standardised:
    the models should have one scale.

    Args:
        scores_MR: float32 [M, R], M >= 1. nan from any model gives nan.
        how: which of the three.
        k: >= 0, the factor of the standard deviation in mean_minus_std.

    Returns:
        float32 [R].

    Raises:
        ValueError: no models.
    """
    if scores_MR.ndim != 2 or len(scores_MR) == 0:
        raise ValueError(f"scores of shape {scores_MR.shape}: one row a reward model is needed, and at least one row")
    wide_MR = scores_MR.astype(np.float64)
    scores_R: NDArray[np.float64]
    match how:
        case "mean":
            scores_R = wide_MR.mean(0)
        case "min":
            scores_R = wide_MR.min(0)
        case "mean_minus_std":
            scores_R = wide_MR.mean(0) - k * wide_MR.std(0, ddof=0)
        case _:
            assert_never(how)
    return scores_R.astype(np.float32)
