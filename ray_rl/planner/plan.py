"""Plans which role runs on which devices, with pure functions: a laptop prints the plan that a cluster places."""

from __future__ import annotations

from dataclasses import dataclass

from ray_rl.config import RunConfig
from ray_rl.config.gpus import gpus_of, role_groups
from ray_rl.config.roles import ROLLOUT, roles_of
from ray_rl.errors import ConfigError
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.layout import Packed, Place, Request, nodes_used, pack


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """Devices that are reserved together, and the roles that run on them."""

    roles: tuple[str, ...]
    """Worker i of each role uses bundle i."""
    places: tuple[Place, ...]
    """Places of the bundles, ascending by node and GPU."""
    gpus: int
    """GPUs of a bundle; a bundle never crosses a node. 0 on CPU."""
    cpus: float
    """CPUs of a bundle."""
    block: int = 1
    """Bundles of an engine: `rollout.tensor_parallel` if engines share the bundles with other roles. Engine j uses
    bundles j * block to (j + 1) * block - 1, which are on one node."""

    @property
    def bundles(self) -> int:
        """Number of bundles."""
        return len(self.places)

    @property
    def has_sleeping_engines(self) -> bool:
        """Whether engines take turns with the other roles on these devices."""
        return ROLLOUT in self.roles and len(self.roles) > 1


@dataclass(frozen=True, slots=True)
class Plan:
    """The device groups of a run."""

    groups: tuple[DeviceGroup, ...]
    """Groups in the order in which they must be placed: each takes the lowest free GPUs of its nodes."""
    workers: dict[str, int]
    """Number of workers by role; for `rollout`, of engines."""
    gpus_per_node: int = 0
    """GPUs of each node in the plan; 0 on CPU."""

    def group_of(self, role: str) -> int:
        """Returns the index of the group that a role runs on."""
        return next(i for i, group in enumerate(self.groups) if role in group.roles)

    def places(self, role: str) -> tuple[Place, ...]:
        """Returns the places of the workers of a role, by rank; of `rollout`, those of whole engines."""
        group = self.groups[self.group_of(role)]
        if role != ROLLOUT or group.block == 1:
            return group.places[: self.workers[role]]
        engines = zip(*[iter(group.places)] * group.block, strict=True)
        return tuple(Place(parts[0].node, tuple(gpu for part in parts for gpu in part.gpus)) for parts in engines)

    @property
    def nodes(self) -> int:
        """Number of nodes in use."""
        return nodes_used(group.places for group in self.groups)

    @property
    def gpus(self) -> int:
        """Total number of GPUs."""
        return sum(group.bundles * group.gpus for group in self.groups)

    @property
    def cpus(self) -> float:
        """Total number of CPUs."""
        return sum(group.bundles * group.cpus for group in self.groups)


def plan(config: RunConfig, cluster: ClusterShape | None = None) -> Plan:
    """Returns the node and GPUs of every worker of every role.

    Each role has a group, or shares one with the roles in `cluster.colocate`: worker i of each role runs on GPU i, and
    engine j on the next `rollout.tensor_parallel` GPUs of one node. On CPU there are no GPUs, and everything is on node
    0.

    Args:
        config: the valid configuration of the run.
        cluster: the cluster to plan for; None for the one in the configuration's section `cluster`.

    Raises:
        ConfigError: the groups do not fit the nodes; the message says how many they need.
    """
    cluster = ClusterShape.of(config) if cluster is None else cluster
    layout = unbounded_plan(config, gpus_per_node=cluster.gpus_per_node)
    if layout.nodes > cluster.nodes:
        raise ConfigError(
            f"cluster.nodes={cluster.nodes} * cluster.gpus_per_node={cluster.gpus_per_node}: the roles need "
            f"{layout.gpus} GPUs on {layout.nodes} nodes ({wanted(layout)}), and the cluster has {cluster.gpus} on "
            f"{cluster.nodes}; set cluster.nodes={layout.nodes}, or make the roles smaller"
        )
    return layout


def unbounded_plan(config: RunConfig, *, gpus_per_node: int) -> Plan:
    """Returns the plan on as many nodes as it needs.

    Raises:
        ConfigError: an engine is larger than a node.
    """
    by_name = {role.name: role for role in roles_of(config)}
    workers = {name: role.workers for name, role in by_name.items()}
    on_gpu = config.cluster.accelerator == "gpu"
    engine = config.rollout.tensor_parallel
    if on_gpu and engine > gpus_per_node:
        raise ConfigError(
            f"rollout.tensor_parallel={engine}: an engine never spans nodes, and cluster.gpus_per_node="
            f"{gpus_per_node}; set rollout.tensor_parallel to {gpus_per_node} or less"
        )
    all_roles = role_groups(config)
    requests = []
    for roles in all_roles:
        if roles == (ROLLOUT,):
            requests.append(Request(workers[ROLLOUT], engine))
        else:
            bundles = max(gpus_of(config, by_name[role]) for role in roles)
            requests.append(Request(bundles, 1, block=engine if ROLLOUT in roles else 1))
    packing = (
        pack(requests, gpus_per_node=gpus_per_node)
        if on_gpu
        else [Packed(i, (Place(0, ()),) * request.bundles) for i, request in enumerate(requests)]
    )
    groups = []
    for packed in packing:
        roles, request = all_roles[packed.request], requests[packed.request]
        cpus = config.cluster.cpus_per_worker * request.gpus * len(roles)
        groups.append(DeviceGroup(roles, packed.places, request.gpus if on_gpu else 0, cpus, request.block))
    return Plan(tuple(groups), workers, gpus_per_node if on_gpu else 0)


def wanted(layout: Plan) -> str:
    """Returns the GPUs of each group: "actor 16, rollout 2 x 8"."""
    return ", ".join(
        f"{'+'.join(group.roles)} " + (f"{group.bundles} x {group.gpus}" if group.gpus > 1 else str(group.bundles))
        for group in layout.groups
    )
