"""The side of the trainer in a publish, on every rank: all ranks take part in the gather, and rank 0 sends."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any, Protocol

from torch import Tensor

from ray_rl.errors import WeightSyncError
from ray_rl.metrics.metric import Last, Total
from ray_rl.training.gather import ParameterSpec, WeightStream
from ray_rl.weight_sync.buckets import BufferRing, bucket_bytes, plan_buckets, unpack
from ray_rl.weight_sync.gloo_group import GlooGroup
from ray_rl.weight_sync.messages import Digests, Rendezvous, Sent
from ray_rl.weight_sync.proof import digest

IN_FLIGHT = 2
"""Concurrent broadcasts: one bucket is filled while the previous one is sent."""


class Sender(Protocol):
    """The trainer's interface to a transport. Every rank of the actor calls the methods in the same order."""

    def announce(self) -> dict[str, Any]:
        """Returns the description of the parameters for the engines: vLLM's update information."""

    def join(self, rendezvous: Rendezvous) -> None:
        """Joins the group of the engines, which must join at the same time."""

    def send(self) -> Sent:
        """Sends the current parameters while the engines receive; a collective of the trainer's ranks."""

    def close(self) -> None:
        """Leaves the group; waiting peers fail immediately."""


class GlooSender:
    """Sends flat buckets over gloo: bucket k + 1 is gathered and filled while bucket k is sent."""

    def __init__(self, stream: WeightStream, *, is_sender: bool) -> None:
        """Makes a sender of this rank's parameters; `join` opens its group. Rank 0 is the one that sends."""
        self._stream = stream
        self._is_sender = is_sender
        self._ring = BufferRing()
        self._group: Any = None
        self._specs = stream.specs

    def announce(self) -> dict[str, Any]:
        """Returns names, dtypes, shapes, and the elements of each part that is digested separately."""
        specs = self._specs
        return {
            "names": [spec.name for spec in specs],
            "dtype_names": [spec.dtype for spec in specs],
            "shapes": [list(spec.shape) for spec in specs],
            "parts": self._parts(),
        }

    def join(self, rendezvous: Rendezvous) -> None:
        """Opens the group as rank 0; the other ranks only learn the size of a bucket."""
        self._capacity_bytes = rendezvous.capacity_bytes
        self._specs = self._stream.specs  # these engines may have no weights yet
        if self._is_sender:
            self._group = GlooGroup(
                address=rendezvous.address,
                port=rendezvous.port,
                rank=0,
                world=rendezvous.world,
                timeout_s=rendezvous.timeout_s,
            )

    def send(self) -> Sent:
        """Gathers layer by layer into flat buckets and broadcasts them.

        Engines that have just joined get all parameters, and later only those that training changes.

        Raises:
            WeightSyncError: an engine ended or was too slow; the group is closed, and `join` must be called before
                the next publish.
        """
        start_s = time.perf_counter()
        parameters = (pair for group in self._stream.groups(self._specs) for pair in group)
        if not self._is_sender or self._group is None:
            for _ in parameters:  # the gather is a collective: the other ranks would wait for this one
                pass
            if self._is_sender:
                raise WeightSyncError("the transfer group is closed: join the engines again before publishing")
            self._specs = self._stream.trained_specs
            return Sent([], {})
        digests: Digests = {}
        try:
            self._transmit(self._digested(parameters, digests))
        except RuntimeError as error:
            self.close()
            for _ in parameters:  # as above
                pass
            raise WeightSyncError(f"sending weights failed: {error}") from error
        return self._sent(digests, start_s)

    def close(self) -> None:
        """Closes the sockets."""
        self._group = None

    def _sent(self, digests: Digests, start_s: float) -> Sent:
        """Ends a publish that succeeded, and measures it."""
        sent, seconds = bucket_bytes(self._specs), time.perf_counter() - start_s
        self._specs = self._stream.trained_specs
        return Sent([Total("sync/bytes", sent), Last("sync/gb_per_s", sent / seconds / 1e9)], digests)

    def _parts(self) -> list[int]:
        """Returns the elements of a part, by parameter: rank 0 has every parameter whole."""
        return [prod(spec.shape) for spec in self._specs]

    def _digested(self, parameters: Iterable[Any], digests: Digests) -> Iterator[tuple[ParameterSpec, Tensor]]:
        """Yields the parameters in host memory, where the engines digest what arrives, and digests each of them."""
        for spec, tensor in parameters:
            own = tensor.cpu()
            digests[spec.name] = {0: digest(own)}
            yield spec, own

    def _transmit(self, parameters: Iterator[tuple[ParameterSpec, Tensor]]) -> None:
        """Sends the announced parameters; returns when all of them are sent."""
        assert self._group is not None
        in_flight: list[tuple[Tensor, Any]] = []
        for bucket in plan_buckets(self._specs, capacity_bytes=self._capacity_bytes):
            while len(in_flight) >= IN_FLIGHT:
                self._finish(in_flight)
            buffer = self._fill(bucket, parameters)
            # bound: the process group has weight_sync.timeout_s
            in_flight.append((buffer, self._group.broadcast(buffer)))
        while in_flight:
            self._finish(in_flight)

    def _fill(self, bucket: Sequence[ParameterSpec], parameters: Iterator[tuple[ParameterSpec, Tensor]]) -> Tensor:
        buffer = self._ring.take(bucket_bytes(bucket))
        for _, view in unpack(buffer, bucket):
            _, tensor = next(parameters)
            view.copy_(tensor)
        return buffer

    def _finish(self, in_flight: list[tuple[Tensor, Any]]) -> None:
        buffer, work = in_flight.pop(0)
        work.wait()  # bound: the process group has weight_sync.timeout_s
        self._ring.give(buffer)
