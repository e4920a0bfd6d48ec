"""The side of the trainer in a publish over NCCL: vLLM's own packed broadcast of our stream of parameters."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

from ray_rl.training.gather import ParameterSpec
from ray_rl.weight_sync.messages import NCCL_BUFFERS, Digests, Rendezvous
from ray_rl.weight_sync.proof import digest
from ray_rl.weight_sync.senders.sender import GlooSender


class _Source(WeightSource):
    """The parameters of one publish with the interface of vLLM's trainer engine."""

    specs: list[ParameterSpec]
    parameters: Iterable[tuple[ParameterSpec, Tensor]]

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(spec.name, getattr(torch, spec.dtype), spec.shape) for spec in self.specs]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((spec.name, tensor) for spec, tensor in self.parameters)


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


class NcclSender(GlooSender):
    """Sends packed, double-buffered broadcasts over NCCL."""

    def join(self, rendezvous: Rendezvous) -> None:
        """Joins the engines as rank 0. The trainer's other ranks do not join: they only take part in the gather."""
        self.close()
        self._specs = self._stream.specs
        if not self._is_sender:
            return
        # vLLM warns of every parameter that is larger than a buffer, and sends it in one of its own, as we want.
        warnings.filterwarnings("ignore", r"Tensor '.*' has size .* exceeds buffer_size_bytes", UserWarning)
        self._source = _Source()
        info = NCCLTrainerInitInfo(
            master_address=rendezvous.address,
            master_port=rendezvous.port,
            world_size=rendezvous.world,
            packed_buffer_size_bytes=rendezvous.capacity_bytes,
            packed_num_buffers=NCCL_BUFFERS,
            rank=0,
        )
        # bound: the driver's call has train.timeout_s; vLLM sets no limit for NCCL
        self._group = NCCLTrainerWeightTransferEngine.trainer_init(info, client=_DriverCalls(), source=self._source)

    def close(self) -> None:
        """Leaves the group."""
        if self._group is not None:
            self._group.shutdown()
        self._group = None

    def _digested(self, parameters: Iterable[Any], digests: Digests) -> Iterator[tuple[ParameterSpec, Tensor]]:
        """Digests each parameter and yields a copy of it.

        vLLM packs on two CUDA streams in turn. The memory of a layer belongs to the stream that gathered it. Without a
        copy, the next layer could overwrite it there while the other stream still packs the rest of this one.
        """
        for spec, tensor in parameters:
            digests[spec.name] = {0: digest(tensor)}
            yield spec, tensor.clone()

    def _transmit(self, parameters: Iterator[tuple[ParameterSpec, Tensor]]) -> None:
        """Returns when the GPU has sent everything."""
        self._source.specs, self._source.parameters = self._specs, parameters
        self._group.send_weights()  # bound: the driver's call has train.timeout_s
