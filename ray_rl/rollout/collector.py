"""Prompts -> completions -> rewards, in the background of training as far as staleness allows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ray_rl.config import RunConfig
from ray_rl.data.source import PromptSource
from ray_rl.errors import EngineLost
from ray_rl.metrics.metric import Last, Mean, Metric
from ray_rl.metrics.rollout_metrics import is_informative, staleness
from ray_rl.rewards.combine import Rewards
from ray_rl.rollout.admission import Admission
from ray_rl.rollout.collected import Collected, Finished
from ray_rl.rollout.request import SampleRequest, request_seed
from ray_rl.rollout.router import Router
from ray_rl.types import Completion, Prompt, RolloutGroup

CANCEL_S = 5.0
"""Bound for requests that were dropped to end."""


class Sampler(Protocol):
    """An engine, as the collector sees it."""

    async def generate(self, request: SampleRequest) -> list[Completion]:
        """G completions of a prompt.

        Raises:
            EngineLost: another engine may be asked the same.
        """

    async def hold(self) -> None:
        """Takes requests, and does not begin with them."""

    async def release(self, sequences: int) -> None:
        """Begins once so many sequences have been asked for."""


class Collector:
    """Spreads prompts over the engines and scores each group as soon as it is complete.

    Prompts are admitted as `Admission` allows: with `max_staleness: 0` those of one step, when it is taken; above,
    those of the next steps too, so that engines sample while the trainer trains. Batches are taken in the order of the
    prompts (`order: admission`), so that quick completions do not come first and a straggler is waited for; or as
    they finish (`order: completion`), when what has become too old is dropped.
    """

    def __init__(
        self,
        config: RunConfig,
        source: PromptSource,
        samplers: Sequence[Sampler],
        rewards: Rewards,
        *,
        router: Router | None = None,
    ) -> None:
        """Asks nothing yet.

        Args:
            config: sampling settings, group size, staleness and seed.
            source: of the prompts.
            samplers: the engines.
            rewards: the judges; closed by whoever made them.
            router: over the engines, told by others which of them serve. None: one of its own, so that an engine that
                is lost stays so.
        """
        rollout, per_step = config.rollout, config.algorithm.prompts_per_step
        self._config = config
        self._source = source
        self._samplers = samplers
        self._rewards = rewards
        self._router = Router(len(samplers)) if router is None else router
        most = rollout.max_running or (rollout.max_staleness + 1) * per_step
        self._admission = Admission(per_step, rollout.max_staleness, most)
        self._version = 0
        self._admitted = 0
        self._accepted = 0
        self._running: dict[int, asyncio.Task[Finished]] = {}
        self._under_way: dict[int, Prompt] = {}
        """Prompts that are running, and those that a restored collector has yet to ask for."""
        self._waiting: list[Finished] = []
        self._refused: list[Finished] = []
        """Groups of equal rewards since the last batch, under dynamic sampling."""
        self._stale = 0
        """Groups dropped as too old since the last batch."""
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        """Something finished or failed: for `take`."""
        self._room = asyncio.Event()
        """The same, or a newer version: for the admission of prompts."""
        self._admitting: asyncio.Task[None] | None = None
        self._placed = [0] * len(samplers)
        """Sequences of this wave at each engine, in deterministic mode."""
        self._batch_began: Collected | None = None
        """Where a deterministic collector was before the batch that is being taken."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ends what is under way with the block."""
        try:
            yield
        finally:
            left = [*self._running.values(), *([] if self._admitting is None else [self._admitting])]
            self._cancel()
            if left:
                await asyncio.wait(left, timeout=CANCEL_S)

    async def take(self, *, step: int, progress: Callable[[str], None]) -> tuple[list[RolloutGroup], list[Metric]]:
        """The groups of a batch, in the order of their prompts, and room for the next ones.

        Args:
            step: number of the batch, which is the trainer's version.
            progress: told how far the batch is.

        Raises:
            RayRLError: an engine or a reward failed; the requests under way are dropped.
        """
        self._version = step
        if self._config.run.deterministic:
            self._batch_began = self._now()
        count, samples = self._admission.prompts_per_step, self._config.algorithm.group_size
        self._room.set()
        if self._admitting is None:
            self._admitting = asyncio.ensure_future(self._admit())
            self._admitting.add_done_callback(lambda _: self._changed.set())
        while True:
            self._changed.clear()
            ready = self._ready()
            progress(f"{min(len(ready), count) * samples} of {count * samples} completions")
            if self._failure is not None:
                self._cancel()
                raise self._failure
            if self._admitting.done():
                self._cancel()
                self._admitting.result()
            if len(ready) >= count:
                self._batch_began = None
                return self._batch(ready[:count])
            await self._changed.wait()  # bound: requests in flight end within rollout.timeout_s, which is a change

    def position(self) -> Collected:
        """Returns where it is now, between two batches, whatever is in flight.

        In deterministic mode that is the position before a batch whose `take` was cancelled: its rollouts are sampled
        again, as their bits depend on what was sampled in the same forward passes.
        """
        return self._batch_began or self._now()

    def resume(self, folder: Path) -> None:
        """Continues from the position in a checkpoint of the same configuration; before the first batch.

        The counts are of the whole run, as the trainer's version is, so that the bound on staleness still holds.
        """
        self.restore(Collected.read(folder))

    def _now(self) -> Collected:
        return Collected(
            source=self._source.state(),
            admitted=self._admitted,
            accepted=self._accepted,
            under_way=tuple(self._under_way.items()),
            waiting=tuple(self._waiting),
            refused=tuple(self._refused),
            stale=self._stale,
        )

    def restore(self, state: Collected) -> None:
        """Continues from a position in memory."""
        self._source.restore(state.source)
        self._admitted, self._accepted, self._stale = state.admitted, state.accepted, state.stale
        self._under_way = dict(state.under_way)
        self._waiting, self._refused = list(state.waiting), list(state.refused)

    def _batch(self, taken: list[Finished]) -> tuple[list[RolloutGroup], list[Metric]]:
        numbers = {each.number for each in taken}
        self._waiting = [each for each in self._waiting if each.number not in numbers]
        metrics = [metric for each in (*taken, *self._refused) for metric in each.metrics]
        if self._config.algorithm.dynamic_sampling is not None:
            drawn = len(taken) + len(self._refused)
            metrics.append(Mean("rollout/groups_dropped_fraction", len(self._refused), drawn))
        if self._config.rollout.max_staleness > 0:
            metrics.append(Last("rollout/groups_ahead", len(self._waiting) + len(self._running)))
            metrics.append(Last("rollout/groups_stale", self._stale))
        self._refused, self._stale = [], 0
        return [each.group for each in taken], metrics + self._source.metrics() + self._router.metrics()

    def _ready(self) -> list[Finished]:
        """Groups that may be taken now, in the order of their prompts."""
        if self._config.rollout.order == "admission":
            self._waiting.sort(key=lambda each: each.number)
            first_open = min(self._under_way, default=self._admitted)
            return [each for each in self._waiting if each.number < first_open]
        bound = self._admission.max_staleness
        fresh = [each for each in self._waiting if staleness([each.group], version=self._version) <= bound]
        dropped = len(self._waiting) - len(fresh)
        if dropped:
            self._waiting = fresh
            self._stale += dropped
            self._accepted -= dropped
            self._room.set()
        ready = fresh[: self._admission.prompts_per_step]
        return sorted(ready, key=lambda each: each.number)

    async def _admit(self) -> None:
        """Starts prompts whenever there is room, until it is cancelled. A source that fails ends it."""
        for number, prompt in self._under_way.items():  # those of a collector before this one
            self._start(number, prompt)
        while True:
            await self._room.wait()  # bound: runs concurrently with `take`, which cancels it
            self._room.clear()
            free = self._admission.capacity(version=self._version, accepted=self._accepted, running=len(self._running))
            if not free:
                continue
            if not self._config.run.deterministic:
                self._start_new(free)
            elif not self._running:
                await self._wave(free)

    async def _wave(self, free: int) -> None:
        """Starts prompts that are computed together from the first token on, however they come in.

        What is sampled beside a sequence changes the last bits of its log-probabilities.
        """
        self._placed = [0] * len(self._samplers)
        serving = [i for i in range(len(self._samplers)) if i not in self._router.quarantined]
        await _unless_lost(self._samplers[i].hold() for i in serving)
        self._start_new(free)
        await asyncio.sleep(0)  # all of them choose their engine
        await _unless_lost(self._samplers[i].release(self._placed[i]) for i in serving)

    def _start_new(self, free: int) -> None:
        for prompt in self._source.take(free):
            number, self._admitted = self._admitted, self._admitted + 1
            self._under_way[number] = prompt
            self._start(number, prompt)

    def _start(self, number: int, prompt: Prompt) -> None:
        task = asyncio.ensure_future(self._sample(number, prompt))
        self._running[number] = task
        task.add_done_callback(partial(self._settle, number))

    def _settle(self, number: int, task: asyncio.Task[Finished]) -> None:
        """Takes in what a task has brought, and makes room for the next."""
        del self._running[number]
        self._changed.set()
        self._room.set()
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._failure = self._failure or error
            return
        finished = task.result()
        del self._under_way[number]
        if self._is_wanted(finished.group):
            self._accepted += 1
            self._waiting.append(finished)
        else:
            self._refused.append(finished)

    async def _sample(self, number: int, prompt: Prompt) -> Finished:
        step, index = divmod(number, self._admission.prompts_per_step)
        samples = self._config.algorithm.group_size
        seed = request_seed(run_seed=self._config.run.seed, step=step, index=index, prompt_id=prompt.id)
        request = SampleRequest(f"{step}/{index}", prompt.token_ids, samples, seed)
        completions = await self._generated(request)
        group, metrics = await self._rewards.ascore(prompt, completions)
        return Finished(number, group, metrics)

    async def _generated(self, request: SampleRequest) -> list[Completion]:
        """The answer of the first engine that lives to give it. Each is asked with the same seeds."""
        rollout = self._config.rollout
        while True:
            await self._router.available(timeout_s=rollout.timeout_s)
            with self._router.place(request.samples * rollout.max_tokens + len(request.token_ids)) as engine:
                self._placed[engine] += request.samples
                try:
                    return await self._samplers[engine].generate(request)
                except EngineLost:
                    self._router.quarantine(engine)

    def _is_wanted(self, group: RolloutGroup) -> bool:
        """Whether a group counts for a batch: under dynamic sampling, within the bound, not one of equal rewards."""
        sampling = self._config.algorithm.dynamic_sampling
        if sampling is None or is_informative(group):
            return True
        return len(self._refused) >= (sampling.max_draws - 1) * self._admission.prompts_per_step

    def _cancel(self) -> None:
        if self._admitting is not None:
            self._admitting.cancel()
        for task in self._running.values():
            task.cancel()


async def _unless_lost(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them. What a lost engine was asked goes to the others, with other bits than without the loss."""
    for result in await asyncio.gather(*calls, return_exceptions=True):  # bound: the calls to engines have limits
        if isinstance(result, BaseException) and not isinstance(result, EngineLost):
            raise result
