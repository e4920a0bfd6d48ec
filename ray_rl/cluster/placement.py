"""A plan as placement groups. Nothing else decides where a worker goes."""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_rl.errors import ClusterError
from ray_rl.planner.plan import DeviceGroup, Plan

NODE_ID_LABEL = "ray.io/node-id"
"""A label that Ray gives to every node."""

KINDS = ("GPU", "CPU")

POLL_S = 0.5
"""Between looks for nodes that have not joined yet."""


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

    Node i of the plan is the i-th that is alive and large enough, by address. The groups are reserved one after the
    other: Ray gives a bundle the lowest free GPUs of its node, and the plan counts on that. Which bundle of a group got
    which GPUs is then asked, so that rank i is where the plan says. On GPUs that others leave free these are the very
    indices of the plan; where others hold some, the order by (node, GPU) is still that of the plan.

    Roles that share a group share its bundles: each gets an equal part of the GPU.

    Raises:
        ClusterError: not reserved within `timeout_s`; says what was wanted and what there is, node by node.
    """
    deadline_s = time.monotonic() + timeout_s
    groups: list[PlacementGroup] = []
    try:
        nodes = _await_nodes(plan, deadline_s, timeout_s)
        for group in plan.groups:
            groups.append(_reserve(group, nodes))
            if not groups[-1].wait(math.ceil(max(0.0, deadline_s - time.monotonic()))):
                raise ClusterError(_unplaced(plan, len(groups) - 1, timeout_s))
        ranked = _ranked(plan, groups, nodes, deadline_s, timeout_s)
        yield {role: _slots(plan, role, groups, ranked) for role in plan.workers}
    finally:
        for placement in groups:
            remove_placement_group(placement)


def _await_nodes(plan: Plan, deadline_s: float, timeout_s: float) -> list[str]:
    """Ids of the nodes of the plan; on CPU none, as Ray chooses them there."""
    if not plan.gpus:
        return []
    while True:
        nodes = [node["NodeID"] for node in _alive() if _is_large_enough(node, plan)]
        if len(nodes) >= plan.nodes:
            return nodes[: plan.nodes]
        if time.monotonic() >= deadline_s:
            raise ClusterError(_unplaced(plan, 0, timeout_s))
        time.sleep(POLL_S)


def _alive() -> list[dict[str, Any]]:
    """Ray's nodes in an order that stays: by address, then id."""
    return sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: (_address(node), node["NodeID"]))


def _address(node: dict[str, Any]) -> tuple[int, int]:
    try:
        address = ipaddress.ip_address(node["NodeManagerAddress"])
    except ValueError:  # a host name: the id decides
        return (0, 0)
    return (address.version, int(address))


def _is_large_enough(node: dict[str, Any], plan: Plan) -> bool:
    return bool(node["Resources"].get("GPU", 0) >= plan.gpus_per_node)


def _reserve(group: DeviceGroup, nodes: list[str]) -> PlacementGroup:
    bundles = [_bundle(group)] * group.bundles
    if not group.gpus:
        reserved: PlacementGroup = placement_group(bundles, strategy="PACK")
    else:
        labels = [{NODE_ID_LABEL: nodes[place.node]} for place in group.places]
        reserved = placement_group(bundles, strategy="PACK", bundle_label_selector=labels)
    return reserved


def _ranked(
    plan: Plan, groups: list[PlacementGroup], nodes: list[str], deadline_s: float, timeout_s: float
) -> list[list[int]]:
    """The bundles of every group by rank: by node in the plan's order, then GPU."""
    on_node = [ray.util.placement_group_table(group)["bundles_to_node_id"] for group in groups]
    if not plan.gpus:
        return [sorted(bundles, key=lambda bundle: (bundles[bundle], bundle)) for bundles in on_node]
    gpus = _gpus_of_bundles(plan, groups, deadline_s, timeout_s)
    return [
        sorted(bundles, key=lambda bundle: (nodes.index(bundles[bundle]), gpus[index][bundle]))
        for index, bundles in enumerate(on_node)
    ]


def _gpus_of_bundles(
    plan: Plan, groups: list[PlacementGroup], deadline_s: float, timeout_s: float
) -> list[dict[int, list[int]]]:
    """The GPUs that Ray gave to every bundle, asked by a task in each where there is a choice."""
    # max_calls=0: the process of the task is free for the worker that comes next.
    probe = ray.remote(num_cpus=0, max_calls=0)(_own_gpus)
    refs: dict[ray.ObjectRef[list[int]], tuple[int, int]] = {}
    for index, (group, placement) in enumerate(zip(plan.groups, groups, strict=True)):
        for bundle in range(group.bundles):
            strategy = PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=bundle)
            refs[probe.options(num_gpus=group.gpus, scheduling_strategy=strategy).remote()] = (index, bundle)
    done, pending = ray.wait(list(refs), num_returns=len(refs), timeout=max(0.0, deadline_s - time.monotonic()))
    if pending:
        for ref in pending:
            ray.cancel(ref, force=True)
        raise ClusterError(
            f"placement: all bundles are reserved, but {len(pending)} of {len(refs)} did not say within "
            f"cluster.start_timeout_s={timeout_s:g} which GPUs they got; look at the raylet logs of their nodes"
        )
    gpus: list[dict[int, list[int]]] = [{} for _ in groups]
    for ref, ids in zip(done, ray.get(done, timeout=timeout_s), strict=True):
        index, bundle = refs[ref]
        gpus[index][bundle] = ids
    return gpus


def _own_gpus() -> list[int]:
    return sorted(int(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids()["GPU"])


def _slots(plan: Plan, role: str, groups: list[PlacementGroup], ranked: list[list[int]]) -> list[Slot]:
    index = plan.group_of(role)
    group = plan.groups[index]
    sharers = len(group.roles)
    gpus, cpus = group.gpus / sharers, group.cpus / sharers
    return [Slot(groups[index], bundle, gpus, cpus) for bundle in ranked[index][: plan.workers[role]]]


def _bundle(group: DeviceGroup) -> dict[str, float]:
    return {"CPU": group.cpus} | ({"GPU": group.gpus} if group.gpus else {})


def _unplaced(plan: Plan, reserved: int, timeout_s: float) -> str:
    groups = "; ".join(f"{'+'.join(group.roles)}: {group.bundles} x {_bundle(group)}" for group in plan.groups)
    there = sum(_is_large_enough(node, plan) for node in _alive())
    return (
        f"placement was not possible within cluster.start_timeout_s={timeout_s:g}. Wanted: {groups}; {plan.nodes} "
        f"nodes wanted, {there} available:\n"
        + wanted_and_there(plan, reserved=reserved)
        + "\nStart the missing nodes, "
        "end what holds their resources, or make the roles smaller (ray-rl plan)"
    )


def wanted_and_there(plan: Plan, *, reserved: int = 0) -> str:
    """What a plan wants of each node, and what there is; a line a node.

    Args:
        plan: of the run.
        reserved: so many of its groups are reserved already: what they hold counts as free.
    """
    from ray._private.state import available_resources_per_node

    alive, free = _alive(), available_resources_per_node()
    fit = [node for node in alive if _is_large_enough(node, plan)]
    lines = []
    for i in range(max(plan.nodes, len(fit))):
        asked = _on_node(plan.groups, i)
        wanted = ", ".join(f"{asked[kind]:g} {kind}" for kind in KINDS)
        if i >= len(fit):
            lines.append(f"  node {i}: wanted {wanted}; no such node is there")
            continue
        node, held = fit[i], _on_node(plan.groups[:reserved], i)
        left = free.get(node["NodeID"], {})
        there = ", ".join(
            f"{left.get(kind, 0) + held[kind]:g} of {node['Resources'].get(kind, 0):g} {kind} free" for kind in KINDS
        )
        lines.append(f"  node {i}: wanted {wanted}; {node['NodeManagerAddress']} has {there}")
    small = [f"{node['NodeManagerAddress']} {node['Resources'].get('GPU', 0):g}" for node in alive if node not in fit]
    if small:
        lines.append(f"  left out, as they have fewer than {plan.gpus_per_node} GPU: {', '.join(small)}")
    return "\n".join(lines)


def _on_node(groups: Sequence[DeviceGroup], node: int) -> dict[str, float]:
    """What groups take of one node."""
    taken = dict.fromkeys(KINDS, 0.0)
    for group in groups:
        bundles = sum(place.node == node for place in group.places)
        taken["GPU"] += bundles * group.gpus
        taken["CPU"] += bundles * group.cpus
    return taken
