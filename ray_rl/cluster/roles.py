"""The roles of a run over Ray workers: they implement the Protocols of `loops.roles` by calls to teams and engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from ray_rl.cluster.by_name import ByName
from ray_rl.cluster.engines.process import EngineProcess
from ray_rl.cluster.shell import free_address
from ray_rl.cluster.teams import Team
from ray_rl.config.algorithm import Algorithm
from ray_rl.metrics.metric import Metric
from ray_rl.rewards.model.assignment import assembled
from ray_rl.rewards.model.queue import Conversation, ScoreQueue
from ray_rl.rollout import memory
from ray_rl.rollout.engine import Engine
from ray_rl.types import Batch, OfflineBatch, TokenBatch, TrainBatch
from ray_rl.weight_sync.messages import Rendezvous, Sent, merged

if TYPE_CHECKING:
    from ray_rl.cluster.held import ExportedTrainer, Policy, SavedTrainer
    from ray_rl.rewards.model.held import RewardModels
    from ray_rl.training.crediting import Credited, credited
    from ray_rl.training.frozen import FrozenModel
    from ray_rl.training.share import Scores
    from ray_rl.training.trainer import Trainer
else:
    ExportedTrainer = ByName("ray_rl.cluster.held", "ExportedTrainer")
    Policy = ByName("ray_rl.cluster.held", "Policy")
    SavedTrainer = ByName("ray_rl.cluster.held", "SavedTrainer")
    RewardModels = ByName("ray_rl.rewards.model.held", "RewardModels")
    credited = ByName("ray_rl.training.crediting", "credited")
    FrozenModel = ByName("ray_rl.training.frozen", "FrozenModel")
    Trainer = ByName("ray_rl.training.trainer", "Trainer")

P = ParamSpec("P")
R = TypeVar("R")


class RayReference:
    """A frozen model that gives log-probabilities."""

    def __init__(self, team: Team[FrozenModel]) -> None:
        self._team = team

    async def logprobs(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Returns float32 [R, T], assembled from the shares of the workers."""
        return whole(batch, await self._team.all(FrozenModel.scores, batch))


class RayRewardModels:
    """Workers that hold reward models."""

    def __init__(self, team: Team[RewardModels], *, models: int) -> None:
        self._team = team
        self._models = models
        self._queue = ScoreQueue(self._call)

    async def scores(self, conversations: Sequence[Conversation]) -> tuple[NDArray[np.float32], list[Metric]]:
        """Returns float32 [M, R], the score of each conversation by each model, in one call with all that wait."""
        return await self._queue.scores(conversations)

    async def _call(self, conversations: Sequence[Conversation]) -> tuple[NDArray[np.float32], list[Metric]]:
        given = list(conversations)
        parts, metrics = zip(*await self._team.all(RewardModels.scores, given), strict=True)
        return assembled(parts, models=self._models, rows=len(given)), flat(metrics)


class RaySaved:
    """A model under training, as checkpoints see it."""

    def __init__(self, team: Team[SavedTrainer[Any]]) -> None:
        self._ranks = team

    async def save(self, folder: Path) -> None:
        """Returns when every rank has copied its state."""
        await self._ranks.all(SavedTrainer.save, str(folder))

    async def is_saved(self) -> bool:
        """Returns whether every rank has written the copy of its state."""
        return all(await self._ranks.all(SavedTrainer.is_saved))

    async def load(self, folder: Path) -> None:
        """Restores the state that was saved to a folder."""
        await self._ranks.all(SavedTrainer.load, str(folder))


class RayCritic(RaySaved):
    """The value model under training."""

    async def values(self, batch: TrainBatch) -> NDArray[np.float32]:
        """Returns float32 [R, T], assembled from the shares of the workers."""
        return whole(batch, await self._ranks.all(Trainer.scores, batch))

    async def update(self, batch: TrainBatch) -> list[Metric]:
        """Trains on a batch with old values and returns, and returns the metrics of all ranks."""
        return flat(await self._ranks.all(Trainer.update, batch))


class RayTrained(RaySaved, Generic[Batch]):
    """A model under training that scores and is exported.

    Updates are calls of the subclasses: one through here would add a function to each of them (tests/unit/cluster).
    """

    def __init__(self, team: Team[ExportedTrainer[Batch]]) -> None:
        super().__init__(team)
        self._team = team

    async def logprobs(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Returns float32 [R, T], assembled from the shares of the workers."""
        return whole(batch, await self._team.all(Trainer.scores, batch))

    async def reference_logprobs(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Returns float32 [R, T] of the model without its adapters: with the weights before training."""
        return whole(batch, await self._team.all(Trainer.reference_scores, batch))

    async def export(self, folder: Path, *, step: int) -> None:
        """Writes the model. The path becomes absolute: workers may have another working directory."""
        await self._team.all(ExportedTrainer.export, str(folder.absolute()), step)


class BaseReference:
    """A model under training, without its adapters, as the frozen reference of the run."""

    def __init__(self, trained: RayTrained[Any]) -> None:
        self._trained = trained

    async def logprobs(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Returns float32 [R, T]."""
        return await self._trained.reference_logprobs(batch)


class RayLearner(RayTrained[OfflineBatch]):
    """A model that learns from examples."""

    async def update(self, batch: OfflineBatch) -> list[Metric]:
        """Trains on a batch, and returns the metrics of all ranks."""
        return flat(await self._team.all(Trainer.update, batch))

    async def evaluate(self, batch: OfflineBatch) -> list[Metric]:
        """Returns the metrics of the loss on a batch, from all ranks. Trains nothing."""
        return flat(await self._team.all(Trainer.evaluate, batch))


class RayActor(RayTrained[TrainBatch]):
    """The policy under training."""

    def __init__(self, team: Team[Policy]) -> None:
        super().__init__(team)
        self.team = team
        """The ranks."""
        self.sending = asyncio.Lock()
        """Held while weights are sent to engines: they must not change then."""
        self.is_ahead = False
        """True if the weights may be newer than the last published version."""

    async def credit(
        self, settings: Algorithm, batch: TrainBatch, *, kl_coefficient: float, max_tokens: int
    ) -> Credited:
        """Returns the advantages of a batch, which rank 0 computes."""
        return await self._team.first(credited, settings, batch, kl_coefficient=kl_coefficient, max_tokens=max_tokens)

    async def update(self, batch: TrainBatch) -> list[Metric]:
        """Trains on a batch with advantages, and returns the metrics of all ranks."""
        await self.go_ahead()
        return flat(await self._team.all(Trainer.update, batch))

    async def go_ahead(self) -> None:
        """Waits until no weights are being sent; from then on they may change, until the next publish."""
        async with self.sending:
            self.is_ahead = True

    async def meeting_place(self) -> tuple[str, int]:
        """Returns the address of rank 0, and a port that is free there."""
        return await self.team.first(free_address)

    async def announce(self) -> dict[str, Any]:
        """Returns the description of the weights that rank 0 will send."""
        return await self.team.first(Policy.announce)

    async def send_weights(self) -> Sent:
        """Sends the weights; a collective of the ranks."""
        ranks = await self.team.all(Policy.send_weights)
        return Sent(flat(sent.metrics for sent in ranks), merged(sent.digests for sent in ranks))

    async def join_transfer(self, rendezvous: Rendezvous) -> None:
        """Meets the engines."""
        await self.team.all(Policy.join_transfer, rendezvous)


def in_process(
    method: Callable[Concatenate[Engine, P], Coroutine[Any, Any, R]], *, is_request: bool = False
) -> Callable[Concatenate[RayEngine, P], Coroutine[Any, Any, R]]:
    """Returns a method of `RayEngine` that runs `method` in the process of the engine, within one of two limits."""

    async def call(engine: RayEngine, /, *args: P.args, **kwargs: P.kwargs) -> R:
        limit_s = engine.rollout_s if is_request else engine.publish_s
        return await engine.process.call(limit_s, method, *args, **kwargs)

    return call


class RayEngine:
    """One engine. Its methods are those of `Engine`, run in the current process of this engine."""

    def __init__(self, process: EngineProcess, *, rollout_s: float, publish_s: float) -> None:
        """Makes the handle of an engine: requests have the limit `rollout_s`, other calls `publish_s`."""
        self.name = process.name
        self.process = process
        """The current process; `RayWeights.admit` replaces it."""
        self.rollout_s, self.publish_s = rollout_s, publish_s

    generate = in_process(Engine.generate, is_request=True)
    score = in_process(Engine.score, is_request=True)
    hold = in_process(Engine.hold)
    release = in_process(Engine.release)
    join_transfer = in_process(Engine.join_transfer)
    begin_update = in_process(Engine.begin_update)
    receive_weights = in_process(Engine.receive_weights)
    prove = in_process(Engine.prove)
    commit = in_process(Engine.commit)
    resume = in_process(Engine.resume)
    checksums = in_process(Engine.checksums)
    sleep = in_process(memory.sleep)
    wake_weights = in_process(memory.wake_weights)
    wake = in_process(memory.wake)


def whole(batch: TokenBatch, shares: Iterable[Scores]) -> NDArray[np.float32]:
    """Returns the rows of all workers as one array, float32 [R, T]; 0 outside of their rows."""
    values_RT = np.zeros(batch.tokens_RT.shape, np.float32)
    for share in shares:
        values_RT[share.rows] = share.values_MT
    return values_RT


def flat(metrics: Iterable[list[Metric]]) -> list[Metric]:
    """Returns the metrics of all ranks as one list."""
    return [metric for rank in metrics for metric in rank]
