"""Online reinforcement learning: prompts -> rollouts -> rewards -> advantages -> update -> weight sync."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ray_rl.algorithms.advantages import advantage_fn
from ray_rl.config import RunConfig
from ray_rl.data.pack import pack
from ray_rl.loops.roles import Roles, Scorer
from ray_rl.metrics.run import Run
from ray_rl.rollout.together import together
from ray_rl.types import TrainBatch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Estimate = Callable[[TrainBatch], NDArray[np.float32]]


async def train(config: RunConfig, roles: Roles, run: Run, *, export_to: Path | None) -> None:
    """Trains for `run.steps` steps, then writes the policy to `export_to`.

    Args:
        config: what to do.
        roles: who does it; started, and stopped by the caller.
        run: counters, clock and records.
        export_to: a folder that does not exist, or None to write nothing.
    """
    estimate = advantage_fn(config.algorithm.advantage)
    with run.phase("start"):
        run.note("publishing the first weights")
        await roles.weights.publish(run.version)  # engines start from the trainer's weights
    while run.step < config.run.steps:
        await step(config, roles, run, estimate)
    if export_to is not None:
        with run.phase("export"):
            await roles.actor.export(export_to)


async def step(config: RunConfig, roles: Roles, run: Run, estimate: Estimate) -> None:
    """One batch of rollouts, trained on and published."""
    with run.phase("rollout"):
        groups, rollout_metrics = await roles.rollouts.take(
            config.algorithm.prompts_per_step, step=run.step, progress=run.note
        )
    batch = await with_baselines(pack(groups), roles, run, optimizer_steps=config.algorithm.optimizer_steps)
    advantages_RT = estimate(batch)
    with run.phase("train"):
        train_metrics = await roles.actor.update(replace(batch, advantages_RT=advantages_RT))
    with run.phase("sync"):
        sync_metrics = await roles.weights.publish(run.advance())
    # A rollout has one advantage: every loss token carries it, other positions 0.
    advantages_R = advantages_RT[range(batch.rows), batch.loss_mask_RT.argmax(1)].tolist()
    run.log([*rollout_metrics, *train_metrics, *sync_metrics], groups, advantages_R)


async def with_baselines(batch: TrainBatch, roles: Roles, run: Run, *, optimizer_steps: int) -> TrainBatch:
    """The batch with what the loss compares the policy to.

    The policy before the update is the policy of the first optimizer step, so its log-probabilities are computed apart
    only if a second step will need them.
    """
    scorers: dict[str, Scorer] = {}
    if optimizer_steps > 1:
        scorers["old"] = roles.actor
    if roles.reference is not None:
        scorers["reference"] = roles.reference
    if not scorers:
        return batch
    with run.phase("reference"):
        arrays = await together(scorer.logprobs(batch) for scorer in scorers.values())
    logprobs_RT = dict(zip(scorers, arrays, strict=True))
    return replace(batch, old_logprobs_RT=logprobs_RT.get("old"), reference_logprobs_RT=logprobs_RT.get("reference"))
