"""Publishes weights to the engines, some of which may fail."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from ray_rl.cluster.engines.policy import Died, Poisoned, Silent
from ray_rl.cluster.engines.process import EngineProcess
from ray_rl.cluster.engines.sharing import Turns
from ray_rl.cluster.roles import RayActor, RayEngine
from ray_rl.concurrency import together
from ray_rl.errors import ClusterError, EngineLost, OutsideError, WeightMismatch, WorkerLost
from ray_rl.metrics.metric import Metric
from ray_rl.rollout.engine import Engine
from ray_rl.weight_sync.messages import Rendezvous
from ray_rl.weight_sync.publish import publish
from ray_rl.weight_sync.transports import Transport, engine_init_info


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSettings:
    """How weights reach the engines."""

    transport: Transport
    engine_workers: int
    """Workers of an engine, `rollout.tensor_parallel`."""
    bucket_bytes: int
    timeout_s: float
    """Limit of a publish, and of each other call of a transfer."""
    ping_s: float
    """Limit for an engine to show that it is alive after a publish has failed."""


class RayWeights:
    """Publishes to the live engines.

    An engine that is lost in a publish is left out, and the others receive everything again in a transfer group
    without it. A restarted engine gets the current version on its own (`admit`), or the next one with the others.
    """

    def __init__(
        self,
        settings: TransferSettings,
        actor: RayActor,
        engines: Sequence[RayEngine],
        *,
        turns: Turns,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Makes a publisher; `join` connects it. Calls `tell` with a line for every publish that failed."""
        self._turns = turns
        turns.repeat_with(self.publish_again)
        self._settings = settings
        self._actor = actor
        self._engines = engines
        self._tell = tell
        self._members: list[EngineProcess] = []
        """The engines of the transfer group; empty after a failure, which breaks the group."""
        self._version: int | None = None
        """The last published version."""

    async def publish_again(self) -> None:
        """Publishes the last version again: the weights of the trainer are still those.

        Raises:
            OutsideError: see `publish`.
        """
        assert self._version is not None and not self._actor.is_ahead, "there is no such version"
        await self.publish(self._version)

    async def join(self, address: str, port: int) -> None:
        """Connects trainer and engines; `address` and `port` are free on the node of the trainer's rank 0."""
        await self._meet(self._engines, address, port)

    async def publish(self, version: int) -> list[Metric]:
        """Returns when every live engine serves `version`; there may be none.

        Raises:
            OutsideError: it failed for every engine, and not because engines were lost.
        """
        async with self._actor.sending:
            with ExitStack() as excused:
                for engine in self._engines:
                    excused.enter_context(engine.process.excused())
                async with self._turns.transfer(is_new=True):
                    metrics = await self._to_all(version)
            self._version, self._actor.is_ahead = version, False
        return [*metrics, *self._turns.metrics()]

    async def admit(self, engine: RayEngine, process: EngineProcess) -> None:
        """Replaces a lost process by a started one, and sends it the version that the other engines serve.

        If an update has begun, the trainer may no longer have the weights of that version: then the engine waits for
        the next publish. So does one that shares GPUs, unless the others sample: they get the version again with it,
        because all of them sleep for a transfer. An engine whose transfer fails is lost again.
        """
        async with self._actor.sending:
            engine.process = process
            if self._version is None or self._actor.is_ahead:
                return
            # If a worker of the trainer is lost, the new trainer publishes to all engines.
            with process.excused(), suppress(WorkerLost):
                async with self._turns.transfer(is_new=False) as is_possible:
                    if is_possible and self._turns.is_shared:
                        await self._to_all(self._version)
                    elif is_possible:
                        await self._to_one(engine, self._version)

    async def forget(self) -> None:
        """Forgets the trainer after its restart: engines drop all requests and wait for the next publish."""
        self._members, self._version = [], None
        await together(self._drop(engine.process) for engine in self.living())

    def living(self) -> list[RayEngine]:
        """Returns the engines that are not lost."""
        return [engine for engine in self._engines if engine.process.fault is None]

    async def _drop(self, process: EngineProcess) -> None:
        try:
            await process.call(self._settings.timeout_s, Engine.drop)
        except EngineLost:
            return
        except OutsideError as error:
            process.lose(Died(str(error)))
            return
        await self._recover(process)

    async def _to_all(self, version: int) -> list[Metric]:
        """Sends until all live engines have the version.

        One failure that no lost engine explains is retried. So is one mismatch; a second one ends the run, because
        something keeps changing the weights in transit.
        """
        unexplained, mismatches = 0, 0
        while engines := self.living():
            try:
                return await self._send(engines, version)
            except WorkerLost:  # a worker of the trainer: no engine has failed
                raise
            except OutsideError as error:
                failure = error
            mismatches += isinstance(failure, WeightMismatch)
            if mismatches > 1:
                raise failure
            self._members = []
            await together(self._recover(engine.process) for engine in engines)
            survivors = self.living()
            names = ", ".join(engine.name for engine in survivors) or "none, as no engine is left"
            self._tell(f"{str(failure).splitlines()[0]}; sending again to {names}")
            unexplained += len(survivors) == len(engines)
            if unexplained > 1:
                return await self._to_each(survivors, version, failure)
        return []

    async def _to_each(self, engines: Sequence[RayEngine], version: int, failure: OutsideError) -> list[Metric]:
        """Sends to one engine after the other, to find out which of them fails."""
        metrics: list[Metric] = []
        for engine in engines:
            metrics = await self._to_one(engine, version) or metrics
        if not self.living():
            raise failure
        return metrics

    async def _to_one(self, engine: RayEngine, version: int) -> list[Metric]:
        """Sends to one engine, which is lost if that fails."""
        try:
            return await self._send([engine], version)
        except WorkerLost:
            raise
        except OutsideError as error:
            self._members = []
            engine.process.lose(Poisoned(str(error)))
            return []

    async def _send(self, engines: Sequence[RayEngine], version: int) -> list[Metric]:
        if self._members != [engine.process for engine in engines]:
            await self._meet(engines, *await self._actor.meeting_place())
        metrics = await publish(self._actor, engines, version=version, timeout_s=self._settings.timeout_s)
        for engine in engines:
            engine.process.fitted.set()
        return metrics

    async def _recover(self, process: EngineProcess) -> None:
        """Makes an engine ready for another publish after one that failed, or loses it."""
        try:
            await process.call(self._settings.ping_s, Engine.ping)
        except EngineLost:
            return
        except ClusterError:
            process.lose(Silent(self._settings.ping_s))
            return
        try:
            await process.call(self._settings.timeout_s, Engine.abort_update)
        except OutsideError as error:
            process.lose(Died(str(error)))

    async def _meet(self, engines: Sequence[RayEngine], address: str, port: int) -> None:
        """Opens a new transfer group of the trainer and these engines."""
        self._members = []
        settings = self._settings
        rendezvous = Rendezvous(
            address=address,
            port=port,
            world=1 + settings.engine_workers * len(engines),
            capacity_bytes=settings.bucket_bytes,
            timeout_s=settings.timeout_s,
            segment=f"ray_rl-{os.getpid()}-{uuid.uuid4().hex}",
        )
        joining = [
            engine.join_transfer(
                engine_init_info(settings.transport, rendezvous, rank_offset=1 + settings.engine_workers * i)
            )
            for i, engine in enumerate(engines)
        ]
        await together([self._actor.join_transfer(rendezvous), *joining])
        self._members = [engine.process for engine in engines]
