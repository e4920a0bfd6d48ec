"""The way from the actor to the engines, when some of them fail on it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

from ray_rl.cluster.engines.policy import Died, Poisoned, Silent
from ray_rl.cluster.engines.process import EngineProcess
from ray_rl.cluster.roles import RayActor, RayEngine
from ray_rl.concurrency import together
from ray_rl.config import RunConfig
from ray_rl.errors import ClusterError, EngineLost, OutsideError, WeightMismatch, WorkerLost
from ray_rl.metrics.metric import Metric
from ray_rl.rollout.engine import Engine
from ray_rl.sizes import MIB
from ray_rl.weight_sync.publish import publish
from ray_rl.weight_sync.senders.sender import Rendezvous
from ray_rl.weight_sync.transports import engine_init_info, transport_of


class RayWeights:
    """Publishes to the engines that live.

    An engine that is lost on the way is left out and the others get everything again, in a transfer group without it.
    One that was restarted is brought to the version of the others on its own (`admit`), or by the next publish.
    """

    def __init__(
        self,
        config: RunConfig,
        actor: RayActor,
        engines: Sequence[RayEngine],
        *,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Asks nothing yet.

        Args:
            config: of the run.
            actor: whose weights are sent.
            engines: that receive them.
            tell: told of every publish that failed.
        """
        self._config = config
        self._actor = actor
        self._engines = engines
        self._tell = tell
        self._members: list[EngineProcess] = []
        """Of the transfer group, beside the trainer; none where a failure broke it."""
        self._version: int | None = None
        """Published last."""

    async def join(self, address: str, port: int) -> None:
        """Brings trainer and engines together; `address` and `port` are free on the node of the trainer's rank 0."""
        await self._meet(self._engines, address, port)

    async def publish(self, version: int) -> list[Metric]:
        """Returns when every engine that lives serves `version`, which may be none.

        Raises:
            OutsideError: it failed for every engine, and not because engines were lost.
        """
        async with self._actor.sending:
            with ExitStack() as excused:
                for engine in self._engines:
                    excused.enter_context(engine.process.excused())
                metrics = await self._to_all(version)
            self._version, self._actor.is_ahead = version, False
        return metrics

    async def admit(self, engine: RayEngine, process: EngineProcess) -> None:
        """Puts a started process in the place of a lost one, and brings it to the version that the others serve.

        Once an update has begun, the trainer may no longer have the weights of that version: then the next publish
        brings it to the next. A failure loses it.
        """
        async with self._actor.sending:
            engine.process = process
            if self._version is None or self._actor.is_ahead:
                return
            with process.excused(), suppress(WorkerLost):  # the trainer's: the next publish is of another one
                await self._to_one(engine, self._version)

    async def forget(self) -> None:
        """The trainer is another one: no version holds until the next publish, and nobody waits for what was asked."""
        self._members, self._version = [], None
        await together(self._drop(engine.process) for engine in self.living())

    async def _drop(self, process: EngineProcess) -> None:
        bound_s = self._config.weight_sync.timeout_s
        try:
            await process.call(bound_s, Engine.drop)
        except EngineLost:
            return
        except OutsideError as error:
            process.lose(Died(str(error)))
            return
        await self._recover(process)

    async def _to_all(self, version: int) -> list[Metric]:
        """Sends until it succeeds for all that live; a failure that no lost engine explains is forgiven once.

        So is a mismatch. A second one ends the run: whatever changes weights on their way cannot be trusted again.
        """
        unexplained, mismatches = 0, 0
        while engines := self.living():
            try:
                return await self._send(engines, version)
            except WorkerLost:  # of the trainer: no engine is to blame
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
        """One after the other, to see which of them fails."""
        metrics: list[Metric] = []
        for engine in engines:
            metrics = await self._to_one(engine, version) or metrics
        if not self.living():
            raise failure
        return metrics

    async def _to_one(self, engine: RayEngine, version: int) -> list[Metric]:
        """Sends to one engine, which is lost when that fails."""
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
        timeout_s = self._config.weight_sync.timeout_s
        metrics = await publish(self._actor, engines, version=version, timeout_s=timeout_s)
        for engine in engines:
            engine.process.fitted.set()
        return metrics

    async def _recover(self, process: EngineProcess) -> None:
        """Makes an engine ready for another publish after one that failed, or loses it."""
        bound_s = self._config.rollout.heartbeat_timeout_s
        try:
            await process.call(bound_s, Engine.ping)
        except EngineLost:
            return
        except ClusterError:
            process.lose(Silent(bound_s))
            return
        bound_s = self._config.weight_sync.timeout_s
        try:
            await process.call(bound_s, Engine.abort_update)
        except OutsideError as error:
            process.lose(Died(str(error)))

    def living(self) -> list[RayEngine]:
        """The engines that are not lost."""
        return [engine for engine in self._engines if engine.process.fault is None]

    async def _meet(self, engines: Sequence[RayEngine], address: str, port: int) -> None:
        """A new transfer group of the trainer and these engines."""
        self._members = []
        workers = self._config.rollout.tensor_parallel
        rendezvous = Rendezvous(
            address=address,
            port=port,
            world=1 + workers * len(engines),
            capacity_bytes=self._config.weight_sync.bucket_mib * MIB,
            timeout_s=self._config.weight_sync.timeout_s,
            segment=f"ray_rl-{os.getpid()}-{uuid.uuid4().hex}",
        )
        transport = transport_of(self._config)
        joining = [
            engine.join_transfer(engine_init_info(transport, rendezvous, rank_offset=1 + workers * i))
            for i, engine in enumerate(engines)
        ]
        await together([self._actor.join_transfer(rendezvous), *joining])
        self._members = [engine.process for engine in engines]
