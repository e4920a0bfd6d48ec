"""The roles of a run over Ray workers: what `loops.roles` asks, answered by calls to teams and engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ray_rl.cluster.engines.process import EngineProcess
from ray_rl.cluster.held import Policy, SavedTrainer
from ray_rl.cluster.shell import free_address
from ray_rl.cluster.teams import Team
from ray_rl.metrics.metric import Metric
from ray_rl.rewards.model.assignment import assembled
from ray_rl.rewards.model.held import RewardModels
from ray_rl.rewards.model.queue import Conversation, ScoreQueue
from ray_rl.rollout.engine import Engine
from ray_rl.rollout.request import SampleRequest
from ray_rl.training.frozen import FrozenModel
from ray_rl.training.share import Scores
from ray_rl.training.trainer import Trainer
from ray_rl.types import Completion, TrainBatch
from ray_rl.weight_sync.proof import Digests, merged
from ray_rl.weight_sync.senders.sender import Rendezvous, Sent

R = TypeVar("R")


class Repeat(Protocol):
    """Makes a call to a role without a state, and repeats it when its workers were lost and restarted."""

    async def __call__(self, call: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """The result of the call."""


class RayReference:
    """The frozen reference. It has no state, so a call that lost a worker is repeated on new workers."""

    def __init__(self, team: Team[FrozenModel], *, repeat: Repeat) -> None:
        self._team = team
        self._repeat = repeat

    async def logprobs(self, batch: TrainBatch) -> NDArray[np.float32]:
        """float32 [R, T], assembled from the shares of the workers."""
        return whole(batch, await self._repeat(lambda: self._team.all(FrozenModel.scores, batch)))


class RayRewardModels:
    """Workers that hold reward models. They have no state, so a call that lost a worker is repeated on new workers."""

    def __init__(self, team: Team[RewardModels], *, models: int, repeat: Repeat) -> None:
        self._team = team
        self._models = models
        self._repeat = repeat
        self._queue = ScoreQueue(self._call)

    async def scores(self, conversations: Sequence[Conversation]) -> tuple[NDArray[np.float32], list[Metric]]:
        """Returns float32 [M, R], the score of each conversation by each model, in one call with all that wait."""
        return await self._queue.scores(conversations)

    async def _call(self, conversations: Sequence[Conversation]) -> tuple[NDArray[np.float32], list[Metric]]:
        given = list(conversations)
        found = await self._repeat(lambda: self._team.all(RewardModels.scores, given))
        parts, metrics = zip(*found, strict=True)
        return assembled(parts, models=self._models, rows=len(given)), flat(metrics)


class RaySaved:
    """A model under training, as checkpoints see it."""

    def __init__(self, team: Team[SavedTrainer]) -> None:
        self._ranks = team

    async def save(self, folder: Path) -> None:
        """Returns when every rank has copied its state."""
        await self._ranks.all(SavedTrainer.save, str(folder))

    async def is_saved(self) -> bool:
        """Whether every rank has written what it copied."""
        return all(await self._ranks.all(SavedTrainer.is_saved))

    async def load(self, folder: Path) -> None:
        """Restores the state that was saved to a folder."""
        await self._ranks.all(SavedTrainer.load, str(folder))


class RayCritic(RaySaved):
    """The value model under training."""

    async def values(self, batch: TrainBatch) -> NDArray[np.float32]:
        """float32 [R, T], assembled from the shares of the workers."""
        return whole(batch, await self._ranks.all(Trainer.scores, batch))

    async def update(self, batch: TrainBatch) -> list[Metric]:
        """Trains on a batch with old values and returns; metrics of all ranks."""
        return flat(await self._ranks.all(Trainer.update, batch))


class RayActor(RaySaved):
    """The policy under training."""

    def __init__(self, team: Team[Policy]) -> None:
        super().__init__(team)
        self.team = team
        """The ranks."""
        self.sending = asyncio.Lock()
        """Held while weights go to engines: they must not change meanwhile."""
        self.is_ahead = False
        """Whether its weights may be newer than those that were published last."""

    async def logprobs(self, batch: TrainBatch) -> NDArray[np.float32]:
        """float32 [R, T], assembled from the shares of the workers."""
        return whole(batch, await self.team.all(Trainer.scores, batch))

    async def update(self, batch: TrainBatch) -> list[Metric]:
        """Trains on a batch with advantages; metrics of all ranks."""
        await self.go_ahead()
        return flat(await self.team.all(Trainer.update, batch))

    async def go_ahead(self) -> None:
        """Returns when no weights are being sent; from then on they may change, until the next publish."""
        async with self.sending:
            self.is_ahead = True

    async def export(self, folder: Path, *, step: int) -> None:
        """Writes the policy; the workers may have another working directory."""
        await self.team.all(Policy.export, str(folder.absolute()), step)

    async def meeting_place(self) -> tuple[str, int]:
        """The address of rank 0, and a port that is free there."""
        return await self.team.first(free_address)

    async def announce(self) -> dict[str, Any]:
        """What rank 0 will send."""
        return await self.team.first(Policy.announce)

    async def send_weights(self) -> Sent:
        """Sends; a collective of the ranks."""
        ranks = await self.team.all(Policy.send_weights)
        return Sent(flat(sent.metrics for sent in ranks), merged(sent.digests for sent in ranks))

    async def join_transfer(self, rendezvous: Rendezvous) -> None:
        """Meets the engines."""
        await self.team.all(Policy.join_transfer, rendezvous)


class RayReceiver:
    """One engine, as a publish sees it."""

    def __init__(self, process: EngineProcess, *, rollout_s: float, publish_s: float) -> None:
        """Calls the process of an engine.

        Args:
            process: The first one.
            rollout_s: Bound of a request, `rollout.timeout_s`.
            publish_s: Bound of each other call, `weight_sync.timeout_s`.
        """
        self.name = process.name
        self.process = process
        """Does what is asked now. `RayWeights.admit` puts another in its place."""
        self._rollout_s, self._publish_s = rollout_s, publish_s

    async def join_transfer(self, init_info: dict[str, Any]) -> None:
        """Meets the trainer."""
        await self.process.call(self._publish_s, Engine.join_transfer, init_info)

    async def begin_update(self) -> None:
        """Pauses, and prepares for new weights."""
        await self.process.call(self._publish_s, Engine.begin_update)

    async def receive_weights(self, update_info: dict[str, Any]) -> None:
        """Receives."""
        await self.process.call(self._publish_s, Engine.receive_weights, update_info)

    async def prove(self, digests: Digests) -> None:
        """Compares what arrived with what was sent."""
        await self.process.call(self._publish_s, Engine.prove, digests)

    async def commit(self, version: int) -> int:
        """Ends the update."""
        return await self.process.call(self._publish_s, Engine.commit, version)

    async def resume(self) -> None:
        """Generates again."""
        await self.process.call(self._publish_s, Engine.resume)


class RayEngine(RayReceiver):
    """One engine: samples for the collector, receives in a publish. It outlives the processes that do so."""

    async def generate(self, request: SampleRequest) -> list[Completion]:
        """Completions of one prompt."""
        return await self.process.call(self._rollout_s, Engine.generate, request)

    async def hold(self) -> None:
        """Takes requests without starting them."""
        await self.process.call(self._publish_s, Engine.hold)

    async def release(self, sequences: int) -> None:
        """Starts once so many sequences have been asked for."""
        await self.process.call(self._publish_s, Engine.release, sequences)

    async def checksums(self) -> list[dict[str, str]]:
        """Of all loaded weights; see `WeightReceiver.checksums`."""
        return await self.process.call(self._publish_s, Engine.checksums)

    async def score(self, token_ids: list[int]) -> list[float]:
        """Log-probabilities of given tokens; see `Engine.score`."""
        return await self.process.call(self._rollout_s, Engine.score, token_ids)


def whole(batch: TrainBatch, shares: Iterable[Scores]) -> NDArray[np.float32]:
    """The rows of all workers as one array, float32 [R, T]; 0 outside of their rows."""
    values_RT = np.zeros(batch.tokens_RT.shape, np.float32)
    for share in shares:
        values_RT[share.rows] = share.values_MT
    return values_RT


def flat(metrics: Iterable[list[Metric]]) -> list[Metric]:
    """The metrics of all ranks."""
    return [metric for rank in metrics for metric in rank]
