"""Computes metrics from the samples of a step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ray_rl.metrics.metric import Last, Maximum, Mean, Metric, Total
from ray_rl.types import RolloutGroup


def rollout_metrics(groups: Sequence[RolloutGroup], *, version: int) -> list[Metric]:
    """Returns metrics of the rewards, lengths and staleness of the samples that were trained on.

    Means and deviations leave out rewards that are None; a metric without any value has no key.

    Args:
        groups: groups with at least one rollout.
        version: the policy version that trained on them.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = [rollout.sampled_tokens for rollout in rollouts]
    truncated = sum(rollout.stop == "length" for rollout in rollouts)
    informative = sum(is_informative(group) for group in groups)
    return [
        *_reward_metrics(groups),
        Total("rollout/tokens", sum(lengths)),
        Mean("rollout/length_mean", sum(lengths), len(lengths)),
        Mean("rollout/truncated_fraction", truncated, len(rollouts)),
        Maximum("rollout/staleness_max", staleness(groups, version=version)),
        Mean("rollout/groups_informative_fraction", informative, len(groups)),
    ]


def staleness(groups: Sequence[RolloutGroup], *, version: int) -> int:
    """Returns how many versions before `version` the oldest token was sampled."""
    sampled = [turn.completion.versions for group in groups for rollout in group.rollouts for turn in rollout.turns]
    return version - min((int(versions.min()) for versions in sampled if len(versions)), default=version)


def _reward_metrics(groups: Sequence[RolloutGroup]) -> list[Metric]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    totals = [rollout.total_reward for rollout in rollouts]
    scored = [float(total) for total in totals if total is not None]
    metrics: list[Metric] = [Mean("reward/mean", math.fsum(scored), len(scored))]
    if scored:
        metrics.append(Last("reward/std", statistics.pstdev(scored)))
    parts: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, value in rollout.reward_parts.items():
            if value is not None:
                parts.setdefault(name, []).append(float(value))
    metrics += [Mean(f"reward/{name}_mean", math.fsum(part), len(part)) for name, part in parts.items()]
    return [*metrics, Mean("reward/unscored_fraction", len(rollouts) - len(scored), len(rollouts))]


def is_informative(group: RolloutGroup) -> bool:
    """Returns whether the rewards differ: a group of equal rewards has zero advantages and no effect on training."""
    if any(rollout.token_rewards is not None for rollout in group.rollouts):
        return True
    rewards = {(rollout.reward, *(turn.reward for turn in rollout.turns)) for rollout in group.rollouts}
    return len({each for each in rewards if any(value is not None for value in each)}) > 1
