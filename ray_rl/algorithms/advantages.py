"""How much better a completion was than expected: rewards to advantages.

A new estimator is one function here, one class in `config/algorithm.py` and one `case` in `advantage_fn`.
"""

from collections.abc import Callable
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_rl.config.algorithm import GroupAdvantage
from ray_rl.types import TrainBatch


def advantage_fn(config: GroupAdvantage) -> Callable[[TrainBatch], NDArray[np.float32]]:
    """The estimator that the configuration names.

    Returns:
        A function of a batch; its result is float32 [R, T], 0 outside the loss mask.
    """
    match config:
        case GroupAdvantage():

            def estimate(batch: TrainBatch) -> NDArray[np.float32]:
                rewards_PG = torch.tensor(batch.rewards_R).view(-1, batch.group_size)
                advantages_PG = center_by_group(rewards_PG, divide_by_std=config.divide_by_std, eps=config.eps)
                return broadcast_over_mask(advantages_PG.flatten().numpy(), batch.loss_mask_RT)

            return estimate
        case _:
            assert_never(config)


def broadcast_over_mask(advantages_R: NDArray[np.float32], loss_mask_RT: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Every loss token gets its rollout's advantage, every other position 0.

    Args:
        advantages_R: float32 [R].
        loss_mask_RT: bool [R, T].

    Returns:
        float32 [R, T].
    """
    return np.where(loss_mask_RT, advantages_R[:, None], np.float32(0))


def center_by_group(rewards_PG: Tensor, *, divide_by_std: bool, eps: float = 1e-6) -> Tensor:
    """Advantage of each completion over its own group: A = r - mean_G(r), optionally / (std_G(r) + eps).

    Source: DeepSeekMath, arXiv:2402.03300, section 4.1; without the division, Dr. GRPO, arXiv:2503.20783.
    std is the population one (ddof 0). Computed in float64, and equal rewards give exactly 0: float32 means do not,
    and eps would magnify the difference.

    Args:
        rewards_PG: float [P, G], any scale. nan is a completion that was not scored: it is left out of mean and
            std and gets 0. A group with fewer than two scored completions gets 0 throughout.
        divide_by_std: False keeps the scale of the rewards.
        eps: added to the standard deviation, > 0.

    Returns:
        [P, G] in the dtype of the rewards; each row sums to 0 up to rounding.

    Raises:
        ValueError: G < 2, a completion without peers; or an infinite reward.
    """
    scores_PG, is_scored_PG = _scores(rewards_PG)
    count_P1 = is_scored_PG.sum(1, keepdim=True).clamp(min=1)
    mean_P1 = scores_PG.sum(1, keepdim=True) / count_P1
    centered_PG = (scores_PG - mean_P1).masked_fill(~is_scored_PG | _is_flat(scores_PG, is_scored_PG), 0.0)
    if divide_by_std:
        centered_PG = centered_PG / ((centered_PG.square().sum(1, keepdim=True) / count_P1).sqrt() + eps)
    return centered_PG.to(rewards_PG.dtype)


def _scores(rewards_PG: Tensor) -> tuple[Tensor, Tensor]:
    """float64 rewards with 0 for nan, and where they are not nan; refuses what cannot be compared."""
    if rewards_PG.shape[1] < 2:
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


def _is_flat(scores_PG: Tensor, is_scored_PG: Tensor) -> Tensor:
    """Groups [P, 1] whose scored completions all have the same reward, or that have fewer than two."""
    highest_P1 = scores_PG.masked_fill(~is_scored_PG, -torch.inf).amax(1, keepdim=True)
    lowest_P1 = scores_PG.masked_fill(~is_scored_PG, torch.inf).amin(1, keepdim=True)
    return highest_P1 <= lowest_P1
