"""Measures the bandwidth of torch's process groups over the links between nodes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ray_rl.training.member import Member
from ray_rl.training.process_group import rendezvous_store

SMALLEST = 2**10
GROWTH = 8
"""Factor between the sizes of a sweep."""
LARGEST = {"cpu": 2**25, "gpu": 2**28}
"""Largest size of sweeps and of messages between two ranks, in bytes. Beyond it, bandwidth does not grow."""

CALLS = 5
"""Calls that are timed together at each size of a sweep, after one warm-up call."""

PAIR_SMALLEST, PAIR_GROWTH = 2**16, 4
PAIR_REPEATS = 3
"""Repeats of a measurement, of which the fastest counts: a disturbance only makes it slower."""
PAIR_ENOUGH_S = 0.05
"""A message that takes this long is large enough to measure the link's speed; no larger one is sent."""


@dataclass(frozen=True, slots=True)
class PairTimes:
    """Speed between rank 0 and rank 1, in bytes per second."""

    forth: float
    """From rank 0 to rank 1."""
    back: float
    round_trip_s: float


class LinkProbe:
    """One rank of a measurement. Every operation is limited by `timeout_s`."""

    def __init__(self, *, accelerator: str, timeout_s: float) -> None:
        """Makes a probe of a device: cpu, or the first GPU that this process sees."""
        self._accelerator = accelerator
        self._timeout = timedelta(seconds=timeout_s)
        self._device = torch.device("cpu" if accelerator == "cpu" else "cuda:0")
        if accelerator == "cpu":
            torch.set_num_threads(1)
        else:
            torch.cuda.set_device(self._device)

    def pair(self, member: Member, address: str) -> PairTimes:
        """Measures both directions between two ranks with messages that are large enough; a collective of the two.

        Each message is acknowledged and timed by its sender. Sending alone ends when the kernel has accepted the data.
        """
        group = self._meet(member, address)
        round_trip_s = self._message_s(group, 1, sender=0, rank=member.rank)
        forth, back = (self._speed(group, sender, member.rank) for sender in (0, 1))
        return PairTimes(forth, back, round_trip_s)

    def sweep(self, member: Member, address: str, *, budget_s: float) -> list[tuple[str, int, float]]:
        """Returns operation, bytes, and seconds of one call on the slowest rank; a collective of all ranks.

        Sizes that would not end within `budget_s` are left out: all ranks decide this from the same numbers.
        """
        group = self._meet(member, address)
        spent_s = 0.0
        points = []
        for name, start in self._operations(group):
            size, seconds = SMALLEST, 0.0
            while size <= LARGEST[self._accelerator]:
                if spent_s + GROWTH * seconds * (CALLS + 1) > budget_s:
                    break
                seconds = self._call_s(group, start, size)
                spent_s += seconds * (CALLS + 1)
                points.append((name, size, seconds))
                size *= GROWTH
        return points

    def _meet(self, member: Member, address: str) -> Any:
        """Returns a group for one measurement; `address` is that of this rank."""
        timeout_s = self._timeout.total_seconds()
        store = rendezvous_store(
            member.address, member.port, world=member.world, is_master=member.rank == 0, timeout_s=timeout_s
        )
        if self._accelerator == "cpu":
            gloo: Any = dist.ProcessGroupGloo  # its options are not in the type stubs
            options = gloo._Options()
            options._timeout = self._timeout
            options._devices = [gloo_device(address)]
            return gloo(store, member.rank, member.world, options)
        nccl = dist.ProcessGroupNCCL.Options()
        nccl._timeout = self._timeout
        return dist.ProcessGroupNCCL(store, member.rank, member.world, nccl)  # bound: the limit is in the options

    def _wait(self, work: Any) -> None:
        work.wait(self._timeout)
        if self._accelerator != "cpu":
            torch.cuda.synchronize()  # NCCL's wait only orders streams

    def _operations(self, group: Any) -> Iterator[tuple[str, Callable[[Tensor], Any]]]:
        yield "all_reduce", lambda values: group.allreduce([values], dist.AllreduceOptions())
        yield "broadcast", lambda values: _broadcast(group, values, root=0)

    def _call_s(self, group: Any, start: Callable[[Tensor], Any], size: int) -> float:
        values = torch.zeros(size // 4, dtype=torch.float32, device=self._device)
        self._wait(start(values))
        self._slowest(group, 0.0)  # all ranks begin together
        begin_s = time.perf_counter()
        for _ in range(CALLS):
            self._wait(start(values))
        return self._slowest(group, (time.perf_counter() - begin_s) / CALLS)

    def _slowest(self, group: Any, seconds: float) -> float:
        """Returns the largest over all ranks."""
        values = torch.tensor([seconds], dtype=torch.float64, device=self._device)
        options: Any = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MAX
        self._wait(group.allreduce([values], options))
        return float(values.item())

    def _speed(self, group: Any, sender: int, rank: int) -> float:
        size = PAIR_SMALLEST
        while True:
            seconds = self._message_s(group, size, sender=sender, rank=rank)
            if seconds >= PAIR_ENOUGH_S or size * PAIR_GROWTH > LARGEST[self._accelerator]:
                return size / seconds
            size *= PAIR_GROWTH

    def _message_s(self, group: Any, size: int, *, sender: int, rank: int) -> float:
        """Returns the seconds of a message and its acknowledgement; the same number on both ranks."""
        message = torch.zeros(size, dtype=torch.uint8, device=self._device)
        acknowledged = torch.zeros(1, dtype=torch.uint8, device=self._device)
        fastest_s = float("inf")
        for _ in range(PAIR_REPEATS):
            begin_s = time.perf_counter()
            self._wait(_broadcast(group, message, root=sender))
            self._wait(_broadcast(group, acknowledged, root=1 - sender))
            fastest_s = min(fastest_s, time.perf_counter() - begin_s)
        agreed = torch.tensor([fastest_s], dtype=torch.float64, device=self._device)
        self._wait(_broadcast(group, agreed, root=sender))
        return float(agreed.item())


def gloo_device(address: str) -> Any:
    """Returns the device on which gloo listens: Ray's address of this node, unless GLOO_SOCKET_IFNAME is set.

    By default gloo uses the address of the host's name, which on many machines is a loopback address.
    """
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if interface:
        return dist.ProcessGroupGloo.create_device(interface=interface)
    return dist.ProcessGroupGloo.create_device(hostname=address)


def _broadcast(group: Any, values: Tensor, *, root: int) -> Any:
    options = dist.BroadcastOptions()
    options.rootRank = root
    return group.broadcast([values], options)  # bound: the caller waits for the returned work with a limit
