"""The side of vLLM in a publish over NCCL: vLLM's own receiver, which also digests what it loads."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo

from ray_rl.rollout.receiver import DIGESTS
from ray_rl.weight_sync.messages import Digests
from ray_rl.weight_sync.receivers.loading import Loading


@dataclass
class NcclUpdateInfo(NCCLWeightTransferUpdateInfo):
    """The description of the parameters that will be sent."""

    parts: list[int] = field(default_factory=list)
    """The number of elements in a part that the trainer digests separately, by parameter."""


class NcclReceiver(NCCLWeightTransferEngine):
    """Receives packed broadcasts over NCCL, and proves them like all other transports."""

    update_info_cls = NcclUpdateInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loading = Loading(takes_adapter=self.vllm_config.lora_config is not None)

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        """Joins the sender's group, and leaves one that it had joined before."""
        self.shutdown()
        super().init_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        """Begins an update."""
        self.loading.begin()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receives and loads all weights; or, given the trainer's digests, proves that they arrived."""
        sent: Digests | None = update_info.get(DIGESTS)
        if sent is not None:
            self.loading.prove(sent)
        else:
            super().update_weights(update_info)

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Receives with vLLM's consumer, which loads the unpacked weights into `self.model`."""
        assert isinstance(update_info, NcclUpdateInfo)
        parts = dict(zip(update_info.names, update_info.parts, strict=True))
        model: Any = self.model
        self.model = _Arriving(model, self.loading, parts)  # type: ignore[assignment]
        try:
            with ExitStack() as on_failure:
                on_failure.callback(self.shutdown)  # the next publish is to a new group
                super().receive_weights(update_info)
                on_failure.pop_all()
        finally:
            self.model = model

    def finish_weight_update(self) -> None:
        """Ends the update: converts layers to the form that the kernels need."""
        self.loading.finish(self.model, self.model_config)


class _Arriving:
    """Replaces a model during a reception: what vLLM would load into the model goes through `Loading`."""

    def __init__(self, model: Any, loading: Loading, parts: dict[str, int]) -> None:
        self._model = model
        self._loading = loading
        self._parts = parts

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self._loading.load(self._model, list(tensors), self._parts)
