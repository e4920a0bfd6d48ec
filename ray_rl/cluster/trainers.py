"""The roles that train and score: started together, and started again when one of their workers is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

import ray

from ray_rl.cluster.calls import call
from ray_rl.cluster.roles import Team
from ray_rl.concurrency import together
from ray_rl.config import RunConfig
from ray_rl.errors import ClusterError, OutsideError, WorkerLost
from ray_rl.training.process_group import Member

UNDER_TRAINING = ("actor", "critic")
"""Roles with a state, which must all be of one step."""
ALIVE_S = 10.0
"""Bound for the workers of a role to show that they are there and idle."""


class Trainers:
    """All workers but the engines."""

    def __init__(
        self,
        config: RunConfig,
        teams: Mapping[str, Team],
        *,
        launch: Callable[[str, int], Any],
        tell: Callable[[str], None],
    ) -> None:
        """Takes workers that were launched; `load` loads their models.

        Args:
            config: Configuration of the run.
            teams: Handles of the workers, by role.
            launch: Makes the actor of a worker, by role and rank, in its slot.
            tell: Is told of every role that is started again without the others.
        """
        self._config = config
        self._teams = teams
        self._launch = launch
        self._tell = tell
        self._restarts = dict.fromkeys(teams, 0)
        """How often each role was restarted without the others."""

    async def load(self) -> None:
        """Loads the models of all roles at the same time.

        Raises:
            OutsideError: one could not be loaded within `cluster.start_timeout_s`.
        """
        await together(self._load(role) for role in self._teams)

    async def restart(self) -> list[str]:
        """Starts the roles under training again, with the weights they began with, and others that lost a worker.

        Returns:
            The roles that were started.

        Raises:
            OutsideError: there is no place for them, or they could not be loaded.
        """
        others = [role for role in self._teams if role not in UNDER_TRAINING]
        well = await together(self._is_well(role) for role in others)
        again = [role for role in self._teams if role not in others or not well[others.index(role)]]
        await self._start_again(again)
        return again

    async def repeating(self, role: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The result of a call to a role without a state, which is started again whenever it loses a worker.

        Raises:
            ClusterError: the role lost a worker more often than `cluster.max_restarts`.
            RayRLError: whatever else the call raises.
        """
        team, most = self._teams[role], self._config.cluster.max_restarts
        lost_s: float | None = None
        while True:
            try:
                if not team.vitals.is_loaded:
                    await self._start_again([role])
                result = await call()
            except WorkerLost as lost:
                team.vitals.unload()
                lost_s = _now_s() if lost_s is None else lost_s
                self._restarts[role] += 1
                if self._restarts[role] > most:
                    raise ClusterError(
                        f"{lost}\nThe {role} was started again {most} times before (cluster.max_restarts={most})"
                    ) from lost
                self._tell(
                    f"{str(lost).splitlines()[0]} Starting the {role} again; restart {self._restarts[role]} of {most}"
                )
            else:
                if lost_s is not None:
                    self._tell(f"{role} answers again, {_now_s() - lost_s:.1f} s after it was lost")
                return result

    def kill(self) -> None:
        """Ends all workers."""
        for team in self._teams.values():
            for handle in team.handles:
                ray.kill(handle)

    async def _start_again(self, roles: Iterable[str]) -> None:
        roles = list(roles)
        for role in roles:
            team = self._teams[role]
            team.vitals.unload()
            for handle in team.handles:
                ray.kill(handle)  # a stopped process, too
            team.handles[:] = [self._launch(role, rank) for rank in range(len(team.handles))]
        await together(self._load(role) for role in roles)

    async def _load(self, role: str) -> None:
        await self._load_models(role)
        self._teams[role].vitals.loaded()

    async def _load_models(self, role: str) -> None:
        bound_s = self._config.cluster.start_timeout_s
        handles, logs = self._teams[role].handles, self._teams[role].logs
        team = Team(role, handles, logs, bound_s)
        if role == "reward":
            await team.all([handle.start.remote(i) for i, handle in enumerate(handles)], "loading")
            return
        address, port = await _address(role, handles[0], logs, bound_s)
        members = [Member(rank, len(handles), address, port) for rank in range(len(handles))]
        await team.all([h.start.remote(member) for h, member in zip(handles, members, strict=True)], "loading")

    async def _is_well(self, role: str) -> bool:
        team = self._teams[role]
        if not team.vitals.is_loaded:
            return False
        try:
            async with asyncio.timeout(ALIVE_S):
                await together(_address(role, handle, team.logs, ALIVE_S) for handle in team.handles)
        except (OutsideError, TimeoutError):
            return False
        return True


async def _address(role: str, handle: Any, logs: Path, timeout_s: float) -> tuple[str, int]:
    """Where a worker can be met."""
    address: tuple[str, int] = await call(
        f"{role}-0", handle.free_address.remote(), doing="starting", timeout_s=timeout_s, logs=logs
    )
    return address


def _now_s() -> float:
    return asyncio.get_running_loop().time()
