"""From a plan to running workers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from ray_rl.cluster.engines.health import Health
from ray_rl.cluster.engines.process import EngineProcess
from ray_rl.cluster.engines.weights import RayWeights
from ray_rl.cluster.heartbeats import Heartbeats
from ray_rl.cluster.placement import Slot, placed
from ray_rl.cluster.roles import RayActor, RayCritic, RayEngine, RayReference, RayRewardModels, Team
from ray_rl.cluster.scratch import Scratch
from ray_rl.cluster.trainers import Trainers
from ray_rl.cluster.workers import (
    CriticWorker,
    EngineWorker,
    ReferenceWorker,
    RewardWorker,
    Setting,
    TrainWorker,
)
from ray_rl.concurrency import together
from ray_rl.config import RunConfig
from ray_rl.planner.plan import Plan
from ray_rl.rollout.router import Router

ENGINE_CALLS = 1024
"""Calls that an engine actor takes at once: the requests under way are bounded by the collector."""

SHELLS: dict[str, Any] = {
    "actor": TrainWorker,
    "critic": CriticWorker,
    "reference": ReferenceWorker,
    "reward": RewardWorker,
}
"""But for the engines, which may be started more than once."""
TRAINING, SCORING = ("actor", "critic"), ("critic", "reference", "reward")
AT_ONCE = {"rollout": ("rollout",), **dict.fromkeys(SCORING, SCORING), **dict.fromkeys(TRAINING, TRAINING)}
"""The roles that work while a role works longest."""

STOP_S = 20.0
"""Bound for an engine to end its processes before its actor is killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """All workers of a run, ready; None where the plan has no such role."""

    actor: RayActor
    engines: list[RayEngine]
    router: Router
    """Over the engines: those that serve now."""
    weights: RayWeights
    trainers: Trainers
    critic: RayCritic | None
    reference: RayReference | None
    reward: RayRewardModels | None

    async def restart(self) -> list[str]:
        """Starts again what trains, and all that lost a worker; the engines drop what they were asked.

        Returns:
            The roles that were started.

        Raises:
            OutsideError: there is no place for them, or they could not be loaded.
        """
        # bound: both wait for calls that have limits
        started, _ = await asyncio.gather(self.trainers.restart(), self.weights.forget())
        return started


@asynccontextmanager
async def started_workers(
    config: RunConfig,
    plan: Plan,
    *,
    folders: Mapping[str, tuple[str, ...]],
    logs: Path,
    note: Callable[[str], None],
    tell: Callable[[str], None] | None = None,
    scratch: Scratch | None = None,
) -> AsyncIterator[Workers]:
    """Places and starts every worker, and ends them with the block, in which lost engines are brought back.

    All roles load at the same time. Loading is bounded by `cluster.start_timeout_s`, that of engines by
    `rollout.start_timeout_s`.

    Args:
        config: the configuration of the run, with `model.dtype` resolved.
        plan: the plan of the run.
        folders: the folders of the models of each role; one, but for `reward`.
        logs: folder for a log file of each worker.
        note: told what is waited for.
        tell: told of engines that are lost and that come back. None: as `note`.
        scratch: The private folder of a cluster of this machine, for the workers' temporary files.
    """
    note(f"placing {', '.join(f'{workers} {role}' for role, workers in plan.workers.items())}")
    logs = logs.absolute()  # workers may have another working directory
    settings = _settings(config, plan, folders, logs, scratch)
    with placed(plan, timeout_s=config.cluster.start_timeout_s) as slots:
        note(f"loading the model into {sum(plan.workers.values())} workers (logs in {logs})")
        launch = partial(_launch, config, slots["rollout"], settings["rollout"])
        launch_worker = partial(_launch_worker, slots, settings)
        teams = _teams(config, plan, launch_worker, logs)
        engines = [RayEngine(launch(i), config=config) for i in range(plan.workers["rollout"])]
        actor = RayActor(teams["actor"])
        trainers = Trainers(config, teams, launch=launch_worker, tell=tell or note)
        weights = RayWeights(config, actor, engines, tell=tell or note)
        router = Router(len(engines))
        health = Health(config, engines, router=router, weights=weights, launch=launch, tell=tell or note)
        try:
            await together([trainers.load(), *(engine.process.start() for engine in engines)])
            await weights.join(*await actor.meeting_place())
            async with health.watching(), Heartbeats(config, teams.values()).watching():
                yield Workers(
                    actor=actor,
                    engines=engines,
                    router=router,
                    weights=weights,
                    trainers=trainers,
                    critic=RayCritic(teams["critic"]) if "critic" in teams else None,
                    reference=_reference(teams, trainers),
                    reward=_reward_models(config, teams, trainers),
                )
        finally:
            await _stop(health.handles)
            for handle in health.handles:
                ray.kill(handle)
            trainers.kill()


def _settings(
    config: RunConfig, plan: Plan, folders: Mapping[str, tuple[str, ...]], logs: Path, scratch: Scratch | None
) -> dict[str, Setting]:
    """What the workers of each role are told."""
    threads, environment = _threads(config, plan), _environment(config, scratch)
    return {role: Setting(config, folders[role], str(logs), threads[role], environment) for role in plan.workers}


def _teams(config: RunConfig, plan: Plan, launch: Callable[[str, int], Any], logs: Path) -> dict[str, Team]:
    """The workers of every role but the engines, which have not loaded their models yet."""
    return {
        role: Team(role, [launch(role, i) for i in range(workers)], logs, _bound_s(config, role))
        for role, workers in plan.workers.items()
        if role in SHELLS
    }


def _launch_worker(slots: Mapping[str, list[Slot]], settings: Mapping[str, Setting], role: str, rank: int) -> Any:
    """The actor of a worker, which has not loaded its model yet."""
    options = slots[role][rank].options()
    if settings[role].config.cluster.accelerator == "cpu":
        # A worker that answers heartbeats computes in a thread that is not the first. In an arena of its own glibc
        # would give large blocks back to the kernel whatever `keep_freed_memory` says: allocations took eight times
        # as long.
        options |= {"runtime_env": {"env_vars": {"MALLOC_ARENA_MAX": "1"}}}
    return SHELLS[role].options(**options).remote(settings[role], f"{role}-{rank}")


def _reference(teams: Mapping[str, Team], trainers: Trainers) -> RayReference | None:
    if "reference" not in teams:
        return None
    return RayReference(teams["reference"], repeat=partial(trainers.repeating, "reference"))


def _reward_models(config: RunConfig, teams: Mapping[str, Team], trainers: Trainers) -> RayRewardModels | None:
    if config.reward is None:
        return None
    repeat = partial(trainers.repeating, "reward")
    return RayRewardModels(teams["reward"], models=len(config.reward.paths), repeat=repeat)


def _launch(config: RunConfig, slots: list[Slot], setting: Setting, index: int) -> EngineProcess:
    """The actor of an engine, which has not loaded its model yet."""
    name = f"rollout-{index}"
    worker: Any = EngineWorker
    handle = worker.options(**slots[index].options(), max_concurrency=ENGINE_CALLS).remote(setting, name)
    return EngineProcess(name, handle, config=config, logs=Path(setting.logs))


def _bound_s(config: RunConfig, role: str) -> float:
    """Limit of one call to a role."""
    sections = {
        "actor": config.train,
        "critic": config.critic,
        "reference": config.reference,
        "reward": config.reward,
    }
    section = sections[role]
    assert section is not None, f"the plan has a role {role} that the configuration has not"
    return section.timeout_s


async def _stop(engines: list[Any]) -> None:
    """Lets vLLM end its own processes; an actor that is killed leaves them to notice by themselves."""
    waits = [asyncio.ensure_future(_settled(engine.stop.remote())) for engine in engines]
    if waits:
        await asyncio.wait(waits, timeout=STOP_S)
    for wait in waits:
        wait.cancel()


async def _settled(ref: ray.ObjectRef) -> None:
    try:
        await ref  # bound: its only caller waits at most STOP_S
    except ray.exceptions.RayError:
        return  # it is dead already, which is what was asked


def _threads(config: RunConfig, plan: Plan) -> dict[str, int]:
    """Threads of a worker of each role on CPU: the cores are shared by the workers that work at the same time."""
    if config.cluster.threads is not None:
        return dict.fromkeys(plan.workers, config.cluster.threads)
    cores = len(os.sched_getaffinity(0))
    busy = {role: sum(plan.workers.get(other, 0) for other in AT_ONCE[role]) for role in plan.workers}
    return {role: max(1, cores // workers) for role, workers in busy.items()}


def _environment(config: RunConfig, scratch: Scratch | None) -> dict[str, str]:
    environment = {"TOKENIZERS_PARALLELISM": "false"} | ({} if scratch is None else scratch.environment)
    if config.cluster.accelerator == "cpu":
        # A thread that waits gives its core to the worker of another role: spinning longer, a third process made an
        # update 1.7 times slower.
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "GOMP_SPINCOUNT": "1000"}
    return environment
