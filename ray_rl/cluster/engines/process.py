"""The worker process of an engine, from its start until it is lost or stopped. A restarted engine gets a new one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_rl.cluster.calls import Loss, answers, name_of
from ray_rl.cluster.engines.policy import Died, Fault
from ray_rl.cluster.processes import Family, end_all, own_family
from ray_rl.cluster.shell import Worker
from ray_rl.errors import EngineLost, OutsideError, WorkerLost
from ray_rl.rollout.engine import Engine, EngineSettings

P = ParamSpec("P")
R = TypeVar("R")

STOP_S = 20.0
"""Limit for an engine to end its processes before its actor is killed."""
END_S = 10.0
"""Limit for killed processes to end."""
REACH_S = 20.0
"""Limit for the task that kills them to start on their node."""

CORE_TITLE = "VLLM::EngineCore"
"""Title of the process that computes, which vLLM gives it elsewhere."""
INHERITED: list[Any] = []
"""Objects of its worker that a forked process has and must not use."""


class EngineProcess:
    """The worker of an engine with its child processes, and whether it can take requests."""

    def __init__(
        self, worker: Worker[Engine], build: Callable[[], Awaitable[Engine]], *, start_timeout_s: float, logs: Path
    ) -> None:
        """Wraps a worker of `Worker.launch_async`; `start` builds its engine, each step within `start_timeout_s`."""
        self.name = worker.name
        self.fault: Fault | None = None
        """Why the engine is lost; None while it is not."""
        self.fitted = asyncio.Event()
        """Set once the engine serves a published version."""
        self._worker, self._build = worker, build
        self._start_timeout_s = start_timeout_s
        self._logs = logs
        self._family: Family | None = None
        self._loss = Loss()
        self._excuses = 0
        self._excused_until_s = 0.0

    async def start(self) -> None:
        """Loads the model, and notes which processes belong to the engine.

        Raises:
            OutsideError: it could not be started within `rollout.start_timeout_s`.
        """
        bound_s = self._start_timeout_s
        self._family = await self.call(bound_s, own_family)
        start = {self.name: self._worker.hold(self._build)}
        await answers(start, doing="start", timeout_s=bound_s, logs=self._logs, loss=self._loss)
        self._family = await self.call(bound_s, own_family)

    async def call(
        self,
        timeout_s: float,
        method: Callable[Concatenate[Engine, P], Coroutine[Any, Any, R]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Runs a coroutine function, such as a method of `Engine`, on the engine, and returns its result.

        The call ends when the engine is written off.

        Raises:
            EngineLost: the engine is lost, and is written off from now on.
            RayRLError: see `calls.answers`.
        """
        running = {self.name: self._worker.submit(method, args, kwargs)}
        try:
            found: dict[str, R] = await answers(
                running, doing=name_of(method), timeout_s=timeout_s, logs=self._logs, loss=self._loss
            )
        except (WorkerLost, EngineLost) as error:
            self.lose(Died(str(error)))
            raise EngineLost(str(error)) from error
        return found[self.name]

    def lose(self, fault: Fault) -> None:
        """Writes the engine off: all calls to it fail now. The first fault stays."""
        if self.fault is None:
            self.fault = fault
            self._loss.tell(f"{self.name} {fault.reason}")

    async def wait_lost(self, *, timeout_s: float) -> None:
        """Waits until the engine is lost, for at most `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._loss.told.wait()  # bound: the timeout around it

    @contextmanager
    def excused(self) -> Iterator[None]:
        """Ignores missing heartbeats within the block: the engine is busy with a call that has a limit of its own."""
        self._excuses += 1
        try:
            yield
        finally:
            self._excuses -= 1
            self._excused_until_s = asyncio.get_running_loop().time()

    def silence_s(self, *, asked_s: float) -> float:
        """Returns the seconds without an answer since `asked_s` of the loop's clock, except those excused."""
        if self._excuses:
            return 0.0
        return asyncio.get_running_loop().time() - max(asked_s, self._excused_until_s)

    async def stop(self) -> None:
        """Lets vLLM end its own processes, then kills the worker, whose death they would notice only later."""
        with suppress(OutsideError):  # it is already dead, or hangs
            await self.call(STOP_S, _stopped)
        self._worker.kill()

    async def end(self) -> list[int]:
        """Kills the processes of the engine, stopped ones too, so that its devices are free again.

        Returns:
            The ids of processes that did not end in time.
        """
        left: list[int] = []
        if self._family is not None:
            left = await _ended(self._family)
        self._worker.kill()
        return left


async def started_engine(settings: EngineSettings) -> Engine:
    """Starts an engine in its worker (see `EngineProcess.start`)."""
    engine = Engine(settings, leave=_leave_ray)
    await engine.start()
    return engine


def _leave_ray() -> None:
    """Makes Ray's objects in a forked process leave alone what Ray's threads in the worker work with."""
    worker = ray._private.worker.global_worker
    worker.set_is_connected(False)
    # Kept, because freeing it would shut down Ray; objects that look for it in the worker do nothing without it.
    INHERITED.append(worker.__dict__.pop("core_worker"))
    # vLLM cannot change a title that Ray has set; another thread of the worker may have held the lock.
    core: Any = ray._raylet
    core._current_proctitle_lock = threading.Lock()
    core.setproctitle(CORE_TITLE)


async def _stopped(engine: Engine) -> None:
    engine.stop()


async def _ended(family: Family) -> list[int]:
    node = NodeAffinitySchedulingStrategy(family.node, soft=False)
    function: Any = end_all
    task = ray.remote(num_cpus=0)(function).options(scheduling_strategy=node)
    ending = {"": task.remote(family.members, timeout_s=END_S)}
    try:
        left: list[int] = (await answers(ending, doing="end processes", timeout_s=REACH_S + END_S))[""]
    except (OutsideError, ray.exceptions.RayError):  # the node is gone, and they with it
        return []
    return left
