"""Saves everything that a run needs to resume, and restores it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ray_rl.checkpoint.store import Checkpoint, CheckpointStore, read_json, write_json
from ray_rl.concurrency import together
from ray_rl.config.run import CheckpointConfig
from ray_rl.errors import CheckpointError, RayRLError
from ray_rl.loops.model_digests import Models
from ray_rl.loops.roles import Position, Resumable, Saved
from ray_rl.metrics.run import Run

POLL_S = 0.5
"""Pause between checks whether a checkpoint is written."""
AFTER_FAILURE_S = 60.0
"""Time to finish the current checkpoint after the run has failed."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The counters of a run: `run.json` of a checkpoint."""

    step: int
    version: int
    models: Models = field(default_factory=dict)
    """Digests of the models that the run loads; empty in checkpoints of older versions."""


def read_progress(checkpoint: Checkpoint) -> Progress:
    """Reads the counters in a checkpoint.

    Raises:
        CheckpointError: the checkpoint is not that of a run.
    """
    path = checkpoint.folder / "run.json"
    try:
        found = read_json(path)
        return Progress(found["step"], found["version"], found.get("models", {}))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not the state of a run ({error!r}); resume from another checkpoint") from error


class Checkpoints:
    """Saves when due, while training continues; at most one checkpoint is being written at a time."""

    def __init__(
        self,
        parts: Mapping[str, Saved],
        positions: Sequence[Resumable],
        *,
        settings: CheckpointConfig,
        store: CheckpointStore,
        since: Checkpoint | None,
        models: Models,
        completed: Callable[[int], None],
        best: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Makes the writer and reader of a run's checkpoints.

        Args:
            parts: the models under training, by the names of their folders in a checkpoint.
            positions: everything else that resumes; each of them has its own files.
            settings: how often to save, and how long that may take.
            store: the store of the run, owned by this process.
            since: the checkpoint that the run continues from; None at its start.
            models: digests of the models that the run loads, compared when it is resumed.
            completed: called in a thread with the step of each checkpoint that is complete.
            best: returns the step whose checkpoint is kept because it is the best so far; None for none.
        """
        self._parts = parts
        self._positions = positions
        self._settings = settings
        self._store = store
        self._completed = completed
        self._best = best
        self._digests = models
        self._since = since
        self._step = None if since is None else since.step
        """Step of the last checkpoint that is on disk or being written."""
        self._writing: asyncio.Task[None] | None = None

    async def restore(self) -> None:
        """Restores all parts and positions; does nothing at the start of a run.

        Raises:
            CheckpointError: the checkpoint is of another model, or holds no state of a run.
        """
        if self._since is None:
            return
        folder = self._since.folder
        for each in self._positions:
            each.resume(folder)
        await together(part.load(folder / name) for name, part in self._parts.items())

    @asynccontextmanager
    async def in_background(self) -> AsyncIterator[None]:
        """Lets checkpoints be written within the block, and waits at its end until the last one is on disk."""
        try:
            yield
        except RayRLError:
            if self._writing is not None:
                await asyncio.wait({self._writing}, timeout=AFTER_FAILURE_S)
            raise
        else:
            await self.settle()
        finally:
            if self._writing is not None:
                self._writing.cancel()

    async def save_if_due(self, run: Run) -> None:
        """Saves every `checkpoint.every_steps` steps, the best step so far, and after the last step.

        Raises:
            CheckpointError: as `save`, or the checkpoint that was being written has failed.
        """
        if self._writing is not None and self._writing.done():
            self._writing.result()
        every, best = self._settings.every_steps, self._best()
        is_last = run.step == run.steps and (every is not None or best is not None)
        if is_last or run.step == best or (every is not None and run.step % every == 0):
            await self.save(run)

    async def save_now(self, run: Run) -> None:
        """Saves and returns when the checkpoint is on disk."""
        await self.save(run)
        await self.settle()

    async def save(self, run: Run) -> None:
        """Returns when the state is copied; does nothing if there is a checkpoint of this step.

        Raises:
            CheckpointError: the file system refuses, or the checkpoint before it was not written.
        """
        if run.step == self._step:
            return
        await self.settle()
        progress = Progress(run.step, run.version, self._digests)
        positions = [each.position() for each in self._positions]
        with run.phase("checkpoint"):
            folder = await asyncio.to_thread(self._store.begin, run.step)
            try:
                await asyncio.to_thread(_write, folder, progress, positions)
                await together(part.save(folder / name) for name, part in self._parts.items())
            except RayRLError:
                self._store.abandon(run.step)
                raise
        self._step = run.step
        self._writing = asyncio.ensure_future(self._complete(run.step, keep=self._best()))

    async def of_step(self, step: int) -> Checkpoint:
        """Returns the checkpoint of a step that was kept.

        Raises:
            CheckpointError: there is no such checkpoint, or it does not verify.
        """
        return await asyncio.to_thread(self._store.load, step)

    async def settle(self) -> None:
        """Returns when no checkpoint is being written.

        Raises:
            CheckpointError: the last checkpoint could not be written; those before it are untouched.
        """
        if self._writing is not None:
            await self._writing
            self._writing = None

    async def _complete(self, step: int, *, keep: int | None) -> None:
        limit_s = self._settings.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                while not all(await together(part.is_saved() for part in self._parts.values())):
                    await asyncio.sleep(POLL_S)
                await asyncio.to_thread(self._store.commit, step, keep=keep)
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


def _write(folder: Path, progress: Progress, positions: Sequence[Position]) -> None:
    write_json(folder / "run.json", asdict(progress))
    for position in positions:
        position.write(folder)
