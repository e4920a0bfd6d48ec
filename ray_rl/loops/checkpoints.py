"""Everything that the loop needs to go on, to disk and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray_rl.algorithms.kl_control import KlControl
from ray_rl.checkpoint.store import Checkpoint, CheckpointStore, read_json, write_json
from ray_rl.concurrency import together
from ray_rl.config import RunConfig
from ray_rl.errors import CheckpointError, RayRLError
from ray_rl.loops.collected import read_collected, write_collected
from ray_rl.loops.model_digests import Models
from ray_rl.loops.roles import Roles, Saved
from ray_rl.metrics.run import Run
from ray_rl.rollout.collector import Collected

POLL_S = 0.5
"""Between two questions whether a checkpoint is written."""
LAST_WORDS_S = 60.0
"""For a checkpoint under way to be finished after the run has failed."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The counters of a run: `run.json` of a checkpoint."""

    step: int
    version: int
    kl_coefficient: float
    models: Models = field(default_factory=dict)
    """What the models that the run loads look like; empty in checkpoints of older versions."""


def read_progress(checkpoint: Checkpoint) -> Progress:
    """The counters in a checkpoint.

    Raises:
        CheckpointError: it is not one of a run.
    """
    path = checkpoint.folder / "run.json"
    try:
        return Progress(**read_json(path))
    except TypeError as error:
        raise CheckpointError(f"{path}: not the state of a run ({error}); resume from another checkpoint") from error


class Checkpoints:
    """Saves when due, beside training; one checkpoint is under way at a time."""

    def __init__(
        self,
        config: RunConfig,
        store: CheckpointStore,
        roles: Roles,
        *,
        since: Checkpoint | None,
        models: Models,
        completed: Callable[[int], None],
    ) -> None:
        """Writes and reads nothing yet.

        Args:
            config: the configuration of the run.
            store: the store of the run, owned by this process.
            roles: whose state is saved.
            since: where the run goes on; None at its start.
            models: that the run loads, to be compared when it is resumed.
            completed: Called in a thread with the step of each checkpoint that is complete.
        """
        self._config = config
        self._store = store
        self._completed = completed
        self._digests = models
        self._rollouts = roles.rollouts
        self._models: dict[str, Saved] = {"actor": roles.actor}
        if roles.critic is not None:
            self._models["critic"] = roles.critic
        self._since = since
        self._step = None if since is None else since.step
        """Of the last checkpoint on disk or under way."""
        self._boundary: Collected | None = None
        self._writing: asyncio.Task[None] | None = None

    async def restore(self, kl: KlControl) -> None:
        """Brings roles and KL control to where they were; does nothing at the start of a run.

        Raises:
            CheckpointError: what is there is of another model, or no state of a run.
        """
        if self._since is None:
            return
        folder = self._since.folder
        kl.coefficient = read_progress(self._since).kl_coefficient
        self._rollouts.restore(read_collected(folder / "rollouts"))
        await together(model.load(folder / name) for name, model in self._models.items())

    @asynccontextmanager
    async def under_way(self) -> AsyncIterator[None]:
        """The block in which checkpoints may be under way; the last one is on disk at its end, if that is possible."""
        try:
            yield
        except RayRLError:
            if self._writing is not None:
                await asyncio.wait({self._writing}, timeout=LAST_WORDS_S)
            raise
        else:
            await self.settle()
        finally:
            if self._writing is not None:
                self._writing.cancel()

    def between_steps(self) -> None:
        """Called before each step: what a step that is given up goes back to.

        Raises:
            CheckpointError: the checkpoint under way has failed.
        """
        if self._writing is not None and self._writing.done():
            self._writing.result()
        self._boundary = self._rollouts.state()

    async def save_if_due(self, run: Run, kl: KlControl) -> None:
        """Saves after every so many steps and after the last."""
        every = self._config.checkpoint.every_steps
        if every is not None and (run.step % every == 0 or run.step == self._config.run.steps):
            await self.save(run, kl, self._rollouts.state())

    async def save_given_up(self, run: Run, kl: KlControl) -> None:
        """Saves, and waits until it is on disk, after a step was given up.

        Rollouts that were finished for it are kept, but in deterministic mode: there they are sampled again, as their
        bits depend on what was sampled beside them.
        """
        assert self._boundary is not None, "between_steps comes first"
        now = self._boundary if self._config.run.deterministic else self._rollouts.state()
        await self.save(run, kl, now)
        await self.settle()

    async def save(self, run: Run, kl: KlControl, collected: Collected) -> None:
        """Returns when the state is copied; does nothing if there is a checkpoint of this step.

        Raises:
            CheckpointError: the file system refuses, or the checkpoint before it was not written.
        """
        if run.step == self._step:
            return
        await self.settle()
        progress = Progress(run.step, run.version, kl.coefficient, self._digests)
        with run.phase("checkpoint"):
            folder = await asyncio.to_thread(self._store.begin, run.step)
            try:
                await asyncio.to_thread(_write, folder, progress, collected)
                await together(model.save(folder / name) for name, model in self._models.items())
            except RayRLError:
                self._store.abandon(run.step)
                raise
        self._step = run.step
        self._writing = asyncio.ensure_future(self._complete(run.step))

    async def settle(self) -> None:
        """Returns when nothing is under way.

        Raises:
            CheckpointError: the checkpoint under way could not be written; those before it are untouched.
        """
        if self._writing is not None:
            await self._writing
            self._writing = None

    async def _complete(self, step: int) -> None:
        limit_s = self._config.checkpoint.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                while not all(await together(model.is_saved() for model in self._models.values())):
                    await asyncio.sleep(POLL_S)
                await asyncio.to_thread(self._store.commit, step)
                await asyncio.to_thread(self._completed, step)
        except RayRLError:
            self._store.abandon(step)
            raise
        except TimeoutError:
            self._store.abandon(step)
            raise CheckpointError(
                f"the checkpoint of step {step} was not written within checkpoint.timeout_s={limit_s:g}; raise it, or "
                "give the run a faster disk"
            ) from None


def _write(folder: Path, progress: Progress, collected: Collected) -> None:
    state: dict[str, Any] = asdict(progress)
    write_json(folder / "run.json", state)
    write_collected(folder / "rollouts", collected)
