"""Packs rollouts into arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from ray_rl.types import Rollout, RolloutGroup, TrainBatch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound="np.generic")


def pack(groups: Sequence[RolloutGroup], *, mask_truncated: bool = False) -> TrainBatch:
    """Returns the batch of a step: the turns of each rollout in order. The loss mask covers every sampled token.

    Args:
        groups: at least one, of equal sizes.
        mask_truncated: give no loss tokens to rollouts cut off by the token limit (DAPO's overlong filtering).

    Raises:
        ValueError: no groups, groups of different sizes, or token rewards that are not one a token.
    """
    import numpy as np

    group_sizes = {len(group.rollouts) for group in groups}
    if len(group_sizes) != 1:
        raise ValueError(f"a batch needs groups of one size, got sizes {sorted(group_sizes)}")
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    tokens = [rollout.token_ids for rollout in rollouts]
    tokens_RT = pad(tokens, np.int32)
    lengths_R = np.array(list(map(len, tokens)), np.int32)
    sampled_R = np.array([rollout.sampled_tokens for rollout in rollouts], np.int32)
    is_sampled_RT = np.arange(tokens_RT.shape[1]) < lengths_R[:, None]
    for index in np.flatnonzero(sampled_R < lengths_R):  # those with observations
        is_sampled_RT[index, : lengths_R[index]] = rollouts[index].is_sampled
    is_trained_R = np.array([not (mask_truncated and rollout.stop == "length") for rollout in rollouts])
    dense = [_dense_rewards(rollout) for rollout in rollouts]
    nothing = np.zeros(0, np.float32)
    return TrainBatch(
        prompt_ids=tuple(np.asarray(group.prompt.token_ids, np.int32) for group in groups),
        group_size=group_sizes.pop(),
        tokens_RT=tokens_RT,
        lengths_R=lengths_R,
        sampled_R=sampled_R,
        loss_mask_RT=is_sampled_RT & is_trained_R[:, None],
        rollout_logprobs_RT=pad([rollout.logprobs for rollout in rollouts], np.float32),
        rewards_R=rewards_of(groups),
        token_rewards_RT=pad([nothing if each is None else each for each in dense], np.float32, tokens_RT.shape[1])
        if any(each is not None for each in dense)
        else None,
    )


def rewards_of(groups: Sequence[RolloutGroup]) -> NDArray[np.float32]:
    """Returns the rewards, float32 [R]: nan for a rollout without any reward, inf if it exceeds float32.

    A rollout whose turns or tokens have rewards, and which has none as a whole, has 0.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        return np.array([_reward(rollout) for group in groups for rollout in group.rollouts], np.float32)


def _reward(rollout: Rollout) -> float:
    if rollout.reward is not None:
        return rollout.reward
    return math.nan if _dense_rewards(rollout) is None else 0.0


def _dense_rewards(rollout: Rollout) -> NDArray[np.float32] | None:
    """Returns float32 [T]: rewards of tokens, and the reward of each turn on its last token; None without any."""
    import numpy as np

    if rollout.token_rewards is None and all(turn.reward is None for turn in rollout.turns):
        return None
    rewards_T = np.zeros(len(rollout.token_ids), np.float32)
    if rollout.token_rewards is not None:
        if rollout.token_rewards.shape != rewards_T.shape:
            raise ValueError(
                f"token rewards of shape {rollout.token_rewards.shape} for a rollout of {len(rewards_T)} tokens; "
                "give one a token, observations included"
            )
        rewards_T += rollout.token_rewards
    ends = np.cumsum([len(turn.observation) + len(turn.completion.token_ids) for turn in rollout.turns])
    for end, turn in zip(ends, rollout.turns, strict=True):
        rewards_T[end - 1] += turn.reward or 0.0
    return rewards_T


def pad(rows: Sequence[NDArray[Scalar]], dtype: type[Scalar], width: int | None = None) -> NDArray[Scalar]:
    """Returns [R, T] with zeros past the end of each row. Without a width, T is the longest row."""
    import numpy as np

    size = max(len(row) for row in rows) if width is None else width
    padded_RT: NDArray[Scalar] = np.zeros((len(rows), size), dtype)
    for i, row in enumerate(rows):
        padded_RT[i, : len(row)] = row
    return padded_RT
