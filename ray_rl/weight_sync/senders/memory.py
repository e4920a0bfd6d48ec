"""The side of the trainer in a publish through memory that engines map: every rank writes, and rank 0 tells them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

from ray_rl.errors import WeightSyncError
from ray_rl.weight_sync.messages import Digests, Sent
from ray_rl.weight_sync.senders.sender import GlooSender


class Named(Protocol):
    """Memory that other processes find by its name."""

    def forget_name(self) -> None:
        """Removes the name; processes that have mapped the memory keep it."""


Memory = TypeVar("Memory", bound=Named)


class MemorySender(GlooSender, ABC, Generic[Memory]):
    """Writes buckets into memory, on every rank; the group only carries the news that a bucket is complete."""

    _memory: Memory | None = None
    """The memory of this rank; None before `join`."""

    def send(self) -> Sent:
        """Writes all parameters, and announces each bucket to the engines when every rank has written it.

        Raises:
            WeightSyncError: an engine ended or was too slow; the group is closed, and `join` must be called before
                the next publish.
        """
        start_s = time.perf_counter()
        is_closed = self._memory is None or (self._is_sender and self._group is None)
        digests: Digests = {}
        failure = None if self._memory is None else self._write_all(self._memory, digests)
        if is_closed:
            raise WeightSyncError("the transfer group is closed: join the engines again before publishing")
        if failure is not None:
            self._leave()
            raise WeightSyncError(f"sending weights failed: {failure}") from failure
        self._forget_name()  # all have joined, or there would be no publish
        if not self._is_sender:
            self._specs = self._stream.trained_specs
            return Sent([], digests)
        return self._sent(digests, start_s)

    def close(self) -> None:
        """Leaves the group and the memory."""
        self._leave()
        self._memory = None

    @abstractmethod
    def _write_all(self, memory: Memory, digests: Digests) -> RuntimeError | None:
        """Writes and announces all buckets; returns why an announcement failed, or None.

        Every rank continues after a failure, because each bucket is a barrier.
        """

    def _leave(self) -> None:
        """Closes the sockets, so that waiting engines fail immediately.

        The other ranks do not notice it: the memory stays mapped, and the barriers of the next publish still work.
        """
        self._forget_name()
        self._group = None

    def _forget_name(self) -> None:
        if self._memory is not None:
            self._memory.forget_name()
