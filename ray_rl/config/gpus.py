"""How many GPUs each role of a run needs, and how many this machine has."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ray_rl.config.roles import ACTOR, REFERENCE, ROLLOUT, Role, base_reference, roles_of
from ray_rl.config.run import RunConfig

DEVICES = Path("/dev")
"""The folder where the kernel lists GPUs."""


@dataclass(frozen=True, slots=True)
class Ask:
    """The GPUs that a group of roles needs."""

    role: str
    """Roles that share the group are joined by "+"."""
    gpus: int
    keys: str
    """The keys of the configuration that set this number."""

    def __str__(self) -> str:
        return f"{self.role} {self.gpus} ({self.keys})"


def role_groups(config: RunConfig) -> list[tuple[str, ...]]:
    """Returns the groups of roles that share GPUs by `cluster.colocate`, and each other role as a group of its own."""
    present = [role.name for role in roles_of(config)]
    shared = [tuple(role for role in present if role in roles) for roles in config.cluster.colocate]
    taken = {role for roles in shared for role in roles}
    groups = [roles for roles in shared if roles] + [(role,) for role in present if role not in taken]
    return sorted(groups, key=lambda roles: present.index(roles[0]))


def gpus_of(config: RunConfig, role: Role) -> int:
    """Returns the GPUs of all workers of a role."""
    return role.workers * (config.rollout.tensor_parallel if role.name == ROLLOUT else 1)


def sharers_of_engines(config: RunConfig) -> tuple[str, ...]:
    """Returns the other roles on the GPUs of the engines; none if these have GPUs of their own."""
    groups = [roles for roles in role_groups(config) if ROLLOUT in roles]
    return tuple(role for roles in groups for role in roles if role != ROLLOUT)


def sends_from_host(config: RunConfig) -> bool:
    """Returns whether the weights of the actor are on the host during a publish, and few of them are sent from there.

    So it is where engines share its GPUs and get adapters, so that they have room for the frozen weights.
    """
    return config.publishes_adapters and ACTOR in sharers_of_engines(config)


def scores_as_finished(config: RunConfig, role: str) -> bool:
    """Returns what `rollout.score_as_finished` stands for, for the actor, the critic or the reference."""
    if role == REFERENCE and base_reference(config) is not None:
        role = ACTOR
    changes_meanwhile = role != REFERENCE and config.rollout.max_staleness > 0
    if config.run.deterministic or changes_meanwhile or role in sharers_of_engines(config):
        return False
    chosen = config.rollout.score_as_finished
    return config.cluster.accelerator == "gpu" if chosen is None else chosen


def asked_gpus(config: RunConfig) -> list[Ask]:
    """Returns the GPUs of each group of roles."""
    by_name = {role.name: role for role in roles_of(config)}
    asks = []
    for names in role_groups(config):
        roles: list[Role] = [by_name[name] for name in names]
        if names == (ROLLOUT,):
            rollout = config.rollout
            keys = f"rollout.engines {rollout.engines} * rollout.tensor_parallel {rollout.tensor_parallel}"
            asks.append(Ask("engines", rollout.engines * rollout.tensor_parallel, keys))
        elif len(roles) == 1:
            asks.append(Ask(roles[0].name, roles[0].workers, roles[0].workers_key))
        else:
            keys = ", ".join(role.workers_key for role in roles)
            shared = max(gpus_of(config, role) for role in roles)
            asks.append(Ask("+".join(names), shared, f"{keys}, shared by cluster.colocate"))
    return asks


def needed_gpus(config: RunConfig) -> int:
    """Returns the GPUs of all groups of roles."""
    return sum(ask.gpus for ask in asked_gpus(config))


def visible_gpu_count() -> int:
    """Returns how many GPUs CUDA may use here: /dev/nvidia0, 1, ..., without those that CUDA_VISIBLE_DEVICES hides."""
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
