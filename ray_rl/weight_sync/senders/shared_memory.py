"""The side of the trainer in a publish through shared memory: every rank writes its slice of every parameter."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from ray_rl.weight_sync.buckets import bucket_bytes, plan_buckets, unpack
from ray_rl.weight_sync.messages import Digests, Rendezvous
from ray_rl.weight_sync.proof import digest
from ray_rl.weight_sync.segment import Segment
from ray_rl.weight_sync.senders.memory import MemorySender


class SharedMemorySender(MemorySender[Segment]):
    """Gathers nothing, and sends nothing through a socket except the announcement that a bucket is complete.

    ZeRO-3's slices are written to their places in the whole parameter; without ZeRO-3 the ranks divide the work evenly.
    """

    def join(self, rendezvous: Rendezvous) -> None:
        """Creates the memory and opens the group that announces buckets, on rank 0; maps the memory on other ranks."""
        self.close()
        if self._is_sender:
            self._memory = Segment.create(rendezvous.segment, bucket_bytes(self._stream.specs))
        else:
            self._memory = Segment.attach(rendezvous.segment, timeout_s=rendezvous.timeout_s)
        super().join(rendezvous)

    def _parts(self) -> list[int]:
        """Returns the elements of a part, by parameter: each rank has its own slice, the first the longest one."""
        return self._stream.part_sizes(self._specs)

    def _write_all(self, memory: Segment, digests: Digests) -> RuntimeError | None:
        told: list[Any] = []
        failure: RuntimeError | None = None
        slices = self._stream.slices(self._specs)
        offset = 0
        for bucket in plan_buckets(self._specs, capacity_bytes=self._capacity_bytes):
            size = bucket_bytes(bucket)
            for name, view in unpack(memory.buffer[offset : offset + size], bucket):
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
