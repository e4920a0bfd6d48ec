"""The side of the trainer in a publish to engines on the same GPUs: every rank lends a buffer of its own GPU."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from ray_rl.weight_sync.buckets import bucket_bytes, plan_buckets, unpack
from ray_rl.weight_sync.device_memory import Handle, Lent, synchronize
from ray_rl.weight_sync.messages import Digests, Rendezvous
from ray_rl.weight_sync.proof import digest
from ray_rl.weight_sync.senders.memory import MemorySender


class IpcSender(MemorySender[Lent]):
    """Fills a bucket on every rank, whose engines copy it before the next one is filled.

    A worker of an engine maps the buffer of the rank on its own GPU, so all ranks gather whole parameters. One bucket
    at a time needs the least memory, of which the GPUs have little while both sides are there.
    """

    def join(self, rendezvous: Rendezvous) -> None:
        """Shares a buffer of every rank, and tells the engines where they are, on rank 0."""
        self.close()
        largest = max(spec.bytes for spec in self._stream.specs)
        size = max(rendezvous.capacity_bytes, largest)
        lent = self._memory = Lent(size, self._stream.device, name=f"{rendezvous.segment}-{dist.get_rank()}")
        handles: list[Handle | None] = [None] * dist.get_world_size()
        dist.all_gather_object(handles, lent.handle)  # bound: the process group has train.timeout_s
        super().join(rendezvous)
        if self._group is not None:
            self._group.share(json.dumps([asdict(handle) for handle in handles if handle is not None]))

    def _write_all(self, memory: Lent, digests: Digests) -> RuntimeError | None:
        failure: RuntimeError | None = None
        groups = self._stream.groups(self._specs, everywhere=True)
        parameters = (pair for group in groups for pair in group)
        for bucket in plan_buckets(self._specs, capacity_bytes=self._capacity_bytes):
            for name, view in unpack(memory.buffer[: bucket_bytes(bucket)], bucket):
                _, tensor = next(parameters)
                assert tensor is not None, "gathered on every rank"
                view.copy_(tensor)
                if self._is_sender:
                    digests[name] = {0: digest(view)}
            synchronize(memory.buffer)
            dist.barrier()  # bound: the process group has train.timeout_s
            if self._group is not None and failure is None:
                failure = self._announce()
            dist.barrier()  # bound: the process group has train.timeout_s
        for _ in parameters:  # ends the collective
            pass
        return failure

    def _announce(self) -> RuntimeError | None:
        """Tells the engines that a bucket is complete, and waits until they have copied it."""
        word: Any = torch.zeros(1, dtype=torch.uint8)
        try:
            # bound: the process group has weight_sync.timeout_s
            self._group.broadcast(word).wait()
            self._group.meet()
        except RuntimeError as error:
            return error
        return None
