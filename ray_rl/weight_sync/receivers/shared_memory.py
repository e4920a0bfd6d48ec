"""vLLM's side of a publish through shared memory."""

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
    """Where the memory is, too."""

    segment: str = ""


class SharedMemoryReceiver(GlooReceiver):
    """Loads from the trainer's memory what the trainer says is complete."""

    init_info_cls = SharedMemoryInitInfo
    _segment: Segment | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Joins the sender's group, and maps its memory."""
        super().init_transfer_engine(init_info)
        assert isinstance(init_info, SharedMemoryInitInfo)
        self._segment = Segment.attach(init_info.segment, timeout_s=init_info.timeout_s)

    def start_weight_update(self) -> None:
        """Prepares the model for weights in checkpoint form, from the start of the memory."""
        super().start_weight_update()
        self._offset = 0

    def expect(self, bucket: Sequence[ParameterSpec]) -> tuple[Tensor, Any]:
        """The next piece of the memory, and the word that it is complete."""
        assert self._segment is not None and self._group is not None
        size = bucket_bytes(bucket)
        buffer = self._segment.buffer[self._offset : self._offset + size]
        self._offset += size
        # bound: the process group has weight_sync.timeout_s
        return buffer, self._group.broadcast(torch.zeros(1, dtype=torch.uint8))

    def release(self, buffer: Tensor) -> None:
        """The memory stays."""

    def shutdown(self) -> None:
        """Leaves the group and the memory."""
        super().shutdown()
        self._segment = None
