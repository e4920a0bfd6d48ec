"""Online reinforcement learning.

Who waits for whom in a step, from top to bottom:

    engines, rewards  | rollouts of this step, and of the next ones as far as `rollout.max_staleness` allows
          |           |
    take  v           | the driver waits for the groups of this step, or for a request to stop
          |
          +-----------+-----------+
          v           v           v
        actor     reference     critic       old and reference log-probabilities, values: concurrent
          +-----------+-----------+
                      v
                   credit                    advantages
          +-----------+-----------+
          v                       v
        actor                  critic        update: concurrent
          +-----------+-----------+
                      v
    engines  <--  publish                    returns when every engine serves the new weights

The files of a checkpoint are written in the background of later steps.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from ray_rl.batching.pack import pack
from ray_rl.concurrency import together
from ray_rl.loops.credit import mean_advantages
from ray_rl.loops.guard import NONFINITE, require_finite, without_loss
from ray_rl.loops.session import Session
from ray_rl.loops.stopping import StopAsked
from ray_rl.metrics.metric import Metric
from ray_rl.metrics.rollout_metrics import rollout_metrics
from ray_rl.metrics.sinks import RolloutRecords
from ray_rl.types import TrainBatch


async def train(s: Session) -> None:
    """Trains up to step `run.steps`, then exports the policy.

    Raises:
        Preempted: it was asked to stop, and everything is saved.
    """
    with s.run.phase("start"):
        await s.checkpoints.restore()
        s.run.note("publishing the first weights")
        await s.roles.weights.publish(s.run.version)  # engines start from the trainer's weights
    s.stop.finish_steps(s.run.tell)
    async with s.in_background():
        while s.run.step < s.run.steps:
            try:
                await step(s)
            except StopAsked:
                raise await s.preempted() from None
            await s.checkpoints.save_if_due(s.run)
    await s.export()


async def step(s: Session) -> None:
    """Trains on one batch of rollouts and publishes the new weights.

    A stop request cancels it only while it is still waiting for rollouts.
    """
    with s.run.phase("rollout"):
        groups, sampled = await s.stop.unless_asked(s.roles.rollouts.take(step=s.run.step, progress=s.run.note))
    batch = pack(groups, mask_truncated=s.config.algorithm.mask_truncated)
    try:
        batch = await with_baselines(s, batch)
        require_finite(batch, groups, sampled)
        batch, credited = s.credit(batch)
    except NONFINITE as error:
        s.guard.skip(error, RolloutRecords(groups))
        batch, credited = without_loss(batch), []
    records = RolloutRecords(groups, mean_advantages(batch))
    stats = [*sampled, *rollout_metrics(groups, version=s.run.version), *credited]
    with s.run.phase("train"), s.guard.saving(records):
        trained = await update(s, batch)
    guarded = s.guard.counted(trained, records)
    with s.run.phase("sync"):
        published = await s.roles.weights.publish(s.run.advance())
    s.run.log([*stats, *trained, *guarded, *published], records)


async def with_baselines(s: Session, batch: TrainBatch) -> TrainBatch:
    """Adds old and reference log-probabilities and critic values to the batch. The models run concurrently."""
    calls: dict[str, Coroutine[Any, Any, Any]] = {}
    if s.config.algorithm.old_policy == "rollout":
        batch = replace(batch, old_logprobs_RT=batch.rollout_logprobs_RT)
    if s.config.algorithm.needs_old_logprobs:
        calls["old"] = s.roles.actor.logprobs(batch)
    if s.roles.reference is not None:
        calls["reference"] = s.roles.reference.logprobs(batch)
    if s.roles.critic is not None:
        calls["values"] = s.roles.critic.values(batch)
    if not calls:
        return batch
    with s.run.phase("reference"):
        found = dict(zip(calls, await together(calls.values()), strict=True))
    return replace(
        batch,
        old_logprobs_RT=found.get("old", batch.old_logprobs_RT),
        reference_logprobs_RT=found.get("reference"),
        old_values_RT=found.get("values"),
    )


async def update(s: Session, batch: TrainBatch) -> list[Metric]:
    """Trains critic and actor concurrently; in the critic's warm-up, the critic alone."""
    calls: list[Coroutine[Any, Any, list[Metric]]] = []
    is_warming_up = s.config.critic is not None and s.run.step < s.config.critic.warmup_steps
    if s.roles.critic is not None:
        calls.append(s.roles.critic.update(batch))
    if not is_warming_up:
        calls.append(s.roles.actor.update(batch))
    return [metric for found in await together(calls) for metric in found]
