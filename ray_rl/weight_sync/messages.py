"""Messages of driver, trainer and engines about a transfer of weights. Loads without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ray_rl.metrics.metric import Metric

Digests = dict[str, dict[int, str]]
"""Digests by parameter, then by the first element of each of its parts."""

NCCL_BUFFERS = 2
"""Concurrent buckets of vLLM's packed broadcast over NCCL; both sides must use the same number."""


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """The address where sender and engines meet, and the settings of their group."""

    address: str
    port: int
    world: int
    """Size of the group: 1 + the workers of all engines."""
    capacity_bytes: int
    timeout_s: float
    segment: str
    """Name of the shared memory, if the transport uses it."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The result of a publish on one rank of the trainer."""

    metrics: list[Metric]
    digests: Digests
    """Digests of the rank's own parts; the driver merges those of all ranks."""


def merged(ranks: Iterable[Digests]) -> Digests:
    """Returns the digests of all ranks of the trainer together; each rank has its own parts."""
    found: Digests = {}
    for digests in ranks:
        for name, parts in digests.items():
            found[name] = found.get(name, {}) | parts
    return found
