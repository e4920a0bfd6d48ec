"""The side of the trainer in a publish over NCCL: vLLM's own packed broadcast of our stream of parameters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

from ray_rl.errors import WeightSyncError
from ray_rl.metrics.metric import Last, Total
from ray_rl.training.gather import ParameterStream
from ray_rl.weight_sync.proof import Digests, digest
from ray_rl.weight_sync.senders.sender import NCCL_BUFFERS, Rendezvous, Sent


class _StreamSource(WeightSource):
    """Our stream of parameters with the interface of vLLM's trainer engine."""

    def __init__(self, stream: ParameterStream) -> None:
        self._stream = stream
        self.specs = stream.specs
        """Parameters that the next publish sends."""
        self.digests: Digests = {}
        """Digests of the parameters that were read since the last publish began."""

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(spec.name, getattr(torch, spec.dtype), spec.shape) for spec in self.specs]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self.digests = {}
        for group in self._stream.groups(self.specs):
            for spec, tensor in group:
                if tensor is not None:
                    self.digests[spec.name] = {0: digest(tensor)}
                # The next layer reuses the stream's memory, but a packed buffer spans layers.
                yield spec.name, tensor if tensor is None else tensor.clone()


class _DriverCalls:
    """An empty control plane: the driver calls the engines itself, so vLLM's trainer engine must not."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Does nothing: the driver asks the engines to join."""

    def start_weight_update(self) -> None:
        """Does nothing: the driver has paused and prepared the engines."""

    def update_weights(self, update_info: Any) -> None:
        """Does nothing: the driver asks the engines to receive."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Does nothing: the driver commits the version."""


class NcclSender:
    """Sends packed, double-buffered broadcasts over NCCL."""

    def __init__(self, stream: ParameterStream, *, is_sender: bool) -> None:
        """Makes a sender; `join` opens its group.

        Args:
            stream: the parameters of this rank's trainer.
            is_sender: whether this is rank 0, which sends.
        """
        self._stream = stream
        self._is_sender = is_sender
        self._engine: NCCLTrainerWeightTransferEngine | None = None
        self._source = _StreamSource(stream)

    def announce(self) -> dict[str, Any]:
        """Returns names, dtypes, shapes, and the elements of each digested part, which is a whole parameter."""
        specs = self._source.specs
        return {
            "names": [spec.name for spec in specs],
            "dtype_names": [spec.dtype for spec in specs],
            "shapes": [list(spec.shape) for spec in specs],
            "parts": [prod(spec.shape) for spec in specs],
        }

    def join(self, rendezvous: Rendezvous) -> None:
        """Opens the communicator as rank 0."""
        info = NCCLTrainerInitInfo(
            master_address=rendezvous.address,
            master_port=rendezvous.port,
            world_size=rendezvous.world,
            packed_buffer_size_bytes=rendezvous.capacity_bytes,
            packed_num_buffers=NCCL_BUFFERS,
            rank=0 if self._is_sender else 1,
        )
        self._source = _StreamSource(self._stream)
        # bound: the driver's call has train.timeout_s; vLLM sets no limit for NCCL
        self._engine = NCCLTrainerWeightTransferEngine.trainer_init(info, client=_DriverCalls(), source=self._source)

    def send(self) -> Sent:
        """Broadcasts all parameters to engines that have just joined, and later only those that training changes.

        Raises:
            WeightSyncError: `join` was not called before.
        """
        if self._engine is None:
            raise WeightSyncError("the transfer group is closed: join the engines again before publishing")
        start_s = time.perf_counter()
        self._engine.send_weights()  # bound: the driver's call has train.timeout_s
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start_s
        sent = sum(spec.bytes for spec in self._source.specs)
        self._source.specs = self._stream.trained_specs
        if not self._is_sender:
            return Sent([], {})
        return Sent([Total("sync/bytes", sent), Last("sync/gb_per_s", sent / seconds / 1e9)], self._source.digests)

    def close(self) -> None:
        """Leaves the group."""
        if self._engine is not None:
            self._engine.shutdown()
        self._engine = None
