"""Which nodes of a cluster are there: launchers start the driver when all are, and end it when one is lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

from ray_rl.errors import ClusterError

POLL_S = 1.0
"""Between looks while nodes join."""
WATCH_S = 5.0
"""Between looks once all are there."""


@contextmanager
def joined() -> Iterator[None]:
    """A connection to the cluster at RAY_ADDRESS.

    Raises:
        ClusterError: none answers.
    """
    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, OSError, ray.exceptions.RayError) as error:
        raise ClusterError(f"no Ray cluster answers: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def await_nodes(nodes: int, *, timeout_s: float, note: Callable[[str], None]) -> None:
    """Returns when as many nodes are alive, or more.

    Args:
        nodes: wanted.
        timeout_s: limit for all.
        note: told of every node that joins.

    Raises:
        ClusterError: they are not; says which are.
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
    """Blocks until some are not alive any more, and returns which; a caller that sees none is ended from outside."""
    while not (lost := nodes - living()):
        time.sleep(WATCH_S)
    return lost


def living() -> set[str]:
    """Name and address of the nodes that are alive."""
    return {f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in ray.nodes() if node["Alive"]}
