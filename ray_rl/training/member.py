"""The place of a worker among the workers of its role."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """The rank of a worker, and the address at which the ranks of its role meet."""

    rank: int
    world: int
    address: str
    port: int
