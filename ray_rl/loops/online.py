"""Online reinforcement learning: prompts -> rollouts -> rewards -> advantages -> update -> weight sync."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray_rl.algorithms.credit import Credit, credit_fn
from ray_rl.algorithms.ensemble import combined
from ray_rl.algorithms.kl_control import KlControl
from ray_rl.batching.pack import pack, rewards_of
from ray_rl.concurrency import together
from ray_rl.config import RunConfig
from ray_rl.errors import Preempted
from ray_rl.loops.checkpoints import Checkpoints
from ray_rl.loops.exporting import export
from ray_rl.loops.guard import NONFINITE, Guard, require_finite, without_loss
from ray_rl.loops.observations import mean_advantages, observe
from ray_rl.loops.roles import Roles
from ray_rl.loops.stopping import Stop, StopAsked
from ray_rl.metrics.endings import resume_command
from ray_rl.metrics.metric import Metric
from ray_rl.metrics.run import Run
from ray_rl.rewards.model.part import conversations, disagreement, with_model_scores
from ray_rl.types import RolloutGroup, TrainBatch


async def train(
    config: RunConfig, roles: Roles, run: Run, *, checkpoints: Checkpoints, stop: Stop, export_to: Path | None
) -> None:
    """Trains up to step `run.steps`, then writes the policy to `export_to`.

    Args:
        config: what to do.
        roles: who does it; started, and stopped by the caller.
        run: counters, clock and records.
        checkpoints: what to start from, and where to save.
        stop: asked for between steps and while rollouts are waited for.
        export_to: a folder, or None to write nothing.

    Raises:
        Preempted: it was asked to stop, and everything is saved.
    """
    credit = credit_fn(config.algorithm, max_tokens=config.rollout.max_tokens)
    kl, guard = KlControl(config.algorithm.kl), Guard(config, run)
    with run.phase("start"):
        await checkpoints.restore(kl)
        run.note("publishing the first weights")
        await roles.weights.publish(run.version)  # engines start from the trainer's weights
    stop.finish_steps(run.tell)
    async with checkpoints.under_way(), roles.rollouts.running():
        while run.step < config.run.steps:
            checkpoints.between_steps()
            try:
                await step(config, roles, run, guard, credit, kl, stop)
            except StopAsked:
                await checkpoints.save_given_up(run, kl)
                raise Preempted(
                    f"stopped by {stop.name} after step {run.step} of {config.run.steps}, saved; "
                    f"go on with: {resume_command(run.root)}"
                ) from None
            await checkpoints.save_if_due(run, kl)
        run.note("completing the last checkpoint")
    if export_to is not None:
        run.note(f"writing the model to {export_to}")
        with run.phase("export"):
            await export(roles, run, kl, checkpoints=checkpoints, to=export_to)


async def step(
    config: RunConfig, roles: Roles, run: Run, guard: Guard, credit: Credit, kl: KlControl, stop: Stop
) -> None:
    """One batch of rollouts, trained on and published; given up as long as it waits for rollouts."""
    with run.phase("rollout"):
        groups, metrics = await stop.unless_asked(roles.rollouts.take(step=run.step, progress=run.note))
    batch = pack(groups, mask_truncated=config.algorithm.mask_truncated)
    try:
        groups, batch, judged = await with_baselines(config, groups, batch, roles, run)
        require_finite(batch, groups, metrics)
        batch = credit(batch, kl.coefficient)
        observed = [*judged, *observe(config, batch, kl)]
    except NONFINITE as error:
        guard.skip(error, groups)
        batch, observed = without_loss(batch), []
    with run.phase("train"), guard.saving(groups):
        trained = await update(config, batch, roles, run)
    guarded = guard.counted(trained, groups)
    with run.phase("sync"):
        published = await roles.weights.publish(run.advance())
    run.log([*metrics, *observed, *trained, *guarded, *published], groups, mean_advantages(batch))


async def with_baselines(
    config: RunConfig, groups: Sequence[RolloutGroup], batch: TrainBatch, roles: Roles, run: Run
) -> tuple[Sequence[RolloutGroup], TrainBatch, list[Metric]]:
    """Groups and batch with what the frozen and the valuing models say of them; all of these work at the same time."""
    calls: dict[str, Coroutine[Any, Any, Any]] = {}
    if config.algorithm.old_policy == "rollout":
        batch = replace(batch, old_logprobs_RT=batch.rollout_logprobs_RT)
    if config.algorithm.needs_old_logprobs:
        calls["old"] = roles.actor.logprobs(batch)
    if roles.reference is not None:
        calls["reference"] = roles.reference.logprobs(batch)
    if roles.critic is not None:
        calls["values"] = roles.critic.values(batch)
    if roles.reward is not None:
        calls["scores"] = roles.reward.scores(conversations(groups))
    if not calls:
        return groups, batch, []
    with run.phase("reference"):
        found = dict(zip(calls, await together(calls.values()), strict=True))
    batch = replace(
        batch,
        old_logprobs_RT=found.get("old", batch.old_logprobs_RT),
        reference_logprobs_RT=found.get("reference"),
        old_values_RT=found.get("values"),
    )
    if config.reward is None or roles.reward is None:
        return groups, batch, []
    scores_MR, metrics = found["scores"]
    groups = with_model_scores(groups, combined(scores_MR, config.reward.combine), weight=config.reward.weight)
    return groups, replace(batch, rewards_R=rewards_of(groups)), [*metrics, *disagreement(scores_MR)]


async def update(config: RunConfig, batch: TrainBatch, roles: Roles, run: Run) -> list[Metric]:
    """The critic and the actor, at the same time; in the critic's warm-up it alone."""
    calls: list[Coroutine[Any, Any, list[Metric]]] = []
    is_warming_up = config.critic is not None and run.step < config.critic.warmup_steps
    if roles.critic is not None:
        calls.append(roles.critic.update(batch))
    if not is_warming_up:
        calls.append(roles.actor.update(batch))
    return [metric for found in await together(calls) for metric in found]
