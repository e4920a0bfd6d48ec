"""Log-probabilities and values of a batch: of all groups at once, or of each group while engines sample the others."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ray_rl.batching.pack import pack, pad
from ray_rl.types import RolloutGroup, TrainBatch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Score = Callable[[TrainBatch], Awaitable["NDArray[np.float32]"]]
"""Returns a number for each loss token of a batch, float32 [R, T]; 0 elsewhere."""


class Scores(Protocol):
    """The numbers that a model gives to the tokens of a batch: log-probabilities or values."""

    def begin(self, group: RolloutGroup) -> None:
        """Learns that a group is finished, which may be scored from now on."""

    async def of(self, batch: TrainBatch, groups: Sequence[RolloutGroup]) -> NDArray[np.float32]:
        """Returns the numbers of the loss tokens, float32 [R, T]; 0 elsewhere. `groups` made the batch."""


class AtOnce:
    """Scores a whole batch when it is complete."""

    def __init__(self, score: Score) -> None:
        """Makes them of the call of a model."""
        self._score = score

    def begin(self, group: RolloutGroup) -> None:
        """Does nothing: the group is scored with its batch."""

    async def of(self, batch: TrainBatch, groups: Sequence[RolloutGroup]) -> NDArray[np.float32]:
        """Returns the numbers of the loss tokens, float32 [R, T]; 0 elsewhere."""
        return await self._score(batch)


class AsFinished:
    """Scores groups as they finish, all that wait in one call, so that little is left when the batch is complete.

    The model must have the same weights from the first of these calls until the batch is asked for. Which rows share a
    forward pass changes the last bits.
    """

    def __init__(self, score: Score, *, is_frozen: bool) -> None:
        """Makes them of the call of a model that has time while engines sample.

        Args:
            score: calls the model.
            is_frozen: whether the model never changes. If not, nothing is kept for later batches.
        """
        self._score, self._is_frozen = score, is_frozen
        self._waiting: list[RolloutGroup] = []
        self._found: dict[int, tuple[weakref.ref[RolloutGroup], list[NDArray[np.float32]]]] = {}
        """By id of a group that exists, float32 [T_i] of each rollout."""
        self._working: asyncio.Task[None] | None = None

    def begin(self, group: RolloutGroup) -> None:
        """Scores a group in the background."""
        self._waiting.append(group)
        if self._working is None or (self._working.done() and not self._failed(self._working)):
            self._working = asyncio.ensure_future(self._work())

    async def of(self, batch: TrainBatch, groups: Sequence[RolloutGroup]) -> NDArray[np.float32]:
        """Returns the numbers of the loss tokens, float32 [R, T]; 0 elsewhere.

        Groups that were not begun, for example those of a checkpoint, are scored now.

        Raises:
            RayRLError: a call failed.
        """
        import numpy as np

        try:
            if self._working is not None:
                working, self._working = self._working, None
                await working
            self._waiting += [group for group in groups if id(group) not in self._found]
            await self._work()
            rows = [row for group in groups for row in self._found.pop(id(group))[1]]
        finally:
            # Groups may be dropped without being trained on, as too old.
            kept = self._found.items() if self._is_frozen else ()
            self._found = {key: found for key, found in kept if found[0]() is not None}
        return np.where(batch.loss_mask_RT, pad(rows, np.float32, batch.tokens_RT.shape[1]), np.float32(0))

    async def _work(self) -> None:
        while self._waiting:
            groups, self._waiting = self._waiting, []
            batch = pack(groups)
            scores_RT = await self._score(batch)
            first = 0
            for group in groups:
                last = first + len(group.rollouts)
                lengths, own_RT = batch.lengths_R[first:last], scores_RT[first:last]
                rows = [row_T[:length].copy() for row_T, length in zip(own_RT, lengths, strict=True)]
                self._found[id(group)] = weakref.ref(group), rows
                first = last

    @staticmethod
    def _failed(task: asyncio.Task[None]) -> bool:
        return task.cancelled() or task.exception() is not None
