"""Continues training when a worker that trains or scores is lost; lost engines are restarted without the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ray_rl.checkpoint.store import Checkpoint
from ray_rl.errors import WorkerLost
from ray_rl.loops.checkpoints import read_progress
from ray_rl.loops.online import train
from ray_rl.loops.session import Session
from ray_rl.metrics.run import Run


async def train_on(
    run: Run,
    session: Callable[[Checkpoint | None], Session],
    *,
    since: Checkpoint | None,
    restart: Callable[[], Coroutine[Any, Any, Sequence[str]]],
    newest: Callable[[], Checkpoint | None],
    max_restarts: int,
) -> None:
    """Runs training to completion. If a training worker is lost, restarts it from the newest checkpoint.

    The engines keep running.

    Args:
        run: counters, clock and records.
        session: makes everything from a checkpoint, or from the start of the run, on the workers that live then.
        since: the checkpoint that the run continues from; None at its start.
        restart: starts again what was lost and returns the names of the roles.
        newest: finds the newest checkpoint; called in a thread.
        max_restarts: the number of losses after which the run ends with the next one.

    Raises:
        RayRLError: everything else that went wrong, or one loss too many.
    """
    restarts, step = 0, 0
    while True:
        try:
            if restarts:
                with run.phase("restart"):
                    started = await restart()
                run.tell(f"{', '.join(started)} started again; training goes on behind step {step}")
            return await train(session(since))
        except WorkerLost as lost:  # in a restart, too: a node that is gone may not be known to be gone yet
            if restarts == max_restarts:
                raise
            restarts += 1
            since = await asyncio.to_thread(newest)
            step, version = _where(since)
            where = f"Going back to step {step} of {run.steps}"
            run.tell(f"{str(lost).splitlines()[0]} {where}; restart {restarts} of {max_restarts}")
        run.rewind(step=step, version=version)


def _where(since: Checkpoint | None) -> tuple[int, int]:
    """Step and version of a checkpoint."""
    if since is None:
        return 0, 0
    progress = read_progress(since)
    return progress.step, progress.version
