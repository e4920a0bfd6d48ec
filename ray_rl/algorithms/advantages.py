"""How much better a completion was than expected: rewards to advantages.

A new estimator is one function here, one class in `config/advantages.py` and one `case` in
`training/configured.py`.
"""

from typing import Literal, assert_never

import torch
from torch import Tensor


def center_by_group(
    rewards_PG: Tensor,
    *,
    divide_by_std: bool,
    eps: float = 1e-6,
    ddof: Literal[0, 1] = 0,
    singleton: Literal["zero", "score"] = "zero",
    std_of: Literal["group", "batch"] = "group",
) -> Tensor:
    """Advantage of each completion over its own group: A = r - mean_G(r), optionally / (std_G(r) + eps).

    Source: DeepSeekMath, arXiv:2402.03300, section 4.1; without the division, Dr. GRPO, arXiv:2503.20783.
    Computed in float64, and equal rewards give exactly 0: float32 means do not, and eps would magnify the difference.

    Args:
        rewards_PG: float [P, G], any scale. nan is a completion that was not scored: it is left out of mean and
            std and gets 0.
        divide_by_std: False keeps the scale of the rewards.
        eps: added to the standard deviation, > 0. verl: 1e-6; OpenRLHF: 1e-9; TRL: 1e-4.
        ddof: 0 is the population's standard deviation, 1 the sample's (verl, OpenRLHF, TRL).
        singleton: what the only scored completion of a group gets: 0, or its reward as it is (verl).
        std_of: batch divides by the standard deviation of all scored rewards around their common mean (TRL).

    Returns:
        [P, G] in the dtype of the rewards; each row sums to 0 up to rounding, singletons aside.

    Raises:
        ValueError: G < 2, a completion without peers, unless singletons keep their score; or an infinite reward.
    """
    scores_PG, is_scored_PG = _scores(rewards_PG, singleton)
    centered_PG, count_P1 = _centered(scores_PG, is_scored_PG)
    if divide_by_std:
        match std_of:
            case "group":
                variance_P1 = centered_PG.square().sum(1, keepdim=True) / (count_P1 - ddof).clamp(min=1)
            case "batch":
                scored = scores_PG[is_scored_PG]
                variance_P1 = (scored - scored.mean()).square().sum() / max(len(scored) - ddof, 1)
            case _:
                assert_never(std_of)
        centered_PG = centered_PG / (variance_P1.sqrt() + eps)
    return _with_singletons(centered_PG, scores_PG, count_P1, singleton).to(rewards_PG.dtype)


def leave_one_out(rewards_PG: Tensor, *, singleton: Literal["zero", "score"] = "zero") -> Tensor:
    """Reward minus the mean of the others: A_i = r_i - sum_{j != i} r_j / (G - 1) = (r_i - mean_G(r)) * G / (G - 1).

    Source: RLOO, arXiv:2402.14740, section 3. G is the number of scored completions.

    Args:
        rewards_PG: as for `center_by_group`.
        singleton: as for `center_by_group`.

    Returns:
        [P, G] in the dtype of the rewards; 0 where nan, and exactly 0 for equal rewards.

    Raises:
        ValueError: as `center_by_group`.
    """
    scores_PG, is_scored_PG = _scores(rewards_PG, singleton)
    centered_PG, count_P1 = _centered(scores_PG, is_scored_PG)
    advantages_PG = centered_PG * count_P1 / (count_P1 - 1).clamp(min=1)
    return _with_singletons(advantages_PG, scores_PG, count_P1, singleton).to(rewards_PG.dtype)


def gpg_advantages(rewards_PG: Tensor, *, divisor: float = 1.0) -> Tensor:
    """Centred rewards, scaled up for the groups that teach nothing: alpha * (r - mean_G(r)) / divisor.

    Source: GPG, arXiv:2504.02546. alpha = completions / completions whose group has unequal rewards. verl counts
    completions with a reward other than 0 instead, which differs when wrong answers are in a mixed group.

    Args:
        rewards_PG: as for `center_by_group`.
        divisor: > 0.

    Returns:
        [P, G] in the dtype of the rewards.

    Raises:
        ValueError: as `center_by_group`.
    """
    scores_PG, is_scored_PG = _scores(rewards_PG, "zero")
    centered_PG, _ = _centered(scores_PG, is_scored_PG)
    informative = (is_scored_PG & ~_is_flat(scores_PG, is_scored_PG)).sum()
    alpha = is_scored_PG.sum() / informative.clamp(min=1)
    return (alpha * centered_PG / divisor).to(rewards_PG.dtype)


def _scores(rewards_PG: Tensor, singleton: Literal["zero", "score"]) -> tuple[Tensor, Tensor]:
    """float64 rewards with 0 for nan, and where they are not nan; refuses what cannot be compared."""
    if rewards_PG.shape[1] < 2 and singleton == "zero":
        raise ValueError(
            f"rewards of shape {tuple(rewards_PG.shape)} have no peers to compare with; set algorithm.group_size >= 2"
        )
    if rewards_PG.isinf().any():
        prompt, completion = rewards_PG.isinf().nonzero()[0].tolist()
        raise ValueError(
            f"the reward of completion {completion} of prompt {prompt} is {rewards_PG[prompt, completion].item()}; "
            "rewards must be finite, or None for no opinion"
        )
    return rewards_PG.double().nan_to_num(nan=0.0), ~rewards_PG.isnan()


def _centered(scores_PG: Tensor, is_scored_PG: Tensor) -> tuple[Tensor, Tensor]:
    """Scores minus the mean of the scored, 0 elsewhere and in flat groups; and the scored [P, 1], at least 1."""
    count_P1 = is_scored_PG.sum(1, keepdim=True).clamp(min=1)
    centered_PG = scores_PG - scores_PG.sum(1, keepdim=True) / count_P1
    return centered_PG.masked_fill(~is_scored_PG | _is_flat(scores_PG, is_scored_PG), 0.0), count_P1


def _with_singletons(
    advantages_PG: Tensor, scores_PG: Tensor, count_P1: Tensor, singleton: Literal["zero", "score"]
) -> Tensor:
    """Groups with one score get it as their advantage if so wanted; theirs is 0 up to here, as is every nan's score."""
    return advantages_PG if singleton == "zero" else torch.where(count_P1 == 1, scores_PG, advantages_PG)


def _is_flat(scores_PG: Tensor, is_scored_PG: Tensor) -> Tensor:
    """Groups [P, 1] whose scored completions all have the same reward, or that have fewer than two."""
    highest_P1 = scores_PG.masked_fill(~is_scored_PG, -torch.inf).amax(1, keepdim=True)
    lowest_P1 = scores_PG.masked_fill(~is_scored_PG, torch.inf).amin(1, keepdim=True)
    return highest_P1 <= lowest_P1
