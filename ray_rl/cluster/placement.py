"""Reserves placement groups of Ray for a plan, which alone decides where a worker runs."""

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

from ray_rl.config.roles import ROLLOUT
from ray_rl.errors import ClusterError
from ray_rl.planner.plan import DeviceGroup, Plan

NODE_ID_LABEL = "ray.io/node-id"
"""The label with the id of a node, which Ray sets."""

KINDS = ("GPU", "CPU")

POLL_S = 0.5
"""Pause between checks for nodes that have not joined yet."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The place and the resources of one worker."""

    group: PlacementGroup
    bundle: int
    gpus: float
    cpus: float
    visible: tuple[int, ...] = ()
    """GPUs of the node that the worker uses although Ray gives them to others: an engine that shares them."""

    def options(self) -> dict[str, object]:
        """Returns Ray's options for the actor in this slot."""
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.bundle)
        options = {"num_gpus": self.gpus, "num_cpus": self.cpus, "scheduling_strategy": strategy}
        if self.visible:
            # Ray sets this variable only for workers that ask it for GPUs.
            names = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, self.visible))}
            options["runtime_env"] = {"env_vars": names}
        return options


@contextmanager
def placed(plan: Plan, *, timeout_s: float) -> Iterator[dict[str, list[Slot]]]:
    """Reserves all groups, yields a slot for every worker of every role, and releases the groups after the block.

    Node i of the plan is the i-th live node that is large enough, by address. The groups are reserved one after the
    other, because Ray gives a bundle the lowest free GPUs of its node, and the plan relies on that. Tasks then find out
    which bundle got which GPUs, so that rank i is where the plan says. On free nodes these are exactly the GPUs of the
    plan; if other jobs hold some GPUs, the order by (node, GPU) is still that of the plan.

    Roles that share a group share its bundles: each gets an equal part of the GPU. Engines in it get none from
    Ray, which gives a worker the GPUs of one bundle only: they are told which GPUs of the node are theirs.

    Raises:
        ClusterError: the groups were not reserved within `timeout_s`; the message compares the wanted resources with
            the available ones, node by node.
    """
    deadline_s = time.monotonic() + timeout_s
    groups: list[PlacementGroup] = []
    try:
        nodes = _await_nodes(plan, deadline_s, timeout_s)
        for group in plan.groups:
            groups.append(_reserve(group, nodes))
            if not groups[-1].wait(math.ceil(max(0.0, deadline_s - time.monotonic()))):
                raise ClusterError(_unplaced(plan, len(groups) - 1, timeout_s))
        gpus = _gpus_of_bundles(plan, groups, deadline_s, timeout_s) if plan.gpus else []
        ranked = _ranked(plan, groups, nodes, gpus)
        yield {role: _slots(plan, role, groups, ranked, gpus) for role in plan.workers}
    finally:
        for placement in groups:
            remove_placement_group(placement)


def _await_nodes(plan: Plan, deadline_s: float, timeout_s: float) -> list[str]:
    """Returns the ids of the nodes of the plan; none on CPU, where Ray chooses them."""
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
    """Returns the live nodes in a fixed order: by address, then id."""
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
    plan: Plan, groups: list[PlacementGroup], nodes: list[str], gpus: list[dict[int, list[int]]]
) -> list[list[int]]:
    """Returns the bundles of every group by rank: by node in the plan's order, then GPU."""
    on_node = [ray.util.placement_group_table(group)["bundles_to_node_id"] for group in groups]
    if not plan.gpus:
        return [sorted(bundles, key=lambda bundle: (bundles[bundle], bundle)) for bundles in on_node]
    return [
        sorted(bundles, key=lambda bundle: (nodes.index(bundles[bundle]), gpus[index][bundle]))
        for index, bundles in enumerate(on_node)
    ]


def _gpus_of_bundles(
    plan: Plan, groups: list[PlacementGroup], deadline_s: float, timeout_s: float
) -> list[dict[int, list[int]]]:
    """Returns the GPUs that Ray gave to every bundle, which a task in each bundle finds out."""
    # max_calls=0: the process of the task stays free for the next worker.
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
            f"placement: all bundles are reserved, but {len(pending)} of {len(refs)} did not report their GPUs within "
            f"cluster.start_timeout_s={timeout_s:g}; look at the raylet logs of their nodes"
        )
    gpus: list[dict[int, list[int]]] = [{} for _ in groups]
    for ref, ids in zip(done, ray.get(done, timeout=timeout_s), strict=True):
        index, bundle = refs[ref]
        gpus[index][bundle] = ids
    return gpus


def _own_gpus() -> list[int]:
    return sorted(int(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids()["GPU"])


def _slots(
    plan: Plan,
    role: str,
    groups: list[PlacementGroup],
    ranked: list[list[int]],
    gpus: list[dict[int, list[int]]],
) -> list[Slot]:
    index = plan.group_of(role)
    group = plan.groups[index]
    cpus = group.cpus / len(group.roles)
    if role == ROLLOUT and group.has_sleeping_engines:
        engines = zip(*[iter(ranked[index])] * group.block, strict=True)
        return [
            Slot(
                groups[index],
                bundles[0],
                0,
                cpus,
                tuple(gpu for bundle in bundles for gpu in gpus[index][bundle]) if gpus else (),
            )
            for bundles in engines
        ]
    sharers = len(group.roles) - group.has_sleeping_engines
    return [Slot(groups[index], bundle, group.gpus / sharers, cpus) for bundle in ranked[index][: plan.workers[role]]]


def _bundle(group: DeviceGroup) -> dict[str, float]:
    return {"CPU": group.cpus} | ({"GPU": group.gpus} if group.gpus else {})


def _unplaced(plan: Plan, reserved: int, timeout_s: float) -> str:
    groups = "; ".join(f"{'+'.join(group.roles)}: {group.bundles} x {_bundle(group)}" for group in plan.groups)
    there = sum(_is_large_enough(node, plan) for node in _alive())
    return (
        f"placement was not possible within cluster.start_timeout_s={timeout_s:g}. Wanted: {groups}; {plan.nodes} "
        f"nodes wanted, {there} available:\n"
        + wanted_and_there(plan, reserved=reserved)
        + "\nStart the missing nodes, end jobs that hold their resources, or make the roles smaller (ray-rl plan)"
    )


def wanted_and_there(plan: Plan, *, reserved: int = 0) -> str:
    """Returns a line for each node: the resources that a plan wants, and those that are available.

    Args:
        plan: the plan of the run.
        reserved: the number of groups that are already reserved; their resources count as free.
    """
    from ray._private.state import available_resources_per_node

    alive, free = _alive(), available_resources_per_node()
    fit = [node for node in alive if _is_large_enough(node, plan)]
    lines = []
    for i in range(max(plan.nodes, len(fit))):
        asked = _on_node(plan.groups, i)
        wanted = ", ".join(f"{asked[kind]:g} {kind}" for kind in KINDS)
        if i >= len(fit):
            lines.append(f"  node {i}: wanted {wanted}; there is no such node")
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
    """Returns the resources that groups take on one node."""
    taken = dict.fromkeys(KINDS, 0.0)
    for group in groups:
        bundles = sum(place.node == node for place in group.places)
        taken["GPU"] += bundles * group.gpus
        taken["CPU"] += bundles * group.cpus
    return taken
