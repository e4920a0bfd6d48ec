"""The process group of a publish over gloo: the sender is rank 0, the workers of the engines follow."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ray_rl.errors import WeightSyncError
from ray_rl.training.process_group import rendezvous_store


class GlooGroup:
    """A gloo group separate from the default group, with a time limit on every operation."""

    def __init__(self, *, address: str, port: int, rank: int, world: int, timeout_s: float) -> None:
        """Joins the other ranks; blocks until all have joined.

        Raises:
            WeightSyncError: not all ranks joined within `timeout_s`.
        """
        timeout = timedelta(seconds=timeout_s)
        try:
            self._store = rendezvous_store(address, port, world=world, is_master=rank == 0, timeout_s=timeout_s)
            self._group: Any = dist.ProcessGroupGloo(self._store, rank, world, timeout)
        except (RuntimeError, OSError) as error:
            raise WeightSyncError(
                f"rank {rank} of {world} (0 is the trainer, then the workers of the engines) did not meet the others "
                f"at {address}:{port} within weight_sync.timeout_s={timeout_s:g}: {error}"
            ) from error

    def broadcast(self, buffer: Tensor) -> Any:
        """Starts a broadcast from rank 0 and returns its work, which has `.wait()`."""
        # bound: the process group has weight_sync.timeout_s
        return self._group.broadcast([buffer], dist.BroadcastOptions())

    def meet(self) -> None:
        """Returns when all ranks have called it."""
        # bound: the process group has weight_sync.timeout_s
        self._group.barrier(dist.BarrierOptions()).wait()

    def share(self, text: str | None) -> str:
        """Returns the text that rank 0 gives; other ranks give None."""
        given = None if text is None else torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        size = torch.tensor([0 if given is None else given.numel()])
        # bound: the process group has weight_sync.timeout_s
        self.broadcast(size).wait()
        data = torch.empty(int(size), dtype=torch.uint8) if given is None else given
        # bound: the process group has weight_sync.timeout_s
        self.broadcast(data).wait()
        return data.numpy().tobytes().decode()
