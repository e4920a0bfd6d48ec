"""Watches the engines and restarts lost ones."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from ray_rl.cluster.engines.policy import (
    Decision,
    Died,
    Fault,
    NotStarted,
    Restart,
    Silent,
    Standing,
    Wait,
    decide,
)
from ray_rl.cluster.engines.process import EngineProcess
from ray_rl.cluster.engines.sharing import Turns
from ray_rl.cluster.engines.weights import RayWeights
from ray_rl.cluster.roles import RayEngine
from ray_rl.cluster.teams import silence_of
from ray_rl.concurrency import together
from ray_rl.config.rollout import RolloutConfig
from ray_rl.errors import ClusterError, OutsideError
from ray_rl.rollout.engine import Engine
from ray_rl.rollout.router import Router


class Health:
    """Sends heartbeats to engines and restarts lost ones, in one task per engine, concurrent to the driver.

    A lost engine leaves the router and its processes are killed. After a back-off a new process starts, receives the
    version that the other engines serve, and enters the router. `policy.decide` says when and how often.
    """

    def __init__(
        self,
        engines: Sequence[RayEngine],
        *,
        rollout: RolloutConfig,
        max_restarts: int,
        router: Router,
        weights: RayWeights,
        turns: Turns,
        launch: Callable[[int], EngineProcess],
        tell: Callable[[str], None],
    ) -> None:
        """Makes a watcher of started engines. `launch` makes a new process of the engine with an index."""
        self._turns = turns
        self._rollout, self._max_restarts = rollout, max_restarts
        self._engines = engines
        self._router = router
        self._weights = weights
        self._launch = launch
        self._tell = tell
        self._latest = [engine.process for engine in engines]
        self._restarts = [0] * len(engines)
        self._abandoned: set[int] = set()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watches all engines within the block."""
        tasks = [asyncio.ensure_future(self._tend(index)) for index in range(len(self._engines))]
        for task in tasks:
            task.add_done_callback(self._stop_on_defect)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            # bound: heartbeats end the wait for an engine, and cancelled tasks end at their next wait
            await asyncio.wait(tasks)

    async def stop(self) -> None:
        """Stops the latest process of each engine, whether it serves or is still starting."""
        await together(process.stop() for process in self._latest)

    def _stop_on_defect(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._router.close(error)

    async def _tend(self, index: int) -> None:
        """Watches and restarts one engine until it is abandoned."""
        engine = self._engines[index]
        lost_s: float | None = None
        while True:
            fault = await self._watch(index, engine.process)
            self._router.quarantine(index)
            lost_s = _now_s() if lost_s is None else lost_s
            process = await self._restarted(index, fault)
            if process is None:
                return
            await self._weights.admit(engine, process)
            if await self._is_fitted(index, process):
                self._router.release(index)
                self._tell(f"{engine.name} serves again, {_now_s() - lost_s:.1f} s after it was lost")
                lost_s = None

    async def _watch(self, index: int, process: EngineProcess) -> Fault:
        """Sends heartbeats until the engine is lost: by a missing answer, or because another call failed."""
        while process.fault is None:
            await self._beat(index, process)
            await process.wait_lost(timeout_s=self._rollout.heartbeat_s)
        return process.fault

    async def _beat(self, index: int, process: EngineProcess) -> None:
        """Sends one heartbeat, and returns when it is answered or the engine is lost."""
        every_s = self._rollout.heartbeat_s
        asked_s, silent_s = _now_s(), 0.0
        answer = asyncio.ensure_future(process.call(math.inf, Engine.ping))
        try:
            while not answer.done():
                start_s = _now_s()
                await asyncio.wait({answer}, timeout=every_s)
                silent_s += silence_of(_now_s() - start_s, every_s=every_s)
                silent_s = min(silent_s, process.silence_s(asked_s=asked_s))
                silent = Silent(silent_s)
                if not answer.done() and decide(silent, self._standing(index)) != Wait():
                    process.lose(silent)
            answer.result()
        except OutsideError as error:
            process.lose(Died(str(error)))
        finally:
            answer.cancel()

    async def _is_fitted(self, index: int, process: EngineProcess) -> bool:
        """Waits until a publish has reached a restarted engine; the trainer may have to finish an update first."""
        # bound: a publish has a limit, and heartbeats watch the engine meanwhile
        fitted = asyncio.ensure_future(process.fitted.wait())
        watching = asyncio.ensure_future(self._watch(index, process))
        try:
            # bound: heartbeats end the wait for an engine, and cancelled tasks end at their next wait
            await asyncio.wait({fitted, watching}, return_when=asyncio.FIRST_COMPLETED)
            return process.fault is None
        finally:
            fitted.cancel()
            watching.cancel()

    async def _restarted(self, index: int, fault: Fault) -> EngineProcess | None:
        """Restarts an engine and returns its new process; None if the engine is abandoned."""
        while True:
            decision = decide(fault, self._standing(index))
            self._tell(self._verdict(index, fault, decision))
            left = await self._latest[index].end()
            if left:
                self._tell(f"{self._engines[index].name}: processes {left} were killed, but still run")
            match decision:
                case Restart(after_s):
                    await asyncio.sleep(after_s)
                case _:
                    self._abandon(index, fault)
                    return None
            self._restarts[index] += 1
            process = self._latest[index] = self._launch(index)
            try:
                await self._turns.start_again(process)
            except OutsideError as error:
                fault = NotStarted(str(error))
            else:
                return process

    def _abandon(self, index: int, fault: Fault) -> None:
        self._abandoned.add(index)
        if len(self._abandoned) == len(self._engines):
            name, most = self._engines[index].name, self._max_restarts
            self._router.close(
                ClusterError(
                    f"no engine is left: {name}, the last, was lost after {self._restarts[index]} restarts "
                    f"(cluster.max_restarts={most}): {fault.reason}"
                )
            )

    def _verdict(self, index: int, fault: Fault, decision: Decision) -> str:
        """Returns a line about a fault and its consequence."""
        others = self._standing(index).others
        rest = f"{others} other{'s' if others > 1 else ''} left" if others else "the run waits, as no other is left"
        match decision:
            case Restart(after_s):
                number, most = self._restarts[index] + 1, self._max_restarts
                consequence = f"restart {number} of {most} in {after_s:g} s; {rest}"
            case _:
                consequence = f"abandoned after {self._restarts[index]} restarts; {others} left"
        reason = fault.reason.splitlines()[0].rstrip(".")
        return f"{self._engines[index].name} is lost: {reason}: {consequence}"

    def _standing(self, index: int) -> Standing:
        return Standing(
            restarts=self._restarts[index],
            max_restarts=self._max_restarts,
            others=len(self._engines) - len(self._abandoned | {index}),
            heartbeat_timeout_s=self._rollout.heartbeat_timeout_s,
        )


def _now_s() -> float:
    return asyncio.get_running_loop().time()
