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

from ray_rl.cluster.engines.health import Health
from ray_rl.cluster.engines.process import EngineProcess, started_engine
from ray_rl.cluster.engines.weights import RayWeights
from ray_rl.cluster.held import Policy, saved_critic
from ray_rl.cluster.placement import Slot, placed
from ray_rl.cluster.roles import RayActor, RayCritic, RayEngine, RayReference, RayRewardModels
from ray_rl.cluster.scratch import Scratch
from ray_rl.cluster.shell import Setting, Worker
from ray_rl.cluster.teams import Heartbeats, Team, Trainers
from ray_rl.concurrency import together
from ray_rl.config import RunConfig
from ray_rl.config.roles import ACTOR, CRITIC, REFERENCE, REWARD, ROLLOUT, roles_of
from ray_rl.planner.plan import Plan
from ray_rl.rewards.model.held import RewardModels
from ray_rl.rollout.engine import Engine, EngineSettings
from ray_rl.rollout.router import Router
from ray_rl.training.build import reference_model
from ray_rl.training.process_group import Member
from ray_rl.weight_sync.transports import transport_of, vllm_backend

ENGINE_CALLS = 1024
"""Calls that an engine's worker takes at once: the collector bounds the requests in flight."""

TRAINING, SCORING = (ACTOR, CRITIC), (CRITIC, REFERENCE)
AT_ONCE = {
    ROLLOUT: (ROLLOUT,),
    REWARD: (ROLLOUT, REWARD),
    **dict.fromkeys(SCORING, SCORING),
    **dict.fromkeys(TRAINING, TRAINING),
}
"""The roles that work while a role works longest."""


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
    logs, tell = logs.absolute(), tell or note  # workers may have another working directory
    with placed(plan, timeout_s=config.cluster.start_timeout_s) as slots:
        note(f"loading the model into {sum(plan.workers.values())} workers (logs in {logs})")
        launcher = _Launcher(config, plan, slots, folders, logs, _environment(config, scratch))
        teams = {role: launcher.team(role) for role in plan.workers if role in HELD}
        engines = [launcher.engine(i) for i in range(plan.workers[ROLLOUT])]
        actor = RayActor(teams[ACTOR])
        trainers = Trainers(teams, max_restarts=config.cluster.max_restarts, tell=tell)
        weights = RayWeights(config, actor, engines, tell=tell)
        router = Router(len(engines))
        health = launcher.health(engines, router=router, weights=weights, tell=tell)
        beats = Heartbeats(
            teams.values(), every_s=config.cluster.heartbeat_s, limit_s=config.cluster.heartbeat_timeout_s
        )
        try:
            await together([trainers.load(), *(engine.process.start() for engine in engines)])
            await weights.join(*await actor.meeting_place())
            async with health.watching(), beats.watching():
                yield Workers(
                    actor=actor,
                    engines=engines,
                    router=router,
                    weights=weights,
                    trainers=trainers,
                    critic=RayCritic(teams[CRITIC]) if CRITIC in teams else None,
                    reference=_reference(teams, trainers),
                    reward=_reward_models(config, teams, trainers),
                )
        finally:
            await health.stop()
            trainers.kill()


@dataclass(frozen=True, slots=True)
class _Launcher:
    """Starts workers in their slots."""

    config: RunConfig
    plan: Plan
    slots: Mapping[str, list[Slot]]
    folders: Mapping[str, tuple[str, ...]]
    logs: Path
    environment: Mapping[str, str]

    def team(self, role: str) -> Team[Any]:
        """The workers of a role other than the engines; `HELD` says what they hold."""
        setting, folders = self._setting(role), self.folders[role]
        models = folders if role == REWARD else folders[0]
        bounds_s = {each.name: each.settings.timeout_s for each in roles_of(self.config)}
        return Team(
            role,
            self.plan.workers[role],
            launch=partial(self._worker, role, setting),
            build=partial(HELD[role], self.config, models, threads=setting.threads),
            logs=self.logs,
            timeout_s=bounds_s[role],
            start_timeout_s=self.config.cluster.start_timeout_s,
        )

    def engine(self, index: int) -> RayEngine:
        """An engine with its first process."""
        rollout_s, publish_s = self.config.rollout.timeout_s, self.config.weight_sync.timeout_s
        return RayEngine(self.process(index), rollout_s=rollout_s, publish_s=publish_s)

    def process(self, index: int) -> EngineProcess:
        """The worker of an engine, which holds none yet."""
        setting = self._setting(ROLLOUT)
        options = self.slots[ROLLOUT][index].options() | {"max_concurrency": ENGINE_CALLS}
        worker: Worker[Engine] = Worker.launch_async(f"{ROLLOUT}-{index}", setting, options)
        settings = policy_engine(self.config, self.folders[ROLLOUT][0], threads=setting.threads)
        start_s = self.config.rollout.start_timeout_s
        return EngineProcess(worker, partial(started_engine, settings), start_timeout_s=start_s, logs=self.logs)

    def health(
        self, engines: list[RayEngine], *, router: Router, weights: RayWeights, tell: Callable[[str], None]
    ) -> Health:
        """Watches the engines, and gives them further processes."""
        return Health(
            engines,
            rollout=self.config.rollout,
            max_restarts=self.config.cluster.max_restarts,
            router=router,
            weights=weights,
            launch=self.process,
            tell=tell,
        )

    def _worker(self, role: str, setting: Setting, rank: int) -> Worker[Any]:
        options = self.slots[role][rank].options()
        if self.config.cluster.accelerator == "cpu":
            # A worker that answers heartbeats computes in a thread that is not the first. In an arena of its own glibc
            # would give large blocks back to the kernel whatever `keep_freed_memory` says: allocations took eight
            # times as long.
            options |= {"runtime_env": {"env_vars": {"MALLOC_ARENA_MAX": "1"}}}
        return Worker.launch(f"{role}-{rank}", setting, options)

    def _setting(self, role: str) -> Setting:
        return Setting(str(self.logs), _threads(self.config, self.plan)[role], self.environment)


def policy_engine(config: RunConfig, folder: str, *, threads: int) -> EngineSettings:
    """Returns the settings of an engine of the policy.

    Args:
        config: the configuration of the run, with `model.dtype` resolved.
        folder: the folder of the policy.
        threads: threads of its process, on CPU.
    """
    rollout = config.rollout
    return EngineSettings(
        model=folder,
        dtype=config.model.dtype,
        context_tokens=config.data.max_prompt_tokens + rollout.max_tokens,
        on_cpu=config.cluster.accelerator == "cpu",
        tensor_parallel=rollout.tensor_parallel,
        max_sequences=rollout.max_sequences,
        gpu_memory_fraction=rollout.gpu_memory_fraction,
        kv_cache_gib=rollout.kv_cache_gib,
        enforce_eager=rollout.enforce_eager,
        trust_remote_code=config.model.trust_remote_code,
        threads=threads,
        transfer_backend=vllm_backend(transport_of(config)),
        on_publish=rollout.on_publish,
        timeout_s=rollout.timeout_s,
    )


def _held_models(config: RunConfig, folders: tuple[str, ...], member: Member, *, threads: int) -> RewardModels:
    return RewardModels(config, folders, worker=member.rank, threads=threads)


HELD: Mapping[str, Callable[..., Any]] = {
    ACTOR: Policy,
    CRITIC: saved_critic,
    REFERENCE: reference_model,
    REWARD: _held_models,
}
"""What builds the object of a worker from the configuration, the folders of the role's models and the rank."""


def _reference(teams: Mapping[str, Team[Any]], trainers: Trainers) -> RayReference | None:
    if REFERENCE not in teams:
        return None
    return RayReference(teams[REFERENCE], repeat=partial(trainers.repeating, REFERENCE))


def _reward_models(config: RunConfig, teams: Mapping[str, Team[Any]], trainers: Trainers) -> RayRewardModels | None:
    if REWARD not in teams:
        return None
    (role,) = (role for role in roles_of(config) if role.name == REWARD)
    return RayRewardModels(teams[REWARD], models=len(role.models), repeat=partial(trainers.repeating, REWARD))


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
