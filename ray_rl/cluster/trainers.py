"""The roles that train and score: started together, and started again when one of their workers is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray

from ray_rl.cluster.calls import call
from ray_rl.cluster.roles import Team
from ray_rl.config import RunConfig
from ray_rl.errors import OutsideError
from ray_rl.rollout.together import together
from ray_rl.training.process_group import Member

UNDER_TRAINING = ("actor", "critic")
"""Roles with a state, which must all be of one step."""
ALIVE_S = 10.0
"""Bound for the workers of a role to show that they are there and idle."""


class Trainers:
    """All workers but the engines."""

    def __init__(self, config: RunConfig, teams: Mapping[str, Team], *, launch: Callable[[str, int], Any]) -> None:
        """Starts nothing yet.

        Args:
            config: of the run.
            teams: by role, of handles that were launched.
            launch: makes the actor of a worker, by role and rank, in its slot.
        """
        self._config = config
        self._teams = teams
        self._launch = launch

    async def load(self) -> None:
        """Loads the models of all roles at the same time.

        Raises:
            OutsideError: one could not be loaded within `cluster.start_timeout_s`.
        """
        await together(self._load(role) for role in self._teams)

    async def restart(self) -> list[str]:
        """Starts the roles under training anew, with the weights they began with, and others that lost a worker.

        Returns:
            The roles that were started.

        Raises:
            OutsideError: there is no place for them, or they could not be loaded.
        """
        others = [role for role in self._teams if role not in UNDER_TRAINING]
        well = await together(self._is_well(role) for role in others)
        again = [role for role in self._teams if role not in others or not well[others.index(role)]]
        for role in again:
            for handle in self._teams[role].handles:
                ray.kill(handle)
            self._teams[role].handles[:] = [self._launch(role, i) for i in range(len(self._teams[role].handles))]
        await together(self._load(role) for role in again)
        return again

    def kill(self) -> None:
        """Ends all workers."""
        for team in self._teams.values():
            for handle in team.handles:
                ray.kill(handle)

    async def _load(self, role: str) -> None:
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
