"""Watches the nodes of a cluster: launchers start the driver when all have joined, and end it when one is lost."""

from __future__ import annotations

import time
from collections.abc import Callable

import ray

from ray_rl.errors import ClusterError

POLL_S = 1.0
"""Pause between checks while nodes join."""
WATCH_S = 5.0
"""Pause between checks once all nodes have joined."""


def await_nodes(nodes: int, *, timeout_s: float, note: Callable[[str], None]) -> None:
    """Waits until enough nodes are alive.

    Args:
        nodes: the number of nodes to wait for.
        timeout_s: the limit of the wait.
        note: called with a text for every node that joins.

    Raises:
        ClusterError: too few nodes joined in time; the message names them.
    """
    deadline_s = time.monotonic() + timeout_s
    seen: set[str] = set()
    while True:
        alive = living()
        for name in sorted(alive - seen):
            note(f"{len(alive)} of {nodes} nodes: {name} has joined")
        seen |= alive
        if len(alive) >= nodes:
            return
        if time.monotonic() >= deadline_s:
            there = ", ".join(sorted(alive)) or "none"
            raise ClusterError(f"{len(alive)} of {nodes} nodes joined within {timeout_s:g} s: {there}")
        time.sleep(POLL_S)


def lost_of(nodes: set[str]) -> set[str]:
    """Blocks until some of the nodes are lost, and returns them. It has no limit: launchers stop this process."""
    while not (lost := nodes - living()):
        time.sleep(WATCH_S)
    return lost


def living() -> set[str]:
    """Returns name and address of each live node."""
    return {f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in ray.nodes() if node["Alive"]}
