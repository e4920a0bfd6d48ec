"""The workers of a role as one team: calls to all of them, heartbeats, and restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, TypeVar

import ray

from ray_rl.cluster.calls import Loss, answers, name_of
from ray_rl.cluster.shell import Worker, free_address
from ray_rl.concurrency import together
from ray_rl.errors import ClusterError, OutsideError, WorkerLost
from ray_rl.training.member import Member

T = TypeVar("T", covariant=True)  # a team of `Policy` is one of `Trainer`
P = ParamSpec("P")
R = TypeVar("R")

ALIVE_S = 10.0
"""Limit for the workers of a role to show that they are alive and idle."""
SUSPECT_S = 10.0
"""If a worker has not answered for this long, it is the likely cause of the errors of its peers."""


class Team(Generic[T]):
    """The workers of one role, each with one `T`. Their state must be of the same step as that of other such roles."""

    has_state: ClassVar[bool] = True

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
        """Starts the workers; `load` builds their objects.

        Args:
            role: the name of the role.
            size: the number of workers.
            launch: starts the worker of a rank in its slot.
            build: builds the object of a worker in its process; may be a collective of the workers.
            logs: the folder of the log files.
            timeout_s: the limit of each call.
            start_timeout_s: the limit of `load`.
        """
        self.role = role
        self.workers = [launch(rank) for rank in range(size)]
        """The workers by rank; a restart replaces them."""
        self.loss = Loss()
        """Records that these workers are lost; a restart replaces the record."""
        self.is_loaded = False
        """Whether every worker holds its object and none is lost; only then do heartbeats count."""
        self.unanswered_s: dict[str, float] = {}
        """Seconds since the heartbeat that a worker has not answered yet, by name of the worker."""
        self._launch, self._build = launch, build
        self._logs, self._timeout_s, self._start_timeout_s = logs, timeout_s, start_timeout_s

    async def all(self, method: Callable[Concatenate[T, P], R], *args: P.args, **kwargs: P.kwargs) -> list[R]:
        """Runs a function on the objects of all workers concurrently, and returns the results by rank.

        Raises:
            WorkerLost: a worker died, or does not answer heartbeats.
            RayRLError: see `calls.answers`.
        """
        # One copy of a large argument for all workers.
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
            # The collectives of its peers time out while a worker hangs.
            silent = {name: seconds for name, seconds in self.unanswered_s.items() if seconds >= SUSPECT_S}
            if not silent:
                raise
            raise WorkerLost(f"{doing}: {described(silent)}, and its peers failed.\n{error}") from error
        return list(found.values())

    async def first(self, method: Callable[Concatenate[T, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs a function on the object of rank 0, once; raises as `Team.all`."""
        alone = copy(self)
        alone.workers = self.workers[:1]
        return (await Team.all(alone, method, *args, **kwargs))[0]

    async def load(self) -> None:
        """Builds the objects of the workers.

        Raises:
            OutsideError: they could not be built, or not within `start_timeout_s`.
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
        """Replaces all workers, stopped processes too, and builds the objects of the new ones."""
        self.is_loaded = False
        self.kill()
        self.workers = [self._launch(rank) for rank in range(len(self.workers))]
        await self.load()

    async def is_well(self) -> bool:
        """Returns whether every worker is alive and idle."""
        if not self.is_loaded:
            return False
        refs = {worker.name: worker.submit(free_address, (), {}) for worker in self.workers}
        try:
            await answers(refs, doing="check", timeout_s=ALIVE_S)
        except OutsideError:
            return False
        return True

    def lose(self, reason: str) -> None:
        """Writes the workers off: every call to them fails."""
        self.is_loaded = False
        self.loss.tell(reason)

    def kill(self) -> None:
        """Kills all workers."""
        for worker in self.workers:
            worker.kill()


class Heartbeats:
    """Sends heartbeats to the workers of teams, and writes off a team if one of its workers does not answer.

    A worker answers in a thread of its own, even during a long forward pass or a collective that waits for a peer: of
    ranks that wait for each other, only the one that hangs does not answer.
    """

    def __init__(self, teams: Iterable[Team[Any]], *, every_s: float, limit_s: float) -> None:
        """Makes a watcher: heartbeats have a pause of `every_s`, and answers a limit of `limit_s`."""
        self._every_s, self._limit_s = every_s, limit_s
        self._teams = list(teams)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Sends heartbeats within the block."""
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
        """Sends one heartbeat to every worker, and returns when all have answered or the team was restarted."""
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
                    team.lose(f"{described(team.unanswered_s)} ({limit}) and is killed.")
        finally:
            for beat in beats.values():
                beat.cancel()


class StatelessTeam(Team[T]):
    """Workers without a state, such as a frozen model. A call that loses a worker is repeated on new workers."""

    has_state = False

    def __init__(
        self, role: str, size: int, *, max_restarts: int, tell: Callable[[str], None], **arguments: Any
    ) -> None:
        """Starts the workers, as `Team`. Calls may restart them `max_restarts` times, each with a line to `tell`."""
        super().__init__(role, size, **arguments)
        self._max_restarts, self._tell = max_restarts, tell
        self._restarts = 0

    async def all(self, method: Callable[Concatenate[T, P], R], *args: P.args, **kwargs: P.kwargs) -> list[R]:
        """Runs a function as `Team.all` does, and restarts the workers and repeats the call while one is lost.

        Raises:
            ClusterError: workers were lost more often than `cluster.max_restarts`.
            RayRLError: see `calls.answers`.
        """
        lost_s: float | None = None
        most = self._max_restarts
        while True:
            try:
                if not self.is_loaded:
                    await self.restart()
                found = await super().all(method, *args, **kwargs)
            except WorkerLost as error:
                lost_s = _now_s() if lost_s is None else lost_s
                self.is_loaded = False
                if self._restarts == most:
                    raise ClusterError(
                        f"{error}\nThe {self.role} was restarted {most} times before (cluster.max_restarts={most})"
                    ) from error
                self._restarts += 1
                self._tell(
                    f"{str(error).splitlines()[0]} Restarting the {self.role}; restart {self._restarts} of {most}"
                )
            else:
                if lost_s is not None:
                    self._tell(f"{self.role} answers again, {_now_s() - lost_s:.1f} s after it was lost")
                return found


async def restarted(teams: Iterable[Team[Any]]) -> list[str]:
    """Restarts the teams with a state, which must all be of one step, and other teams that lost a worker.

    Returns:
        The names of their roles.

    Raises:
        OutsideError: no node has room for them, or they could not be loaded.
    """
    teams = list(teams)
    well = await together(_keeps(team) for team in teams)
    again = [team for team, keeps in zip(teams, well, strict=True) if not keeps]
    await together(team.restart() for team in again)
    return [team.role for team in again]


async def _keeps(team: Team[Any]) -> bool:
    return not team.has_state and await team.is_well()


def silence_of(wait_s: float, *, every_s: float) -> float:
    """Returns the seconds of a wait for a worker that count as silence of this worker.

    The wait should have taken `every_s`. The driver may have been suspended in it, by Ctrl-Z or with the machine: that
    time does not count.
    """
    return min(wait_s, 2 * every_s)


def described(silent: Mapping[str, float]) -> str:
    """Returns a text about workers that do not answer: "actor-1 has not answered for 12.0 s"."""
    verb = "has" if len(silent) == 1 else "have"
    return f"{', '.join(silent)} {verb} not answered for {max(silent.values()):.1f} s"


async def _answered(ref: ray.ObjectRef[None]) -> None:
    """Returns when the worker has answered or died; the next call to a dead worker says why it died."""
    try:
        await ref  # bound: its only caller stops waiting after cluster.heartbeat_timeout_s
    except ray.exceptions.RayError:
        return


def _now_s() -> float:
    return asyncio.get_running_loop().time()
