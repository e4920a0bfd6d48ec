"""Packing groups of GPUs into nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """GPUs of one bundle."""

    node: int
    """Index of the node."""
    gpus: tuple[int, ...]
    """Indices of its GPUs; none on CPU."""


@dataclass(frozen=True, slots=True)
class Request:
    """Bundles of one group."""

    bundles: int
    gpus: int
    """Of each bundle."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A request and where it went."""

    request: int
    """Its index."""
    places: tuple[Place, ...]
    """Of its bundles, ascending by node and GPU: rank order is topology order."""


def pack(requests: Sequence[Request], *, gpus_per_node: int) -> list[Packed]:
    """Places of every bundle of every request, on as many nodes as that takes.

    First fit: a bundle goes to the first node that has its GPUs free, and takes the lowest of them, so it never crosses
    a node. Requests with the largest bundles are served first where that needs fewer nodes; else they are in order.

    Args:
        requests: bundles of at most `gpus_per_node` GPUs.
        gpus_per_node: of each node.

    Returns:
        The requests in the order in which they were served: who reserves in this order, and always takes the lowest
        GPUs that are free on the node, gets the same ones.
    """
    in_order = list(range(len(requests)))
    widest_first = sorted(in_order, key=lambda index: -requests[index].gpus)
    packings = [_first_fit(requests, order, gpus_per_node) for order in (in_order, widest_first)]
    return min(packings, key=lambda packing: nodes_used(packed.places for packed in packing))


def nodes_used(packing: Iterable[Sequence[Place]]) -> int:
    """Nodes that a packing takes."""
    return 1 + max((place.node for places in packing for place in places), default=0)


def _first_fit(requests: Sequence[Request], order: Sequence[int], gpus_per_node: int) -> list[Packed]:
    taken: list[int] = []
    packing = []
    for index in order:
        request = requests[index]
        places = []
        for _ in range(request.bundles):
            node = next((n for n, used in enumerate(taken) if used + request.gpus <= gpus_per_node), len(taken))
            if node == len(taken):
                taken.append(0)
            places.append(Place(node, tuple(range(taken[node], taken[node] + request.gpus))))
            taken[node] += request.gpus
        packing.append(Packed(index, tuple(sorted(places, key=lambda place: (place.node, place.gpus)))))
    return packing
