"""Two other conventions for the state of ZeRO: those of the paper and of DeepSpeed's estimators."""

from __future__ import annotations

from collections.abc import Mapping

from ray_rl.planner.states import MASTER, MOMENTS


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
