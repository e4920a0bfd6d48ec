"""Ends a run: writes its model as a folder, or saves a checkpoint if the export fails."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ray_rl.config.roles import ACTOR
from ray_rl.errors import RayRLError, WorkerLost
from ray_rl.loops.checkpoints import Checkpoints
from ray_rl.loops.roles import Exported
from ray_rl.metrics.run import Run
from ray_rl.program import program


@dataclass(frozen=True, slots=True)
class Export:
    """The folder for the trained model."""

    actor: Exported
    to: Path
    best: Callable[[], int | None] = lambda: None
    """Returns the step whose checkpoint has the weights to write; None for the weights after the last step."""

    async def write(self, run: Run, checkpoints: Checkpoints) -> None:
        """Writes the model after the last step, or that of the best one. If that fails, saves a checkpoint of the step.

        Raises:
            WorkerLost: a worker died; the caller restarts it and repeats the export.
            RayRLError: the export failed; the message has the commands that repeat it.
        """
        step = self.best()
        try:
            if step is not None and step != run.step:
                run.note(f"the best step is {step}: reading its weights")
                await self.actor.load((await checkpoints.of_step(step)).folder / ACTOR)
            await self.actor.export(self.to, step=run.step if step is None else step)
        except WorkerLost:
            raise
        except RayRLError as error:
            raise await self._explained(error, run, checkpoints) from error

    async def _explained(self, error: RayRLError, run: Run, checkpoints: Checkpoints) -> RayRLError:
        try:
            await checkpoints.save_now(run)
        except RayRLError as unsaved:
            return type(error)(f"{error}\nNor could a checkpoint of step {run.step} be saved: {unsaved}")
        folder = shlex.quote(str(self.to.parent))
        return type(error)(
            f"{error}\nThe model could not be exported, but nothing is lost: step {run.step} is saved. After removing "
            f"the cause, `{program()} export {folder}` exports the model from the checkpoint, without a GPU; "
            f"`{program()} resume {folder}` completes the run"
        )
