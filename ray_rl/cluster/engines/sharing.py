"""Takes turns on GPUs that engines share with models: while one side computes, the other is asleep or on the host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ray_rl.cluster.engines.policy import Died
from ray_rl.cluster.engines.process import EngineProcess
from ray_rl.cluster.roles import RayEngine
from ray_rl.cluster.teams import Team
from ray_rl.concurrency import together
from ray_rl.errors import OutsideError
from ray_rl.metrics.metric import Last, Metric
from ray_rl.rollout import memory
from ray_rl.training.parts import PARTS, Part
from ray_rl.weight_sync.phases import Phases

if TYPE_CHECKING:
    from ray_rl.training.residence import Residence

Starting = Coroutine[Any, Any, None]
Publish = Callable[[], Coroutine[Any, Any, object]]


class Held(Protocol):
    """The object of a worker whose model can leave its GPU."""

    @property
    def residence(self) -> Residence:
        """Moves the model."""


class Turns(Phases, Protocol):
    """The phases of a run, and what starts and publishes in them."""

    @property
    def is_shared(self) -> bool:
        """Whether engines share GPUs with models."""

    def repeat_with(self, publish_again: Publish) -> None:
        """Takes the function that publishes the last version again."""

    async def start(self, engines: Iterable[Starting], models: Iterable[Starting]) -> None:
        """Starts engines and models."""

    async def start_again(self, process: EngineProcess) -> None:
        """Starts a new process of an engine."""

    def transfer(self, *, is_new: bool) -> AbstractAsyncContextManager[bool]:
        """Surrounds a transfer of weights, of a new version or of the one that engines serve.

        Yields:
            Whether weights can be transferred now; a new version always can.
        """

    async def make_room(self) -> None:
        """Returns when models can be loaded again."""

    def metrics(self) -> list[Metric]:
        """Returns what the changes since the last call took."""


class Apart:
    """The phases of a run whose engines share no GPU: both sides can always compute."""

    is_shared = False

    async def train(self) -> None:
        """Does nothing."""

    async def sample(self) -> None:
        """Does nothing."""

    def repeat_with(self, publish_again: Publish) -> None:
        """Does nothing: engines always have their weights."""

    async def start(self, engines: Iterable[Starting], models: Iterable[Starting]) -> None:
        """Starts all concurrently."""
        await together([*engines, *models])

    async def start_again(self, process: EngineProcess) -> None:
        """Starts a new process of an engine."""
        await process.start()

    def transfer(self, *, is_new: bool) -> AbstractAsyncContextManager[bool]:
        """Yields true: weights can be transferred at any time."""
        return nullcontext(True)

    async def make_room(self) -> None:
        """Does nothing."""

    def metrics(self) -> list[Metric]:
        """Returns nothing: nothing moves."""
        return []


class SharedGpus:
    """The phases of a run whose engines share GPUs with models (`weight_sync.phases.Phases`).

    sample -> train     engines sleep; then models come back.
    train -> sample     only the weights of the actor stay; the weights of the engines wake up; weights are published;
                        the weights of the actor leave; the KV caches of the engines wake up. If adapters are published,
                        the weights leave before, because few of them are sent: those are read from the host.

    Two sides never hold memory that only one of them can have, on no path between the phases. An engine that fails is
    lost, as anywhere else, and its processes end before its memory is used. It starts again in the phase `sample`, when
    the GPUs are free for it, and sleeps until the next publish.
    """

    is_shared = True

    def __init__(
        self,
        actor: Team[Any],
        others: Sequence[Team[Any]],
        engines: Sequence[RayEngine],
        *,
        timeout_s: float,
        sends_from_host: bool = False,
    ) -> None:
        """Makes the phases of a run that has not started.

        Args:
            actor: the policy under training, whose weights are published.
            others: the other roles on these GPUs that do not compute in the phase `sample`.
            engines: all engines.
            timeout_s: the limit for an engine to fall asleep.
            sends_from_host: whether the weights of the actor are on the host during a publish.
        """
        self._limit_s = timeout_s
        self._sends_from_host = sends_from_host
        self._publish_again: Publish | None = None
        self._actor, self._others, self._engines = actor, others, engines
        self._phase: Literal["train", "sample"] | None = None
        """None within a change, and after one that failed."""
        self._changing = asyncio.Lock()
        """Held while memory moves, and while an engine starts: vLLM fails if free memory changes meanwhile."""
        self._sampling = asyncio.Event()
        """Set in the phase `sample`."""
        self._turned_s = 0.0

    async def start(self, engines: Iterable[Starting], models: Iterable[Starting]) -> None:
        """Starts the engines on empty GPUs, lets them sleep, and then loads the models."""
        await together(engines)
        await self._of_engines(RayEngine.sleep)
        await together(models)
        self._phase = "train"

    async def train(self) -> None:
        """Returns when models can compute.

        Raises:
            WorkerLost: a worker of a model is lost.
        """
        async with self._changing:
            if self._phase != "train":
                self._leave_phase()
                with self._turning():
                    await self._of_engines(RayEngine.sleep)
                    await together(_come_back(team, *PARTS) for team in (self._actor, *self._others))
                self._phase = "train"

    async def sample(self) -> None:
        """Returns when engines can sample: without an update since the last publish, it repeats that publish.

        Raises:
            OutsideError: see `RayWeights.publish`.
        """
        if self._phase != "sample":
            assert self._publish_again is not None, "the weights of the run give it"
            await self._publish_again()

    def repeat_with(self, publish_again: Publish) -> None:
        """Takes the function that publishes the last version again."""
        self._publish_again = publish_again

    @asynccontextmanager
    async def transfer(self, *, is_new: bool) -> AsyncIterator[bool]:
        """Gives the block weights on both sides, and ends in the phase `sample`; in no phase if the block fails.

        Yields:
            False without doing anything if the version is an old one and models compute.
        """
        async with self._changing:
            if not is_new and self._phase != "sample":
                yield False
                return
            self._leave_phase()
            with self._turning():
                await self._of_engines(RayEngine.sleep)
                first = _leave(self._actor, *(PARTS if self._sends_from_host else ("states",)))
                await together([first, *(_leave(team, *PARTS) for team in self._others)])
                if not self._sends_from_host:
                    await _come_back(self._actor, "weights")
                await self._of_engines(RayEngine.wake_weights)
            yield True
            with self._turning():
                await _leave(self._actor, *PARTS)
                await self._of_engines(RayEngine.wake)
            self._phase = "sample"
            self._sampling.set()

    async def start_again(self, process: EngineProcess) -> None:
        """Waits for the phase `sample`, starts an engine in it, and lets it sleep.

        Raises:
            OutsideError: it could not be started.
        """
        while True:
            await self._sampling.wait()  # bound: until the next publish, or the end of the run, which cancels it
            async with self._changing:
                if self._sampling.is_set():
                    await process.start()
                    await process.call(self._limit_s, memory.sleep)
                    return

    async def make_room(self) -> None:
        """Lets all engines sleep, so that models can be loaded again."""
        async with self._changing:
            self._leave_phase()
            await self._of_engines(RayEngine.sleep)

    def metrics(self) -> list[Metric]:
        """Returns `sync/turn_s`: the seconds since the last call in which memory moved, in both directions."""
        seconds, self._turned_s = self._turned_s, 0.0
        return [Last("sync/turn_s", seconds)]

    @contextmanager
    def _turning(self) -> Iterator[None]:
        """Counts the seconds of the block."""
        clock = asyncio.get_running_loop().time
        start_s = clock()
        yield
        self._turned_s += clock() - start_s

    def _leave_phase(self) -> None:
        self._phase = None
        self._sampling.clear()

    async def _of_engines(self, do: Callable[[RayEngine], Coroutine[Any, Any, None]]) -> None:
        """Calls all engines that are not lost. One that fails is lost; this returns when its processes have ended."""

        async def one(engine: RayEngine) -> None:
            try:
                await do(engine)
            except OutsideError as error:
                engine.process.lose(Died(str(error)))
                await engine.process.end()

        await together(one(engine) for engine in self._engines if engine.process.fault is None)


async def _leave(team: Team[Held], *parts: Part) -> None:
    await team.all(leave, *parts)


async def _come_back(team: Team[Held], *parts: Part) -> None:
    await team.all(come_back, *parts)


def leave(held: Held, *parts: Part) -> None:
    """Moves parts of a worker's model to the host."""
    held.residence.leave(*parts)


def come_back(held: Held, *parts: Part) -> None:
    """Moves parts of a worker's model back to its GPU."""
    held.residence.come_back(*parts)
