"""Installs an adapter that arrived into vLLM's LoRA, in memory, and proves that vLLM serves it.

vLLM 0.32 is silent where it does not: it keeps an adapter whose number it knows, and skips layers that it does not
know. Its checksums cover parameters, and the buffers of adapters are none. So every matrix in these buffers is compared
with what arrived, which `proof` has compared with what was sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import getattr_static
from typing import Any

import torch
from torch import Tensor
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

from ray_rl.errors import WeightMismatch
from ray_rl.rollout.adapter import ADAPTER_ID
from ray_rl.rollout.receiver import NOT_SERVED
from ray_rl.weight_sync.proof import SHOWN, digest

A, B = ".lora_A.weight", ".lora_B.weight"
"""The ends of PEFT's names of the matrices."""


class AdapterWorker:
    """Methods that vLLM's workers get (`worker_extension_cls`)."""

    weight_transfer_engine: Any
    model_runner: Any

    def install_adapter(self, scale: float) -> str | None:
        """Replaces the adapter in vLLM by the one that arrived in the last update.

        Args:
            scale: the factor of the product of its matrices.

        Returns:
            What is wrong if vLLM serves something else. It is not raised: where a call fails in several workers, vLLM
            0.32 takes the error of the second for the answer to the next call.
        """
        manager = self.model_runner.lora_manager._adapter_manager
        try:
            install(manager, self.weight_transfer_engine.loading.adapter, scale=scale)
        except WeightMismatch as error:
            return str(error)
        return None

    def adapter_checksums(self) -> dict[str, str]:
        """Returns a digest of each matrix of the adapter in vLLM's buffers, by layer."""
        buffers = served(self.model_runner.lora_manager._adapter_manager)
        return {str(place): digest(buffer) for place, buffer in buffers.items()}


@dataclass(frozen=True, slots=True)
class Place:
    """A place in which vLLM keeps a matrix of an adapter."""

    layer: str
    """vLLM's name; a layer such as `qkv_proj` consists of several layers of the model."""
    part: int
    """Which of them."""
    half: str
    """A or B."""

    def __str__(self) -> str:
        return f"{self.layer} {self.half}{self.part}"


def install(manager: Any, arrived: Mapping[str, Tensor], *, scale: float) -> None:
    """Replaces the adapter of vLLM's manager, and compares its buffers with what arrived.

    Raises:
        WeightMismatch: nothing arrived, vLLM has no place for a matrix, or has another one there.
    """
    adapter = _adapter(manager, arrived, scale=scale)
    wanted = dict(_wanted(manager, adapter))
    manager.remove_adapter(ADAPTER_ID)
    manager.add_adapter(adapter)
    manager.activate_adapter(ADAPTER_ID)
    buffers = served(manager)
    wrong = [str(place) for place, buffer in buffers.items() if not _is_padded(buffer, wanted.get(place))]
    if wrong:
        names = ", ".join(wrong[:SHOWN]) + (", ..." if len(wrong) > SHOWN else "")
        raise WeightMismatch(f"{NOT_SERVED}: {len(wrong)} of {len(buffers)} matrices differ ({names})")


def served(manager: Any) -> dict[Place, Tensor]:
    """Returns the matrices of the adapter that vLLM computes with, in its buffers.

    A is [most, inputs] and B [outputs, most], where `most` is the largest rank that vLLM has room for. In an engine
    with tensor parallelism a worker has slices of some of them.

    Raises:
        WeightMismatch: vLLM has not activated it.
    """
    if ADAPTER_ID not in manager.lora_index_to_id:
        raise WeightMismatch(f"{NOT_SERVED}: it has not been activated")
    slot = manager.lora_index_to_id.index(ADAPTER_ID)
    return {
        Place(name, part, half): buffer[slot, 0]
        for name, layer in manager.modules.items()
        for half, buffers in (("A", layer.lora_a_stacked), ("B", layer.lora_b_stacked))
        for part, buffer in enumerate(buffers)
    }


def _adapter(manager: Any, arrived: Mapping[str, Tensor], *, scale: float) -> LoRAModel:
    """Returns vLLM's form of an adapter, in which the factor is part of B.

    It is multiplied here, so that what is compared does not depend on how vLLM does it.
    """
    a = {name.removesuffix(A): matrix for name, matrix in arrived.items() if name.endswith(A)}
    b = {name.removesuffix(B): matrix for name, matrix in arrived.items() if name.endswith(B)}
    if not a or a.keys() != b.keys() or len(a) + len(b) != len(arrived):
        raise WeightMismatch(f"{NOT_SERVED}: {len(a)} matrices A and {len(b)} matrices B arrived; a bug of ray_rl")
    rank = max(len(matrix) for matrix in a.values())
    scaled = {name + B: (matrix.float() * scale).to(matrix.dtype) for name, matrix in b.items()}
    mapper = getattr_static(manager.model, "hf_to_vllm_mapper", None)
    return LoRAModel.from_lora_tensors(
        ADAPTER_ID,
        {name + A: matrix for name, matrix in a.items()} | scaled,
        PEFTHelper(r=rank, lora_alpha=rank, target_modules=[]),
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        weights_mapper=None if mapper is None else mapper.get_rename_mapper(),
    )


def _wanted(manager: Any, adapter: LoRAModel) -> Iterator[tuple[Place, Tensor]]:
    """Yields copies of what vLLM has to put into each place; before vLLM packs the adapter.

    Raises:
        WeightMismatch: there is no place for a layer of the adapter.
    """
    left = set(adapter.loras)
    for name, layer in manager.modules.items():
        parts = manager.packed_modules.get(name, [name])
        weights = [adapter.loras.get(part) for part in parts]
        if not any(weights):
            continue
        if len(parts) != len(layer.lora_a_stacked):
            raise WeightMismatch(
                f"{NOT_SERVED}: {name} consists of {len(parts)} layers of the model, and vLLM keeps "
                f"{len(layer.lora_a_stacked)} adapters for it; set weight_sync.adapter=merged"
            )
        left.difference_update(parts)
        for half in "AB":
            matrices = [None if each is None else getattr(each, f"lora_{half.lower()}") for each in weights]
            for part, matrix in enumerate(_own_slices(layer, matrices, half)):
                if matrix is not None:
                    yield Place(name, part, half), matrix.clone()
    if left:
        raise WeightMismatch(
            f"{NOT_SERVED}: it has no place for the adapter of {', '.join(sorted(left)[:SHOWN])}; name other layers in "
            "model.adapter.targets, or set weight_sync.adapter=merged"
        )


def _own_slices(layer: Any, matrices: Sequence[Tensor | None], half: str) -> Sequence[Tensor | None]:
    """Returns the slices that a worker of an engine with tensor parallelism has."""
    if layer.tp_size == 1:
        return matrices
    own = layer.slice_lora_a if half == "A" else layer.slice_lora_b
    sliced: Sequence[Tensor | None] = own(list(matrices)) if len(matrices) > 1 else [own(matrices[0])]
    return sliced


def _is_padded(buffer: Tensor, matrix: Tensor | None) -> bool:
    """Returns whether a buffer has a matrix in its first rows and columns, and zeros elsewhere."""
    if matrix is None:
        return not buffer.any()
    rows, columns = matrix.shape
    rest = (buffer[rows:], buffer[:, columns:])
    return torch.equal(buffer[:rows, :columns], matrix.to(buffer.device)) and not any(part.any() for part in rest)
