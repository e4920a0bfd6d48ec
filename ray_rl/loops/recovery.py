"""Continues training after the loss of a worker that trains or scores. Lost engines are restarted elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from ray_rl.checkpoint.store import Checkpoint
from ray_rl.errors import WorkerLost
from ray_rl.loops.checkpoints import read_progress
from ray_rl.metrics.run import Run

AnySession = TypeVar("AnySession")


async def train_on(
    run: Run,
    train: Callable[[AnySession], Coroutine[Any, Any, None]],
    session: Callable[[Checkpoint | None], AnySession],
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
        train: the driver: `loops.online.train` or `loops.offline.train`.
        session: makes the session that continues from a checkpoint, or from the start of the run.
        since: the checkpoint that the run continues from; None at its start.
        restart: restarts the lost workers and returns the names of their roles.
        newest: finds the newest checkpoint; called in a thread.
        max_restarts: `cluster.max_restarts`; one more loss ends the run.

    Raises:
        RayRLError: any other error, or one loss too many.
    """
    restarts, step = 0, 0
    while True:
        try:
            if restarts:
                with run.phase("restart"):
                    started = await restart()
                run.tell(f"{', '.join(started)} restarted; training continues after step {step}")
            return await train(session(since))
        except WorkerLost as lost:  # also in a restart: Ray may not have noticed yet that a node is gone
            if restarts == max_restarts:
                raise
            restarts += 1
            since = await asyncio.to_thread(newest)
            step, version = _where(since)
            where = f"Going back to step {step} of {run.steps}"
            run.tell(f"{str(lost).splitlines()[0]} {where}; restart {restarts} of {max_restarts}")
        run.rewind(step=step, version=version)


def _where(since: Checkpoint | None) -> tuple[int, int]:
    """Returns step and version of a checkpoint."""
    if since is None:
        return 0, 0
    progress = read_progress(since)
    return progress.step, progress.version
