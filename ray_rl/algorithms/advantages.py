"""Estimators that turn scores into advantages: how much better a completion was than expected.

Each takes `scores_PG`, finite and 0 where a completion was not scored, and `is_scored_PG`. What it returns for a
completion that was not scored does not matter: `credit.completion_advantages`, which calls it, puts 0 there.

A new estimator is one function here, one class in `config/advantages.py` and one `case` in
`training/configured.py`.
"""

from typing import Literal, assert_never

import torch
from torch import Tensor


def center_by_group(
    scores_PG: Tensor,
    is_scored_PG: Tensor,
    *,
    divide_by_std: bool,
    eps: float = 1e-6,
    ddof: Literal[0, 1] = 0,
    singleton: Literal["zero", "score"] = "zero",
    std_of: Literal["group", "batch"] = "group",
) -> Tensor:
    """Returns the advantage of each completion over its own group: A = r - mean_G(r), / (std_G(r) + eps).

    Source: DeepSeekMath, arXiv:2402.03300, section 4.1; without the division, Dr. GRPO, arXiv:2503.20783.
    Computed in float64. Equal rewards give exactly 0: float32 means do not, and eps would magnify the difference.

    Args:
        scores_PG: float [P, G], finite, any scale.
        is_scored_PG: bool [P, G]. Other completions do not count in mean and std.
        divide_by_std: False omits the division and keeps the scale of the rewards.
        eps: added to the standard deviation, > 0. verl: 1e-6; OpenRLHF: 1e-9; TRL: 1e-4.
        ddof: 0 is the population's standard deviation, 1 the sample's (verl, OpenRLHF, TRL).
        singleton: what the only scored completion of a group gets: 0, or its reward as it is (verl).
        std_of: batch divides by the standard deviation of all scores around their common mean (TRL).

    Returns:
        [P, G] in the dtype of the scores; each row sums to 0 up to rounding, singletons aside.

    Raises:
        ValueError: G < 2, a completion without peers, unless singletons keep their score.
    """
    centered_PG, count_P1 = _centered(scores_PG, is_scored_PG, singleton)
    if divide_by_std:
        match std_of:
            case "group":
                variance_P1 = centered_PG.square().sum(1, keepdim=True) / (count_P1 - ddof).clamp(min=1)
            case "batch":
                scored = scores_PG[is_scored_PG].double()
                variance_P1 = (scored - scored.mean()).square().sum() / max(len(scored) - ddof, 1)
            case _:
                assert_never(std_of)
        centered_PG = centered_PG / (variance_P1.sqrt() + eps)
    return _with_singletons(centered_PG, scores_PG, count_P1, singleton)


def leave_one_out(scores_PG: Tensor, is_scored_PG: Tensor, *, singleton: Literal["zero", "score"] = "zero") -> Tensor:
    """Returns the reward minus the mean of the others: A_i = r_i - sum_{j != i} r_j / (G - 1).

    Source: RLOO, arXiv:2402.14740, section 3. G is the number of scored completions. Computed as
    (r_i - mean_G(r)) * G / (G - 1), which is equal.

    Args:
        scores_PG: see `center_by_group`.
        is_scored_PG: see `center_by_group`.
        singleton: see `center_by_group`.

    Returns:
        [P, G] in the dtype of the scores; exactly 0 for equal scores.

    Raises:
        ValueError: as `center_by_group`.
    """
    centered_PG, count_P1 = _centered(scores_PG, is_scored_PG, singleton)
    advantages_PG = centered_PG * count_P1 / (count_P1 - 1).clamp(min=1)
    return _with_singletons(advantages_PG, scores_PG, count_P1, singleton)


def gpg_advantages(scores_PG: Tensor, is_scored_PG: Tensor, *, divisor: float = 1.0) -> Tensor:
    """Returns centred rewards, scaled up to make up for flat groups: alpha * (r - mean_G(r)) / divisor.

    Source: GPG, arXiv:2504.02546. alpha = completions / completions whose group has unequal rewards. verl counts
    completions with a reward other than 0 instead, which differs when wrong answers are in a mixed group.

    Args:
        scores_PG: see `center_by_group`.
        is_scored_PG: see `center_by_group`.
        divisor: > 0.

    Returns:
        [P, G] in the dtype of the scores.

    Raises:
        ValueError: as `center_by_group`.
    """
    centered_PG, _ = _centered(scores_PG, is_scored_PG, "zero")
    informative = (is_scored_PG & ~_is_flat(scores_PG, is_scored_PG)).sum()
    alpha = is_scored_PG.sum() / informative.clamp(min=1)
    return (alpha * centered_PG / divisor).to(scores_PG.dtype)


def _centered(scores_PG: Tensor, is_scored_PG: Tensor, singleton: Literal["zero", "score"]) -> tuple[Tensor, Tensor]:
    """Returns scores minus the mean of the scored ones, float64, 0 elsewhere and in flat groups; their number or 1.

    Raises:
        ValueError: completions have no peers, and singletons do not keep their score.
    """
    if scores_PG.shape[1] < 2 and singleton == "zero":
        raise ValueError(
            f"rewards of shape {tuple(scores_PG.shape)} have no peers to compare with; set algorithm.group_size >= 2"
        )
    count_P1 = is_scored_PG.sum(1, keepdim=True).clamp(min=1)
    centered_PG = scores_PG.double() - scores_PG.double().sum(1, keepdim=True) / count_P1
    return centered_PG.masked_fill(~is_scored_PG | _is_flat(scores_PG, is_scored_PG), 0.0), count_P1


def _with_singletons(
    advantages_PG: Tensor, scores_PG: Tensor, count_P1: Tensor, singleton: Literal["zero", "score"]
) -> Tensor:
    """Gives a single scored completion of a group its score, if `singleton` says so; in the dtype of the scores."""
    kept_PG = advantages_PG if singleton == "zero" else torch.where(count_P1 == 1, scores_PG, advantages_PG)
    return kept_PG.to(scores_PG.dtype)


def _is_flat(scores_PG: Tensor, is_scored_PG: Tensor) -> Tensor:
    """Returns which groups [P, 1] have equal rewards, or fewer than two scored completions."""
    highest_P1 = scores_PG.masked_fill(~is_scored_PG, -torch.inf).amax(1, keepdim=True)
    lowest_P1 = scores_PG.masked_fill(~is_scored_PG, torch.inf).amin(1, keepdim=True)
    return highest_P1 <= lowest_P1
