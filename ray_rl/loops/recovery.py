"""Training on when a worker that trains or scores is lost; lost engines are brought back without the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ray_rl.checkpoint.store import Checkpoint
from ray_rl.config import RunConfig
from ray_rl.errors import WorkerLost
from ray_rl.loops.checkpoints import Checkpoints, read_progress
from ray_rl.loops.model_digests import Models
from ray_rl.loops.online import train
from ray_rl.loops.resuming import newest_checkpoint, store_of
from ray_rl.loops.roles import Roles, Rollouts
from ray_rl.loops.stopping import Stop
from ray_rl.metrics.newest_checkpoint import write_newest
from ray_rl.metrics.run import Run
from ray_rl.metrics.run_folder import RunFolder
from ray_rl.weight_sync.audit import AuditedWeights

if TYPE_CHECKING:
    from ray_rl.cluster.start import Workers


async def train_on(
    config: RunConfig,
    folder: RunFolder,
    run: Run,
    workers: Workers,
    *,
    rollouts: Callable[[], Rollouts],
    canary: tuple[int, ...],
    models: Models,
    since: Checkpoint | None,
    stop: Stop,
) -> None:
    """Trains to the end; a lost worker costs the steps behind the newest checkpoint, and no restart of the engines.

    Its role, and with it all that is trained, starts anew from that checkpoint, at most `cluster.max_restarts` times.

    Args:
        config: the configuration of the run.
        folder: the folder of the run.
        run: counters, clock and records.
        workers: started.
        rollouts: makes the prompts and their judges anew, from the first prompt on.
        canary: a prompt that engines are audited with, in tokens.
        models: that the run loads; checkpoints say what they look like.
        since: where the run goes on; None at its start.
        stop: see `train`.

    Raises:
        RayRLError: what else went wrong, or a loss too many.
    """
    store, completed = store_of(config, folder), partial(write_newest, folder.newest_checkpoint_json)
    restarts, step = 0, 0
    while True:
        try:
            if restarts:
                with run.phase("restart"):
                    started = await workers.restart()
                run.tell(f"{', '.join(started)} started again; training goes on behind step {step}")
            roles = Roles(
                rollouts=rollouts(),
                actor=workers.actor,
                weights=AuditedWeights(
                    config, workers.weights, actor=workers.actor, engines=workers.weights.living, prompt=canary
                ),
                critic=workers.critic,
                reference=workers.reference,
                reward=workers.reward,
            )
            checkpoints = Checkpoints(config, store, roles, since=since, models=models, completed=completed)
            export_to = folder.export if config.checkpoint.export else None
            return await train(config, roles, run, checkpoints=checkpoints, stop=stop, export_to=export_to)
        except WorkerLost as lost:  # in a restart, too: a node that is gone may not be known to be gone yet
            if restarts == config.cluster.max_restarts:
                raise
            restarts += 1
            since = await asyncio.to_thread(newest_checkpoint, config, folder, run.tell)
            step, version = _where(since)
            where = f"Going back to step {step} of {config.run.steps}"
            run.tell(f"{str(lost).splitlines()[0]} {where}; restart {restarts} of {config.cluster.max_restarts}")
        run.rewind(step=step, version=version)


def _where(since: Checkpoint | None) -> tuple[int, int]:
    """Step and version of a checkpoint."""
    if since is None:
        return 0, 0
    progress = read_progress(since)
    return progress.step, progress.version
