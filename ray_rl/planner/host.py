"""Computes the host memory of the nodes, apart from that of their GPUs. docs/planning.md has the terms."""

from __future__ import annotations

from collections.abc import Mapping

from ray_rl.config import RunConfig
from ray_rl.planner.memory import Memory
from ray_rl.planner.plan import Plan
from ray_rl.sizes import GIB

PROCESS_BYTES = {"cpu": GIB, "gpu": 2 * GIB}
"""Memory of a worker's interpreter and libraries, by accelerator: an allowance, not measured on GPU."""


def host_needs(config: RunConfig, layout: Plan, memories: Mapping[str, Memory]) -> tuple[float, ...]:
    """Returns the bytes of host memory that the workers take, by node; on CPU everything is on node 0."""
    needs = [0.0] * layout.nodes
    for role in layout.workers:
        for place in layout.places(role):
            needs[place.node] += _worker_bytes(config, role, memories[role])
    return tuple(needs)


def _worker_bytes(config: RunConfig, role: str, memory: Memory) -> float:
    # An engine has one process per GPU, and one for scheduling.
    processes = 1 + config.rollout.tensor_parallel if role == "rollout" else 1
    accelerator = config.cluster.accelerator
    models = memory.peak if accelerator == "cpu" else max(memory.loading, memory.on_host)
    return PROCESS_BYTES[accelerator] * processes + models
