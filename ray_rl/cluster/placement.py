"""A plan as placement groups. Nothing else decides where a worker goes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_rl.errors import ClusterError
from ray_rl.planner.plan import DeviceGroup, Plan


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one worker runs, and what it takes there."""

    group: PlacementGroup
    bundle: int
    gpus: float
    cpus: float

    def options(self) -> dict[str, object]:
        """Of a Ray actor."""
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.bundle)
        return {"num_gpus": self.gpus, "num_cpus": self.cpus, "scheduling_strategy": strategy}


@contextmanager
def placed(plan: Plan, *, timeout_s: float) -> Iterator[dict[str, list[Slot]]]:
    """A slot for every worker of every role, once all groups are reserved; given back with the block.

    Roles that share a group share its bundles: each gets an equal part of the GPU.

    Raises:
        ClusterError: not reserved within `timeout_s`; says what was wanted and what each node has.
    """
    deadline_s = time.monotonic() + timeout_s
    groups = [placement_group([_bundle(group)] * group.bundles, strategy="PACK") for group in plan.groups]
    try:
        for group in groups:
            if not group.wait(math.ceil(max(0.0, deadline_s - time.monotonic()))):
                raise ClusterError(_unplaced(plan, timeout_s))
        yield _slots(plan, groups)
    finally:
        for group in groups:
            remove_placement_group(group)


def _slots(plan: Plan, groups: list[PlacementGroup]) -> dict[str, list[Slot]]:
    slots = {}
    for role, workers in plan.workers.items():
        index = plan.group_of(role)
        sharers = len(plan.groups[index].roles)
        bundles = _in_node_order(groups[index])[:workers]
        gpus, cpus = plan.groups[index].gpus / sharers, plan.groups[index].cpus / sharers
        slots[role] = [Slot(groups[index], bundle, gpus, cpus) for bundle in bundles]
    return slots


def _bundle(group: DeviceGroup) -> dict[str, float]:
    return {"CPU": group.cpus} | ({"GPU": group.gpus} if group.gpus else {})


def _in_node_order(group: PlacementGroup) -> list[int]:
    """Bundles sorted by node, so that neighbouring ranks share one."""
    nodes = ray.util.placement_group_table(group)["bundles_to_node_id"]
    return sorted(nodes, key=lambda bundle: (nodes[bundle], bundle))


def _unplaced(plan: Plan, timeout_s: float) -> str:
    wanted = "; ".join(f"{'+'.join(group.roles)}: {group.bundles} x {_bundle(group)}" for group in plan.groups)
    nodes = "; ".join(
        f"{node['NodeManagerAddress']}: " + str({key: node["Resources"].get(key, 0) for key in ("CPU", "GPU")})
        for node in ray.nodes()
        if node["Alive"]
    )
    free = {key: value for key, value in ray.available_resources().items() if key in ("CPU", "GPU")}
    return (
        f"placement was not possible within cluster.start_timeout_s={timeout_s:g}. Wanted: {wanted}. "
        f"Nodes have: {nodes}. Free now: {free}"
    )
