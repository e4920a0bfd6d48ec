"""The parts that the drivers work with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_rl.config import RunConfig
from ray_rl.errors import Preempted
from ray_rl.loops.calibration import Calibration
from ray_rl.loops.checkpoints import Checkpoints
from ray_rl.loops.credit import Crediting
from ray_rl.loops.evaluation import Evaluation
from ray_rl.loops.examples import ExampleStream
from ray_rl.loops.exporting import Export
from ray_rl.loops.guard import Guard
from ray_rl.loops.roles import Learner, Roles
from ray_rl.loops.stopping import Stop
from ray_rl.metrics.endings import resume_command
from ray_rl.metrics.run import Run

if TYPE_CHECKING:
    from ray_rl.loops.reference import Baseline, Pack, Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A run from its start or a checkpoint to its end. `ray_rl.app` makes one, and a new one after a restart.

    The roles of a run start before the session, and stop after it.
    """

    config: RunConfig
    run: Run
    """Counters, clock and records."""
    guard: Guard
    checkpoints: Checkpoints
    stop: Stop
    """Requests to stop, handled between steps and while the run waits for rollouts."""
    final: Export | None
    """Writes the trained model; None for a run that exports none."""

    @asynccontextmanager
    async def in_background(self) -> AsyncIterator[None]:
        """Writes checkpoints in the background within the block."""
        async with self.checkpoints.in_background():
            yield
            self.run.note("completing the last checkpoint")

    async def preempted(self) -> Preempted:
        """Saves after a stop request, and returns the error that ends the run."""
        await self.checkpoints.save_now(self.run)
        return Preempted(
            f"stopped by {self.stop.name} after step {self.run.step} of {self.run.steps}, saved; "
            f"resume with: {resume_command(self.run.root)}"
        )

    async def export(self) -> None:
        """Writes the trained model if the run exports it."""
        if self.final is not None:
            self.run.note(f"writing the model to {self.final.to}")
            with self.run.phase("export"):
                await self.final.write(self.run, self.checkpoints)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineSession(Session):
    """A run that trains on rollouts of the policy."""

    roles: Roles
    credit: Crediting

    async def export(self) -> None:
        """Writes the trained model, as `Session`."""
        await self.roles.phases.train()
        await Session.export(self)  # not super(): the dataclass replaces the class that it would name


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineSession(Session):
    """A run that learns from examples."""

    examples: ExampleStream
    pack: Pack
    actor: Learner
    reference: Reference | None
    """None for a loss without a reference."""
    baseline: Baseline | None
    """KTO's baseline; None for other losses."""
    evaluation: Evaluation
    calibration: Calibration | None
    """Further measurements of a reward model; None for other models."""

    def end_if_stalled(self) -> None:
        """Makes the current step the last one if the evaluations do not improve any more."""
        if self.evaluation.has_stalled and self.run.step < self.run.steps:
            self.run.tell(f"{self.evaluation.verdict}; the run ends after step {self.run.step} of {self.run.steps}")
            self.run.steps = self.run.step
