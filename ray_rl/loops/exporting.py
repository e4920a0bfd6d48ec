"""Ends a run: writes its policy as a model folder, or saves a checkpoint if the export fails."""

from __future__ import annotations

import shlex
from pathlib import Path

from ray_rl.errors import RayRLError, WorkerLost
from ray_rl.loops.checkpoints import Checkpoints
from ray_rl.loops.roles import Actor
from ray_rl.metrics.run import Run


async def export(actor: Actor, run: Run, *, checkpoints: Checkpoints, to: Path) -> None:
    """Writes the policy after the last step. If that fails, saves a checkpoint of this step.

    Raises:
        WorkerLost: a worker died; the caller restarts it and repeats the export.
        RayRLError: the export failed; the message has the commands that repeat it.
    """
    try:
        await actor.export(to, step=run.step)
    except WorkerLost:
        raise
    except RayRLError as error:
        try:
            await checkpoints.save_now(run)
        except RayRLError as unsaved:
            raise type(error)(f"{error}\nNor could a checkpoint of step {run.step} be saved: {unsaved}") from error
        folder = shlex.quote(str(to.parent))
        raise type(error)(
            f"{error}\nThe model could not be exported, but nothing is lost: step {run.step} is saved. After removing "
            f"the cause, `ray-rl export {folder}` exports the model from the checkpoint, without a GPU; `ray-rl resume "
            f"{folder}` completes the run"
        ) from error
