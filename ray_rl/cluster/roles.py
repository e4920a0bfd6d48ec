"""The roles of a run over Ray workers: what `loops.roles` asks, answered by calls to actors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from ray_rl.cluster.calls import call, call_all
from ray_rl.cluster.engines.process import EngineProcess
from ray_rl.cluster.vitals import Vitals
from ray_rl.config import RunConfig
from ray_rl.errors import ClusterError, WorkerLost
from ray_rl.metrics.metric import Metric
from ray_rl.rewards.model.assignment import assembled
from ray_rl.rollout.request import SampleRequest
from ray_rl.types import Completion, Message, TrainBatch
from ray_rl.weight_sync.proof import Digests, merged
from ray_rl.weight_sync.senders.sender import Rendezvous, Sent

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Team:
    """The workers of one role, by rank."""

    role: str
    handles: list[Any]
    """Ray actors; others take their place when one is lost."""
    logs: Path
    timeout_s: float
    """Bound of each call."""
    vitals: Vitals = field(default_factory=Vitals)

    async def all(self, refs: Sequence[ray.ObjectRef], doing: str) -> list[Any]:
        """Results of one call to every worker, by rank.

        Raises:
            WorkerLost: a worker died, or does not answer heartbeats.
            RayRLError: see `calls.call_all`.
        """
        named = {f"{self.role}-{rank}": ref for rank, ref in enumerate(refs)}
        calls = call_all(named, doing=doing, timeout_s=self.timeout_s, logs=self.logs)
        results = await self._unless_lost(calls, doing)
        return [results[name] for name in named]

    async def first(self, ref: ray.ObjectRef, doing: str) -> Any:
        """The result of one call to rank 0; raises as `all`."""
        name = f"{self.role}-0"
        one = call(name, ref, doing=doing, timeout_s=self.timeout_s, logs=self.logs)
        return await self._unless_lost(one, doing)

    async def _unless_lost(self, calls: Coroutine[Any, Any, Any], doing: str) -> Any:
        """The result of bounded calls, or the news that a worker hangs, whichever comes first."""
        working = asyncio.ensure_future(calls)
        lost = asyncio.ensure_future(self.vitals.wait_lost())
        try:
            # bound: one of the two is a call with a limit
            await asyncio.wait({working, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not lost.done():
                return working.result()
            lost.result()
        except WorkerLost:
            raise
        except ClusterError as error:
            # The peers of a worker that hangs run into the limits of their collectives.
            suspects = self.vitals.suspects()
            if suspects is None:
                raise
            raise WorkerLost(f"{doing}: {suspects}, and its peers failed.\n{error}") from error
        finally:
            working.cancel()
            lost.cancel()
        raise WorkerLost(f"{doing}: {self.vitals.reason}")


Repeat = Callable[[Callable[[], Coroutine[Any, Any, Any]]], Coroutine[Any, Any, Any]]
"""Calls a role without a state, and calls it again after its workers were lost and started again."""


class RayScorer:
    """Workers that split a batch and return log-probabilities of their rows."""

    def __init__(self, team: Team) -> None:
        self._team = team

    async def logprobs(self, batch: TrainBatch) -> NDArray[np.float32]:
        """float32 [R, T], assembled from the shares of the workers."""
        ref = ray.put(batch)
        refs = [handle.logprobs.remote(ref) for handle in self._team.handles]
        return await _assembled(self._team, refs, batch, f"log-probabilities of the {self._team.role}")


class RayReference:
    """The frozen reference. It has no state, so a call that lost a worker is repeated on new workers."""

    def __init__(self, team: Team, *, repeat: Repeat) -> None:
        self._scorer = RayScorer(team)
        self._repeat = repeat

    async def logprobs(self, batch: TrainBatch) -> NDArray[np.float32]:
        """float32 [R, T], assembled from the shares of the workers."""
        logprobs_RT: NDArray[np.float32] = await self._repeat(lambda: self._scorer.logprobs(batch))
        return logprobs_RT


async def _assembled(team: Team, refs: Sequence[ray.ObjectRef], batch: TrainBatch, doing: str) -> NDArray[np.float32]:
    values_RT = np.zeros(batch.tokens_RT.shape, np.float32)
    for share in await team.all(refs, doing):
        values_RT[share.rows] = share.values_MT
    return values_RT


async def _updated(team: Team, batch: TrainBatch) -> list[Metric]:
    """Trains on a batch; metrics of all ranks."""
    ref = ray.put(batch)
    metrics = await team.all([handle.update.remote(ref) for handle in team.handles], f"the update of the {team.role}")
    return [metric for rank in metrics for metric in rank]


class RaySaved:
    """A model under training, as checkpoints see it."""

    _team: Team

    async def save(self, folder: Path) -> None:
        """Returns when every rank has copied its state."""
        await self._team.all([h.save.remote(str(folder)) for h in self._team.handles], f"saving {self._team.role}")

    async def is_saved(self) -> bool:
        """Whether every rank has written what it copied."""
        refs = [handle.is_saved.remote() for handle in self._team.handles]
        return all(await self._team.all(refs, f"saving {self._team.role}"))

    async def load(self, folder: Path) -> None:
        """Goes on where those stood that saved to a folder."""
        await self._team.all([h.load.remote(str(folder)) for h in self._team.handles], f"loading {self._team.role}")


class RayCritic(RaySaved):
    """The value model under training."""

    def __init__(self, team: Team) -> None:
        self._team = team

    async def values(self, batch: TrainBatch) -> NDArray[np.float32]:
        """float32 [R, T], assembled from the shares of the workers."""
        ref = ray.put(batch)
        return await _assembled(self._team, [h.values.remote(ref) for h in self._team.handles], batch, "values")

    async def update(self, batch: TrainBatch) -> list[Metric]:
        """Trains on a batch with old values and returns."""
        return await _updated(self._team, batch)


class RayRewardModels:
    """Workers that hold reward models. They have no state, so a call that lost a worker is repeated on new workers."""

    def __init__(self, team: Team, *, models: int, repeat: Repeat) -> None:
        self._team = team
        self._models = models
        self._repeat = repeat

    async def scores(self, conversations: Sequence[tuple[Message, ...]]) -> tuple[NDArray[np.float32], list[Metric]]:
        """float32 [M, R], the score of each conversation by each model."""
        ref = ray.put(list(conversations))
        found = await self._repeat(
            lambda: self._team.all([handle.scores.remote(ref) for handle in self._team.handles], "scoring")
        )
        parts, metrics = zip(*found, strict=True)
        scores_MR = assembled(parts, models=self._models, rows=len(conversations))
        return scores_MR, [metric for worker in metrics for metric in worker]


class RayActor(RaySaved, RayScorer):
    """The policy under training."""

    def __init__(self, team: Team) -> None:
        super().__init__(team)
        self.sending = asyncio.Lock()
        """Held while weights go to engines: they must not change meanwhile."""
        self.is_ahead = False
        """Whether its weights may be newer than those that were published last."""

    async def update(self, batch: TrainBatch) -> list[Metric]:
        """Trains on a batch with advantages."""
        await self.go_ahead()
        return await _updated(self._team, batch)

    async def go_ahead(self) -> None:
        """Returns when no weights are being sent; from then on they may change, until the next publish."""
        async with self.sending:
            self.is_ahead = True

    async def meeting_place(self) -> tuple[str, int]:
        """Address of rank 0, and a port that is free there."""
        ref = self._team.handles[0].free_address.remote()
        address: tuple[str, int] = await self._team.first(ref, "finding a free port")
        return address

    async def export(self, folder: Path, *, step: int) -> None:
        """Writes the policy; the workers may have another working directory."""
        to = str(folder.absolute())
        await self._team.all([handle.export.remote(to, step) for handle in self._team.handles], "the export")

    async def announce(self) -> dict[str, Any]:
        """What rank 0 will send."""
        announced: dict[str, Any] = await self._team.first(self._team.handles[0].announce.remote(), "announcing")
        return announced

    async def send_weights(self) -> Sent:
        """Sends; a collective of the ranks."""
        ranks = await self._team.all([handle.send_weights.remote() for handle in self._team.handles], "sending")
        return Sent([metric for sent in ranks for metric in sent.metrics], merged(sent.digests for sent in ranks))

    async def join_transfer(self, rendezvous: Rendezvous) -> None:
        """Meets the engines."""
        refs = [handle.join_transfer.remote(rendezvous) for handle in self._team.handles]
        await self._team.all(refs, "joining the transfer group")


class RayReceiver:
    """One engine, as a publish sees it."""

    def __init__(self, process: EngineProcess, *, config: RunConfig) -> None:
        self.name = process.name
        self.process = process
        """That does what is asked now. `RayWeights.admit` puts another in its place."""
        self._config = config

    @property
    def _handle(self) -> Any:
        return self.process.handle

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Meets the trainer."""
        await self._call(self._handle.join_transfer.remote(init_info), "joining the transfer group")

    async def begin_update(self) -> None:
        """Pauses, and prepares for new weights."""
        await self._call(self._handle.begin_update.remote(), "pausing")

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """Receives."""
        await self._call(self._handle.receive_weights.remote(update_info), "receiving weights")

    async def prove(self, digests: Digests) -> None:
        """Compares what arrived with what was sent."""
        await self._call(self._handle.prove.remote(digests), "proving what it received")

    async def commit(self, version: int) -> int:
        """Ends the update."""
        version = await self._call(self._handle.commit.remote(version), "committing a version")
        return version

    async def resume(self) -> None:
        """Generates again."""
        await self._call(self._handle.resume.remote(), "resuming")

    async def _call(self, ref: ray.ObjectRef, doing: str, *, timeout_s: float | None = None) -> Any:
        bound_s = self._config.weight_sync.timeout_s if timeout_s is None else timeout_s
        return await self.process.call(ref, doing, timeout_s=bound_s)


class RayEngine(RayReceiver):
    """One engine: samples for the collector, receives in a publish. It outlives the processes that do so."""

    async def generate(self, request: SampleRequest) -> list[Completion]:
        """Completions of one prompt."""
        return await self._call(
            self._handle.generate.remote(request), "generating", timeout_s=self._config.rollout.timeout_s
        )

    async def hold(self) -> None:
        """Takes requests, and does not begin with them."""
        await self._call(self._handle.hold.remote(), "holding requests")

    async def release(self, sequences: int) -> None:
        """Begins once so many sequences have been asked for."""
        await self._call(self._handle.release.remote(sequences), "beginning with requests")

    async def checksums(self) -> list[dict[str, str]]:
        """Of all loaded weights; see `WeightReceiver.checksums`."""
        return await self._call(self._handle.checksums.remote(), "computing checksums")

    async def score(self, token_ids: list[int]) -> list[float]:
        """Log-probabilities of given tokens; see `Engine.score`."""
        return await self._call(
            self._handle.score.remote(token_ids), "scoring", timeout_s=self._config.rollout.timeout_s
        )
