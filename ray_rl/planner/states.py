"""Bytes of weights, gradients and optimizer state under ZeRO (arXiv:1910.02054, section 3.1 and 5). docs/planning.md.

Three conventions, which agree in everything but the gradients: the paper's, that of DeepSpeed's own estimators, and
what DeepSpeed 0.19.8 keeps for the configuration that we give it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BYTES = {"bfloat16": 2, "float32": 4}
"""Of an element, by `model.dtype`."""

MASTER = 4
MOMENTS = 8
"""Float32 master weights, and Adam's two moments in float32; bytes a parameter."""


@dataclass(frozen=True, slots=True)
class Sharded:
    """Bytes a parameter of one kind of state, and whether the workers share them."""

    name: str
    bytes_per_parameter: float
    is_shared: bool

    def on_worker(self, parameters: int, workers: int) -> float:
        """Bytes on one worker."""
        return self.bytes_per_parameter * parameters / (workers if self.is_shared else 1)


def paper_states(parameters: float, *, stage: int, workers: int) -> float:
    """Bytes on a device in the ZeRO paper's figure 1: 2 weights + 2 gradients + 12 optimizer, a parameter.

    Stage 0: 16 N. Stage 1: 4 N + 12 N / d. Stage 2: 2 N + 14 N / d. Stage 3: 16 N / d.
    """
    weights = 2 / (workers if stage >= 3 else 1)
    gradients = 2 / (workers if stage >= 2 else 1)
    optimizer = (MASTER + MOMENTS) / (workers if stage >= 1 else 1)
    return parameters * (weights + gradients + optimizer)


def deepspeed_states(
    parameters: int,
    *,
    stage: int,
    workers: int,
    largest_module: int,
    offload_optimizer: bool = False,
    offload_parameters: bool = False,
) -> Mapping[str, float]:
    """Bytes on a GPU as `estimate_zero2_` and `estimate_zero3_model_states_mem_needs` of DeepSpeed count them.

    Stage 2 counts gradients twice, 2 bytes as they are made and 4 as they are summed; stage 3 counts 4, and the largest
    module gathered in 2 + 2 bytes. Offloaded optimizer state takes the gradients with it.

    Args:
        parameters: N.
        stage: 2 or 3.
        workers: d.
        largest_module: parameters of the largest module that has its own.
        offload_optimizer: to the CPU.
        offload_parameters: to the CPU; stage 3.
    """
    terms = {"weights": 2.0 * parameters / (workers if stage == 3 else 1)}
    if offload_parameters:
        del terms["weights"]
    if stage == 3:
        terms["gathered"] = 4.0 * largest_module
    if not offload_optimizer:
        gradients = 4.0 if stage == 3 else 2.0 + 4.0
        terms["gradients"] = gradients * parameters / workers
        terms["optimizer"] = float(MASTER + MOMENTS) * parameters / workers
    return terms


def trained_states(*, stage: int, dtype: str, gradient_dtype: str) -> tuple[Sharded, ...]:
    """What DeepSpeed 0.19.8 keeps between micro-batches for a model under training.

    Args:
        stage: of ZeRO.
        dtype: of the forward pass.
        gradient_dtype: in which the gradients of micro-batches are summed, under bfloat16.
    """
    element = BYTES[dtype]
    # In float32 and without ZeRO the weights are their own master copy; ZeRO keeps a partition beside them.
    master = 0 if stage == 0 and dtype == "float32" else MASTER
    summed = BYTES[gradient_dtype] if dtype == "bfloat16" else element
    if stage == 3:
        gradients = summed  # grad_partitions_flat_buffer
    elif stage == 2:
        # The compact partition buffer. Summed in the dtype of the weights there is none: one partition, and a second
        # while the next micro-batch is added.
        gradients = summed if summed != element else 2 * element
    elif stage == 1 and summed != element:
        gradients = element + summed  # BF16_Optimizer, or `grad_accum` where it is offloaded: as made and as summed
    else:
        gradients = element
    return (
        Sharded("weights", element, is_shared=stage >= 3),
        Sharded("gradients", gradients, is_shared=stage >= 2),
        Sharded("optimizer", master + MOMENTS, is_shared=stage >= 1),
    )


def step_copy(parameters: int, *, stage: int, workers: int, dtype: str, gradient_dtype: str, sub_group: int) -> float:
    """Bytes of the float32 gradient that the optimizer step makes for itself, and of what it is made from.

    Stage 3 goes through its shard in groups of `sub_group_size`.
    """
    element = BYTES[dtype]
    summed = BYTES[gradient_dtype] if dtype == "bfloat16" else element
    widened = MASTER if summed != MASTER else 0
    if stage == 3:
        return (summed + widened) * min(sub_group, parameters / workers)
    if stage == 0:
        return float(widened) * parameters
    if summed != element:
        return 0.0  # the partition is one tensor already, in float32
    # Stage 1 has set the reduced partition aside before it is made one tensor; at stage 2 that is what is summed in.
    aside = element if stage == 1 else 0
    return (aside + summed + widened) * parameters / workers
