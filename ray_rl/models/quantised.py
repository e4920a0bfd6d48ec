"""Frozen weights in 4 bits: NF4 of bitsandbytes with quantised scales, as in QLoRA, arXiv:2305.14314."""

from __future__ import annotations

import logging
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

TYPE = "nf4"
BLOCK = 64
"""Weights that share a scale."""


def _is_about_us(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward")


# peft imports bitsandbytes wherever it is installed. On some processors that warns of a missing kernel, which is only
# for layers that are not in training mode, and those of a trainer always are.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_about_us)


def quantise(backbone: nn.Module) -> None:
    """Replaces the linear layers of a loaded backbone by layers with weights in 4 bits, which compute in its own type.

    Layers whose number of inputs is no multiple of a block stay as they are.

    Raises:
        ModuleNotFoundError: bitsandbytes is not installed.
    """
    import bitsandbytes

    nn_4bit: Any = bitsandbytes.nn  # its types are incomplete
    for parent in list(backbone.modules()):
        for name, layer in list(parent.named_children()):
            if not _can_be_small(layer):
                continue
            weight = layer.weight.data
            small = nn_4bit.Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=False,
                compute_dtype=weight.dtype,
                compress_statistics=True,
                quant_type=TYPE,
                device="meta",
            )
            settings = {"requires_grad": False, "compress_statistics": True, "quant_type": TYPE, "module": small}
            small.weight = nn_4bit.Params4bit(weight, **settings).to(weight.device)
            small.bias = layer.bias
            small._forward_pre_hooks = layer._forward_pre_hooks  # see `keep_residual_in_float32`
            setattr(parent, name, small)
    # peft's mark of such models, which is that of transformers.
    backbone.__dict__["is_loaded_in_4bit"] = True


@torch.no_grad()
def round_weights(backbone: nn.Module) -> None:
    """Rounds the weights of the linear layers of a loaded backbone to the values that they have in 4 bits."""
    from bitsandbytes.functional import quantize_4bit

    for layer in backbone.modules():
        if _can_be_small(layer):
            layer.weight.copy_(_dequantised(*quantize_4bit(layer.weight, compress_statistics=True, quant_type=TYPE)))


def whole(parameter: nn.Parameter, held: Tensor) -> Tensor:
    """Returns the values of a parameter that is not sharded: what it holds, or what its 4 bits stand for.

    `held` is what it holds: its own memory, or a copy.
    """
    state = _state(parameter)
    return held if state is None else _dequantised(held, state)


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """Returns the shape of a parameter's values, which is not that of 4 bits in bytes."""
    state = _state(parameter)
    return parameter.shape if state is None else torch.Size(state.shape)


def _can_be_small(layer: nn.Module) -> TypeGuard[nn.Linear]:
    # On CPU, bitsandbytes 0.50 returns wrong values for rows that end within a block.
    return type(layer) is nn.Linear and layer.in_features % BLOCK == 0


def _state(parameter: nn.Parameter) -> Any:
    """Returns how bitsandbytes has quantised a parameter; None if it has not."""
    return parameter.__dict__.get("quant_state")


def _dequantised(values: Tensor, state: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(values, state)
