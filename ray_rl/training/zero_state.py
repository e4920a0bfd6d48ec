"""The state of DeepSpeed's optimizers as slices of whole parameters, the same for every ZeRO stage.

Each parameter has three float32 vectors: its master weights and Adam's two moments. Every rank holds a slice of each
(stage 0: all of it, of which it saves its share).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ray_rl.errors import CheckpointError
from ray_rl.models.policy import MASTER

MOMENTS = ("exp_avg", "exp_avg_sq")

Read = Callable[[str, int, int], Tensor]
"""Reads a slice: name of the vector, first element, and end."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A slice of a parameter, and where the optimizer keeps it."""

    name: str
    start: int
    """First element, in the whole parameter."""
    size: int
    key: Tensor
    """The optimizer's own tensor, under which its state is found."""
    offset: int
    """Position of the slice in `key`."""


def slices(engine: Any, read: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, int, Tensor]]:
    """Yields this rank's slices by vector name. They are live: copy them before the next step. Not a collective.

    Before the first optimizer step there are no moments.

    Args:
        engine: DeepSpeed's engine.
        read: returns a vector of the optimizer where its values are, on the device or on the host.

    Raises:
        CheckpointError: stage 0 in bfloat16.
    """
    optimizer = _base_optimizer(engine)
    for held in _held(engine):
        vectors = {MASTER: held.key, **{moment: optimizer.state[held.key].get(moment) for moment in MOMENTS}}
        for kind, vector in vectors.items():
            if vector is not None:
                part = read(vector.detach()).reshape(-1)[held.offset : held.offset + held.size]
                yield f"{kind}/{held.name}", held.start, part


def adam_step(engine: Any) -> int:
    """Returns how many optimizer steps are in the moments."""
    optimizer = _base_optimizer(engine)
    counts = {int(state["step"]) for state in optimizer.state.values() if "step" in state}
    assert len(counts) <= 1, f"parameters have seen different numbers of steps: {sorted(counts)}"
    return counts.pop() if counts else 0


@torch.no_grad()
def restore(engine: Any, read: Read, *, step: int) -> None:
    """Restores this rank's weights, master weights and moments; a collective.

    Args:
        engine: DeepSpeed's engine of the same model; stage and number of ranks may differ from the saved ones.
        read: reads any slice of any vector.
        step: the value of `adam_step` when it was saved.
    """
    optimizer = _base_optimizer(engine)
    for held in _held(engine, whole=True):
        _fill(held.key, held, read(f"{MASTER}/{held.name}", held.start, held.start + held.size))
        if step:
            state = optimizer.state[held.key]
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=held.key.device)
                state |= {moment: torch.zeros_like(held.key) for moment in MOMENTS}
            state["step"].fill_(step)
            for moment in MOMENTS:
                _fill(state[moment], held, read(f"{moment}/{held.name}", held.start, held.start + held.size))
    _restore_weights(engine, read)


def _fill(vector: Tensor, held: _Held, values: Tensor) -> None:
    vector.view(-1)[held.offset : held.offset + held.size].copy_(values)


def _restore_weights(engine: Any, read: Read) -> None:
    """Fills the parameters that the forward pass reads, in their own dtype."""
    for name, parameter in _trained(engine):
        if _stage(engine) == 3:
            size = parameter.ds_tensor.numel()
            start, stop = _bounds(dist.get_rank() * size, size, parameter.ds_numel)
            parameter.ds_tensor.view(-1)[: stop - start].copy_(read(f"{MASTER}/{name}", start, stop))
        else:
            parameter.view(-1).copy_(read(f"{MASTER}/{name}", 0, parameter.numel()))
    persistent = engine.optimizer.persistent_parameters if _stage(engine) == 3 else ()
    if persistent:
        # Small parameters that DeepSpeed keeps whole on every rank.
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)  # bound: the process group has train.timeout_s


def _held(engine: Any, *, whole: bool = False) -> Iterator[_Held]:
    """Yields the slices that this rank holds; under stage 0 its share, or the whole."""
    zero = engine.optimizer
    for name, parameter in _trained(engine):
        if _stage(engine) == 3:
            group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
            start, stop = _bounds(dist.get_rank() * size, size, parameter.ds_numel)
            yield _Held(name, start, stop - start, zero.fp32_partitioned_groups_flat[group], offset)
        elif not isinstance(zero, torch.optim.Optimizer):
            partitions, mapping = _partitions(zero), parameter._hp_mapping
            if mapping is not None:  # else this rank holds nothing of it
                there, here = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield _Held(name, there.start, there.numel, partitions[mapping.param_group_index], here.start)
        elif whole:
            yield _Held(name, 0, parameter.numel(), parameter, 0)
        else:
            size = -(-parameter.numel() // dist.get_world_size())
            start, stop = _bounds(dist.get_rank() * size, size, parameter.numel())
            yield _Held(name, start, stop - start, parameter, start)


def _partitions(zero: Any) -> Any:
    """Returns this rank's partitions of the master weights, one per parameter group, under stages 1 and 2."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    match zero:
        case DeepSpeedZeroOptimizer():
            return zero.single_partition_of_fp32_groups
        case BF16_Optimizer():
            return zero.fp32_groups_flat_partition
        case _:
            raise CheckpointError(
                f"DeepSpeed's {type(zero).__name__} keeps master weights where they cannot be saved from; set "
                "zero_stage to 1 or more"
            )


def _bounds(start: int, size: int, total: int) -> tuple[int, int]:
    """Returns the bounds of a slice without the padding of the last ones."""
    return min(start, total), min(start + size, total)


def _trained(engine: Any) -> Iterator[tuple[str, Any]]:
    return ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)


def _base_optimizer(engine: Any) -> Any:
    """Returns torch's optimizer, which is inside DeepSpeed's if there is one."""
    optimizer = engine.optimizer
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def _stage(engine: Any) -> int:
    return int(engine.zero_optimization_stage())
