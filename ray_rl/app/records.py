"""Opens the records of a run, with the columns that its configuration brings."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path

from ray_rl.catalog.models import PACKAGED_MODELS
from ray_rl.checkpoint.export_marks import model_folders
from ray_rl.checkpoint.reading import checkpoint_steps
from ray_rl.config import RunConfig
from ray_rl.config.offline import ProcessRewardModel, RewardModel
from ray_rl.config.roles import ACTOR, REFERENCE, REWARD, ROLLOUT, has_reference, roles_of
from ray_rl.metrics.console import RunConsole
from ray_rl.metrics.endings import word
from ray_rl.metrics.prometheus import GaugeSink
from ray_rl.metrics.run import Run
from ray_rl.metrics.run_folder import RunFolder
from ray_rl.metrics.samples import answer_columns
from ray_rl.metrics.text import Columns
from ray_rl.models.packaged import cached_folder


def open_run(
    config: RunConfig,
    folder: RunFolder,
    console: RunConsole,
    *,
    step: int = 0,
    version: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Run:
    """Returns the counters, clock and records of a run that trains on rollouts; see `Run` for the arguments."""
    return Run(
        config.run,
        folder,
        console,
        columns=columns_of(config),
        records=folder.rollouts,
        answers=answer_columns(config.rewards),
        uses=_try_it(folder.export, config),
        step=step,
        version=version,
        gauges=gauges_of(config),
        saved=lambda: newest_saved(folder),
        clock=clock,
    )


def open_offline_run(
    config: RunConfig, folder: RunFolder, console: RunConsole, *, step: int = 0, version: int = 0
) -> Run:
    """Returns the counters, clock and records of a run that learns from examples; see `Run` for the arguments."""
    return Run(
        config.run,
        folder,
        console,
        columns=offline_columns_of(config),
        records=folder.examples,
        uses=uses_of(config, folder.export),
        step=step,
        version=version,
        gauges=gauges_of(config),
        saved=lambda: newest_saved(folder),
    )


def _try_it(export: Path, config: RunConfig) -> dict[str, str]:
    adapter = config.model.adapter
    if adapter is None or not config.exports_adapters:
        return {"try it": f"vllm serve {word(export)}"}
    path = config.model.path
    model = word(cached_folder(path)) if path in PACKAGED_MODELS else shlex.quote(path)
    modules = f"--enable-lora --max-lora-rank {adapter.engine_rank} --lora-modules policy={word(export)}"
    return {"try it": f"vllm serve {model} {modules}"}


def uses_of(config: RunConfig, export: Path) -> dict[str, str]:
    """Returns the commands and settings that use the export of a run on examples, by what they do."""
    match config.offline:
        case RewardModel(members=members):
            paths = ", ".join(map(word, model_folders(export, members)))
            return {"use it": f"rewards: [{{kind: model, paths: [{paths}]}}]"}
        case ProcessRewardModel():
            return {}
        case _:
            return _try_it(export, config) | {"train on it": f"model.path={word(export)}"}


ROLLOUT_FIELDS = {
    "reward": ("reward/mean", 6, ".3f"),
    "length": ("rollout/length_mean", 6, ".1f"),
    "cut off": ("rollout/truncated_fraction", 4, ".0%"),
    "stale": ("rollout/staleness_max", 1, ".0f"),
    "kl": ("policy/kl_reference", 6, ".4f"),
    "entropy": ("policy/entropy", 5, ".3f"),
    "gradient": ("policy/grad_norm", 6, ".2f"),
}
"""Key, width and format of each value in the line of a step that trains on rollouts, by label."""


STEP_METRICS = {"loss": (7, ".4f"), "accuracy": (6, ".3f"), "margin": (7, ".3f")}
"""Width and format of the metrics of a loss that have a column, by name."""


def columns_of(config: RunConfig) -> Columns:
    """Returns the columns of the line that each step prints: staleness and KL only if the run has them."""
    absent = set()
    if config.rollout.max_staleness == 0:
        absent.add("stale")
    if not has_reference(config):
        absent.add("kl")
    phases = ["rollout", "train", "sync"]
    scores = any(role.name not in (ACTOR, REWARD, ROLLOUT) for role in roles_of(config))
    if scores or has_reference(config) or config.online.needs_old_logprobs:
        phases.insert(1, REFERENCE)
    if config.checkpoint.every_steps is not None:
        phases.append("checkpoint")
    fields = {label: field for label, field in ROLLOUT_FIELDS.items() if label not in absent}
    return Columns(fields, tuple(phases), compared=("reward",))


def offline_columns_of(config: RunConfig) -> Columns:
    """Returns the columns of the line that each step prints: metrics of the loss, and of held-out examples."""
    algorithm = config.offline
    names = [name for name in algorithm.metrics if name in STEP_METRICS]
    fields = {name: (f"{algorithm.kind}/{name}", *STEP_METRICS[name]) for name in names}
    fields["gradient"] = (f"{algorithm.kind}/grad_norm", 6, ".2f")
    has_held_out = config.data.held_out > 0
    if has_held_out:
        fields |= {f"held-out {name}": (f"eval/{name}", *STEP_METRICS[name]) for name in names}
    phases = [*([REFERENCE] if has_reference(config) else []), "train", *(["evaluate"] if has_held_out else [])]
    if config.checkpoint.every_steps is not None:
        phases.append("checkpoint")
    return Columns(fields, tuple(phases), compared=tuple(name for name in fields if name != "gradient"))


def gauges_of(config: RunConfig) -> GaugeSink | None:
    """Returns the export to Prometheus; None on a Ray cluster that ends with the run, because nobody scrapes it."""
    if config.cluster.address is None:
        return None
    from ray_rl.cluster.gauges import RayGauges

    return GaugeSink(RayGauges(config.run.name).set)


def newest_saved(folder: RunFolder) -> int | None:
    """Returns the step of the newest checkpoint of a run; None if there is none."""
    return max(checkpoint_steps(folder.checkpoints), default=None)
