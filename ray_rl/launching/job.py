"""The description of a run for all launchers."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from ray_rl.config import RunConfig
from ray_rl.config.launch import LaunchConfig
from ray_rl.config.loading.load import dump_config
from ray_rl.planner.plan import Plan

ADDRESS = "cluster.address=auto"
"""The driver joins the Ray cluster, which a back end has started or found."""

STOP_MARGIN_S = 15
"""Time after `run.grace_s`, when the driver ends itself, until Ray kills it: Ray needs some time to notice the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run, as all back ends see it. They add only the start of a cluster."""

    config: RunConfig
    """The checked configuration, with the overrides and the launch file."""
    config_path: str
    """Path relative to the working folder, here and on the cluster."""
    overrides: tuple[str, ...]
    """The user's overrides that the driver repeats."""
    plan: Plan
    commit: str | None = None
    """Commit of the project's checkout, with "-dirty" if tracked files differ; None outside a checkout."""

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.config.run.name

    @property
    def launch(self) -> LaunchConfig:
        """The `launch` section of the configuration."""
        return self.config.launch

    @property
    def nodes(self) -> int:
        """Number of nodes with devices of the roles."""
        return self.config.cluster.nodes

    @property
    def gpus_per_node(self) -> int:
        """GPUs of each node; 0 on CPU."""
        return self.config.cluster.gpus_per_node if self.config.cluster.accelerator == "gpu" else 0

    @property
    def length(self) -> str:
        """Length of the whole run, over all attempts: "200 steps"."""
        return self.config.run.length

    @property
    def runs(self) -> tuple[RunConfig, ...]:
        """The configurations of all runs of the job, which run one after the other."""
        return (self.config,)

    @property
    def joins(self) -> tuple[str, ...]:
        """The overrides with which the driver joins a Ray cluster."""
        return (ADDRESS,)

    @property
    def stays(self) -> tuple[str, ...]:
        """The overrides in their place with which the driver starts a cluster of its own."""
        return () if self.config.cluster.address is None else ("cluster.address=null",)

    @property
    def entrypoint(self) -> tuple[str, ...]:
        """The driver's command, which is the same for every launcher and attempt."""
        return ("ray-rl", "train", self.config_path, *self.overrides, *self.joins, "--resume", "auto")

    @property
    def preflight(self) -> tuple[str, ...] | None:
        """The command that must succeed before the entrypoint; None without one."""
        if not self.launch.preflight:
            return None
        return ("ray-rl", "doctor", "--cluster", self.config_path, *self.overrides, *self.joins)

    @property
    def shell_line(self) -> str:
        """Preflight and entrypoint as one line for a shell. Its exit code is that of the first command that fails."""
        parts = [self.entrypoint] if self.preflight is None else [self.preflight, self.entrypoint]
        return " && ".join(map(shlex.join, parts))

    @property
    def config_hash(self) -> str:
        """12 hexadecimal digits of the SHA-256 of the resolved configurations without their `launch` sections."""
        bare = (config.model_copy(update={"launch": LaunchConfig()}) for config in self.runs)
        return hashlib.sha256("".join(map(dump_config, bare)).encode()).hexdigest()[:12]

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of every process, sorted by name."""
        # With Ray's niceness of 15, any other process on a CPU node slows workers down.
        own = {
            "PYTHONUNBUFFERED": "1",
            "RAY_DEDUP_LOGS": "0",
            # Ray kills a stopped job after 3 s unless the job's environment says otherwise; a run needs time to save.
            "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(self.config.run.grace_s) + STOP_MARGIN_S),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }
        return dict(sorted((own | self.launch.environment).items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineJob(Job):
    """A pipeline, whose stages run one after the other in one job; `config` is that of its largest stage."""

    pipeline: str
    """The name of the pipeline."""
    stages: Mapping[str, RunConfig]
    """The checked configuration of every stage, by its name."""

    @property
    def name(self) -> str:
        """The name of the pipeline."""
        return self.pipeline

    @property
    def length(self) -> str:
        """The length of every stage: "sft 100 steps, ppo 20 steps"."""
        return ", ".join(f"{name} {config.run.length}" for name, config in self.stages.items())

    @property
    def runs(self) -> tuple[RunConfig, ...]:
        """The configurations of all stages."""
        return tuple(self.stages.values())

    @property
    def joins(self) -> tuple[str, ...]:
        """The overrides with which every stage joins a Ray cluster."""
        return tuple(f"{name}.{ADDRESS}" for name in self.stages)

    @property
    def stays(self) -> tuple[str, ...]:
        """The overrides in their place with which every stage starts a cluster of its own."""
        joining = [name for name, config in self.stages.items() if config.cluster.address is not None]
        return tuple(f"{name}.cluster.address=null" for name in joining)

    @property
    def entrypoint(self) -> tuple[str, ...]:
        """The driver's command, which also continues an interrupted pipeline."""
        return ("ray-rl", "pipeline", self.config_path, *self.overrides, *self.joins)
