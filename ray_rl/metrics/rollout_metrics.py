"""What the samples of a step say about themselves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ray_rl.types import RolloutGroup


def rollout_metrics(groups: Sequence[RolloutGroup], *, version: int) -> dict[str, float]:
    """Rewards, lengths and staleness of the samples that were trained on.

    Rewards without an opinion (None) are left out of means and deviations; what has no value at all has no key.

    Args:
        groups: at least one rollout.
        version: policy version that trained on them.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
    truncated = sum(rollout.completion.finish_reason == "length" for rollout in rollouts)
    informative = sum(is_informative(group) for group in groups)
    return {
        **_reward_metrics(groups),
        "rollout/tokens": sum(lengths),
        "rollout/length_mean": statistics.fmean(lengths),
        "rollout/truncated_fraction": truncated / len(rollouts),
        "rollout/staleness_max": staleness(groups, version=version),
        "rollout/groups_informative_fraction": informative / len(groups),
    }


def staleness(groups: Sequence[RolloutGroup], *, version: int) -> int:
    """How many versions before `version` the oldest token was sampled."""
    completions = [rollout.completion for group in groups for rollout in group.rollouts]
    return version - min((int(c.versions.min()) for c in completions if len(c.versions)), default=version)


def _reward_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scored = [float(rollout.reward) for rollout in rollouts if rollout.reward is not None]
    values: dict[str, float] = {}
    if scored:
        values = {"reward/mean": statistics.fmean(scored), "reward/std": statistics.pstdev(scored)}
    parts: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, value in rollout.reward_parts.items():
            if value is not None:
                parts.setdefault(name, []).append(float(value))
    values |= {f"reward/{name}_mean": statistics.fmean(part) for name, part in parts.items()}
    return {**values, "reward/unscored_fraction": 1 - len(scored) / len(rollouts)}


def is_informative(group: RolloutGroup) -> bool:
    """Whether its rewards differ: a group of equal rewards has no advantage and trains nothing."""
    return len({rollout.reward for rollout in group.rollouts if rollout.reward is not None}) > 1
