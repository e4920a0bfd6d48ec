"""Computes bytes of weights, gradients and optimizer state under ZeRO (arXiv:1910.02054, section 3.1 and 5).

This is what DeepSpeed 0.19.8 keeps with our configuration. The paper and DeepSpeed's own estimators count gradients in
other ways; docs/planning.md explains them.
"""

from __future__ import annotations

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
