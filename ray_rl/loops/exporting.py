"""The end of a run: its policy as a model folder, or a checkpoint if the export fails."""

from __future__ import annotations

import shlex
from pathlib import Path

from ray_rl.errors import RayRLError, WorkerLost
from ray_rl.loops.checkpoints import Checkpoints
from ray_rl.loops.roles import Actor
from ray_rl.metrics.run import Run


async def export(actor: Actor, run: Run, *, checkpoints: Checkpoints, to: Path) -> None:
    """Writes the policy after the last step. If that fails, a checkpoint of this step is on disk.

    Args:
        actor: holds the policy, and writes it.
        run: counters and clock.
        checkpoints: saves if there is no checkpoint of this step.
        to: `export/` of the run folder.

    Raises:
        WorkerLost: a worker died; it is restarted and the export repeated.
        RayRLError: why it failed, and the commands that repeat it.
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
            f"{error}\nThe model could not be exported, and nothing is lost: step {run.step} is saved. When the reason "
            f"is gone, `ray-rl export {folder}` makes the model out of the checkpoint, without a GPU; `ray-rl resume "
            f"{folder}` ends the run as it would have ended"
        ) from error
