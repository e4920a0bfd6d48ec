"""The process group of a publish over gloo: the sender is rank 0, the workers of the engines follow."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor


class GlooGroup:
    """A gloo group beside the default one, with a bound on every operation."""

    def __init__(self, *, address: str, port: int, rank: int, world: int, timeout_s: float) -> None:
        """Meets the other ranks; blocks until all have come, at most `timeout_s`."""
        timeout = timedelta(seconds=timeout_s)
        self._store = dist.TCPStore(address, port, world, is_master=rank == 0, timeout=timeout, wait_for_workers=False)
        self._group = dist.ProcessGroupGloo(self._store, rank, world, timeout)

    def broadcast(self, buffer: Tensor) -> Any:
        """Starts a broadcast from rank 0; `.wait()` on what is returned."""
        return self._group.broadcast([buffer], dist.BroadcastOptions())
