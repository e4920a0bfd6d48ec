"""Which role runs on which devices. Pure: the same plan is printed on a laptop and placed on a cluster."""

from __future__ import annotations

from dataclasses import dataclass

from ray_rl.config import RunConfig
from ray_rl.config.gpus import has_reference


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """Devices that belong together, and the roles that run on them."""

    roles: tuple[str, ...]
    """Worker i of each role uses bundle i."""
    bundles: int
    """Workers of the largest role."""
    gpus: int
    """GPUs of a bundle; a bundle never crosses a node. 0 on CPU."""
    cpus: float
    """CPUs of a bundle."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The device groups of a run."""

    groups: tuple[DeviceGroup, ...]
    workers: dict[str, int]
    """Workers by role; of `rollout`, engines."""

    def group_of(self, role: str) -> int:
        """Index of the group that a role runs on."""
        return next(i for i, group in enumerate(self.groups) if role in group.roles)

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return sum(group.bundles * group.gpus for group in self.groups)

    @property
    def cpus(self) -> float:
        """CPUs in all."""
        return sum(group.bundles * group.cpus for group in self.groups)


def plan(config: RunConfig) -> Plan:
    """A group for each role, or for the roles that `cluster.colocate` puts together."""
    workers = {"actor": config.train.workers, "rollout": config.rollout.engines}
    if has_reference(config):
        workers["reference"] = config.reference.workers
    on_gpu = config.cluster.accelerator == "gpu"
    together: list[tuple[str, ...]] = [
        tuple(role for role in roles if role in workers) for roles in config.cluster.colocate
    ]
    shared = {role for roles in together for role in roles}
    together += [(role,) for role in workers if role not in shared]
    groups = []
    for roles in sorted((roles for roles in together if roles), key=lambda roles: list(workers).index(roles[0])):
        devices = config.rollout.tensor_parallel if "rollout" in roles else 1
        cpus = config.cluster.cpus_per_worker * devices * len(roles)
        groups.append(DeviceGroup(roles, max(workers[role] for role in roles), devices if on_gpu else 0, cpus))
    return Plan(tuple(groups), workers)
