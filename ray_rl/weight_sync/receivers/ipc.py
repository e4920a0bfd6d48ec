"""The side of vLLM in a publish from a trainer on the same GPUs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ray_rl.training.gather import ParameterSpec
from ray_rl.weight_sync.buckets import bucket_bytes
from ray_rl.weight_sync.device_memory import Handle, borrowed, synchronize
from ray_rl.weight_sync.receivers.gloo import GlooInitInfo, GlooReceiver


class IpcReceiver(GlooReceiver):
    """Copies each bucket out of the memory of the trainer's rank on the same GPU, and loads the copy."""

    _lent: tuple[Tensor, object] | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Joins the sender's group, and maps the memory of a rank."""
        super().init_transfer_engine(init_info)
        assert self._group is not None
        device = next(self.model.parameters()).device
        handles = [Handle(**each) for each in json.loads(self._group.share(None))]
        self._lent = borrowed(handles, device, timeout_s=init_info.timeout_s)

    def expect(self, bucket: Sequence[ParameterSpec]) -> tuple[Tensor, Any]:
        """Returns a copy of the bucket, when it is complete, and work that is done."""
        assert self._lent is not None and self._group is not None
        word = torch.zeros(1, dtype=torch.uint8)
        self._group.broadcast(word).wait()  # bound: the process group has weight_sync.timeout_s
        copy = self._lent[0][: bucket_bytes(bucket)].clone()
        synchronize(copy)
        self._group.meet()
        return copy, _Done()

    def release(self, buffer: Tensor) -> None:
        """Does nothing: the copy is freed when the model has read it."""

    def shutdown(self) -> None:
        """Leaves the group and the memory."""
        super().shutdown()
        self._lent = None


class _Done:
    """Work that is done."""

    def wait(self) -> None:
        """Returns at once."""
