"""A LoRA adapter that an engine serves on top of its model: one, which publishes replace.

vLLM 0.32 applies it to the requests that name it. An adapter that is loaded already is never read from its path. On CPU
a batch of requests with and without an adapter is computed wrongly, so every request of such an engine names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

NAME = "policy"
ADAPTER_ID = 1
NOWHERE = "/only-a-publish-installs-this-adapter"
"""The path that vLLM requires. Nothing is there, so that a request without an installed adapter fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAdapter:
    """The adapter of an engine; its matrices come with each publish."""

    most_rank: int
    """The rank for which vLLM makes room: one of its sizes, and at least the adapter's."""
    scale: float
    """The factor of the product of its two matrices."""
    targets: tuple[str, ...]
    """Last names of the layers that it changes, such as "q_proj"; empty for all layers that vLLM can change."""
    worker: str
    """Python name of a class whose methods vLLM's workers get: `install_adapter` and `adapter_checksums`."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of vLLM's engine."""
        return {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": self.most_rank,
            "lora_target_modules": list(self.targets) or None,
            "worker_extension_cls": self.worker,
        }

    @property
    def request(self) -> LoRARequest:
        """The adapter as each request to vLLM names it."""
        from vllm.lora.request import LoRARequest

        return LoRARequest(NAME, ADAPTER_ID, NOWHERE)
