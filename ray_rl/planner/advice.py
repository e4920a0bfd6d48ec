"""Proposes changes to a run that does not fit. Every proposal was planned and fits."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from ray_rl.catalog.models import find_shape
from ray_rl.config import RunConfig
from ray_rl.config.adapter import RATE_RATIO
from ray_rl.config.gpus import sharers_of_engines
from ray_rl.config.rewards import ModelReward
from ray_rl.config.roles import ACTOR, REFERENCE, ROLLOUT, USUAL_PAIRS, Role, roles_of
from ray_rl.config.rules.adapter import OF_REFERENCE_WORKERS, adapter_rules
from ray_rl.config.rules.algorithm import algorithm_rules, training_rules
from ray_rl.config.rules.hardware import hardware_rules
from ray_rl.config.train import CriticConfig, ReferenceConfig, TrainConfig, Trained
from ray_rl.planner.assess import DTYPE, USABLE, Assessment, assess, known_shape, role_memories
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.memory import Bounds
from ray_rl.planner.sharing import phases_of

Changes = dict[str, Any]
"""Values by dotted key, as on the command line."""

SMALLEST_CHUNK = 256
"""The smallest chunk of logits that is proposed: a smaller one does not use a GPU fully."""

MEMORY_FRACTION = 0.95
"""The largest fraction of a GPU's memory that is proposed for an engine."""

OF_ADAPTERS = "trains adapters in place of all weights, which changes what is learnt"
OF_4_BITS = "trains adapters over weights that are rounded to 4 bits, which changes what is learnt"


@dataclass(frozen=True, slots=True)
class Proposal:
    """Changes that make the run fit."""

    changes: Changes
    nodes: int
    """Number of nodes of the cluster after the changes."""
    host_bytes: float | None = None
    """Memory that every node needs after the changes; None if it was checked or nothing is offloaded."""
    remark: str | None = None
    """Another effect of the changes, such as that they change what is learnt."""

    @property
    def words(self) -> list[str]:
        """One word per change, quoted for a shell."""
        return words_of(self.changes)


def words_of(changes: Changes) -> list[str]:
    """Returns one word of a command per change, quoted for a shell."""
    return [shlex.quote(f"{key}={_written(value)}") for key, value in changes.items()]


def propose(config: RunConfig, assessment: Assessment) -> list[Proposal]:
    """Returns proposals that make the run fit, the smallest change first; empty if no known change helps."""
    cluster = assessment.cluster
    search = _Search(config, cluster)
    found: list[Proposal | None] = []
    if all(problem.roles for problem in assessment.problems):
        found.append(search.fix_memory({}))
    else:
        nodes = max(assessment.layout.nodes, cluster.nodes)
        found += [
            search.fix_memory(_reference_before(config)) if _reference_before(config) else None,
            _Search(config, replace(cluster, nodes=nodes)).fix_memory({"cluster.nodes": nodes}),
            search.fix_memory(_shared(config)) if _shared(config) else None,
            search.take_turns(),
            search.shrink(assessment.layout.gpus),
        ]
    found.append(search.grow(assessment))
    proposals = [proposal for proposal in found if proposal is not None]
    adapted = search.adapt(assessment.layout.gpus)
    return proposals if adapted is None or _is_idle(adapted, proposals) else [*proposals, adapted]


def changed(config: RunConfig, changes: Changes) -> RunConfig:
    """Returns the configuration with some values changed."""
    tree = config.model_dump()
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node[parent]
        node[last] = value
    return RunConfig.model_validate(tree)


def planned(config: RunConfig, cluster: ClusterShape, changes: Changes) -> Assessment | None:
    """Returns the assessment with the changes; None if a rule forbids them or there are too few GPUs."""
    config = changed(config, changes)
    nodes = {"nodes": cluster.nodes, "gpus_per_node": cluster.gpus_per_node}
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update=nodes)})
    rules = (algorithm_rules(config), training_rules(config), adapter_rules(config))
    if any((*chain(*rules), *hardware_rules(config, cluster.gpus))):
        return None
    assessment = assess(config, cluster)
    has_room = all(problem.roles for problem in assessment.problems)
    return assessment if has_room else None


def take_turns(config: RunConfig, cluster: ClusterShape) -> Proposal | None:
    """Returns changes by which all roles take turns on all GPUs; None if they do not help or already do."""
    return _Search(config, cluster).take_turns()


def engine_fraction(config: RunConfig, cluster: ClusterShape) -> float:
    """Returns the largest share of a GPU's memory that engines can have."""
    sharers, total = sharers_of_engines(config), cluster.gpu.memory_bytes
    if not sharers:
        return max(MEMORY_FRACTION, config.rollout.gpu_memory_fraction)
    memories, _ = role_memories(config, cluster)
    sample, *_ = phases_of(sharers, memories)
    return max(0.01, math.floor(100 * (USABLE - sample.total / total)) / 100)


@dataclass(frozen=True, slots=True)
class _Search:
    config: RunConfig
    cluster: ClusterShape

    def fix_memory(self, base: Changes) -> Proposal | None:
        """Returns `base` with the fewest memory remedies that make it fit, or None.

        Does not offload if the nodes have too little memory.
        """
        proposal = self._fix(base, list(self._remedies(base)))
        if proposal is not None or self.cluster.host_bytes is None:
            return proposal
        kept = base | _without_offloading(changed(self.config, base))
        return self._fix(kept, [(role, remedy) for role, remedy in self._remedies(kept) if not _offloads(remedy)])

    def _fix(self, base: Changes, remedies: list[tuple[str, Changes]]) -> Proposal | None:
        applied = dict(base)
        assessment = self._try(applied)
        if assessment is None:
            return None
        for role, remedy in remedies:
            if assessment.fits:
                break
            if role not in {role for problem in assessment.problems for role in problem.roles}:
                continue
            attempt = self._try(applied | remedy)
            if attempt is not None:
                applied |= remedy
                assessment = attempt
        if not assessment.fits:
            return None
        needed = self._without_idle(applied, keep=base)
        final = self._try(needed)
        assert final is not None, "the same changes were tried before"
        is_unchecked = final.offloads and self.cluster.host_bytes is None
        return Proposal(needed, self.cluster.nodes, final.host_bytes if is_unchecked else None)

    def take_turns(self) -> Proposal | None:
        """Proposes that all roles share all GPUs, with engines as wide as they are, or wider if they must be."""
        if self.config.is_offline or sharers_of_engines(self.config):
            return None
        roles, sizes = roles_of(self.config), known_shape("model.path", self.config.model.path).tensor_parallel_sizes()
        gpus, at_least = self.cluster.gpus, self.config.rollout.tensor_parallel
        usable = [size for size in sizes if gpus % size == 0 and size <= self.cluster.gpus_per_node]
        for size in sorted(usable, key=lambda size: (size < at_least, abs(size - at_least))):
            changes: Changes = {"cluster.colocate": [[role.name for role in roles]]}
            changes |= {role.workers_key: gpus for role in roles}
            changes |= {"rollout.engines": gpus // size, "rollout.tensor_parallel": size, "rollout.max_staleness": 0}
            proposal = self.fix_memory(only_new(self.config, changes))
            if proposal is not None:
                return proposal
        return None

    def shrink(self, gpus: int) -> Proposal | None:
        """Proposes smaller roles, all by the same ratio, until they fit the available GPUs."""
        for divisor in (1.0, 1.25, 1.5, 2.0, 3.0, 4.0):
            ratio = self.cluster.gpus / gpus / divisor
            proposal = self.fix_memory(_scaled(self.config, ratio, {role.name for role in roles_of(self.config)}))
            if proposal is not None:
                return proposal
        return None

    def grow(self, assessment: Assessment) -> Proposal | None:
        """Proposes twice the workers for the roles that do not fit, on as few additional nodes as possible."""
        troubled = {role for problem in assessment.problems for role in problem.roles} - {ROLLOUT}
        sharers = set(sharers_of_engines(self.config))
        if troubled & sharers:
            troubled |= sharers | {ROLLOUT}
        twice = _scaled(self.config, 2.0, troubled)
        for nodes in range(self.cluster.nodes, 2 * self.cluster.nodes + 1):
            more = {} if nodes == self.cluster.nodes else {"cluster.nodes": nodes}
            larger = _Search(self.config, replace(self.cluster, nodes=nodes))
            proposal = larger.fix_memory(twice | more) if twice else None
            if proposal is not None:
                return proposal
        return None

    def adapt(self, gpus: int) -> Proposal | None:
        """Proposes adapters, if need be over weights in 4 bits, with what else is needed on the available GPUs."""
        found = []
        for adapted, remark in _adapted(self.config):
            smaller = _Search(changed(self.config, adapted), self.cluster)
            proposal = smaller.fix_memory({}) or smaller.take_turns() or smaller.shrink(gpus)
            if proposal is not None:
                found.append(replace(proposal, changes=adapted | proposal.changes, remark=remark))
        # Copies of frozen weights from the host for every micro-batch take longer than what 4 bits take.
        return next((each for each in found if not _offloads(each.changes)), next(iter(found), None))

    def _try(self, changes: Changes) -> Assessment | None:
        return planned(self.config, self.cluster, changes)

    def _without_idle(self, applied: dict[str, Any], *, keep: Changes) -> Changes:
        """Drops the remedies that are not needed, the costliest first."""
        for key in reversed(list(applied)):
            if key in keep:
                continue
            fewer = {name: value for name, value in applied.items() if name != key}
            assessment = self._try(fewer)
            if assessment is not None and assessment.fits:
                applied = fewer
        return applied

    def _remedies(self, base: Changes) -> Iterator[tuple[str, Changes]]:
        """Yields roles and changes that save their memory; the cheapest in time first."""
        config = changed(self.config, base)
        yield DTYPE, {"model.dtype": "float32"}
        if before := _reference_before(config):
            yield REFERENCE, before
        for role in roles_of(config):
            yield from ((role.name, remedy) for remedy in _role_remedies(config, role))
        rollout, shape = config.rollout, find_shape(config.model.path)
        yield ROLLOUT, {"rollout.gpu_memory_fraction": engine_fraction(config, self.cluster)}
        gpus = rollout.engines * rollout.tensor_parallel
        for size in [] if shape is None else shape.tensor_parallel_sizes():
            if rollout.tensor_parallel < size <= self.cluster.gpus_per_node:
                yield ROLLOUT, {"rollout.tensor_parallel": size, "rollout.engines": max(1, gpus // size)}


def _reference_before(config: RunConfig) -> Changes:
    """Returns changes by which a reference needs no workers: the policy takes its part before the first step.

    Empty if the algorithm has no such reference, or if the reference is another model than the policy at its start.
    """
    for role in roles_of(config) if config.is_offline else ():
        if (others := _without_workers(config, role)) is not None:
            return {f"{role.key}.when": "before", **others}
    return {}


def _without_workers(config: RunConfig, role: Role) -> Changes | None:
    """Returns changes by which a reference has no settings of workers; None if it is another model than the policy."""
    live = role.settings
    if not isinstance(live, ReferenceConfig) or live.path not in (None, config.model.path):
        return None
    defaults = {name: ReferenceConfig.model_fields[name].get_default() for name in OF_REFERENCE_WORKERS}
    return {f"{role.key}.{name}": value for name, value in defaults.items() if vars(live)[name] != value}


def _adapted(config: RunConfig) -> Iterator[tuple[Changes, str]]:
    """Yields changes by which adapters are trained, and the same over weights in 4 bits, with a remark each.

    Adapters come with their learning rates, and without workers of a reference.
    """
    adapter = config.model.adapter
    if adapter is not None:
        if adapter.quantise is None:
            yield {"model.adapter.quantise": "nf4"}, OF_4_BITS
        return
    changes: Changes = {"model.adapter": {"kind": "lora"}, "train.frozen_layers": 0}
    for role in roles_of(config):
        if role.trained is not None:
            changes[f"{role.key}.learning_rate"] = float(f"{RATE_RATIO * role.trained.learning_rate:.6g}")
        changes |= _without_workers(config, role) or {}
    changes = only_new(config, changes)
    yield changes, OF_ADAPTERS
    yield changes | {"model.adapter": {"kind": "lora", "quantise": "nf4"}}, OF_4_BITS


def _is_idle(adapted: Proposal, proposals: Collection[Proposal]) -> bool:
    """Returns whether another proposal makes the same changes without adapters, whatever share engines then have."""
    share = "rollout.gpu_memory_fraction"
    own = adapted.changes
    return any(
        all(key in own and (key == share or own[key] == value) for key, value in each.changes.items())
        for each in proposals
    )


def _scaled(config: RunConfig, ratio: float, roles: Collection[str]) -> Changes:
    """Returns changes that multiply the workers of some roles by a ratio; engines that share GPUs take all of these."""
    sharers, size = sharers_of_engines(config), config.rollout.tensor_parallel
    workers = {role.name: max(1, math.floor(role.workers * ratio)) for role in roles_of(config)}
    if sharers:
        engines = max(1, workers[ACTOR] // size)
        workers |= dict.fromkeys(sharers, engines * size) | {ROLLOUT: engines}
    return {role.workers_key: workers[role.name] for role in roles_of(config) if role.name in roles}


def only_new(config: RunConfig, changes: Changes) -> Changes:
    """Returns the changes that change a value."""
    before = config.model_dump()
    return {key: value for key, value in changes.items() if value_at(before, key) != value}


def value_at(tree: Any, key: str) -> Any:
    """Returns the value at a dotted key."""
    for part in key.split("."):
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    return tree


def _role_remedies(config: RunConfig, role: Role) -> Iterator[Changes]:
    match role.settings:
        case TrainConfig() | CriticConfig() as trained:
            yield from _trained_remedies(config, role.key, trained)
        case ReferenceConfig():
            yield {f"{role.key}.zero_stage": 3}
            yield {f"{role.key}.zero_stage": 3, f"{role.key}.offload": True}
        case ModelReward():
            yield {f"{role.key}.micro_batch_tokens": Bounds(config).longest}
            yield {f"{role.key}.workers": len(role.models)}
        case _:
            pass  # the engines' remedies depend on the cluster


def _trained_remedies(config: RunConfig, key: str, trained: Trained) -> Iterator[Changes]:
    yield {f"{key}.gradient_checkpointing": True}
    yield from ({f"{key}.zero_stage": stage} for stage in range(trained.zero_stage + 1, 4))
    tokens, least = trained.micro_batch_tokens, Bounds(config).micro_batch(0)
    while tokens > least:
        tokens = max(tokens // 2, least)
        yield {f"{key}.micro_batch_tokens": tokens}
    if key == "train" and config.logit_chunk_tokens > SMALLEST_CHUNK:
        yield {"train.logit_chunk_tokens": SMALLEST_CHUNK}
    yield {f"{key}.offload.optimizer": True}
    yield {f"{key}.offload.parameters": True}


def _shared(config: RunConfig) -> Changes:
    """Returns changes that put the usual pairs of roles on the same GPUs, if both have equally many workers."""
    workers = {role.name: role.workers for role in roles_of(config)}
    pairs = [list(pair) for pair in USUAL_PAIRS]
    together = [pair for pair in pairs if pair[0] in workers and workers.get(pair[1]) == workers[pair[0]]]
    return {"cluster.colocate": together} if together and together != config.cluster.colocate else {}


def _without_offloading(config: RunConfig) -> Changes:
    """Returns changes that disable offloading to the nodes' memory."""
    off: dict[str, Any] = {}
    for role in roles_of(config):
        match role.settings:
            case TrainConfig() | CriticConfig() as trained:
                parts = trained.offload.model_dump()
                off |= {f"{role.key}.offload.{part}": False for part, is_on in parts.items() if is_on}
            case ReferenceConfig(offload=True):
                off[f"{role.key}.offload"] = False
            case _:
                pass
    return off


def _offloads(remedy: Changes) -> bool:
    return any("offload" in key and value for key, value in remedy.items())


def _written(value: Any) -> str:
    """Formats a value for the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_written(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
