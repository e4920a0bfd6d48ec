"""Packs groups of GPUs into nodes, with pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """The GPUs of one bundle."""

    node: int
    """Index of the node."""
    gpus: tuple[int, ...]
    """Indices of the GPUs on the node; empty on CPU."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request for the bundles of one group."""

    bundles: int
    gpus: int
    """GPUs of each bundle."""
    block: int = 1
    """Bundles that are on one node together: those of an engine that shares them. Divides the number of bundles."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A request and the places of its bundles."""

    request: int
    """Index of the request."""
    places: tuple[Place, ...]
    """Places of the bundles, ascending by node and GPU: rank order is topology order."""


def pack(requests: Sequence[Request], *, gpus_per_node: int) -> list[Packed]:
    """Places every bundle of every request, on as many nodes as needed.

    First fit: a block of bundles goes to the first node with enough free GPUs and takes the lowest ones, so it never
    crosses nodes. Requests with the largest blocks are placed first if that needs fewer nodes; otherwise the order is
    kept.

    Args:
        requests: blocks of at most `gpus_per_node` GPUs.
        gpus_per_node: GPUs of each node.

    Returns:
        The requests in the order of placement. Reserving in this order, always with the lowest free GPUs of the node,
        results in the same places.
    """
    in_order = list(range(len(requests)))
    widest_first = sorted(in_order, key=lambda index: -requests[index].gpus * requests[index].block)
    packings = [_first_fit(requests, order, gpus_per_node) for order in (in_order, widest_first)]
    return min(packings, key=lambda packing: nodes_used(packed.places for packed in packing))


def nodes_used(packing: Iterable[Sequence[Place]]) -> int:
    """Returns how many nodes a packing uses."""
    return 1 + max((place.node for places in packing for place in places), default=0)


def _first_fit(requests: Sequence[Request], order: Sequence[int], gpus_per_node: int) -> list[Packed]:
    taken: list[int] = []
    packing = []
    for index in order:
        request = requests[index]
        size, places = request.gpus, []
        for _ in range(request.bundles // request.block):
            wanted = size * request.block
            node = next((n for n, used in enumerate(taken) if used + wanted <= gpus_per_node), len(taken))
            if node == len(taken):
                taken.append(0)
            first, taken[node] = taken[node], taken[node] + wanted
            places += [Place(node, tuple(range(gpu, gpu + size))) for gpu in range(first, taken[node], size)]
        packing.append(Packed(index, tuple(sorted(places, key=lambda place: (place.node, place.gpus)))))
    return packing
