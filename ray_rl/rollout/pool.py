"""Distributes requests for completions over the engines of one model."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from ray_rl.errors import EngineLost
from ray_rl.metrics.metric import Metric
from ray_rl.rollout.request import SampleRequest
from ray_rl.rollout.router import Router
from ray_rl.types import Completion

MOST_KEYS = 65536
"""The most keys whose engine is remembered; the oldest are forgotten first."""


class Sampler(Protocol):
    """The interface of one engine."""

    async def generate(self, request: SampleRequest) -> list[Completion]:
        """Returns the completions of a prompt.

        Raises:
            EngineLost: the engine died or stopped responding. The request can be retried on another engine.
        """

    async def hold(self) -> None:
        """Accepts requests without starting them, until `release`."""

    async def release(self, sequences: int) -> None:
        """Starts the held requests once `sequences` sequences have arrived."""


class EnginePool:
    """Routes each request to an engine, and retries it on another one if that engine is lost.

    A lost engine gets no requests until the router releases it, after a restart.
    """

    def __init__(self, engines: Sequence[Sampler], *, timeout_s: float, router: Router | None = None) -> None:
        """Makes a pool over engines that are started.

        Args:
            engines: engines that serve one model.
            timeout_s: limit for a request to find an engine that serves.
            router: knows which engines serve; a restarted engine is released there. None makes a new router, in which
                a lost engine stays lost.
        """
        self._engines = engines
        self._timeout_s = timeout_s
        self._router = Router(len(engines)) if router is None else router
        self._placed = [0] * len(engines)
        """Number of sequences that each engine got since the last wave began."""
        self._engine_of: OrderedDict[str, int] = OrderedDict()

    async def generate(self, request: SampleRequest, *, sticky: str | None = None) -> list[Completion]:
        """Returns the completions of a prompt. If the engine is lost, retries on another one with the same seeds.

        Args:
            request: a prompt, and how its completions are sampled.
            sticky: requests with the same key go to the same engine while it serves, because its cache holds their
                common prefix, for example the earlier turns of an episode. None: to the engine with the fewest
                outstanding tokens.

        Raises:
            EngineError: no engine served within the limit, or one returned a wrong answer.
            RayRLError: no engine will serve, because the router was closed.
        """
        while True:
            await self._router.available(timeout_s=self._timeout_s)
            preferred = None if sticky is None else self._engine_of.get(sticky)
            with self._router.place(request.most_tokens, preferred=preferred) as engine:
                self._placed[engine] += request.samples
                if sticky is not None:
                    self._remember(sticky, engine)
                try:
                    return await self._engines[engine].generate(request)
                except EngineLost:
                    self._router.quarantine(engine)

    @asynccontextmanager
    async def wave(self) -> AsyncIterator[None]:
        """Holds the requests of tasks that are created in the block, and starts all of them together at its end.

        The other sequences in a forward pass change the last bits of a sequence's log-probabilities. Deterministic runs
        therefore hold all requests of a wave and start them together.
        """
        self._placed = [0] * len(self._engines)
        serving = [i for i in range(len(self._engines)) if i not in self._router.quarantined]
        await _unless_lost(self._engines[i].hold() for i in serving)
        yield
        await asyncio.sleep(0)  # the tasks choose their engines
        await _unless_lost(self._engines[i].release(self._placed[i]) for i in serving)

    def metrics(self) -> list[Metric]:
        """Returns the metrics of the router."""
        return self._router.metrics()

    def _remember(self, key: str, engine: int) -> None:
        self._engine_of[key] = engine
        self._engine_of.move_to_end(key)
        if len(self._engine_of) > MOST_KEYS:
            self._engine_of.popitem(last=False)


async def _unless_lost(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Waits for all calls. Ignores lost engines: others repeat their requests, whose last bits may then differ."""
    for result in await asyncio.gather(*calls, return_exceptions=True):  # bound: the calls to engines have limits
        if isinstance(result, BaseException) and not isinstance(result, EngineLost):
            raise result
