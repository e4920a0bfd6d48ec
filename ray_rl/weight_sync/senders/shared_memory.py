"""The side of the trainer in a publish through shared memory: every rank writes its slice of every parameter."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from ray_rl.errors import WeightSyncError
from ray_rl.weight_sync.buckets import bucket_bytes, plan_buckets, unpack
from ray_rl.weight_sync.proof import Digests, digest
from ray_rl.weight_sync.segment import Segment
from ray_rl.weight_sync.senders.sender import GlooSender, Rendezvous, Sent


class SharedMemorySender(GlooSender):
    """Gathers nothing, and sends nothing through a socket except the announcement that a bucket is complete.

    ZeRO-3's slices are written to their places in the whole parameter; without ZeRO-3 the ranks divide the work evenly.
    """

    _segment: Segment | None = None

    def join(self, rendezvous: Rendezvous) -> None:
        """Creates the memory and opens the group that announces buckets, on rank 0; maps the memory on other ranks."""
        self.close()
        if self._is_sender:
            self._segment = Segment.create(rendezvous.segment, bucket_bytes(self._stream.specs))
        else:
            self._segment = Segment.attach(rendezvous.segment, timeout_s=rendezvous.timeout_s)
        super().join(rendezvous)

    def send(self) -> Sent:
        """Writes all parameters, and announces each bucket to the engines when every rank has written its part.

        Raises:
            WeightSyncError: an engine ended or was too slow; the group is closed, and `join` must be called before
                the next publish.
        """
        start_s = time.perf_counter()
        is_closed = self._segment is None or (self._is_sender and self._group is None)
        digests: Digests = {}
        failure = None if self._segment is None else self._write_all(self._segment, digests)
        if is_closed:
            raise WeightSyncError("the transfer group is closed: join the engines again before publishing")
        if failure is not None:
            self._leave()
            raise WeightSyncError(f"sending weights failed: {failure}") from failure
        if not self._is_sender:
            self._specs = self._stream.trained_specs
            return Sent([], digests)
        assert self._segment is not None
        self._segment.forget_name()  # all have joined, or there would be no publish
        return self._sent(digests, start_s)

    def close(self) -> None:
        """Leaves the group and the memory."""
        self._leave()
        self._segment = None

    def _leave(self) -> None:
        """Closes the sockets, so that waiting engines fail immediately.

        The other ranks do not notice it: the memory stays mapped, and the barriers of the next publish still work.
        """
        if self._is_sender and self._segment is not None:
            self._segment.forget_name()
        self._group = None

    def _parts(self) -> list[int]:
        """Returns the elements of a part, by parameter: each rank has its own slice, the first the longest one."""
        return [values.numel() for _, values in self._stream.slices(self._specs)]

    def _write_all(self, segment: Segment, digests: Digests) -> RuntimeError | None:
        """Writes and announces all buckets; returns why an announcement failed, or None.

        Every rank continues after a failure, because each bucket is a barrier.
        """
        told: list[Any] = []
        failure: RuntimeError | None = None
        slices = self._stream.slices(self._specs)
        offset = 0
        for bucket in plan_buckets(self._specs, capacity_bytes=self._capacity_bytes):
            size = bucket_bytes(bucket)
            for name, view in unpack(segment.buffer[offset : offset + size], bucket):
                start, values = next(slices)
                own = values.to(view.dtype)
                if own.numel():  # the last ranks have no part of a very small parameter
                    digests[name] = {start: digest(own)}
                view.view(-1)[start : start + own.numel()].copy_(own)
            offset += size
            dist.barrier()  # bound: the process group has train.timeout_s
            if self._group is not None and failure is None:
                try:
                    # bound: the process group has weight_sync.timeout_s
                    told.append(self._group.broadcast(torch.zeros(1, dtype=torch.uint8)))
                except RuntimeError as error:
                    failure = error
        return failure or _settled(told)


def _settled(works: list[Any]) -> RuntimeError | None:
    try:
        for work in works:
            work.wait()  # bound: the process group has weight_sync.timeout_s
    except RuntimeError as error:
        return error
    return None
