"""The engines of one model, as everybody who wants completions sees them."""

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
"""Keys whose engine is remembered; the oldest are forgotten first."""


class Sampler(Protocol):
    """One engine, as the pool sees it."""

    async def generate(self, request: SampleRequest) -> list[Completion]:
        """Returns the completions of a prompt.

        Raises:
            EngineLost: the engine died or stopped responding. The request can be retried on another engine.
        """

    async def hold(self) -> None:
        """Accepts requests from now on, and does not start them until `release`."""

    async def release(self, sequences: int) -> None:
        """Starts the requests that were held, once so many sequences have arrived."""


class EnginePool:
    """Routes each request to an engine, and retries it on another one when that is lost.

    An engine that is lost gets no more requests until somebody releases it in the router, after a restart.
    """

    def __init__(self, engines: Sequence[Sampler], *, timeout_s: float, router: Router | None = None) -> None:
        """Makes a pool over engines that are started.

        Args:
            engines: engines that serve one model.
            timeout_s: limit for a request to find an engine that serves.
            router: knows which engines serve; whoever restarts an engine releases it there. None: a router of its own,
                so that an engine that is lost stays lost.
        """
        self._engines = engines
        self._timeout_s = timeout_s
        self._router = Router(len(engines)) if router is None else router
        self._placed = [0] * len(engines)
        """Sequences that each engine got in the current wave, in a block of `wave`."""
        self._engine_of: OrderedDict[str, int] = OrderedDict()

    async def generate(self, request: SampleRequest, *, sticky: str | None = None) -> list[Completion]:
        """Returns the completions of the first engine that lives to give them; each is asked with the same seeds.

        Args:
            request: a prompt, and how its completions are drawn.
            sticky: requests with one key go to one engine while it serves, as its cache holds what they share: the
                turns of an episode. None: to the engine with the fewest outstanding tokens.

        Raises:
            EngineError: no engine served within the limit, or one gave a wrong answer.
            RayRLError: no engine will serve, as the router was closed.
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
        """The requests of tasks that are started in the block are computed together from their first token on.

        What else is in a forward pass changes the last bits of a sequence's log-probabilities, so that deterministic
        runs hold all requests of a wave and start them at the same time.
        """
        self._placed = [0] * len(self._engines)
        serving = [i for i in range(len(self._engines)) if i not in self._router.quarantined]
        await _unless_lost(self._engines[i].hold() for i in serving)
        yield
        await asyncio.sleep(0)  # the tasks choose their engines
        await _unless_lost(self._engines[i].release(self._placed[i]) for i in serving)

    def metrics(self) -> list[Metric]:
        """Returns how many engines serve now, and how many came back since the last call."""
        return self._router.metrics()

    def _remember(self, key: str, engine: int) -> None:
        self._engine_of[key] = engine
        self._engine_of.move_to_end(key)
        if len(self._engine_of) > MOST_KEYS:
            self._engine_of.popitem(last=False)


async def _unless_lost(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Waits for all calls. The requests of a lost engine go to others, and have other bits than without the loss."""
    for result in await asyncio.gather(*calls, return_exceptions=True):  # bound: the calls to engines have limits
        if isinstance(result, BaseException) and not isinstance(result, EngineLost):
            raise result
