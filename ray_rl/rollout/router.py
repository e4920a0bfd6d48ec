"""Chooses the engine for the next request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from ray_rl.errors import EngineError
from ray_rl.metrics.metric import Last, Metric, Total


class Router:
    """Gives each request to the engine with the fewest outstanding tokens; ties go to the first.

    An engine in quarantine gets no requests until it is released.
    """

    def __init__(self, engines: int) -> None:
        """Makes a router over engines that all serve.

        Args:
            engines: the number of engines.
        """
        self._outstanding = [0] * engines
        self._serving = set(range(engines))
        self._changed = asyncio.Event()
        self._end: BaseException | None = None
        self._released = 0

    async def available(self, *, timeout_s: float) -> None:
        """Waits until an engine serves. It still serves when the caller continues.

        Raises:
            EngineError: no engine served within `timeout_s`; the message names those in quarantine.
            RayRLError: no engine will serve, because `close` was called with this error.
        """
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while not self._serving and self._end is None:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline_s):
                    await self._changed.wait()  # bound: inside asyncio.timeout_at
            except TimeoutError:
                raise EngineError(
                    f"no engine serves: a request has waited rollout.timeout_s={timeout_s:g} s for a restart of "
                    f"{', '.join(f'rollout-{engine}' for engine in self.quarantined)}; see their logs"
                ) from None
        if self._end is not None:
            raise self._end

    @contextmanager
    def place(self, tokens: int, *, preferred: int | None = None) -> Iterator[int]:
        """Yields the index of the engine for a request, and counts its tokens for that engine during the block.

        Args:
            tokens: the most tokens that the request may need.
            preferred: the engine to use if it serves.
        """
        engine = min(self._serving, key=lambda index: (index != preferred, self._outstanding[index], index))
        self._outstanding[engine] += tokens
        try:
            yield engine
        finally:
            self._outstanding[engine] -= tokens

    def quarantine(self, engine: int) -> None:
        """Stops sending requests to this engine. Idempotent."""
        self._serving.discard(engine)

    def release(self, engine: int) -> None:
        """Sends requests to this engine again, after a restart."""
        self._released += engine not in self._serving
        self._serving.add(engine)
        self._changed.set()

    def close(self, error: BaseException) -> None:
        """Ends every wait with `error`, because no engine will serve. Later calls do not replace the error."""
        self._end = self._end or error
        self._changed.set()

    def metrics(self) -> list[Metric]:
        """Returns the number of engines that serve now, and of engines restarted since the last call."""
        released, self._released = self._released, 0
        return [Last("engines/alive", len(self._serving)), Total("engines/restarts", released)]

    @property
    def quarantined(self) -> tuple[int, ...]:
        """The indices of the engines that get no requests."""
        return tuple(index for index in range(len(self._outstanding)) if index not in self._serving)

    @property
    def outstanding(self) -> tuple[int, ...]:
        """The tokens in flight at each engine."""
        return tuple(self._outstanding)
