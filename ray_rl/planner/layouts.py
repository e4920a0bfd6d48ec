"""Enumerates layouts for a number of GPUs: which roles share them, how many each group has, and how engines run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ray_rl.config import RunConfig
from ray_rl.config.roles import ACTOR, CRITIC, REFERENCE, REWARD, ROLLOUT, roles_of
from ray_rl.planner.advice import Changes
from ray_rl.planner.assess import known_shape
from ray_rl.planner.gpus import ClusterShape

UNITS = 16
"""Groups get multiples of a power of two GPUs, of which the cluster has at most so many."""

PARTITIONS = (
    ((ACTOR, CRITIC, REFERENCE, REWARD, ROLLOUT),),
    ((ACTOR, REFERENCE, ROLLOUT), (CRITIC, REWARD)),
    ((ACTOR, ROLLOUT), (CRITIC, REWARD), (REFERENCE,)),
    ((ACTOR, CRITIC, REFERENCE, REWARD), (ROLLOUT,)),
    ((ACTOR, REFERENCE), (CRITIC, REWARD), (ROLLOUT,)),
    ((ACTOR,), (CRITIC,), (REFERENCE,), (REWARD,), (ROLLOUT,)),
)
"""Groups of roles that share GPUs: all; actor and engines, with or without the reference; all but the engines; the
usual pairs; none."""

MOST_GROUPS = 3
"""Partitions into more groups are left out: roles that wait for each other are faster together."""


@dataclass(frozen=True, slots=True)
class Family:
    """Layouts that differ only in the number of GPUs of each group."""

    groups: tuple[tuple[str, ...], ...]
    """Roles that share GPUs; the group of the actor is the first."""
    engine: int
    """GPUs of an engine."""
    staleness: int
    """`rollout.max_staleness`."""

    @property
    def takes_turns(self) -> bool:
        """Whether engines share GPUs with other roles."""
        return any(ROLLOUT in group and len(group) > 1 for group in self.groups)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the roles of a run are."""

    family: Family
    gpus: tuple[int, ...]
    """GPUs of each group."""

    def changes(self, config: RunConfig) -> Changes:
        """Returns the values by which a run has this layout."""
        family = self.family
        by_role = {role: gpus for group, gpus in zip(family.groups, self.gpus, strict=True) for role in group}
        workers = {role: gpus // family.engine if role == ROLLOUT else gpus for role, gpus in by_role.items()}
        changes: Changes = {"cluster.colocate": [list(group) for group in family.groups if len(group) > 1]}
        changes |= {role.workers_key: workers[role.name] for role in roles_of(config)}
        if ROLLOUT in by_role:
            changes |= {"rollout.tensor_parallel": family.engine, "rollout.max_staleness": family.staleness}
            if not family.takes_turns:
                changes["rollout.sleep_level"] = 1
        return changes


def layouts(config: RunConfig, cluster: ClusterShape) -> Iterator[Layout]:
    """Yields the layouts that use all GPUs of a cluster."""
    for family in families(config, cluster):
        for gpus in _divisions(family, cluster.gpus):
            yield Layout(family, gpus)


def families(config: RunConfig, cluster: ClusterShape) -> Iterator[Family]:
    """Yields which roles may share GPUs, for engines of every size, and how old samples may be."""
    present = {role.name for role in roles_of(config)}
    narrowed = [
        tuple(kept for group in groups if (kept := tuple(role for role in group if role in present)))
        for groups in PARTITIONS
    ]
    for groups in dict.fromkeys(narrowed):
        if len(groups) > MOST_GROUPS:
            continue
        if ROLLOUT not in present:
            yield Family(groups, 1, 0)
            continue
        for size in known_shape("model.path", config.model.path).tensor_parallel_sizes():
            if size <= cluster.gpus_per_node:
                together = Family(groups, size, 0)
                yield together
                for staleness in () if together.takes_turns else _steps_ahead(config):
                    yield Family(groups, size, staleness)


def _steps_ahead(config: RunConfig) -> Sequence[int]:
    return (1, 2) if config.rollout.order == "completion" else (1,)


def _divisions(family: Family, total: int) -> Iterator[tuple[int, ...]]:
    """Yields the GPUs of each group: multiples of a unit and of the engines; the actor's group has the rest."""
    unit = 1
    while total > UNITS * unit:
        unit *= 2
    engines = [ROLLOUT in group for group in family.groups]

    def divided(index: int, left: int) -> Iterator[tuple[int, ...]]:
        size = family.engine if engines[index] else 1
        if index == 0:
            yield from [(left,)] if left % size == 0 else []
            return
        for gpus in range(max(unit, size), left, max(unit, size)):
            yield from ((*rest, gpus) for rest in divided(index - 1, left - gpus))

    yield from divided(len(engines) - 1, total)
