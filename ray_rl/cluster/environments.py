"""The workers that hold the environments of a run, as the driver sees them."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_rl.cluster.calls import answers
from ray_rl.cluster.shell import Setting, Worker
from ray_rl.environments.host import Answer, Host
from ray_rl.errors import EnvironmentFailed, RayRLError
from ray_rl.isolation.family import MARK, kill_marked
from ray_rl.types import Completion, Prompt

CALLS = 4096
"""The most concurrent calls of a worker."""
START_S = 300.0
"""Limit for the start of a worker, which imports the tokenizer and the environment."""
GRACE_S = 60.0
"""How much later than its environment's limit a worker must answer; then its event loop hangs."""
STOP_S = 5.0
"""How long a worker may take to end the processes that its environments have left."""
MOST_STUCK = 8
"""Calls that did not return within their limit and cannot be ended, after which a worker is replaced."""

Build = Callable[[], Awaitable[Host]]
Outcome = tuple[Any, RayRLError | None, int]
"""The result of a call, or its error, and the number of calls of the worker that cannot be ended."""


async def begin(host: Host, _: None, episode: str, prompt: Prompt, seed: int) -> Outcome:
    """Calls `Host.begin`. Errors are returned, because Ray would wrap them."""
    return await _outcome(host, host.begin(episode, prompt, seed))


async def step(host: Host, _: None, episode: str, completion: Completion, room: int) -> Outcome:
    """Calls `Host.step`, as `begin`."""
    return await _outcome(host, host.step(episode, completion, room))


async def end(host: Host, _: None, episode: str) -> None:
    """Calls `Host.end`."""
    await host.end(episode)


async def end_processes(host: Host, mark: str) -> None:
    """Ends the processes that environments of this worker started and left behind."""
    await asyncio.get_running_loop().run_in_executor(None, kill_marked, mark)


async def _outcome(host: Host, call: Awaitable[Any]) -> Outcome:
    try:
        return await call, None, host.stuck  # bound: each call of an environment has a limit
    except RayRLError as error:
        return None, error, host.stuck


@dataclass(slots=True, eq=False)
class _Place:
    """A worker, with the episodes that it holds."""

    worker: Worker[Host]
    is_made: ray.ObjectRef[None]
    """Ray's reference of the call that makes its `Host`; other calls wait for it."""
    node: str
    """The id of its node."""
    mark: str
    """Marks the processes that its environments start."""
    episodes: set[str] = field(default_factory=set)


class EnvironmentWorkers:
    """Gives each episode to the worker with the fewest, and replaces workers that die or hang."""

    def __init__(
        self, build: Build, *, workers: int, timeout_s: float, logs: Path, tell: Callable[[str], None]
    ) -> None:
        """Makes the workers; `start` waits for them.

        Args:
            build: makes the `Host` of a worker, in its process.
            workers: the number of workers.
            timeout_s: limit for one call of an environment.
            logs: the folder of the log files.
            tell: called with a line for every worker that is replaced.
        """
        self._build = build
        self._limit_s = timeout_s + GRACE_S
        self._logs = logs
        self._tell = tell
        self._run = uuid.uuid4().hex[:8]
        self._numbers = itertools.count()
        nodes = nodes_without_gpus()
        self._places = [self._launched(nodes[index % len(nodes)]) for index in range(workers)]
        self._retired: set[_Place] = set()
        self._place_of: dict[str, _Place] = {}

    async def start(self) -> None:
        """Waits until all workers have their hosts.

        Raises:
            UserError: the environment cannot be used.
            ClusterError: a worker did not start.
        """
        made = {place.worker.name: place.is_made for place in self._places}
        await answers(made, doing="starting the environments", timeout_s=START_S, logs=self._logs)

    async def begin(self, episode: str, prompt: Prompt, *, seed: int) -> Prompt:
        """Begins an episode in the least busy worker; see `Environments`."""
        place = min(self._places, key=lambda each: len(each.episodes))
        place.episodes.add(episode)
        self._place_of[episode] = place
        found: Prompt = await self._call(place, begin, episode, prompt, seed)
        return found

    async def step(self, episode: str, completion: Completion, *, room: int) -> Answer:
        """Returns what follows a completion; see `Environments`."""
        place = self._place_of.get(episode)
        if place is None:
            raise EnvironmentFailed("the worker of the environment was replaced, because it died or did not answer")
        found: Answer = await self._call(place, step, episode, completion, room)
        return found

    def end(self, episode: str) -> None:
        """Ends an episode, without waiting for it."""
        place = self._place_of.pop(episode, None)
        if place is None:
            return
        place.worker.submit(end, (place.is_made, episode), {})
        place.episodes.discard(episode)
        if place in self._retired and not place.episodes:
            self._retired.discard(place)
            place.worker.submit(end_processes, (place.mark,), {})
            asyncio.get_running_loop().call_later(STOP_S, place.worker.kill)

    async def stop(self) -> None:
        """Ends all workers, and the processes that their environments have left."""
        places = [*self._places, *self._retired]
        refs = [place.worker.submit(end_processes, (place.mark,), {}) for place in places]
        with suppress(RayError, TimeoutError):
            await asyncio.wait_for(asyncio.gather(*refs, return_exceptions=True), STOP_S)  # bound: STOP_S
        for place in places:
            place.worker.kill()

    async def _call(self, place: _Place, method: Callable[..., Any], *args: Any) -> Any:
        """Calls a worker.

        Raises:
            EnvironmentFailed: the environment failed, or its worker died or does not answer.
            RayRLError: an error that ends the run.
        """
        try:
            ref: Any = place.worker.submit(method, (place.is_made, *args), {})
            value, error, stuck = await asyncio.wait_for(ref, self._limit_s)
        except TimeoutError as late:
            raise self._lost(place, f"it does not answer for {self._limit_s:g} s") from late
        except RayError as died:
            raise self._lost(place, " ".join(str(died).split())) from died
        if stuck >= MOST_STUCK and place in self._places:
            self._replace(place, f"{stuck} calls of its environments do not end")
            self._retired.add(place)
        if error is not None:
            raise error
        return value

    def _lost(self, place: _Place, why: str) -> EnvironmentFailed:
        """Writes a worker off with all its episodes, and returns the error for each of them."""
        if place in self._places:
            replaced = self._replace(place, why)
            replaced.worker.submit(end_processes, (place.mark,), {})
            for episode in place.episodes:
                self._place_of.pop(episode, None)
        with suppress(RayError):
            place.worker.kill()
        return EnvironmentFailed(f"the worker of the environment was lost: {why}")

    def _replace(self, place: _Place, why: str) -> _Place:
        self._tell(f"{place.worker.name} with {len(place.episodes)} episodes is replaced: {why}")
        replaced = self._places[self._places.index(place)] = self._launched(place.node)
        return replaced

    def _launched(self, node: str) -> _Place:
        """Starts a worker; one that replaces another is on its node, where the processes are that the other left."""
        number = next(self._numbers)
        mark = f"{self._run}-{number}"
        strategy = NodeAffinitySchedulingStrategy(node, soft=True)
        options = {"num_cpus": 0, "scheduling_strategy": strategy, "max_concurrency": CALLS}
        setting = Setting(str(self._logs), 1, {MARK: mark})
        worker: Worker[Host] = Worker.launch_async(f"environment-{number}", setting, options)
        return _Place(worker, worker.hold(self._build), node, mark)


def nodes_without_gpus() -> list[str]:
    """Returns the ids of the live nodes that have no GPU; of all live nodes if each has one."""
    alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeID"]))
    without = [node["NodeID"] for node in alive if not node["Resources"].get("GPU")]
    return without or [node["NodeID"] for node in alive]
