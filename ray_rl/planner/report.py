"""Prints an assessment as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from ray_rl.config import RunConfig
from ray_rl.errors import ConfigError
from ray_rl.planner.adapter_report import adapter_lines
from ray_rl.planner.advice import Proposal, propose
from ray_rl.planner.arithmetic import step_arithmetic
from ray_rl.planner.assess import USABLE, Assessment, known_shape
from ray_rl.planner.gpus import ClusterShape
from ray_rl.planner.layout import Place
from ray_rl.planner.memory import Memory
from ray_rl.planner.pasting import WIDTH, pasted
from ray_rl.planner.plan import DeviceGroup, Plan
from ray_rl.planner.sampling import sync_bytes
from ray_rl.planner.sharing import peak_of, phases_of
from ray_rl.planner.throughput import ASSUMED, Assumptions
from ray_rl.planner.time_report import time_lines
from ray_rl.sizes import GIB

TERMS = (
    "context",
    "weights",
    "gradients",
    "optimizer",
    "buckets",
    "gathered",
    "lent",
    "activations",
    "logits",
    "step",
    "sync",
    "graphs",
    "KV cache",
)
"""Rows of the memory table; docs/planning.md has their formulas."""


def report(config: RunConfig, assessment: Assessment, assumed: Assumptions = ASSUMED) -> list[str]:
    """Returns lines with the layout, the sizes of a step, the memory, the bytes of a publish and the estimated time."""
    parts = (
        _layout(assessment),
        _arithmetic(config),
        chain(_memory(assessment), _cache(config, assessment)),
        chain(_sync(config, assessment), adapter_lines(config, assessment), time_lines(config, assessment, assumed)),
    )
    lines = [line for part in parts for line in (*part, "")][:-1]
    return [short for line in lines for short in _wrapped(line)]


def verdict(assessment: Assessment) -> str:
    """Returns one line: whether the run fits, and the memory that every node needs if that was not checked."""
    if not assessment.fits:
        return "does not fit"
    if assessment.offloads and assessment.cluster.host_bytes is None:
        return f"fits, if every node has {assessment.host_bytes / GIB:.0f} GiB of memory for it (--host-memory)"
    return "fits"


def require_fit(config: RunConfig, assessment: Assessment) -> None:
    """Refuses a run that does not fit.

    Raises:
        ConfigError: the message has every problem, and changes that make the run fit.
    """
    if not assessment.fits:
        raise ConfigError(refusal(assessment, propose(config, assessment)))


def refusal(assessment: Assessment, proposals: Sequence[Proposal]) -> str:
    """Returns every problem, and changes that help, as words to append to the command."""
    lines = ["the run does not fit:"]
    for problem in assessment.problems:
        needs, _, there = f"  {problem.text}".rpartition(", and ")
        is_short = len(problem.text) <= WIDTH - 2
        lines += [f"  {problem.text}"] if is_short else [*_wrapped(f"{needs},"), *_wrapped(f"      and {there}")]
    if proposals:
        lines.append("each of these changes makes it fit:")
        for proposal in proposals:
            lines += pasted(proposal.words)
            if proposal.remark is not None:
                lines.append(f"    ({proposal.remark})")
            if proposal.host_bytes is not None:
                lines.append(
                    f"    (if every node has {proposal.host_bytes / GIB:.0f} GiB of memory for it: --host-memory)"
                )
    else:
        tokens = "rollout.max_tokens" if "rollout" in assessment.layout.workers else "data.max_tokens"
        lines.append(f"set a smaller model.path, fewer tokens ({tokens}), or --gpu or --host-memory to more")
    return "\n".join(lines)


def _wrapped(line: str) -> list[str]:
    """Returns the line, broken between words; continuation lines are indented further."""
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent + "    ", break_on_hyphens=False) or [""]


def _layout(assessment: Assessment) -> Iterator[str]:
    layout, cluster = assessment.layout, assessment.cluster
    workers = ", ".join(f"{count} {role}" for role, count in layout.workers.items())
    if not layout.gpus:
        yield f"layout: {workers}, on CPU"
        return
    yield (
        f"layout: {workers}: {layout.gpus} of {cluster.nodes} x {cluster.gpus_per_node} GPUs "
        f"({cluster.gpu.name}, {cluster.gpu.memory_bytes / GIB:.1f} GiB each)"
    )
    for node in range(layout.nodes):
        missing = "" if node < cluster.nodes else "   <- there is no such node"
        yield f"  node {node}: " + "; ".join(_on_node(layout, node)) + missing
    yield from _idle(layout, cluster)


def _idle(layout: Plan, cluster: ClusterShape) -> Iterator[str]:
    """Yields the GPUs that the run would reserve without using them, by node."""
    used = dict.fromkeys(range(cluster.nodes), 0)
    for group in layout.groups:
        for place in group.places:
            used[place.node] = used.get(place.node, 0) + group.gpus
    free = {node: cluster.gpus_per_node - used[node] for node in range(cluster.nodes)}
    unused = [node for node, gpus in free.items() if gpus == cluster.gpus_per_node]
    where = [
        f"GPU {_range([cluster.gpus_per_node - gpus, cluster.gpus_per_node - 1][: min(gpus, 2)])} of node {node}"
        for node, gpus in free.items()
        if 0 < gpus < cluster.gpus_per_node
    ]
    if unused:
        where.append(f"all of node {_range(unused)}" if len(unused) == 1 else f"all of nodes {_range(unused)}")
    if where:
        yield f"  idle: {sum(free.values())} of {cluster.gpus} GPUs ({', '.join(where)}); no role uses them"


def _on_node(layout: Plan, node: int) -> Iterator[str]:
    """Yields the ranks and their GPUs: "actor 0-7 on GPU 0-7"."""
    for group in layout.groups:
        here = [(rank, place) for rank, place in enumerate(group.places) if place.node == node]
        if here:
            ranks = _range([rank for rank, _ in here])
            if group.gpus > 1:
                gpus = ", ".join(_gpus(place) for _, place in here)
            else:
                gpus = _range([place.gpus[0] for _, place in here])
            engines = f" (an engine on every {group.block})" if group.block > 1 else ""
            yield f"{'+'.join(group.roles)} {ranks} on GPU {gpus}{engines}"


def _gpus(place: Place) -> str:
    return _range(list(place.gpus))


def _count(number: int, noun: str) -> str:
    """Returns a number of things: "1 step", "2 steps", "2 micro-batches"."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('h') else 's'}"


def _range(numbers: Sequence[int]) -> str:
    """Formats consecutive numbers as a range, as the lowest free GPUs of a node always are."""
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _arithmetic(config: RunConfig) -> Iterator[str]:
    step = step_arithmetic(config)
    if config.is_offline:
        pairs = f" ({step.prompts} pairs)" if step.group_size > 1 else ""
        noun = "sequences"
        yield f"step: {step.sequences} sequences of at most {step.longest} tokens{pairs}"
    else:
        engines = config.rollout.engines
        where = "the engine" if engines == 1 else f"each of {engines} engines"
        noun = "rollouts"
        yield (
            f"step: {step.prompts} prompts x {step.group_size} completions = {step.sequences} rollouts of at most "
            f"{step.longest} tokens, at most {step.per_engine} on {where}"
        )
    yield f"update: {_count(step.optimizer_steps, 'optimizer step')} of {step.per_update} {noun}"
    for role, share in step.shares.items():
        batches, rows = _count(share.micro_batches, "micro-batch"), _count(share.rows, "sequence")
        yield (f"  {role}: at most {share.sequences} {noun} per worker, in at most {batches} ({rows} of full length)")


def _memory(assessment: Assessment) -> Iterator[str]:
    memories = assessment.memories
    terms = {role: memory.terms() for role, memory in memories.items()}
    yield "memory of a worker, GiB (peak: permanent memory, and the largest phase)"
    yield "  " + "".ljust(12) + "".join(role.rjust(11) for role in memories)
    for name in TERMS:
        if any(name in found for found in terms.values()):
            yield _row(name, [found.get(name) for found in terms.values()])
    yield _row("peak", [memory.peak for memory in memories.values()])
    yield _row("on host", [memory.on_host or None for memory in memories.values()])
    if assessment.layout.gpus:
        limit = USABLE * assessment.cluster.gpu.memory_bytes / GIB
        for group in assessment.layout.groups:
            if group.has_sleeping_engines:
                yield from _by_phase(group, memories)
            peak = peak_of(group.roles, memories) / GIB
            yield f"  a GPU of {'+'.join(group.roles)}: {peak:.1f} of {limit:.1f} GiB that can be used"
    there = assessment.cluster.host_bytes
    limits = "" if there is None else f" of {there / GIB:.1f} GiB"
    if assessment.layout.gpus:
        yield f"  host: {assessment.host_bytes / GIB:.1f}{limits or ' GiB'} on the node that takes the most"
    else:
        yield f"  host: {assessment.host_bytes / GIB:.1f}{limits or ' GiB'} for all workers"


def _by_phase(group: DeviceGroup, memories: Mapping[str, Memory]) -> Iterator[str]:
    """Yields a table of what is on a GPU in each phase: rows are terms of roles, columns are phases."""
    phases = phases_of(group.roles, memories)
    yield "  memory of a GPU on which roles take turns, GiB".ljust(49) + "".join(p.name.rjust(11) for p in phases)
    for role in group.roles:
        for term in TERMS:
            values = [phase.terms[role].get(term) for phase in phases]
            if any(values):
                yield "  " + f"  {role} {term}".ljust(47) + "".join(_cell(value) for value in values)
    yield "  " + "  total".ljust(47) + "".join(_cell(phase.total) for phase in phases)


def _cell(value: float | None) -> str:
    return ("-" if value is None else f"{value / GIB:.2f}").rjust(11)


def _row(name: str, bytes_by_role: Sequence[float | None]) -> str:
    return "  " + name.ljust(12) + "".join(map(_cell, bytes_by_role))


def _cache(config: RunConfig, assessment: Assessment) -> Iterator[str]:
    cache = assessment.cache
    if cache is None:
        return
    yield (
        f"  KV cache: {cache.token * config.rollout.tensor_parallel / 1024:.0f} KiB per token and engine, room for "
        f"{cache.sequences} sequences of {cache.longest} tokens (rollout.max_sequences={config.rollout.max_sequences})"
    )


def _sync(config: RunConfig, assessment: Assessment) -> Iterator[str]:
    if config.is_offline:
        return
    policy = known_shape("model.path", config.model.path)
    receivers = config.rollout.engines * config.rollout.tensor_parallel
    merged = "" if config.model.adapter is None else " of merged matrices"
    what = " of adapters" if config.publishes_adapters else merged
    yield (
        f"sync: {sync_bytes(config, policy) / GIB:.2f} GiB{what} per publish, to {_count(receivers, 'worker')} of "
        f"{_count(config.rollout.engines, 'engine')}"
    )
