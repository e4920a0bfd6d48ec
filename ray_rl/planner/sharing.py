"""Computes what a GPU holds in each phase of a run in which engines take turns with the other roles.

While engines sample, the trained and the frozen roles leave the GPU; reward models stay, because they score then. While
models are trained, engines sleep without weights and KV cache. In a publish the actor has only its weights there, and
the engines have theirs; if adapters are published, the actor's are on the host, and a layer at a time is copied. What
the actor lends to engines, to carry weights, is always there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ray_rl.config import RunConfig
from ray_rl.config.gpus import sharers_of_engines
from ray_rl.config.roles import ACTOR, REWARD, ROLLOUT
from ray_rl.planner.memory import Memory

SAMPLE, TRAIN, PUBLISH = "sample", "train", "publish"

MOVED = ("weights", "gradients", "optimizer")
"""Terms that are copied to the host before the GPU is needed for something else; the rest is freed, or stays."""

ASLEEP = ("context", "graphs")
"""Terms that remain while an engine sleeps."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What the roles of a group hold at the same time on one GPU."""

    name: str
    terms: Mapping[str, Mapping[str, float]]
    """Bytes by role and term."""

    def of(self, role: str) -> float:
        """Returns the bytes of a role."""
        return sum(self.terms[role].values())

    @property
    def total(self) -> float:
        """Bytes of all roles."""
        return sum(map(self.of, self.terms))


def with_parked(config: RunConfig, memories: Mapping[str, Memory]) -> dict[str, Memory]:
    """Returns the memories of all roles, with what moves to the host while engines sample.

    The host has room for what all roles move, because pinned memory is kept for the next step.
    """
    sharers = sharers_of_engines(config)
    if not sharers or config.cluster.accelerator == "cpu":
        return dict(memories)
    parked = {role: sum(memories[role].held.get(term, 0.0) for term in MOVED) for role in sharers if role != REWARD}
    if config.rollout.sleep_level == 1:
        parked[ROLLOUT] = memories[ROLLOUT].held["weights"] * config.rollout.tensor_parallel
    return {role: replace(memory, parked=parked.get(role, 0.0)) for role, memory in memories.items()}


def phases_of(roles: Sequence[str], memories: Mapping[str, Memory]) -> tuple[Phase, ...]:
    """Returns the phases of a group of roles that engines share: sampling, training, and the publish."""
    return tuple(
        Phase(name, {role: _in_phase(name, memories[role]) for role in roles}) for name in (SAMPLE, TRAIN, PUBLISH)
    )


def peak_of(roles: Sequence[str], memories: Mapping[str, Memory]) -> float:
    """Returns the most bytes that the roles of a group take on one GPU at the same time."""
    if ROLLOUT in roles and len(roles) > 1:
        return max(phase.total for phase in phases_of(roles, memories))
    return sum(memories[role].peak for role in roles)


def _in_phase(name: str, memory: Memory) -> dict[str, float]:
    held, phases = dict(memory.held), {name: dict(terms) for name, terms in memory.phases.items()}
    if memory.role == ROLLOUT:
        asleep = {term: held[term] for term in ASLEEP if term in held}
        awake = {SAMPLE: held | phases["forward"], PUBLISH: asleep | {"weights": held["weights"]} | phases["sync"]}
        return awake.get(name, asleep)
    if memory.role == REWARD:
        return held | phases["forward"] if name == SAMPLE else held
    if name == TRAIN:
        own = [terms for phase, terms in phases.items() if phase != "sync"]
        return held | max(own, key=lambda terms: sum(terms.values()))
    always: dict[str, float] = {term: held[term] for term in ("context", "lent") if term in held}
    if name == PUBLISH and memory.role == ACTOR:
        weights = {} if memory.sends_from_host else {"weights": held["weights"]}
        return always | weights | phases["sync"]
    return always
