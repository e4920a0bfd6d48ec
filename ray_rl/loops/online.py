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
                   credit                    advantages, which rank 0 of the actor computes
          +-----------+-----------+
          v                       v
        actor                  critic        update: concurrent
          +-----------+-----------+
                      v
    engines  <--  publish                    returns when every engine serves the new weights

Engines that share GPUs with models sleep from `take` to `publish`. With `rollout.score_as_finished`, models score
groups while engines sample the others, and little of that work is left when the batch is complete. A thread writes the
samples of a step during its update. The files of a checkpoint are written in the background of later steps.
"""

from __future__ import annotations

from ray_rl.batching.pack import pack
from ray_rl.loops.credit import mean_advantages
from ray_rl.loops.finite import require_finite, without_loss
from ray_rl.loops.guard import NONFINITE
from ray_rl.loops.session import OnlineSession
from ray_rl.loops.stopping import StopAsked
from ray_rl.loops.update import update, with_baselines
from ray_rl.metrics.sinks import RolloutRecords


async def train(s: OnlineSession) -> None:
    """Trains up to step `run.steps`, then exports the policy.

    Raises:
        Preempted: someone asked the run to stop, and everything is saved.
    """
    with s.run.phase("start"):
        await s.roles.phases.train()
        await s.checkpoints.restore()
        s.run.note("publishing the first weights")
        await s.roles.weights.publish(s.run.version)  # engines start from the trainer's weights
    s.stop.finish_steps(s.run.tell)
    async with s.in_background(), s.roles.rollouts.running():
        while s.run.step < s.run.steps:
            try:
                await step(s)
            except StopAsked:
                raise await s.preempted() from None
            await s.checkpoints.save_if_due(s.run)
    await s.export()


async def step(s: OnlineSession) -> None:
    """Trains on one batch of rollouts and publishes the new weights.

    A stop request cancels it only while it is still waiting for rollouts.
    """
    with s.run.phase("rollout"):
        groups, sampled = await s.stop.unless_asked(s.roles.rollouts.take(step=s.run.step, progress=s.run.note))
    await s.roles.phases.train()
    batch = pack(groups, mask_truncated=s.config.online.mask_truncated)
    try:
        batch = await with_baselines(s, batch, groups)
        require_finite(batch, groups, sampled)
        batch, credited = await s.credit(batch)
    except NONFINITE as error:
        s.guard.skip(error, RolloutRecords(groups))
        batch, credited = without_loss(batch), []
    records = RolloutRecords(groups, mean_advantages(batch))
    s.run.records.begin(s.run.step + 1, records)
    with s.run.phase("train"), s.guard.saving(records):
        trained = await update(s, batch)
    guarded = s.guard.counted(trained, records)
    with s.run.phase("sync"):
        published = await s.roles.weights.publish(s.run.advance())
    s.run.log([*sampled, *credited, *trained, *guarded, *published], records)
