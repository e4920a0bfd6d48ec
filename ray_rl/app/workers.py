"""Describes the workers of a run, starts them, and turns them into the roles of the driver. Imports Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

from ray_rl.app.engines import policy_engine, transport
from ray_rl.cluster.by_name import ByName
from ray_rl.cluster.engines.weights import TransferSettings
from ray_rl.cluster.roles import BaseReference, RayCritic, RayRewardModels
from ray_rl.cluster.scratch import Scratch
from ray_rl.cluster.session import ray_session
from ray_rl.cluster.start import EnginesSpec, TeamSpec, Workers, started_teams, started_workers
from ray_rl.cluster.teams import Team
from ray_rl.cluster.verifiers import other_nodes, workers_elsewhere
from ray_rl.config import RunConfig
from ray_rl.config.roles import ACTOR, CRITIC, REFERENCE, REWARD, ROLLOUT, base_reference, roles_of
from ray_rl.loops.roles import Critic, Roles, Rollouts
from ray_rl.loops.scoring import Scores
from ray_rl.loops.stopping import Stop
from ray_rl.metrics.run import Run
from ray_rl.planner.plan import Plan, plan
from ray_rl.rewards.functions.calls import Elsewhere
from ray_rl.sizes import MIB
from ray_rl.weight_sync.audit import Publisher, Scorer

BUILDERS: Mapping[str, Callable[..., Any]] = {
    ACTOR: ByName("ray_rl.app.models", "build_actor"),
    CRITIC: ByName("ray_rl.app.models", "build_critic"),
    REFERENCE: ByName("ray_rl.app.models", "build_reference"),
    REWARD: ByName("ray_rl.app.models", "build_reward_models"),
}
"""The function that builds the object of a worker, by role."""

OFFLINE_BUILDERS: Mapping[str, Callable[..., Any]] = {
    ACTOR: ByName("ray_rl.app.models_offline", "build_learner"),
    REFERENCE: BUILDERS[REFERENCE],
}
"""The same for a run that learns from examples."""

CONCURRENT = {
    ROLLOUT: (ROLLOUT,),
    REWARD: (ROLLOUT, REWARD),
    REFERENCE: (CRITIC, REFERENCE),
    CRITIC: (ACTOR, CRITIC),
    ACTOR: (ACTOR, CRITIC),
}
"""The roles that compute during the longest work of a role."""


async def start_workers(
    config: RunConfig,
    run: Run,
    folders: Mapping[str, Sequence[str]],
    *,
    stop: Stop,
    stack: AsyncExitStack,
    logs: Path,
) -> Workers:
    """Starts or joins Ray and starts all workers; both end with `stack`. `folders` has the models of each role."""
    layout, scratch = _joined(config, run, stop=stop, stack=stack, logs=logs)
    return await stack.enter_async_context(
        started_workers(
            layout,
            teams_of(config, layout, folders),
            engines_of(config, layout, folders),
            cluster=config.cluster,
            logs=logs,
            note=run.note,
            tell=run.tell,
            scratch=scratch,
        )
    )


async def start_teams(
    config: RunConfig,
    run: Run,
    folders: Mapping[str, Sequence[str]],
    *,
    stop: Stop,
    stack: AsyncExitStack,
    logs: Path,
) -> Mapping[str, Team[Any]]:
    """Starts or joins Ray and starts all workers of a run without engines; arguments as for `start_workers`."""
    layout, scratch = _joined(config, run, stop=stop, stack=stack, logs=logs)
    teams = teams_of(config, layout, folders)
    return await stack.enter_async_context(
        started_teams(layout, teams, cluster=config.cluster, logs=logs, note=run.note, tell=run.tell, scratch=scratch)
    )


def _joined(
    config: RunConfig, run: Run, *, stop: Stop, stack: AsyncExitStack, logs: Path
) -> tuple[Plan, Scratch | None]:
    """Starts or joins Ray, until `stack` ends; returns the plan of the run and the folder for temporary files."""
    layout, address = plan(config), config.cluster.address
    run.note(f"joining Ray at {address}" if address else "starting Ray")
    with stop.others_listen():
        return layout, stack.enter_context(ray_session(address, layout, logs=logs, note=run.note))


def teams_of(config: RunConfig, plan: Plan, folders: Mapping[str, Sequence[str]]) -> list[TeamSpec]:
    """Returns the descriptions of all roles of a run except the engines.

    Args:
        config: the configuration of the run, with `model.dtype` resolved.
        plan: the plan of the run.
        folders: the folders of the models of each role.
    """
    builders = OFFLINE_BUILDERS if config.is_offline else BUILDERS
    return [
        TeamSpec(
            role=role.name,
            build=partial(builders[role.name], config, folders[role.name], threads=threads_of(role.name, config, plan)),
            timeout_s=role.settings.timeout_s,
            threads=threads_of(role.name, config, plan),
            has_state=role.trained is not None,
        )
        for role in roles_of(config)
        if role.name in builders
    ]


def engines_of(config: RunConfig, plan: Plan, folders: Mapping[str, Sequence[str]]) -> EnginesSpec:
    """Returns the description of the engines; arguments as for `teams_of`."""
    return EnginesSpec(
        settings=policy_engine(config, folders[ROLLOUT][0], threads=threads_of(ROLLOUT, config, plan)),
        limits=config.rollout,
        transfer=transfer_of(config),
    )


def transfer_of(config: RunConfig) -> TransferSettings:
    """Returns how weights reach the engines."""
    return TransferSettings(
        transport=transport(config),
        engine_workers=config.rollout.tensor_parallel,
        bucket_bytes=config.weight_sync.bucket_mib * MIB,
        timeout_s=config.weight_sync.timeout_s,
        ping_s=config.rollout.heartbeat_timeout_s,
    )


def threads_of(role: str, config: RunConfig, plan: Plan) -> int:
    """Returns the threads of a worker on CPU: workers that compute at the same time share the cores."""
    if config.cluster.threads is not None:
        return config.cluster.threads
    busy = sum(plan.workers.get(other, 0) for other in CONCURRENT[role])
    return max(1, len(os.sched_getaffinity(0)) // busy)


def critic_over(workers: Workers) -> Critic | None:
    """Returns the critic of the run; None if it has none."""
    return RayCritic(workers.teams[CRITIC]) if CRITIC in workers.teams else None


def reference_over(workers: Workers, config: RunConfig) -> Scorer | None:
    """Returns the reference of the run, in workers of its own or in those of the actor; None if it has none."""
    return workers.reference if base_reference(config) is None else BaseReference(workers.actor)


def roles_over(
    workers: Workers, *, rollouts: Rollouts, weights: Publisher, critic: Critic | None, scores: Mapping[str, Scores]
) -> Roles:
    """Returns the roles of the driver over started workers."""
    return Roles(
        rollouts=rollouts,
        actor=workers.actor,
        weights=weights,
        phases=workers.turns,
        critic=critic,
        scores=scores,
    )


def verifiers_elsewhere(logs: Path) -> Elsewhere:
    """Returns the nodes of the connected cluster, besides the driver's, as places for reward functions."""
    return partial(workers_elsewhere, nodes=other_nodes(), logs=logs.absolute())


def reward_models_over(workers: Workers, config: RunConfig) -> RayRewardModels | None:
    """Returns the reward models of the run; None if it has none."""
    judges = config.reward_models
    return None if judges is None else RayRewardModels(workers.teams[REWARD], models=len(judges.paths))
