"""Batches the conversations of many groups for the reward models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_rl.metrics.metric import Metric
from ray_rl.types import Message

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Scored = tuple[NDArray[np.float32], list[Metric]]

Conversation = tuple[Message, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    conversations: Sequence[Conversation]
    answer: asyncio.Future[Scored]


class ScoreQueue:
    """Scores all waiting conversations in one call. The next call starts when that one has ended.

    Groups finish one by one, and a forward pass over a single group would leave most of a GPU idle. One call at a time
    also means that a lost worker fails a single call, which is then repeated.
    """

    def __init__(self, call: Callable[[Sequence[Conversation]], Coroutine[Any, Any, Scored]]) -> None:
        """Makes a queue. `call` scores conversations: it returns float32 [M, R], and metrics of the whole call."""
        self._call = call
        self._waiting: list[_Request] = []
        self._working: asyncio.Task[None] | None = None

    async def scores(self, conversations: Sequence[Conversation]) -> Scored:
        """Returns float32 [M, R] for these conversations. Metrics of a call go to the first request in it.

        Raises:
            RayRLError: the call failed; every request in it gets the error.
        """
        request = _Request(conversations, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._working is None or self._working.done():
            self._working = asyncio.ensure_future(self._work())
        return await request.answer

    async def _work(self) -> None:
        while self._waiting:
            requests, self._waiting = [each for each in self._waiting if not each.answer.done()], []
            if not requests:
                continue
            call = self._call([each for request in requests for each in request.conversations])
            # Every end of the call, including its cancellation, answers its requests: they have no limit of their own.
            # bound: the call has a limit
            found: Scored | BaseException = (await asyncio.gather(call, return_exceptions=True))[0]
            if not isinstance(found, BaseException):
                _answer(requests, *found)
                continue
            for request in requests:
                if not request.answer.done():
                    request.answer.set_exception(found)


def _answer(requests: Sequence[_Request], scores_MR: NDArray[np.float32], metrics: list[Metric]) -> None:
    """Gives each request its columns, unless the request was cancelled in the meantime."""
    start = 0
    for request in requests:
        end = start + len(request.conversations)
        if not request.answer.done():
            request.answer.set_result((scores_MR[:, start:end], metrics))
            metrics = []
        start = end
