"""Signs of life of the workers that train and score: a process that hangs is treated like one that died."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import ray

from ray_rl.cluster.roles import Team
from ray_rl.cluster.vitals import described, silence_of
from ray_rl.config import RunConfig


class Heartbeats:
    """Asks all workers but the engines, and writes off a role of which a worker does not answer.

    A worker answers in a thread of its own, so a long forward pass or a collective that waits for a peer does not
    matter: of ranks that wait for each other, the one that hangs is the one without an answer.
    """

    def __init__(self, config: RunConfig, teams: Iterable[Team]) -> None:
        """Watches the workers of `teams` within `watching`."""
        self._every_s = config.cluster.heartbeat_s
        self._limit_s = config.cluster.heartbeat_timeout_s
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

    async def _watch(self, team: Team) -> None:
        while True:
            if team.vitals.is_loaded:
                await self._ask(team)
            await asyncio.sleep(self._every_s)

    async def _ask(self, team: Team) -> None:
        """Sends one heartbeat to every worker of a role, and returns when all have answered or are no longer wanted."""
        handles = list(team.handles)
        answers = {
            f"{team.role}-{rank}": asyncio.ensure_future(_answered(handle.heartbeat.remote()))
            for rank, handle in enumerate(handles)
        }
        silent_s = 0.0
        try:
            while running := {name: answer for name, answer in answers.items() if not answer.done()}:
                start_s = _now_s()
                await asyncio.wait(running.values(), timeout=self._every_s)
                silent_s += silence_of(_now_s() - start_s, every_s=self._every_s)
                if team.handles != handles or not team.vitals.is_loaded:
                    return
                team.vitals.unanswered_s = {name: silent_s for name in running if not answers[name].done()}
                if team.vitals.unanswered_s and silent_s > self._limit_s:
                    limit = f"cluster.heartbeat_timeout_s={self._limit_s:g}"
                    team.vitals.lose(f"{described(team.vitals.unanswered_s)} ({limit}) and is ended.")
        finally:
            for answer in answers.values():
                answer.cancel()


async def _answered(ref: ray.ObjectRef) -> None:
    """Returns when the worker has answered or has died: the next call to it says why it died."""
    try:
        await ref  # bound: its only caller stops waiting after cluster.heartbeat_timeout_s
    except ray.exceptions.RayError:
        return


def _now_s() -> float:
    return asyncio.get_running_loop().time()
