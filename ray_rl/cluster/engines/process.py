"""One started engine, from its start until it is lost or stopped; an engine that is restarted gets another."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_rl.cluster.calls import call
from ray_rl.cluster.engines.policy import Died, Fault
from ray_rl.cluster.processes import Family, end_all
from ray_rl.config import RunConfig
from ray_rl.errors import EngineLost, OutsideError, WorkerLost

END_S = 10.0
"""Bound for killed processes to be gone."""
REACH_S = 20.0
"""Bound for a task that ends them to start on their node."""


class EngineProcess:
    """The actor of an engine, the processes behind it, and whether it can be counted on."""

    def __init__(self, name: str, handle: Any, *, config: RunConfig, logs: Path) -> None:
        """Asks nothing yet.

        Args:
            name: of the engine.
            handle: of its Ray actor.
            config: of the run.
            logs: folder of the log files.
        """
        self.name = name
        self.handle = handle
        self.fault: Fault | None = None
        """Why it is lost; None while it is not."""
        self.fitted = asyncio.Event()
        """Set once it serves a published version."""
        self._config = config
        self._logs = logs
        self._family: Family | None = None
        self._lost = asyncio.Event()
        self._excuses = 0
        self._excused_until_s = 0.0

    async def start(self) -> None:
        """Loads the model, and takes down which processes there are.

        Raises:
            OutsideError: it could not be started within `rollout.start_timeout_s`.
        """
        bound_s = self._config.rollout.start_timeout_s
        await self._take_down(bound_s)
        await self.call(self.handle.start.remote(), "starting vLLM", timeout_s=bound_s)
        await self._take_down(bound_s)

    async def _take_down(self, bound_s: float) -> None:
        self._family = await self.call(self.handle.family.remote(), "starting", timeout_s=bound_s)

    async def call(self, ref: ray.ObjectRef, doing: str, *, timeout_s: float) -> Any:
        """The result of one call, or the news that the engine is lost, whoever finds that first.

        Raises:
            EngineLost: it is lost, and everybody knows now.
            RayRLError: see `calls.call`.
        """
        answer = asyncio.ensure_future(call(self.name, ref, doing=doing, timeout_s=timeout_s, logs=self._logs))
        # bound: runs together with a call that has a limit and cancels this
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            # bound: the call has a limit; `Health` limits that of heartbeats
            await asyncio.wait({answer, lost}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
        except (WorkerLost, EngineLost) as error:
            self.lose(Died(str(error)))
            raise EngineLost(str(error)) from error
        finally:
            answer.cancel()
            lost.cancel()
        assert self.fault is not None
        raise EngineLost(f"{doing}: {self.name} {self.fault.reason}")

    def lose(self, fault: Fault) -> None:
        """Writes it off: all its calls end now. The first reason stays."""
        if self.fault is None:
            self.fault = fault
            self._lost.set()

    async def wait_lost(self, *, timeout_s: float) -> None:
        """Waits until it is lost, or the time is up."""
        # bound: runs together with a call that has a limit and cancels this
        waiting = asyncio.ensure_future(self._lost.wait())
        await asyncio.wait({waiting}, timeout=timeout_s)
        waiting.cancel()

    async def ping(self) -> None:
        """Returns when every process that computes has answered; whoever asks bounds the wait.

        Raises:
            OutsideError: the engine is lost, or not well.
        """
        await self.call(self.handle.ping.remote(), "a heartbeat", timeout_s=math.inf)

    @contextmanager
    def excused(self) -> Iterator[None]:
        """A block in which it need not answer heartbeats, as what it does has a bound of its own."""
        self._excuses += 1
        try:
            yield
        finally:
            self._excuses -= 1
            self._excused_until_s = asyncio.get_running_loop().time()

    def silence_s(self, *, asked_s: float) -> float:
        """Seconds without an answer to what was asked at `asked_s` of the loop's clock, without those excused."""
        if self._excuses:
            return 0.0
        return asyncio.get_running_loop().time() - max(asked_s, self._excused_until_s)

    async def end(self) -> list[int]:
        """Kills its processes, stopped ones too, so that its place is free again.

        Returns:
            Pids of those that could not be seen to end.
        """
        left: list[int] = []
        if self._family is not None:
            left = await _ended(self._family)
        ray.kill(self.handle)
        return left


async def _ended(family: Family) -> list[int]:
    node = NodeAffinitySchedulingStrategy(family.node, soft=False)
    function: Any = end_all
    task = ray.remote(num_cpus=0)(function).options(scheduling_strategy=node)
    ref = task.remote(family.members, timeout_s=END_S)
    try:
        left: list[int] = await call("", ref, doing="ending processes", timeout_s=REACH_S + END_S)
    except (OutsideError, ray.exceptions.RayError):  # the node is gone, and they with it
        return []
    return left
