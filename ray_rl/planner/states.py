"""Computes bytes of weights, gradients and optimizer state under ZeRO (arXiv:1910.02054, section 3.1 and 5).

There are three conventions, which differ only in the gradients: the paper's, that of DeepSpeed's own estimators, and
what DeepSpeed 0.19.8 keeps with our configuration. docs/planning.md explains them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BYTES = {"bfloat16": 2, "float32": 4}
"""Bytes of an element, by `model.dtype`."""

MASTER = 4
MOMENTS = 8
"""Bytes per parameter of the float32 master weights, and of Adam's two moments in float32."""


@dataclass(frozen=True, slots=True)
class Sharded:
    """Bytes per parameter of one kind of state, and whether the workers shard it."""

    name: str
    bytes_per_parameter: float
    is_shared: bool

    def on_worker(self, parameters: int, workers: int) -> float:
        """Returns the bytes on one worker."""
        return self.bytes_per_parameter * parameters / (workers if self.is_shared else 1)


def paper_states(parameters: float, *, stage: int, workers: int) -> float:
    """Returns the bytes per device of the ZeRO paper's figure 1: per parameter 2 weights + 2 gradients + 12 optimizer.

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
    """Returns the bytes on a GPU as DeepSpeed's `estimate_zero2_` and `estimate_zero3_model_states_mem_needs` do.

    Stage 2 counts gradients twice: 2 bytes as computed and 4 bytes as summed. Stage 3 counts 4 bytes, and 2 + 2 bytes
    for the largest gathered module. If the optimizer state is offloaded, so are the gradients.

    Args:
        parameters: N.
        stage: 2 or 3.
        workers: d.
        largest_module: parameters of the largest single module.
        offload_optimizer: whether the optimizer state is on the CPU.
        offload_parameters: whether the parameters are on the CPU; stage 3.
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
    """Returns the state that DeepSpeed 0.19.8 keeps between micro-batches for a trained model.

    Args:
        stage: the stage of ZeRO.
        dtype: the type of the forward pass.
        gradient_dtype: the type of the summed gradients of micro-batches, under bfloat16.
    """
    element = BYTES[dtype]
    # In float32 and without ZeRO the weights are their own master copy; ZeRO keeps a partition in addition.
    master = 0 if stage == 0 and dtype == "float32" else MASTER
    summed = BYTES[gradient_dtype] if dtype == "bfloat16" else element
    if stage == 3:
        gradients = summed  # grad_partitions_flat_buffer
    elif stage == 2:
        # The compact partition buffer. It does not exist if gradients are summed in the dtype of the weights: then
        # there is one partition, and a second while the next micro-batch is added.
        gradients = summed if summed != element else 2 * element
    elif stage == 1 and summed != element:
        gradients = element + summed  # BF16_Optimizer, or `grad_accum` if offloaded: as computed and as summed
    else:
        gradients = element
    return (
        Sharded("weights", element, is_shared=stage >= 3),
        Sharded("gradients", gradients, is_shared=stage >= 2),
        Sharded("optimizer", master + MOMENTS, is_shared=stage >= 1),
    )


def step_copy(parameters: int, *, stage: int, workers: int, dtype: str, gradient_dtype: str, sub_group: int) -> float:
    """Returns the bytes of the float32 copy of the gradient in an optimizer step, and of the input of that copy.

    Stage 3 processes its shard in groups of `sub_group_size`.
    """
    element = BYTES[dtype]
    summed = BYTES[gradient_dtype] if dtype == "bfloat16" else element
    widened = MASTER if summed != MASTER else 0
    if stage == 3:
        return (summed + widened) * min(sub_group, parameters / workers)
    if stage == 0:
        return float(widened) * parameters
    if summed != element:
        return 0.0  # the partition is already one float32 tensor
    # Stage 1 keeps the reduced partition before it is copied into one tensor; at stage 2 it is the tensor of the sums.
    aside = element if stage == 1 else 0
    return (aside + summed + widened) * parameters / workers
