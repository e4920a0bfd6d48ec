"""Calls the models of a step concurrently: for the scores of its batch, and for the update."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

from ray_rl.concurrency import together
from ray_rl.loops.session import OnlineSession
from ray_rl.metrics.metric import Metric
from ray_rl.types import RolloutGroup, TrainBatch


async def with_baselines(s: OnlineSession, batch: TrainBatch, groups: Sequence[RolloutGroup]) -> TrainBatch:
    """Adds old and reference log-probabilities and critic values to the batch. The models run concurrently.

    `groups` made the batch.
    """
    if s.config.online.old_policy == "rollout":
        batch = replace(batch, old_logprobs_RT=batch.rollout_logprobs_RT)
    if not s.roles.scores:
        return batch
    with s.run.phase("reference"):
        found = await together([scores.of(batch, groups) for scores in s.roles.scores.values()])
    filled: dict[str, Any] = dict(zip(s.roles.scores, found, strict=True))
    return replace(batch, **filled)


async def update(s: OnlineSession, batch: TrainBatch) -> list[Metric]:
    """Trains critic and actor concurrently; in the critic's warm-up, the critic alone."""
    calls: list[Coroutine[Any, Any, list[Metric]]] = []
    is_warming_up = s.config.critic is not None and s.run.step < s.config.critic.warmup_steps
    if s.roles.critic is not None:
        calls.append(s.roles.critic.update(batch))
    if not is_warming_up:
        calls.append(s.roles.actor.update(batch))
    return [metric for found in await together(calls) for metric in found]
