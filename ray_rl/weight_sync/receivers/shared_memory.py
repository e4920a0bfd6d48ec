"""The side of vLLM in a publish through shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ray_rl.training.gather import ParameterSpec
from ray_rl.weight_sync.buckets import bucket_bytes
from ray_rl.weight_sync.receivers.gloo import GlooInitInfo, GlooReceiver
from ray_rl.weight_sync.segment import Segment


@dataclass
class SharedMemoryInitInfo(GlooInitInfo):
    """The address of the sender, and the name of the shared memory."""

    segment: str = ""


class SharedMemoryReceiver(GlooReceiver):
    """Loads each bucket from shared memory when the trainer announces that it is complete."""

    init_info_cls = SharedMemoryInitInfo
    _segment: Segment | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Joins the sender's group, and maps its memory."""
        super().init_transfer_engine(init_info)
        assert isinstance(init_info, SharedMemoryInitInfo)
        self._segment = Segment.attach(init_info.segment, timeout_s=init_info.timeout_s)

    def start_weight_update(self) -> None:
        """Begins an update, from the start of the memory."""
        super().start_weight_update()
        self._offset = 0

    def expect(self, bucket: Sequence[ParameterSpec]) -> tuple[Tensor, Any]:
        """Returns the next part of the memory, and the work that ends when it is complete."""
        assert self._segment is not None and self._group is not None
        size = bucket_bytes(bucket)
        buffer = self._segment.buffer[self._offset : self._offset + size]
        self._offset += size
        # bound: the process group has weight_sync.timeout_s
        return buffer, self._group.broadcast(torch.zeros(1, dtype=torch.uint8))

    def release(self, buffer: Tensor) -> None:
        """Does nothing: the shared memory stays mapped."""

    def shutdown(self) -> None:
        """Leaves the group and the memory."""
        super().shutdown()
        self._segment = None
