"""Run folders for tests, prepared as a run prepares them."""

from __future__ import annotations

from collections.abc import Callable

from ray_rl.config import RunConfig
from ray_rl.config.loading.load import dump_config
from ray_rl.metrics.run_folder import RunFolder


def reopened(config: RunConfig, *, step: int | None, note: Callable[[str], None] = lambda text: None) -> RunFolder:
    """The folder of a run, which exists, prepared to continue after `step`."""
    folder = RunFolder.of(config.run)
    folder.prepare(dump_config(config), step=step, group_readable=config.run.group_readable, note=note)
    return folder


def new_run_folder(config: RunConfig) -> RunFolder:
    """The folder of a new run."""
    RunFolder.of(config.run).make(may_exist=False)
    return reopened(config, step=None)
