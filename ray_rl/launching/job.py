"""What is to run, whoever runs it."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_rl.config import RunConfig
from ray_rl.config.launch import LaunchConfig
from ray_rl.config.loading.load import dump_config
from ray_rl.errors import ConfigError
from ray_rl.planner.plan import Plan, plan

ADDRESS = "cluster.address=auto"
"""Every back end starts the Ray cluster, or finds it there; the driver joins it."""

STOP_MARGIN_S = 15
"""Beyond `run.grace_s`, after which the driver ends itself: for Ray to see that before it kills."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run as all back ends see it: they add how a cluster comes to be, and nothing to what runs on it."""

    config: RunConfig
    config_path: str
    """From the working folder, on the cluster as here."""
    overrides: tuple[str, ...]
    plan: Plan
    commit: str | None = None
    """Of the project's checkout, "-dirty" behind it where tracked files differ; None outside of one."""

    @property
    def name(self) -> str:
        """Of the run."""
        return self.config.run.name

    @property
    def launch(self) -> LaunchConfig:
        """How it is launched."""
        return self.config.launch

    @property
    def nodes(self) -> int:
        """Nodes with the roles' devices."""
        return self.config.cluster.nodes

    @property
    def gpus_per_node(self) -> int:
        """0 on CPU."""
        return self.config.cluster.gpus_per_node if self.config.cluster.accelerator == "gpu" else 0

    @property
    def steps(self) -> int:
        """Of the whole run, over all attempts."""
        return self.config.run.steps

    @property
    def entrypoint(self) -> tuple[str, ...]:
        """The driver's command: the same everywhere, and for every attempt."""
        return ("ray-rl", "train", self.config_path, *self.overrides, ADDRESS, "--resume", "auto")

    @property
    def preflight(self) -> tuple[str, ...] | None:
        """What must succeed before the entrypoint; None where nothing is asked for."""
        if not self.launch.preflight:
            return None
        return ("ray-rl", "doctor", "--cluster", self.config_path, *self.overrides, ADDRESS)

    @property
    def shell_line(self) -> str:
        """Preflight and entrypoint as one line for a shell; its exit code is that of the first that fails."""
        parts = [self.entrypoint] if self.preflight is None else [self.preflight, self.entrypoint]
        return " && ".join(map(shlex.join, parts))

    @property
    def config_hash(self) -> str:
        """12 hexadecimal digits of the SHA-256 of the resolved configuration, without how it is launched."""
        bare = self.config.model_copy(update={"launch": LaunchConfig()})
        return hashlib.sha256(dump_config(bare).encode()).hexdigest()[:12]

    @property
    def environment(self) -> dict[str, str]:
        """Variables of every process, in the order of their names."""
        # Workers at Ray's niceness of 15 starve beside anything else on a CPU node.
        own = {
            "PYTHONUNBUFFERED": "1",
            "RAY_DEDUP_LOGS": "0",
            # Ray kills a job that it stops after 3 s, unless the job's own environment says otherwise: time to save.
            "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(self.config.run.grace_s) + STOP_MARGIN_S),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }
        return dict(sorted((own | self.launch.environment).items()))


def job_of(config: RunConfig, path: str, overrides: Sequence[str] = (), *, commit: str | None = None) -> Job:
    """The job of a checked configuration.

    Args:
        config: of the run, overrides and launch file included.
        path: of its file, relative to the project.
        overrides: `key=value`; those of `launch` and of `cluster.address` are left out.
        commit: of the checkout, if it is one.

    Raises:
        ConfigError: an absolute path, which the cluster need not have; or the roles do not fit the nodes.
    """
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ConfigError(
            f"{path}: must be inside the current folder, which is what the cluster gets; call ray-rl from the "
            "project's root with a relative path"
        )
    kept = tuple(text for text in overrides if not text.strip().startswith(("launch.", "launch=", "cluster.address=")))
    return Job(config=config, config_path=path, overrides=kept, plan=plan(config), commit=commit)
