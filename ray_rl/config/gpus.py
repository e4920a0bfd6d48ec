"""How many GPUs a run asks for, role by role, and how many this machine has."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ray_rl.config.run import RunConfig

DEVICES = Path("/dev")
"""Where the kernel lists the GPUs."""


@dataclass(frozen=True, slots=True)
class Ask:
    """The GPUs of one group of roles."""

    role: str
    """Roles that share the group are joined by "+"."""
    gpus: int
    keys: str
    """The configuration that says so."""

    def __str__(self) -> str:
        return f"{self.role} {self.gpus} ({self.keys})"


def has_reference(config: RunConfig) -> bool:
    """Whether the run loads a frozen reference."""
    return config.algorithm.kl.coefficient > 0


def asked_gpus(config: RunConfig) -> list[Ask]:
    """The GPU groups of a run: the actor, the engines, and the reference unless it shares the actor's GPUs."""
    actor = Ask("actor", config.train.workers, "train.workers")
    rollout = config.rollout
    engines = Ask(
        "engines",
        rollout.engines * rollout.tensor_parallel,
        f"rollout.engines {rollout.engines} * rollout.tensor_parallel {rollout.tensor_parallel}",
    )
    if not has_reference(config):
        return [actor, engines]
    workers = config.reference.workers
    if any({"actor", "reference"} <= set(group) for group in config.cluster.colocate):
        return [Ask("actor+reference", max(actor.gpus, workers), "train.workers, shared by cluster.colocate"), engines]
    return [actor, engines, Ask("reference", workers, "reference.workers")]


def visible_gpu_count() -> int:
    """GPUs of this machine that CUDA may use: /dev/nvidia0, 1, ..., less those that CUDA_VISIBLE_DEVICES hides."""
    devices = sum(1 for device in DEVICES.glob("nvidia*") if re.fullmatch(r"nvidia[0-9]+", device.name))
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return devices
    # CUDA stops at the first entry that is not a device; "-1" and "" hide all.
    listed = 0
    for entry in allowed.split(","):
        if not entry.strip() or entry.strip().startswith("-"):
            break
        listed += 1
    return min(devices, listed)
