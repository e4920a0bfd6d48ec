"""Packs rollouts into arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from ray_rl.types import RolloutGroup, TrainBatch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound="np.generic")


def pack(groups: Sequence[RolloutGroup], *, mask_truncated: bool = False) -> TrainBatch:
    """Returns the batch of a step. The loss mask covers every sampled token.

    Args:
        groups: at least one, of equal sizes.
        mask_truncated: give no loss tokens to completions cut off by the token limit (DAPO's overlong filtering).

    Raises:
        ValueError: no groups, or groups of different sizes.
    """
    import numpy as np

    group_sizes = {len(group.rollouts) for group in groups}
    if len(group_sizes) != 1:
        raise ValueError(f"a batch needs groups of one size, got sizes {sorted(group_sizes)}")
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    completions = [rollout.completion for rollout in rollouts]
    lengths_R = np.array([len(completion.token_ids) for completion in completions], np.int32)
    is_trained_R = np.array([not (mask_truncated and c.finish_reason == "length") for c in completions])
    return TrainBatch(
        prompt_ids=tuple(np.asarray(group.prompt.token_ids, np.int32) for group in groups),
        group_size=group_sizes.pop(),
        tokens_RT=_pad([completion.token_ids for completion in completions], np.int32),
        lengths_R=lengths_R,
        loss_mask_RT=(np.arange(lengths_R.max())[None] < lengths_R[:, None]) & is_trained_R[:, None],
        rollout_logprobs_RT=_pad([completion.logprobs for completion in completions], np.float32),
        rewards_R=rewards_of(groups),
    )


def rewards_of(groups: Sequence[RolloutGroup]) -> NDArray[np.float32]:
    """Returns the rewards, float32 [R]: nan if no reward function scored the rollout, inf if it exceeds float32."""
    import numpy as np

    rewards = [rollout.reward for group in groups for rollout in group.rollouts]
    with np.errstate(over="ignore"):
        return np.array([math.nan if reward is None else reward for reward in rewards], np.float32)


def _pad(rows: Sequence[NDArray[Scalar]], dtype: type[Scalar]) -> NDArray[Scalar]:
    """Returns [R, T] with zeros past the end of each row."""
    import numpy as np

    padded_RT: NDArray[Scalar] = np.zeros((len(rows), max(len(row) for row in rows)), dtype)
    for i, row in enumerate(rows):
        padded_RT[i, : len(row)] = row
    return padded_RT
