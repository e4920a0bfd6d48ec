"""The side of vLLM in a publish over gloo: a native weight-transfer engine in every vLLM worker process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from ray_rl.errors import WeightSyncError
from ray_rl.rollout.receiver import DIGESTS
from ray_rl.training.gather import ParameterSpec
from ray_rl.weight_sync.buckets import BufferRing, bucket_bytes, plan_buckets, unpack
from ray_rl.weight_sync.gloo_group import GlooGroup
from ray_rl.weight_sync.messages import Digests
from ray_rl.weight_sync.receivers.loading import Loading

IN_FLIGHT = 2
"""Concurrent broadcasts: one bucket is loaded into the model while the next arrives."""


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """The address of the sender, and this engine's first rank."""

    address: str
    port: int
    rank_offset: int
    world: int
    capacity_bytes: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The description of the parameters that will be sent."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    """The number of elements in a part that the trainer digests separately, by parameter."""


class GlooReceiver(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Receives flat buckets and loads them layer by layer."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group: GlooGroup | None = None
        self._ring = BufferRing()
        self.loading = Loading(takes_adapter=self.vllm_config.lora_config is not None)

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Joins the sender's group."""
        self.shutdown()
        self._info = init_info
        self._group = GlooGroup(
            address=init_info.address,
            port=init_info.port,
            rank=init_info.rank_offset + self.parallel_config.rank,
            world=init_info.world,
            timeout_s=init_info.timeout_s,
        )

    def start_weight_update(self) -> None:
        """Begins an update."""
        self.loading.begin()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receives and loads all weights; or, given the trainer's digests, proves that they arrived.

        Overridden because the base class also synchronises an accelerator.
        """
        sent: Digests | None = update_info.get(DIGESTS)
        if sent is not None:
            self.loading.prove(sent)
        else:
            self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Receives bucket after bucket; a bucket is loaded while the next is in flight."""
        if self._group is None:
            raise WeightSyncError("weights were announced before this engine joined the transfer group")
        specs = [
            ParameterSpec(name, dtype, tuple(shape))
            for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        ]
        parts = dict(zip(update_info.names, update_info.parts, strict=True))
        buckets = plan_buckets(specs, capacity_bytes=self._info.capacity_bytes)
        arriving: list[tuple[Any, Any]] = []
        with ExitStack() as on_failure:
            # Closes the sockets, so that the peers fail immediately instead of at their time limit.
            on_failure.callback(self.shutdown)
            on_failure.callback(arriving.clear)
            for k, bucket in enumerate(buckets):
                arriving += map(self.expect, buckets[k + len(arriving) : k + IN_FLIGHT])
                buffer, work = arriving.pop(0)
                work.wait()  # bound: the process group has weight_sync.timeout_s
                self.loading.load(self.model, unpack(buffer, bucket), parts)
                self.release(buffer)
            on_failure.pop_all()

    def expect(self, bucket: Sequence[ParameterSpec]) -> tuple[Tensor, Any]:
        """Returns the buffer for a bucket, and the work to wait for until the bucket has arrived."""
        assert self._group is not None
        buffer = self._ring.take(bucket_bytes(bucket))
        return buffer, self._group.broadcast(buffer)  # bound: the process group has weight_sync.timeout_s

    def release(self, buffer: Tensor) -> None:
        """Releases the buffer of a bucket that is loaded."""
        if not self._holds_views():
            self._ring.give(buffer)

    def finish_weight_update(self) -> None:
        """Ends the update: converts layers to the form that the kernels need."""
        self.loading.finish(self.model, self.model_config)
        repack_tied_head(self.model)

    def shutdown(self) -> None:
        """Leaves the group."""
        self._group = None

    def _holds_views(self) -> bool:
        """Returns whether the model still reads the buffer: a layer is loaded once all its parameters have arrived."""
        return any(get_layerwise_info(module).loaded_weights for module in self.model.modules())


def repack_tied_head(model: Any) -> None:
    """Packs the head's weight again.

    vLLM's CPU build keeps a packed copy of every linear weight. A head that is tied to the embedding is not loaded
    separately, so its packed copy, and the logits, would silently stay at the previous version.
    """
    heads: list[Any] = [module for module in model.modules() if isinstance(module, ParallelLMHead)]
    for head in heads:
        if head.weight.numel():
            head.quant_method.process_weights_after_loading(head)
