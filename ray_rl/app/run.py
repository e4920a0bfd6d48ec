"""Runs a configuration from start to end. `app/` is the composition root: only it puts the parts together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Protocol

from ray_rl.app.records import newest_saved
from ray_rl.checkpoint.store import Checkpoint
from ray_rl.cluster.environment import prepare_environment
from ray_rl.config import RunConfig
from ray_rl.data.template import without_file
from ray_rl.errors import Preempted
from ray_rl.imports import quick_imports
from ray_rl.loops.checkpoints import read_progress
from ray_rl.loops.resuming import Resume, opened
from ray_rl.loops.stopping import Stop
from ray_rl.metrics.console import RunConsole
from ray_rl.metrics.endings import NO_CHECKPOINT, resume_command
from ray_rl.metrics.run import Run
from ray_rl.metrics.run_folder import RunFolder
from ray_rl.planner.hardware import resolve_dtype

if TYPE_CHECKING:
    from ray_rl.data.examples.load import Examples
    from ray_rl.data.row_checks import CheckedRows


class Training(Protocol):
    """A way to train: on rollouts, or on given examples."""

    @property
    def config(self) -> RunConfig:
        """The configuration, with everything resolved that `config.yaml` of the run folder says."""

    def require_same(self, since: Checkpoint, note: Callable[[str], None]) -> None:
        """Checks that the data and the models are those of a checkpoint. Writes nothing into the run folder.

        Raises:
            UserError: they have changed.
        """

    def open_run(self, folder: RunFolder, console: RunConsole, *, step: int, version: int) -> Run:
        """Returns the counters, clock and records of the run."""

    async def train(self, folder: RunFolder, run: Run, since: Checkpoint | None, stop: Stop) -> None:
        """Starts all workers, and trains from a checkpoint or from the start to the end."""


def run_training(
    config: RunConfig,
    *,
    resume: Resume | None = None,
    from_step: int | None = None,
    checked: CheckedRows | Examples | None = None,
) -> None:
    """Runs a checked configuration from start to end, or from a checkpoint to the end.

    Args:
        config: The configuration of the run.
        resume: None for a new run. auto: continues if the folder has a checkpoint. required: refuses without one.
        from_step: The checkpoint to continue from; None is the newest one.
        checked: what the checks before the start have read of `data:`. None reads it without checks.

    Raises:
        Preempted: the run was told to stop; it can be resumed.
        RayRLError: the run failed; the run folder has everything that was logged before.
    """
    prepare_environment(local=config.cluster.address is None)
    console = RunConsole()
    training = _training(_resolved(config), checked, console.say)
    with ExitStack() as stack:
        found = opened(
            training.config,
            stack,
            resume=resume,
            from_step=from_step,
            note=console.say,
            require_same=partial(training.require_same, note=console.say),
        )
        if found is None:
            return
        folder, since = found.folder, found.since
        done = None if since is None else read_progress(since)
        step, version = (0, 0) if done is None else (done.step, done.version)
        run = stack.enter_context(training.open_run(folder, console, step=step, version=version))
        _run(training, folder, run, since)


def _training(config: RunConfig, checked: CheckedRows | Examples | None, say: Callable[[str], None]) -> Training:
    """Returns the way to train that `algorithm.kind` asks for."""
    from ray_rl.data.examples.load import Examples

    if config.is_offline:
        with quick_imports():
            from ray_rl.app.build_offline import OfflineTraining

        assert checked is None or isinstance(checked, Examples)
        return OfflineTraining.of(config, checked, say=say)
    with quick_imports():
        from ray_rl.app.build import OnlineTraining

    assert not isinstance(checked, Examples)
    return OnlineTraining(config, checked)


def _run(training: Training, folder: RunFolder, run: Run, since: Checkpoint | None) -> None:
    stop = Stop(grace_s=training.config.run.grace_s)

    async def train() -> None:
        stop.listen()
        await training.train(folder, run, since, stop)

    try:
        asyncio.run(train())
    except asyncio.CancelledError:
        if stop.is_immediate or stop.signal is None:
            raise KeyboardInterrupt from None
        saved = newest_saved(folder)
        found = (
            NO_CHECKPOINT
            if saved is None
            else f"the newest checkpoint is of step {saved}; resume with: {resume_command(folder.root)}"
        )
        raise Preempted(f"stopped by {stop.name} after step {run.step} of {run.steps}; {found}") from None


def _resolved(config: RunConfig) -> RunConfig:
    """Returns the configuration with the dtype and the chat template resolved, for the run folder."""
    wanted = "float32" if config.run.deterministic else config.model.dtype
    dtype = resolve_dtype(wanted, config.cluster.accelerator)
    template = config.model.chat_template
    changed = {"dtype": dtype, "chat_template": None if template is None else without_file(template)}
    return config.model_copy(update={"model": config.model.model_copy(update=changed)})
