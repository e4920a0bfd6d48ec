"""From a plan to running workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from ray_rl.cluster.calls import call
from ray_rl.cluster.placement import Slot, placed
from ray_rl.cluster.roles import RayActor, RayEngine, RayScorer, RayWeights, Team
from ray_rl.cluster.workers import EngineWorker, ReferenceWorker, Setting, TrainWorker
from ray_rl.config import RunConfig
from ray_rl.planner.plan import Plan
from ray_rl.rollout.together import together
from ray_rl.training.process_group import Member

ENGINE_CALLS = 1024
"""Calls that an engine actor takes at once: the requests under way are bounded by the collector."""

STOP_S = 20.0
"""Bound for an engine to end its processes before its actor is killed."""


@dataclass(frozen=True, slots=True)
class Workers:
    """All workers of a run, ready."""

    actor: RayActor
    engines: list[RayEngine]
    weights: RayWeights
    reference: RayScorer | None


@asynccontextmanager
async def started_workers(
    config: RunConfig, plan: Plan, *, folder: str, reference_folder: str, logs: Path, note: Callable[[str], None]
) -> AsyncIterator[Workers]:
    """Places and starts every worker, and ends them with the block.

    All roles load at the same time. Loading is bounded by `cluster.start_timeout_s`, that of engines by
    `rollout.start_timeout_s`.

    Args:
        config: of the run, with `model.dtype` resolved.
        plan: of the run.
        folder: of the model that training starts from.
        reference_folder: of the frozen reference; not read where the plan has none.
        logs: folder for a log file of each worker.
        note: told what is waited for.
    """
    note(f"placing {', '.join(f'{workers} {role}' for role, workers in plan.workers.items())}")
    setting = Setting(config, folder, str(logs), _threads(config, plan), _environment(config))
    with placed(plan, timeout_s=config.cluster.start_timeout_s) as slots:
        note(f"loading the model into {sum(plan.workers.values())} workers (logs in {logs})")
        actors = [_spawn(TrainWorker, "actor", i, slot, setting) for i, slot in enumerate(slots["actor"])]
        engines = [
            _spawn(EngineWorker, "rollout", i, slot, setting, max_concurrency=ENGINE_CALLS)
            for i, slot in enumerate(slots["rollout"])
        ]
        setting = replace(setting, folder=reference_folder)
        references = [
            _spawn(ReferenceWorker, "reference", i, slot, setting) for i, slot in enumerate(slots.get("reference", []))
        ]
        try:
            yield await _start(config, actors, engines, references, logs=logs)
        finally:
            await _stop(engines)
            for handle in (*actors, *engines, *references):
                ray.kill(handle)


async def _start(
    config: RunConfig, actors: list[Any], engines: list[Any], references: list[Any], *, logs: Path
) -> Workers:
    bound_s = config.cluster.start_timeout_s
    meeting = Team("actor", actors, logs, bound_s)
    address, port = await call(
        "actor-0", actors[0].free_address.remote(), doing="starting", timeout_s=bound_s, logs=logs
    )
    members = [Member(rank, len(actors), address, port) for rank in range(len(actors))]
    starting = [meeting.all([a.start.remote(member) for a, member in zip(actors, members, strict=True)], "loading")]
    starting.append(
        Team("rollout", engines, logs, config.rollout.start_timeout_s).all(
            [engine.start.remote() for engine in engines], "starting vLLM"
        )
    )
    if references:
        team = Team("reference", references, logs, bound_s)
        starting.append(team.all([handle.start.remote(i) for i, handle in enumerate(references)], "loading"))
    await together(starting)
    actor = RayActor(Team("actor", actors, logs, config.train.timeout_s))
    clients = [RayEngine(f"rollout-{i}", handle, logs=logs, config=config) for i, handle in enumerate(engines)]
    weights = RayWeights(config, actor, clients)
    await weights.join(
        *await call("actor-0", actors[0].free_address.remote(), doing="starting", timeout_s=bound_s, logs=logs)
    )
    reference = RayScorer(Team("reference", references, logs, config.reference.timeout_s)) if references else None
    return Workers(actor, clients, weights, reference)


def _spawn(worker: Any, role: str, rank: int, slot: Slot, setting: Setting, **options: Any) -> Any:
    return worker.options(**slot.options(), **options).remote(setting, f"{role}-{rank}")


async def _stop(engines: list[Any]) -> None:
    """Lets vLLM end its own processes; an actor that is killed leaves them to notice by themselves."""
    waits = [asyncio.ensure_future(_settled(engine.stop.remote())) for engine in engines]
    if waits:
        await asyncio.wait(waits, timeout=STOP_S)
    for wait in waits:
        wait.cancel()


async def _settled(ref: ray.ObjectRef) -> None:
    try:
        await ref
    except ray.exceptions.RayError:
        return  # it is dead already, which is what was asked


def _threads(config: RunConfig, plan: Plan) -> int:
    """Threads of a worker on CPU: roles take turns, the workers of one role share the cores."""
    if config.cluster.threads is not None:
        return config.cluster.threads
    return max(1, len(os.sched_getaffinity(0)) // max(plan.workers.values()))


def _environment(config: RunConfig) -> dict[str, str]:
    environment = {"TOKENIZERS_PARALLELISM": "false"}
    if config.cluster.accelerator == "cpu":
        # A thread that waits gives its core to the worker of another role: spinning longer, a third process made an
        # update 1.7 times slower.
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "GOMP_SPINCOUNT": "1000"}
    return environment
