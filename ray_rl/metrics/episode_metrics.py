"""Computes metrics of episodes with an environment, turn by turn."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import get_args

from ray_rl.metrics.metric import Mean, Metric
from ray_rl.types import RolloutGroup, StopReason

REASONS: tuple[str, ...] = tuple(
    reason for part in get_args(StopReason) for reason in (get_args(part) or (part,)) if reason != "stop"
)
"""Why episodes end, besides the usual end."""


def episode_metrics(groups: Sequence[RolloutGroup]) -> list[Metric]:
    """Returns the metrics of episodes; none if no environment answered.

    `environment/turns_mean` is the mean number of turns, `environment/end_<reason>_fraction` the share of episodes
    that ended for a reason, `environment/reward_mean` the mean over episodes of the sum of the rewards of their turns,
    and `environment/<name>_mean` the mean of a number of the environment over the turns that have it.

    Args:
        groups: groups with at least one rollout.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    turns = [turn for rollout in rollouts for turn in rollout.turns]
    found: dict[str, list[float]] = defaultdict(list)
    for turn in turns:
        for name, value in turn.metrics.items():
            found[name].append(value)
    if not found and all(rollout.stop != "environment" for rollout in rollouts):
        return []
    sums = [
        math.fsum(turn.reward for turn in rollout.turns if turn.reward is not None)
        for rollout in rollouts
        if any(turn.reward is not None for turn in rollout.turns)
    ]
    return [
        Mean("environment/turns_mean", len(turns), len(rollouts)),
        Mean("environment/reward_mean", math.fsum(sums), len(sums)),
        *(
            Mean(f"environment/end_{reason}_fraction", sum(each.stop == reason for each in rollouts), len(rollouts))
            for reason in REASONS
        ),
        *(Mean(f"environment/{name}_mean", math.fsum(values), len(values)) for name, values in sorted(found.items())),
    ]
