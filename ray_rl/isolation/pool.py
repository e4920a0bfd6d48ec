"""Several worker processes for one function."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from ray_rl.errors import SandboxClosed
from ray_rl.isolation.worker import Worker

MOST_PROCESSES = 64
"""The largest size of a pool: each process holds the libraries of its function in memory."""


def default_processes() -> int:
    """Returns the processor cores that this process may use, at most `MOST_PROCESSES`."""
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


class Executor(Protocol):
    """A worker process, here or on another machine."""

    @property
    def is_lost(self) -> bool:
        """Whether no call can succeed any more, because the machine of the process is lost."""

    @property
    def submit(self) -> Callable[..., Future[Any]]:
        """Starts a call, as `Worker.submit`. The future of a process that is lost raises `ProcessDied`."""

    def close(self) -> None:
        """Ends the process, and calls in flight with it."""


class Pool:
    """Gives each call to the worker with the fewest calls. Starts another process only when all are busy."""

    def __init__(
        self, processes: int, *, make: Callable[[], Executor] = Worker, others: Sequence[Callable[[], Executor]] = ()
    ) -> None:
        """Makes a pool without processes; `submit` starts them.

        Args:
            processes: the most processes on this machine, at least 1.
            make: makes a new worker on this machine.
            others: each makes a worker on another machine, once all on this one are busy.
        """
        self._makers = [*[make] * processes, *others]
        self._workers: list[Executor] = []
        self._calls: list[int] = []
        self._lock = threading.Lock()
        self._is_closed = False
        self._busy, self._busy_s, self._since_s = 0, 0.0, time.perf_counter()

    def submit(self, function: str, *, timeout_s: float, **options: Any) -> Future[Any]:
        """Calls `Worker.submit` of the least busy worker.

        Raises:
            SandboxClosed: the pool is closed.
        """
        with self._lock:
            if self._is_closed:
                raise SandboxClosed(f"{function} was not called: its workers are closed")
            index = self._least_busy()
            if not self._calls[index]:
                self._count(1)
            self._calls[index] += 1
            worker = self._workers[index]
        call = worker.submit(function, timeout_s=timeout_s, **options)
        call.add_done_callback(lambda _: self._ended(index))
        return call

    @property
    def processes(self) -> int:
        """Workers that have received a call so far."""
        return len(self._workers)

    @property
    def most(self) -> int:
        """The most workers that can have calls at once: all except those that are lost."""
        return len(self._makers) - sum([worker.is_lost for worker in tuple(self._workers)])

    @property
    def busy_s(self) -> float:
        """The seconds in which workers had calls, summed over the workers."""
        with self._lock:
            self._count(0)
            return self._busy_s

    def close(self) -> None:
        """Ends all processes. Calls in flight fail. No call may follow."""
        with self._lock:
            self._is_closed = True
            workers = tuple(self._workers)
        for worker in workers:
            worker.close()

    def _least_busy(self) -> int:
        usable = [index for index, worker in enumerate(self._workers) if not worker.is_lost]
        index = min(usable, key=self._calls.__getitem__, default=None)
        if index is not None and not self._calls[index]:
            return index
        while len(self._workers) < len(self._makers):
            self._workers.append(self._makers[len(self._workers)]())
            self._calls.append(0)
            if not self._workers[-1].is_lost:
                return len(self._workers) - 1
        assert index is not None, "workers on this machine are never lost"
        return index

    def _ended(self, index: int) -> None:
        with self._lock:
            self._calls[index] -= 1
            if not self._calls[index]:
                self._count(-1)

    def _count(self, more: int) -> None:
        """Adds the time since the last change, and changes the number of busy workers. Call it with the lock."""
        now_s = time.perf_counter()
        self._busy_s += self._busy * (now_s - self._since_s)
        self._since_s = now_s
        self._busy += more
