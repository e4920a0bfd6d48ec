"""Worker processes of reward functions on the nodes where the driver does not run."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_rl.cluster.shell import Setting, Worker
from ray_rl.errors import ProcessDied, SandboxClosed, SandboxError, UserError
from ray_rl.isolation.pool import MOST_PROCESSES, Executor
from ray_rl.isolation.worker import Worker as Isolated

CALLS = 4096
"""The most concurrent calls on a node: more than the driver's threads make."""

_NUMBERS = itertools.count()
"""Numbers of the actors, for their names. Each reward has its own actors."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster."""

    id: str
    processes: int
    """The most worker processes on it."""


def other_nodes() -> list[Node]:
    """Returns the live nodes of the connected cluster that have CPUs, without the driver's own."""
    own = ray.get_runtime_context().get_node_id()
    found = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != own]
    counted = [(node["NodeID"], min(int(node["Resources"].get("CPU", 0)), MOST_PROCESSES)) for node in found]
    return [Node(id, processes) for id, processes in sorted(counted) if processes]


def workers_elsewhere(memory_bytes: int, *, nodes: Sequence[Node], logs: Path) -> list[Callable[[], Executor]]:
    """Returns what makes the worker processes of one reward, a process of each node in turn.

    Args:
        memory_bytes: the limit of each process.
        nodes: the nodes.
        logs: the folder of the log files.
    """
    benches = [_Bench(node, memory_bytes, logs) for node in nodes]
    rounds = range(max((node.processes for node in nodes), default=0))
    return [partial(_Remote, bench, i) for i in rounds for bench in benches if i < bench.node.processes]


class Processes:
    """The worker processes of one reward on one node. It lives in an actor there."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._workers: dict[int, Isolated] = {}

    async def call(
        self, _: None, number: int, function: str, options: Mapping[str, Any]
    ) -> tuple[Any, SandboxError | UserError | TimeoutError | None]:
        """Returns the result of `Worker.submit` in the process of a number, or its error, which then loses no note."""
        if number not in self._workers:
            self._workers[number] = Isolated(memory_bytes=self._memory_bytes)
        try:
            return await asyncio.wrap_future(self._workers[number].submit(function, **options)), None
        except (SandboxError, UserError, TimeoutError) as error:
            return None, error


async def _processes(memory_bytes: int) -> Processes:
    return Processes(memory_bytes)


class _Bench:
    """The driver's side of `Processes`. The actor starts with the first call. Thread-safe."""

    def __init__(self, node: Node, memory_bytes: int, logs: Path) -> None:
        self.node = node
        self.is_lost, self._is_closed = False, False
        self._memory_bytes, self._logs = memory_bytes, logs
        self._starting = threading.Lock()
        self._started: tuple[Worker[Processes], ray.ObjectRef[None]] | None = None
        """The actor, and Ray's reference of the call that makes its `Processes`."""

    def submit(self, number: int, function: str, options: Mapping[str, Any]) -> Future[Any]:
        """Starts a call in the process of a number."""
        found: Future[Any] = Future()
        found.set_running_or_notify_cancel()
        worker, is_made = self._start()
        ref = worker.submit(Processes.call, (is_made, number, function, options), {})  # Ray runs it after `is_made`
        ref.future().add_done_callback(partial(self._settle, found, function))
        return found

    def close(self) -> None:
        """Kills the actor, and with it its processes."""
        with self._starting:
            was_closed, self._is_closed = self._is_closed, True
        if self._started is not None and not was_closed:
            self._started[0].kill()

    def _start(self) -> tuple[Worker[Processes], ray.ObjectRef[None]]:
        with self._starting:
            if self._is_closed:
                raise SandboxClosed("no process was started: its pool is closed")
            if self._started is None:
                place = NodeAffinitySchedulingStrategy(self.node.id, soft=False)
                options = {"num_cpus": 0, "scheduling_strategy": place, "max_concurrency": CALLS}
                setting = Setting(str(self._logs), 1, {})
                worker: Worker[Processes] = Worker.launch_async(f"rewards-{next(_NUMBERS)}", setting, options)
                self._started = worker, worker.hold(partial(_processes, self._memory_bytes))
            return self._started

    def _settle(self, found: Future[Any], function: str, answered: Future[Any]) -> None:
        """Passes on what a call returned, in a thread of Ray."""
        error = answered.exception()  # bound: Ray calls this when the answer is known
        value = None
        if error is None:
            value, error = answered.result()  # bound: as above
        elif self._is_closed:
            error = SandboxClosed(f"{function} was ended: its worker was closed")
        else:
            self.is_lost = True
            error = ProcessDied(f"{function}: node {self.node.id} does not answer: {error}")
        if error is None:
            found.set_result(value)
        else:
            found.set_exception(error)


class _Remote:
    """A process on another node, as `Pool` calls it."""

    def __init__(self, bench: _Bench, number: int) -> None:
        self._bench, self._number = bench, number

    @property
    def is_lost(self) -> bool:
        """Whether the node is lost."""
        return self._bench.is_lost

    def submit(self, function: str, *, timeout_s: float, **options: Any) -> Future[Any]:
        """Starts a call; see `Executor.submit`."""
        return self._bench.submit(self._number, function, {"timeout_s": timeout_s, **options})

    def close(self) -> None:
        """Ends all processes of the reward on this node."""
        self._bench.close()
