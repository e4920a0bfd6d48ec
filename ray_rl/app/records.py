"""Opens the records of a run, with the columns that its configuration brings."""

from __future__ import annotations

import time
from collections.abc import Callable

from ray_rl.checkpoint.reading import checkpoint_steps
from ray_rl.config import RunConfig
from ray_rl.config.roles import ACTOR, REFERENCE, REWARD, ROLLOUT, has_reference, roles_of
from ray_rl.metrics.console import RunConsole
from ray_rl.metrics.prometheus import GaugeSink
from ray_rl.metrics.run import Run
from ray_rl.metrics.run_folder import RunFolder
from ray_rl.metrics.samples import answer_columns
from ray_rl.metrics.text import Columns


def open_run(
    config: RunConfig,
    folder: RunFolder,
    console: RunConsole,
    *,
    step: int = 0,
    version: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Run:
    """Returns the counters, clock and records of a run; see `Run` for the arguments."""
    return Run(
        config.run,
        folder,
        console,
        columns=columns_of(config),
        answers=answer_columns(config.rewards),
        step=step,
        version=version,
        gauges=gauges_of(config),
        saved=lambda: newest_saved(folder),
        clock=clock,
    )


def columns_of(config: RunConfig) -> Columns:
    """Returns the columns of the line that each step prints: staleness and KL only if the run has them."""
    absent = set()
    if config.rollout.max_staleness == 0:
        absent.add("stale")
    if not has_reference(config):
        absent.add("kl")
    phases = ["rollout", "train", "sync"]
    scores = any(role.name not in (ACTOR, REWARD, ROLLOUT) for role in roles_of(config))
    if scores or config.online.needs_old_logprobs:
        phases.insert(1, REFERENCE)
    if config.checkpoint.every_steps is not None:
        phases.append("checkpoint")
    return Columns(frozenset(absent), tuple(phases))


def gauges_of(config: RunConfig) -> GaugeSink | None:
    """Returns the export to Prometheus; None on a Ray cluster that ends with the run, because nobody scrapes it."""
    if config.cluster.address is None:
        return None
    from ray_rl.cluster.gauges import RayGauges

    return GaugeSink(RayGauges(config.run.name).set)


def newest_saved(folder: RunFolder) -> int | None:
    """Returns the step of the newest checkpoint of a run; None if there is none."""
    return max(checkpoint_steps(folder.checkpoints), default=None)
