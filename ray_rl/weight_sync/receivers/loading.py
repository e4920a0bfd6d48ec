"""Loads the weights of an update into the model of a vLLM worker, whatever carried them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from ray_rl.errors import WeightSyncError
from ray_rl.weight_sync.messages import Digests
from ray_rl.weight_sync.proof import Arrivals

PEFT = "base_model.model."
"""The beginning of the names of an adapter's matrices."""


class Loading:
    """Digests what arrives, loads the model's weights layer by layer, and keeps the matrices of an adapter.

    An update may bring weights, an adapter or both. vLLM forgets adapters when an update ends, so that the adapter is
    installed afterwards: see `receivers.adapter`.
    """

    def __init__(self, *, takes_adapter: bool) -> None:
        """Makes the loading of a worker; `takes_adapter` says whether its engine can serve an adapter."""
        self.adapter: dict[str, Tensor] = {}
        """The matrices that arrived in the last update, by PEFT's names, in host memory."""
        self._takes_adapter = takes_adapter
        self._arrivals = Arrivals()
        self._is_reloading = False

    def begin(self) -> None:
        """Begins a new update and forgets what arrived before."""
        self._arrivals.begin()
        self.adapter = {}

    def load(self, model: Any, tensors: Sequence[tuple[str, Tensor]], parts: Mapping[str, int]) -> None:
        """Digests tensors (see `Arrivals.add`), and loads those of the model, which may keep views of them.

        Raises:
            WeightSyncError: an adapter arrived, and the engine serves none.
        """
        self._arrivals.add(tensors, parts)
        adapter = {name: tensor for name, tensor in tensors if name.startswith(PEFT)}
        if adapter and not self._takes_adapter:
            raise WeightSyncError("the trainer sent an adapter to an engine that serves none; this is a bug of ray_rl")
        self.adapter |= {name: tensor.to("cpu", copy=True) for name, tensor in adapter.items()}
        weights = [(name, tensor) for name, tensor in tensors if name not in adapter]
        if not weights:
            return
        if not self._is_reloading:
            self._is_reloading = True
            initialize_layerwise_reload(model)
        model.load_weights(weights)

    def prove(self, sent: Digests) -> None:
        """Compares what arrived with the digests of what was sent (see `Arrivals.prove`)."""
        self._arrivals.prove(sent)

    def finish(self, model: Any, model_config: Any) -> None:
        """Ends the update: converts layers to the form that the kernels need."""
        if self._is_reloading:
            finalize_layerwise_reload(model, model_config)
        self._is_reloading = False
