"""Memory that processes on the same device share: of a GPU by CUDA IPC, and on CPU shared memory of the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ray_rl.errors import WeightSyncError
from ray_rl.weight_sync.segment import Segment

CPU = "cpu"

DEVICE_ARGUMENT = 6
"""Position of the index of the device among the arguments that rebuild a CUDA tensor; each process numbers its own."""


@dataclass(frozen=True, slots=True)
class Handle:
    """What another process needs to map memory."""

    device: str
    """UUID of the GPU; "cpu" for memory of the host."""
    arguments: Any
    """Arguments that rebuild a tensor of the GPU, or the name of the host's memory."""


class Lent:
    """A buffer of this process, as a flat uint8 tensor, that others on its device map."""

    def __init__(self, size: int, device: torch.device, *, name: str) -> None:
        """Allocates the buffer; on CPU, `name` is the name of the memory.

        Raises:
            WeightSyncError: the host has too little shared memory.
        """
        self._segment: Segment | None = None
        if device.type == CPU:
            self._segment = Segment.create(name, size)
            self.buffer, self.handle = self._segment.buffer, Handle(CPU, name)
            return
        from torch.multiprocessing.reductions import reduce_tensor

        self.buffer = torch.empty(size, dtype=torch.uint8, device=device)
        _, arguments = reduce_tensor(self.buffer)
        self.handle = Handle(uuid_of(device), arguments)

    def forget_name(self) -> None:
        """Removes the name of the host's memory; processes that have mapped it keep it."""
        if self._segment is not None:
            self._segment.forget_name()


def borrowed(handles: Sequence[Handle], device: torch.device, *, timeout_s: float) -> tuple[Tensor, object]:
    """Maps the buffer that was lent on this device.

    Returns:
        The flat uint8 tensor, and what has to be kept as long as it is used.

    Raises:
        WeightSyncError: nothing was lent on this device.
    """
    own = uuid_of(device)
    arguments = next((handle.arguments for handle in handles if handle.device == own), None)
    if arguments is None:
        raise WeightSyncError(
            f"no worker of the actor is on the GPU {own} of this engine, from which it would read weights: engines and "
            "actor have to share all their GPUs (cluster.colocate)"
        )
    if device.type == CPU:
        segment = Segment.attach(arguments, timeout_s=timeout_s)
        return segment.buffer, segment
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    there = list(arguments)
    there[DEVICE_ARGUMENT] = device.index
    buffer = rebuild_cuda_tensor(*there)
    return buffer, buffer


def uuid_of(device: torch.device) -> str:
    """Returns what names the device in every process: the UUID of a GPU, or "cpu"."""
    return CPU if device.type == CPU else str(torch.cuda.get_device_properties(device).uuid)


def synchronize(buffer: Tensor) -> None:
    """Returns when everything that was started on the device of a buffer is done."""
    if buffer.is_cuda:
        torch.cuda.synchronize(buffer.device)
