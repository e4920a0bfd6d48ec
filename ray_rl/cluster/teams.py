"""The workers of a role as one: calls to all of them, signs of life, and new workers when one is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import ray

from ray_rl.cluster.calls import Loss, answers, name_of
from ray_rl.cluster.shell import Worker, free_address
from ray_rl.concurrency import together
from ray_rl.config.roles import ACTOR, CRITIC
from ray_rl.errors import ClusterError, OutsideError, WorkerLost
from ray_rl.training.process_group import Member

T = TypeVar("T", covariant=True)  # a team of `Policy` is one of `Trainer`
P = ParamSpec("P")
R = TypeVar("R")

UNDER_TRAINING = (ACTOR, CRITIC)
"""Roles with a state, which must all be of one step."""
ALIVE_S = 10.0
"""Bound for the workers of a role to show that they are alive and idle."""
SUSPECT_S = 10.0
"""A worker that leaves a heartbeat unanswered for this long is the likely cause of what its peers complain about."""


class Team(Generic[T]):
    """The workers of one role, each with one `T`."""

    def __init__(
        self,
        role: str,
        size: int,
        *,
        launch: Callable[[int], Worker[T]],
        build: Callable[[Member], T],
        logs: Path,
        timeout_s: float,
        start_timeout_s: float,
    ) -> None:
        """Launches the workers; `load` builds what they hold.

        Args:
            role: Name of the role.
            size: How many workers it has.
            launch: Starts the worker of a rank in its slot.
            build: Builds what a worker holds, in its process; may be a collective of the workers.
            logs: Folder of the log files.
            timeout_s: Bound of each call.
            start_timeout_s: Bound of `load`.
        """
        self.role = role
        self.workers = [launch(rank) for rank in range(size)]
        """By rank; others take their place when one is lost."""
        self.loss = Loss()
        """Of these workers; new ones get another."""
        self.is_loaded = False
        """Whether every worker holds its object and none is lost; only then do heartbeats count."""
        self.unanswered_s: dict[str, float] = {}
        """Seconds since the heartbeat that a worker has not answered yet, by name."""
        self._launch, self._build = launch, build
        self._logs, self._timeout_s, self._start_timeout_s = logs, timeout_s, start_timeout_s

    async def all(self, method: Callable[Concatenate[T, P], R], *args: P.args, **kwargs: P.kwargs) -> list[R]:
        """Runs a function on what every worker holds, at the same time, and returns the results by rank.

        Raises:
            WorkerLost: A worker died, or does not answer heartbeats.
            RayRLError: See `calls.answers`.
        """
        # One copy of large arguments for all of them.
        given = [ray.put(argument) for argument in args] if len(self.workers) > 1 else args
        refs = {worker.name: worker.submit(method, given, kwargs) for worker in self.workers}
        doing = name_of(method)
        try:
            found: dict[str, R] = await answers(
                refs, doing=doing, timeout_s=self._timeout_s, logs=self._logs, loss=self.loss
            )
        except WorkerLost:
            raise
        except ClusterError as error:
            # The peers of a worker that hangs run into the limits of their collectives.
            silent = {name: seconds for name, seconds in self.unanswered_s.items() if seconds >= SUSPECT_S}
            if not silent:
                raise
            raise WorkerLost(f"{doing}: {described(silent)}, and its peers failed.\n{error}") from error
        return list(found.values())

    async def first(self, method: Callable[Concatenate[T, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs a function on what rank 0 holds; raises as `all`."""
        alone = copy(self)
        alone.workers = self.workers[:1]
        return (await alone.all(method, *args, **kwargs))[0]

    async def load(self) -> None:
        """Builds what the workers hold.

        Raises:
            OutsideError: It could not be built, or not within `start_timeout_s`.
        """
        (leader, *_), world = self.workers, len(self.workers)
        bound_s, logs = self._start_timeout_s, self._logs
        met = {leader.name: leader.submit(free_address, (), {})}
        address, port = (await answers(met, doing="start", timeout_s=bound_s, logs=logs))[leader.name]
        members = [Member(rank, world, address, port) for rank in range(world)]
        refs = {w.name: w.hold(partial(self._build, member)) for w, member in zip(self.workers, members, strict=True)}
        await answers(refs, doing="load", timeout_s=bound_s, logs=logs)
        self.is_loaded, self.loss, self.unanswered_s = True, Loss(), {}

    async def restart(self) -> None:
        """Puts new workers in the place of all, stopped processes too, and builds what they hold."""
        self.is_loaded = False
        self.kill()
        self.workers = [self._launch(rank) for rank in range(len(self.workers))]
        await self.load()

    async def is_well(self) -> bool:
        """Whether every worker is alive and idle."""
        if not self.is_loaded:
            return False
        refs = {worker.name: worker.submit(free_address, (), {}) for worker in self.workers}
        try:
            await answers(refs, doing="check", timeout_s=ALIVE_S)
        except OutsideError:
            return False
        return True

    def lose(self, reason: str) -> None:
        """Writes the workers off, which ends every call to them."""
        self.is_loaded = False
        self.loss.tell(reason)

    def kill(self) -> None:
        """Ends all workers at once."""
        for worker in self.workers:
            worker.kill()


class Heartbeats:
    """Asks the workers of teams for signs of life, and writes off a team of which a worker does not answer.

    A worker answers in a thread of its own, so a long forward pass or a collective that waits for a peer does not
    matter: of ranks that wait for each other, the one that hangs is the one without an answer.
    """

    def __init__(self, teams: Iterable[Team[Any]], *, every_s: float, limit_s: float) -> None:
        """Watches teams within `watching`.

        Args:
            teams: Those to watch.
            every_s: Pause between heartbeats, `cluster.heartbeat_s`.
            limit_s: How long a worker may leave one unanswered, `cluster.heartbeat_timeout_s`.
        """
        self._every_s, self._limit_s = every_s, limit_s
        self._teams = list(teams)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Asks for signs of life within the block."""
        tasks = [asyncio.ensure_future(self._watch(team)) for team in self._teams]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    async def _watch(self, team: Team[Any]) -> None:
        while True:
            if team.is_loaded:
                await self._ask(team)
            await asyncio.sleep(self._every_s)

    async def _ask(self, team: Team[Any]) -> None:
        """Sends one heartbeat to every worker, and returns when all have answered or are no longer wanted."""
        workers, silent_s = team.workers, 0.0
        beats = {worker.name: asyncio.ensure_future(_answered(worker.heartbeat())) for worker in workers}
        try:
            while running := {name: beat for name, beat in beats.items() if not beat.done()}:
                start_s = _now_s()
                await asyncio.wait(running.values(), timeout=self._every_s)
                silent_s += silence_of(_now_s() - start_s, every_s=self._every_s)
                if team.workers is not workers or not team.is_loaded:
                    return
                team.unanswered_s = {name: silent_s for name in running if not beats[name].done()}
                if team.unanswered_s and silent_s > self._limit_s:
                    limit = f"cluster.heartbeat_timeout_s={self._limit_s:g}"
                    team.lose(f"{described(team.unanswered_s)} ({limit}) and is ended.")
        finally:
            for beat in beats.values():
                beat.cancel()


class Trainers:
    """All workers but the engines: those that train and those that score."""

    def __init__(self, teams: Mapping[str, Team[Any]], *, max_restarts: int, tell: Callable[[str], None]) -> None:
        """Takes launched workers; `load` builds what they hold.

        Args:
            teams: The workers, by role.
            max_restarts: How often a role without a state may be restarted, `cluster.max_restarts`.
            tell: Is told of every role that is restarted without the others.
        """
        self._teams = teams
        self._most = max_restarts
        self._tell = tell
        self._restarts = dict.fromkeys(teams, 0)
        """How often each role was restarted without the others."""

    async def load(self) -> None:
        """Loads the models of all roles at the same time.

        Raises:
            OutsideError: One could not be loaded within `cluster.start_timeout_s`.
        """
        await together(team.load() for team in self._teams.values())

    async def restart(self) -> list[str]:
        """Restarts the roles under training, with the weights they began with, and others that lost a worker.

        Returns:
            The roles that were restarted.

        Raises:
            OutsideError: No node has room for them, or they could not be loaded.
        """
        others = [role for role in self._teams if role not in UNDER_TRAINING]
        well = await together(self._teams[role].is_well() for role in others)
        again = [role for role in self._teams if role not in others or not well[others.index(role)]]
        await together(self._teams[role].restart() for role in again)
        return again

    async def repeating(self, role: str, call: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """The result of a call to a role without a state, which is restarted whenever it loses a worker.

        Raises:
            ClusterError: The role lost a worker more often than `cluster.max_restarts`.
            RayRLError: Whatever else the call raises.
        """
        team, most = self._teams[role], self._most
        lost_s: float | None = None
        while True:
            try:
                if not team.is_loaded:
                    await team.restart()
                result = await call()
            except WorkerLost as error:
                lost_s = _now_s() if lost_s is None else lost_s
                team.is_loaded = False
                if self._restarts[role] == most:
                    raise ClusterError(
                        f"{error}\nThe {role} was restarted {most} times before (cluster.max_restarts={most})"
                    ) from error
                self._restarts[role] += 1
                self._tell(
                    f"{str(error).splitlines()[0]} Restarting the {role}; restart {self._restarts[role]} of {most}"
                )
            else:
                if lost_s is not None:
                    self._tell(f"{role} answers again, {_now_s() - lost_s:.1f} s after it was lost")
                return result

    def kill(self) -> None:
        """Ends all workers at once."""
        for team in self._teams.values():
            team.kill()


def silence_of(wait_s: float, *, every_s: float) -> float:
    """Seconds of a wait that count as silence of the worker that was waited for.

    The driver may have been stopped too, by Ctrl-Z or a suspended machine; that is not the worker's silence.

    Args:
        wait_s: How long the wait took.
        every_s: How long it should have taken.
    """
    return min(wait_s, 2 * every_s)


def described(silent: Mapping[str, float]) -> str:
    """The workers of one role that do not answer: "actor-1 has not answered for 12.0 s"."""
    verb = "has" if len(silent) == 1 else "have"
    return f"{', '.join(silent)} {verb} not answered for {max(silent.values()):.1f} s"


async def _answered(ref: ray.ObjectRef[None]) -> None:
    """Returns when the worker has answered or has died: the next call to it says why it died."""
    try:
        await ref  # bound: its only caller stops waiting after cluster.heartbeat_timeout_s
    except ray.exceptions.RayError:
        return


def _now_s() -> float:
    return asyncio.get_running_loop().time()
