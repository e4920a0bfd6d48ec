"""The score of reward models as a part of the reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ray_rl.metrics.metric import Mean, Metric
from ray_rl.types import Message, Rollout, RolloutGroup

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PART = "model"
"""Name of the part in records and metrics."""


def conversations(groups: Sequence[RolloutGroup]) -> list[tuple[Message, ...]]:
    """What a reward model reads of each rollout: the prompt's conversation and the completion as the answer."""
    return [(*group.prompt.messages, *rollout.messages) for group in groups for rollout in group.rollouts]


def with_model_scores(
    groups: Sequence[RolloutGroup], scores_R: NDArray[np.float32], *, weight: float
) -> list[RolloutGroup]:
    """The groups with one more part in every reward.

    Args:
        groups: of a step.
        scores_R: [R], finite, ordered as the rollouts of the groups.
        weight: factor in the sum.
    """
    scores = iter(scores_R.tolist())
    return [replace(group, rollouts=[_judged(r, next(scores), weight) for r in group.rollouts]) for group in groups]


def disagreement(scores_MR: NDArray[np.float32]) -> list[Metric]:
    """reward/model_std, the mean over completions of the standard deviation over the models (ddof 0), of an ensemble.

    Where it grows, the policy has left what the models were trained on (arXiv:2310.02743).
    """
    if len(scores_MR) < 2:
        return []
    return [Mean("reward/model_std", float(scores_MR.std(0).sum()), scores_MR.shape[1])]


def _judged(rollout: Rollout, score: float, weight: float) -> Rollout:
    others = [] if rollout.reward is None else [rollout.reward]
    parts = {**rollout.reward_parts, PART: score}
    return replace(rollout, reward=math.fsum([*others, weight * score]), reward_parts=parts)
