"""An assessment as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ray_rl.config import RunConfig
from ray_rl.planner.advice import Proposal
from ray_rl.planner.arithmetic import step_arithmetic
from ray_rl.planner.assess import USABLE, Assessment, known_shape
from ray_rl.planner.gpus import GIB
from ray_rl.planner.layout import Place
from ray_rl.planner.plan import Plan
from ray_rl.planner.throughput import estimate, sync_bytes

TERMS = (
    "context",
    "weights",
    "gradients",
    "optimizer",
    "buckets",
    "gathered",
    "activations",
    "logits",
    "step",
    "sync",
    "graphs",
    "KV cache",
)
"""Columns of the table of memory; docs/planning.md has their formulas."""


def report(config: RunConfig, assessment: Assessment) -> list[str]:
    """Layout, arithmetic, memory, what a publish sends, and an estimate of the time, in lines."""
    return [
        *_layout(assessment),
        "",
        *_arithmetic(config),
        "",
        *_memory(assessment),
        *_cache(config, assessment),
        "",
        *_sync(config, assessment),
    ]


def refusal(assessment: Assessment, proposals: Sequence[Proposal]) -> str:
    """Every problem, and the changes that help."""
    lines = ["the run does not fit:", *(f"  {problem.text}" for problem in assessment.problems)]
    if proposals:
        lines.append("each of these changes makes it fit:")
        lines += [f"  {proposal}" for proposal in proposals]
    else:
        lines.append("set a smaller model.path, fewer tokens (rollout.max_tokens), or --gpu to one with more memory")
    return "\n".join(lines)


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


def _on_node(layout: Plan, node: int) -> Iterator[str]:
    """Ranks and their GPUs: "actor 0-7 on GPU 0-7"."""
    for group in layout.groups:
        here = [(rank, place) for rank, place in enumerate(group.places) if place.node == node]
        if here:
            ranks = _range([rank for rank, _ in here])
            if group.gpus > 1:
                gpus = ", ".join(_gpus(place) for _, place in here)
            else:
                gpus = _range([place.gpus[0] for _, place in here])
            yield f"{'+'.join(group.roles)} {ranks} on GPU {gpus}"


def _gpus(place: Place) -> str:
    return _range(list(place.gpus))


def _range(numbers: Sequence[int]) -> str:
    """Of consecutive numbers, which the lowest free GPUs of a node always are."""
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _arithmetic(config: RunConfig) -> Iterator[str]:
    step = step_arithmetic(config)
    engines = config.rollout.engines
    yield (
        f"step: {step.prompts} prompts x {step.group_size} completions = {step.rollouts} rollouts of at most "
        f"{step.longest} tokens, at most {step.per_engine} on each of {engines} engines"
    )
    yield f"update: {step.optimizer_steps} optimizer steps of {step.per_update} rollouts"
    for role, share in step.shares.items():
        rows = "1 sequence" if share.rows == 1 else f"{share.rows} sequences"
        yield (
            f"  {role}: at most {share.rollouts} rollouts a worker, in at most {share.micro_batches} micro-batches "
            f"({rows} of full length each)"
        )


def _memory(assessment: Assessment) -> Iterator[str]:
    memories = assessment.memories
    used = [name for name in TERMS if any(name in memory.terms() for memory in memories.values())]
    yield "memory of a worker, GiB (peak: what stays, and the largest of what comes and goes)"
    yield "  " + "role".ljust(10) + "".join(name.rjust(12) for name in (*used, "peak", "on host"))
    for role, memory in memories.items():
        terms = memory.terms()
        cells = [f"{terms[name] / GIB:.2f}" if name in terms else "-" for name in used]
        host = f"{memory.offloaded / GIB:.2f}" if memory.offloaded else "-"
        yield "  " + role.ljust(10) + "".join(cell.rjust(12) for cell in (*cells, f"{memory.peak / GIB:.2f}", host))
    if not assessment.layout.gpus:
        return
    limit = USABLE * assessment.cluster.gpu.memory_bytes / GIB
    for group in assessment.layout.groups:
        peak = sum(memories[role].peak for role in group.roles) / GIB
        yield f"  a GPU of {'+'.join(group.roles)}: {peak:.1f} of {limit:.1f} GiB that can be used"


def _cache(config: RunConfig, assessment: Assessment) -> Iterator[str]:
    cache = assessment.cache
    yield (
        f"  KV cache: {cache.token * config.rollout.tensor_parallel / 1024:.0f} KiB a token and engine, room for "
        f"{cache.sequences} sequences of {cache.longest} tokens (rollout.max_sequences={config.rollout.max_sequences})"
    )


def _sync(config: RunConfig, assessment: Assessment) -> Iterator[str]:
    policy = known_shape("model.path", config.model.path)
    receivers = config.rollout.engines * config.rollout.tensor_parallel
    yield (
        f"sync: {sync_bytes(config, policy) / GIB:.2f} GiB a publish, to {receivers} workers of "
        f"{config.rollout.engines} engines"
    )
    if assessment.layout.gpus and assessment.fits:
        times = estimate(config, assessment)
        yield (
            f"time, if every completion has full length: rollouts {times.rollout_s:.0f} s, scores {times.score_s:.0f} "
            f"s, update {times.update_s:.0f} s, sync {times.sync_s:.1f} s; {times.tokens / times.step_s:,.0f} tokens/s "
            "(assumptions: docs/planning.md)"
        )
