"""Memory that processes on the same device share: of a GPU by CUDA IPC, and on CPU shared memory of the host."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_rl.errors import WeightSyncError
from ray_rl.weight_sync.segment import Segment

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Handle:
    """What another process needs to map memory; made of JSON's types."""

    device: str
    """UUID of the GPU; "cpu" for memory of the host."""
    name: str
    """Name of the host's memory; empty for that of a GPU."""
    shared: tuple[int | str | bool, ...]
    """What torch's `UntypedStorage._share_cuda_` returns after the device, with bytes in base 64."""


class Lent:
    """A buffer of this process, as a flat uint8 tensor, that others on its device map."""

    def __init__(self, size: int, device: torch.device, *, name: str) -> None:
        """Makes the buffer; on CPU, `name` is the name of the memory.

        Raises:
            WeightSyncError: the host has too little shared memory.
        """
        self._segment: Segment | None = None
        if device.type == CPU:
            self._segment = Segment.create(name, size)
            self.buffer, self.handle = self._segment.buffer, Handle(CPU, name, ())
            return
        self.buffer = torch.empty(size, dtype=torch.uint8, device=device)
        _, *shared = self.buffer.untyped_storage()._share_cuda_()
        self.handle = Handle(uuid_of(device), "", tuple(_as_text(each) for each in shared))

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
    handle = next((handle for handle in handles if handle.device == own), None)
    if handle is None:
        raise WeightSyncError(
            f"no worker of the actor is on the GPU {own} of this engine, from which it would read weights: engines and "
            "actor have to share all their GPUs (cluster.colocate)"
        )
    if device.type == CPU:
        segment = Segment.attach(handle.name, timeout_s=timeout_s)
        return segment.buffer, segment
    # Each process numbers the devices that it sees itself.
    storage = torch.UntypedStorage._new_shared_cuda(device.index, *map(_as_bytes, handle.shared))
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage), storage


def uuid_of(device: torch.device) -> str:
    """Returns what names the device in every process: the UUID of a GPU, or "cpu"."""
    return CPU if device.type == CPU else str(torch.cuda.get_device_properties(device).uuid)


def synchronize(buffer: Tensor) -> None:
    """Waits for everything that was started on the device of a buffer."""
    if buffer.is_cuda:
        torch.cuda.synchronize(buffer.device)


def _as_text(value: int | bytes | bool) -> int | str | bool:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _as_bytes(value: int | str | bool) -> int | bytes | bool:
    return base64.b64decode(value) if isinstance(value, str) else value
