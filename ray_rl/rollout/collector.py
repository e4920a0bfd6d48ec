"""Samples and scores completions of prompts, in the background of training as far as the schedule allows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from ray_rl.data.source import PromptSource
from ray_rl.metrics.episode_metrics import episode_metrics
from ray_rl.metrics.metric import Metric
from ray_rl.metrics.rollout_metrics import rollout_metrics
from ray_rl.rewards.combine import Rewards
from ray_rl.rollout.collected import Collected, Finished
from ray_rl.rollout.episodes import Episodes
from ray_rl.rollout.pool import EnginePool
from ray_rl.rollout.schedule import Schedule
from ray_rl.types import Prompt, RolloutGroup

CANCEL_S = 5.0
"""How long cancelled requests may take to end."""


class Collector:
    """Samples episodes of the prompts that its schedule admits, and scores each group as soon as it is complete."""

    def __init__(
        self,
        source: PromptSource,
        pool: EnginePool,
        episodes: Episodes,
        rewards: Rewards,
        schedule: Schedule,
        *,
        group_size: int,
        finished: Callable[[RolloutGroup], None] | None = None,
    ) -> None:
        """Makes a collector at the start of a run.

        Args:
            source: yields the prompts.
            pool: the engines of the policy.
            episodes: makes rollouts of a prompt, with the engines of the pool.
            rewards: the judges; the caller closes them.
            schedule: a schedule at the start of a run.
            group_size: number of rollouts of each prompt.
            finished: called with each group that counts for a batch, once it is complete and scored.
        """
        self._finished = finished
        self._source = source
        self._pool = pool
        self._episodes = episodes
        self._rewards = rewards
        self._schedule = schedule
        self._group_size = group_size
        self._running: dict[int, asyncio.Task[Finished]] = {}
        self._scoring = 0
        """Prompts whose completions are all sampled and wait for their rewards."""
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        """Set when something finished or failed; `take` waits for it."""
        self._room = asyncio.Event()
        """Set when something finished or failed, and for each batch: there may be room for prompts. `_admit` waits."""
        self._admitting: asyncio.Task[None] | None = None
        self._batch_began: Collected | None = None
        """In waves: the position before the batch for which `take` is waiting. None: no batch, or not in waves."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Cancels everything in flight at the end of the block."""
        try:
            yield
        finally:
            left = [*self._running.values(), *([] if self._admitting is None else [self._admitting])]
            self._cancel()
            if left:
                await asyncio.wait(left, timeout=CANCEL_S)

    async def take(self, *, step: int, progress: Callable[[str], None]) -> tuple[list[RolloutGroup], list[Metric]]:
        """Returns the groups of a batch in the order of their prompts, and its metrics. Later prompts can then start.

        Args:
            step: the number of the batch, which is the trainer's version.
            progress: called with the number of completions that are done, as text.

        Raises:
            RayRLError: an engine or a reward failed; the requests in flight are cancelled.
        """
        schedule, count = self._schedule, self._schedule.settings.prompts_per_step
        schedule.version = step
        self._batch_began = self._now() if schedule.settings.in_waves else None
        if self._admitting is None:
            self._admitting = asyncio.ensure_future(self._admit())
            self._admitting.add_done_callback(lambda _: self._changed.set())
        while True:
            self._changed.clear()
            ready = schedule.ready()
            self._room.set()  # the version may be new, and stale groups may have been dropped
            done = f"{min(len(ready), count) * self._group_size} of {count * self._group_size} completions"
            progress(f"{done}, {self._scoring * self._group_size} being scored" if self._scoring else done)
            if self._failure is not None:
                self._cancel()
                raise self._failure
            if self._admitting.done():
                self._cancel()
                self._admitting.result()
            if len(ready) >= count:
                return self._batch(ready[:count])
            await self._changed.wait()  # bound: requests in flight end within rollout.timeout_s, which is a change

    def position(self) -> Collected:
        """Returns the current position between two batches. Requests may be in flight.

        A collector that samples in waves returns the position before a batch whose `take` was cancelled: all its
        rollouts are sampled again, because their last bits depend on the other sequences in a forward pass.
        """
        return self._batch_began or self._now()

    def resume(self, folder: Path) -> None:
        """Continues from the position in a checkpoint of the same configuration. Call it before the first `take`."""
        self.restore(Collected.read(folder))

    def restore(self, state: Collected) -> None:
        """Continues from a position in memory. Call it before the first `take`."""
        self._source.restore(state.source)
        self._schedule.restore(state)

    def _now(self) -> Collected:
        return self._schedule.position(self._source.state())

    def _batch(self, taken: list[Finished]) -> tuple[list[RolloutGroup], list[Metric]]:
        self._batch_began = None
        groups = [each.group for each in taken]
        metrics = [
            *rollout_metrics(groups, version=self._schedule.version),
            *episode_metrics(groups),
            *self._schedule.take(taken, running=len(self._running)),
            *self._source.metrics(),
            *self._pool.metrics(),
            *self._rewards.metrics(),
        ]
        return groups, metrics

    async def _admit(self) -> None:
        """Starts prompts whenever there is room, until it is cancelled or the source fails."""
        for number, prompt in self._schedule.in_flight.items():  # in flight at the restored position
            self._start(number, prompt)
        while True:
            await self._room.wait()  # bound: runs concurrently with `take`, which cancels it
            self._room.clear()
            free = self._schedule.room(running=len(self._running))
            if free and self._schedule.settings.in_waves:
                async with self._pool.wave():
                    self._start_new(free)
            elif free:
                self._start_new(free)

    def _start_new(self, free: int) -> None:
        for prompt in self._source.take(free):
            self._start(self._schedule.admit(prompt), prompt)

    def _start(self, number: int, prompt: Prompt) -> None:
        task = asyncio.ensure_future(self._sample(number, prompt))
        self._running[number] = task
        task.add_done_callback(partial(self._settle, number))

    def _settle(self, number: int, task: asyncio.Task[Finished]) -> None:
        """Stores the result of a task that ended, and makes room for another prompt."""
        del self._running[number]
        self._changed.set()
        self._room.set()
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            done = task.result()
            if self._schedule.finish(done) and self._finished is not None:
                self._finished(done.group)
        else:
            self._failure = self._failure or error

    async def _sample(self, number: int, prompt: Prompt) -> Finished:
        step, index = self._schedule.place_of(number)
        sampled = await self._episodes.sample(prompt, samples=self._group_size, step=step, index=index)
        self._scoring += 1
        try:
            return Finished(number, *await self._rewards.score(sampled))
        finally:
            self._scoring -= 1

    def _cancel(self) -> None:
        if self._admitting is not None:
            self._admitting.cancel()
        for task in self._running.values():
            task.cancel()
