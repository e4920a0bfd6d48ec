"""Starts the workers of a plan, from a description of each role."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray_rl.cluster.engines.health import Health
from ray_rl.cluster.engines.process import EngineProcess, started_engine
from ray_rl.cluster.engines.sharing import Apart, SharedGpus, Turns
from ray_rl.cluster.engines.weights import RayWeights, TransferSettings
from ray_rl.cluster.placement import Slot, placed
from ray_rl.cluster.roles import RayActor, RayEngine, RayReference
from ray_rl.cluster.scratch import Scratch
from ray_rl.cluster.shell import Setting, Worker
from ray_rl.cluster.teams import Heartbeats, StatelessTeam, Team, restarted
from ray_rl.concurrency import together
from ray_rl.config.cluster import ClusterConfig
from ray_rl.config.roles import ACTOR, REFERENCE, REWARD, ROLLOUT
from ray_rl.config.rollout import RolloutConfig
from ray_rl.planner.plan import Plan
from ray_rl.rollout.engine import Engine, EngineSettings
from ray_rl.rollout.router import Router
from ray_rl.training.member import Member

ENGINE_CALLS = 1024
"""Maximum number of concurrent calls to an engine's worker; the collector limits the requests in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamSpec:
    """A role whose workers each hold one object: a rank of a trainer, or a model that scores."""

    role: str
    """The name of the role in the plan, which says how many workers it has and where."""
    build: Callable[[Member], Any]
    """Builds the object of a worker in its process; may be a collective of the workers."""
    timeout_s: float
    """Limit of each call."""
    threads: int
    """Threads of a worker on CPU."""
    has_state: bool
    """True if the workers change, as under training: all such roles restart together when one loses a worker. A role
    without a state restarts alone, and its call is repeated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginesSpec:
    """The engines of the policy."""

    settings: EngineSettings
    limits: RolloutConfig
    """Limits of starts and heartbeats."""
    transfer: TransferSettings
    """How they receive weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """All workers of a run, ready."""

    teams: Mapping[str, Team[Any]]
    """The workers of each role except the engines."""
    actor: RayActor
    engines: list[RayEngine]
    router: Router
    """Knows which engines serve now."""
    weights: RayWeights
    turns: Turns
    """Gives GPUs that engines share with models to one side after the other."""

    @property
    def reference(self) -> RayReference | None:
        """The frozen reference, if the run has one."""
        return RayReference(self.teams[REFERENCE]) if REFERENCE in self.teams else None

    async def restart(self) -> list[str]:
        """Restarts the roles with a state and all that lost a worker; engines drop their requests.

        Returns:
            The roles that were restarted.

        Raises:
            OutsideError: there is no place for them, or they could not be loaded.
        """
        await self.turns.make_room()
        # bound: both wait for calls that have limits
        roles, _ = await asyncio.gather(restarted(self.teams.values()), self.weights.forget())
        return roles


@asynccontextmanager
async def started_teams(
    plan: Plan,
    teams: Sequence[TeamSpec],
    *,
    cluster: ClusterConfig,
    logs: Path,
    note: Callable[[str], None],
    tell: Callable[[str], None],
    scratch: Scratch | None = None,
) -> AsyncIterator[Mapping[str, Team[Any]]]:
    """Places and starts the workers of a plan without engines, and ends them with the block; see `started_workers`."""
    with _launched(plan, teams, cluster=cluster, logs=logs, note=note, tell=tell, scratch=scratch) as (_, started):
        await together(team.load() for team in started.values())
        async with _heartbeats(started, cluster).watching():
            yield started


@asynccontextmanager
async def started_workers(
    plan: Plan,
    teams: Sequence[TeamSpec],
    engines: EnginesSpec,
    *,
    cluster: ClusterConfig,
    logs: Path,
    note: Callable[[str], None],
    tell: Callable[[str], None] | None = None,
    scratch: Scratch | None = None,
) -> AsyncIterator[Workers]:
    """Places and starts every worker, restarts lost engines within the block, and ends all workers with it.

    All roles load concurrently. Loading is limited by `cluster.start_timeout_s`, that of engines by
    `rollout.start_timeout_s`.

    Args:
        plan: the plan of the run.
        teams: every role of the plan except the engines.
        engines: the engines.
        cluster: the limits of starts and heartbeats, and the kind of devices.
        logs: the folder for a log file of each worker.
        note: called with a text about each phase.
        tell: called with a line for every worker that is lost or restarted. None: `note`.
        scratch: the private folder of a cluster of this machine, for the workers' temporary files.
    """
    tell = tell or note
    launched = _launched(plan, teams, cluster=cluster, logs=logs, note=note, tell=tell, scratch=scratch)
    with launched as (launcher, started):
        launch = partial(launcher.engine, engines)
        handles = [
            RayEngine(launch(index), rollout_s=engines.limits.timeout_s, publish_s=engines.transfer.timeout_s)
            for index in range(plan.workers[ROLLOUT])
        ]
        actor, router = RayActor(started[ACTOR]), Router(len(handles))
        turns = _turns(plan, started, handles, engines)
        weights = RayWeights(engines.transfer, actor, handles, turns=turns, tell=tell)
        health = Health(
            handles,
            rollout=engines.limits,
            max_restarts=cluster.max_restarts,
            router=router,
            weights=weights,
            turns=turns,
            launch=launch,
            tell=tell,
        )
        try:
            await turns.start((each.process.start() for each in handles), (team.load() for team in started.values()))
            await weights.join(*await actor.meeting_place())
            async with health.watching(), _heartbeats(started, cluster).watching():
                yield Workers(teams=started, actor=actor, engines=handles, router=router, weights=weights, turns=turns)
        finally:
            await health.stop()


@contextmanager
def _launched(
    plan: Plan,
    teams: Sequence[TeamSpec],
    *,
    cluster: ClusterConfig,
    logs: Path,
    note: Callable[[str], None],
    tell: Callable[[str], None],
    scratch: Scratch | None,
) -> Iterator[tuple[_Launcher, dict[str, Team[Any]]]]:
    """Places all workers, launches those of teams, which hold no objects yet, and ends them with the block."""
    note(f"placing {', '.join(f'{workers} {role}' for role, workers in plan.workers.items())}")
    logs = logs.absolute()  # workers may have another working directory
    with placed(plan, timeout_s=cluster.start_timeout_s) as slots:
        note(f"loading the model into {sum(plan.workers.values())} workers (logs in {logs})")
        launcher = _Launcher(cluster, slots, logs, _environment(cluster, scratch), tell)
        started = {spec.role: launcher.team(spec) for spec in teams}
        try:
            yield launcher, started
        finally:
            for team in started.values():
                team.kill()


def _turns(plan: Plan, teams: Mapping[str, Team[Any]], engines: Sequence[RayEngine], spec: EnginesSpec) -> Turns:
    """Returns the phases of the run. Reward models stay on the GPUs that they share with engines: they score then."""
    group = plan.groups[plan.group_of(ROLLOUT)]
    if not group.has_sleeping_engines:
        return Apart()
    others = [teams[role] for role in group.roles if role not in (ACTOR, REWARD, ROLLOUT)]
    return SharedGpus(
        teams[ACTOR],
        others,
        engines,
        timeout_s=spec.transfer.timeout_s,
        sends_from_host=spec.settings.adapter is not None,
    )


def _heartbeats(teams: Mapping[str, Team[Any]], cluster: ClusterConfig) -> Heartbeats:
    return Heartbeats(teams.values(), every_s=cluster.heartbeat_s, limit_s=cluster.heartbeat_timeout_s)


@dataclass(frozen=True, slots=True)
class _Launcher:
    """Starts workers in their slots."""

    cluster: ClusterConfig
    slots: Mapping[str, list[Slot]]
    logs: Path
    environment: Mapping[str, str]
    tell: Callable[[str], None]

    def team(self, spec: TeamSpec) -> Team[Any]:
        """Launches the workers of a role."""
        make: Callable[..., Team[Any]] = Team
        if not spec.has_state:
            make = partial(StatelessTeam, max_restarts=self.cluster.max_restarts, tell=self.tell)
        return make(
            spec.role,
            len(self.slots[spec.role]),
            launch=partial(self._worker, spec.role, self._setting(spec.threads)),
            build=spec.build,
            logs=self.logs,
            timeout_s=spec.timeout_s,
            start_timeout_s=self.cluster.start_timeout_s,
        )

    def engine(self, spec: EnginesSpec, index: int) -> EngineProcess:
        """Launches the worker of an engine, which does not hold the engine yet."""
        options = self._options(ROLLOUT, index) | {"max_concurrency": ENGINE_CALLS}
        setting = self._setting(spec.settings.threads)
        worker: Worker[Engine] = Worker.launch_async(f"{ROLLOUT}-{index}", setting, options)
        return EngineProcess(
            worker,
            partial(started_engine, spec.settings),
            start_timeout_s=spec.limits.start_timeout_s,
            logs=self.logs,
        )

    def _worker(self, role: str, setting: Setting, rank: int) -> Worker[Any]:
        return Worker.launch(f"{role}-{rank}", setting, self._options(role, rank))

    def _options(self, role: str, rank: int) -> dict[str, object]:
        """Returns Ray's options for a worker."""
        options = self.slots[role][rank].options()
        if self.cluster.accelerator == "cpu":
            # A worker that answers heartbeats computes in a thread that is not the main thread, and so does the process
            # that an engine's worker forks. With an arena of its own, glibc would return large blocks to the kernel in
            # spite of `keep_freed_memory`: allocations took eight times as long.
            options |= {"runtime_env": {"env_vars": {"MALLOC_ARENA_MAX": "1"}}}
        return options

    def _setting(self, threads: int) -> Setting:
        return Setting(str(self.logs), threads, self.environment)


def _environment(cluster: ClusterConfig, scratch: Scratch | None) -> dict[str, str]:
    environment = {"TOKENIZERS_PARALLELISM": "false"} | ({} if scratch is None else scratch.environment)
    if cluster.accelerator == "cpu":
        # A waiting thread yields its core to the worker of another role. With more spinning, a third process made an
        # update 1.7 times slower.
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "GOMP_SPINCOUNT": "1000"}
    return environment
