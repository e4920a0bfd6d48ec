"""Discards a gradient that must not be applied, under every ZeRO stage."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def discard_gradients(engine: Any) -> None:
    """Leaves weights, moments and counters of DeepSpeed's engine as before the first backward; a collective.

    Under ZeRO the gradient is spread over buffers that only DeepSpeed's own step clears. So its step is made to refuse:
    one parameter's gradient becomes nan, which reaches the norm on every rank.
    """
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer | DeepSpeedZeroOptimizer_Stage3):
        _spoil(next(p for p in engine.module.parameters() if p.requires_grad))
        engine.step()
        assert not engine.was_step_applied(), "DeepSpeed applied a gradient of nan"
    elif isinstance(optimizer, torch.optim.Optimizer):
        engine.zero_grad()
    else:
        optimizer.zero_grad()


def _spoil(parameter: Any) -> None:
    """Sets the gradient of a parameter to nan, on the ranks that hold some of it."""
    from deepspeed.utils import safe_set_full_grad

    size = parameter.__dict__.get("ds_numel", parameter.numel())
    # Longer than the parameter: the slices of ZeRO-3 are padded to equal sizes.
    parameter.grad = None
    safe_set_full_grad(parameter, torch.full((size + dist.get_world_size(),), float("nan"), device=parameter.device))
