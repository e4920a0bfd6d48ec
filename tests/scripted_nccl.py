"""NCCL's broadcasts, and the streams of CUDA, without a GPU."""

from __future__ import annotations

import threading
import uuid
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from vllm.distributed.device_communicators import pynccl
from vllm.distributed.weight_transfer import packed_tensor

from tests.transfer_parts import LIMIT_S


class Wire:
    """What the ranks of one NCCL group share."""

    def __init__(self):
        self.changed = threading.Condition()
        self.sent = []
        self.is_broken = False


OPEN = []
"""Communicators that nobody has destroyed."""
WIRES = {}
"""By an id that rank 0 tells the others, as it tells them NCCL's."""


class ScriptedNccl:
    """In place of vLLM's NCCL communicator: the broadcasts of one group by number, in memory of this process.

    As with NCCL, the sender does not wait for the others, and whatever it has not sent never comes. A destroyed one
    breaks the group for all, which NCCL itself leaves to each peer's time limit.
    """

    def __init__(self, group, device):
        key = group.broadcast_obj(uuid.uuid4().hex if group.rank == 0 else None, src=0)
        self.rank, self.world_size, self.disabled = group.rank, group.world_size, False
        self._wire = WIRES.setdefault(key, Wire())
        self._done = 0
        OPEN.append(self)
        group.barrier()

    def broadcast(self, tensor, src, stream=None):
        assert src == 0
        if self.disabled:
            return
        wire, number = self._wire, self._done
        self._done += 1
        with wire.changed:
            if self.rank == src:
                self._require_whole()
                wire.sent.append(tensor.clone())
                wire.changed.notify_all()
                return
            is_there = wire.changed.wait_for(lambda: wire.is_broken or len(wire.sent) > number, LIMIT_S)
            if len(wire.sent) <= number:
                self._require_whole()
            assert is_there, f"rank {self.rank} waited for broadcast {number}"
            assert wire.sent[number].numel() == tensor.numel(), "both sides cut the stream at the same parameters"
            tensor.copy_(wire.sent[number])

    def _require_whole(self):
        if self._wire.is_broken:
            raise RuntimeError("NCCL error: remote process exited or there was a network error")

    def destroy(self):
        self.disabled = True
        OPEN.remove(self)
        with self._wire.changed:
            self._wire.is_broken = True
            self._wire.changed.notify_all()


def script_nccl(monkeypatch):
    """NCCL's collectives, and the streams of CUDA, without a GPU."""
    monkeypatch.setattr(pynccl, "PyNcclCommunicator", ScriptedNccl)
    monkeypatch.setattr(
        packed_tensor, "_get_streams", lambda device, count: [SimpleNamespace(synchronize=lambda: None)] * count
    )
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
