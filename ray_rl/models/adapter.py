"""Low-rank adapters of peft in the linear layers of a model, and the names of their parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ray_rl.config.adapter import Lora
from ray_rl.errors import ConfigError
from ray_rl.models.quantised import quantise

if TYPE_CHECKING:
    from peft import LoraConfig

ACTIVE = "default"
"""peft's name of the adapter that is trained."""
BASE = ".base_layer."
"""The part that an adapter adds to the names of the layer's own parameters."""
COPY = "start"
"""peft's name of the frozen copy of adapters that a run continues."""
PARTS = (f".lora_A.{ACTIVE}.weight", f".lora_B.{ACTIVE}.weight")
"""The ends of the names of A and B, where those of the layer have `.base_layer.weight`."""


def is_adapter(name: str) -> bool:
    """Returns whether a parameter belongs to an adapter."""
    return name.endswith(PARTS)


def is_copy(name: str) -> bool:
    """Returns whether a parameter belongs to the frozen copy of the adapters that a run continues."""
    return name.endswith((f".lora_A.{COPY}.weight", f".lora_B.{COPY}.weight"))


def base_name(name: str) -> str:
    """Returns the name that a parameter of the model has without adapters."""
    return name.replace(BASE, ".")


def peft_name(name: str) -> str:
    """Returns the name of an adapter's parameter in files of peft, and in vLLM."""
    return f"base_model.model.{name.replace(f'.{ACTIVE}.', '.')}"


def parts_of(name: str) -> tuple[str, str] | None:
    """Returns the names of A and B for the weight of a layer with an adapter; None for other parameters."""
    weight = f"{BASE}weight"
    if not name.endswith(weight):
        return None
    first, second = (name.removesuffix(weight) + part for part in PARTS)
    return first, second


def inject(backbone: nn.Module, lora: Lora, *, seed: int, key: str) -> None:
    """Freezes a loaded backbone and adds adapters, which do not change its results yet: B is 0.

    A is drawn from `seed` as a whole, so that it does not depend on sharding or rank.

    Args:
        backbone: the model without its head. ZeRO-3 may have sharded its parameters, unless `lora` quantises them.
        lora: size and place of the adapters.
        seed: the seed of A.
        key: the key of the configuration that names the model, for errors.

    Raises:
        ConfigError: the model has no linear layer with one of the names in `targets`.
    """
    from peft import inject_adapter_in_model

    backbone.requires_grad_(False)
    if lora.quantise is not None:
        quantise(backbone)
    config = peft_config(lora, targets_of(backbone, lora, key=key))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, backbone)


def peft_config(lora: Lora, targets: Sequence[str]) -> LoraConfig:
    """Returns the settings in peft's form; `targets` are the names of the layers."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        # A whole number in peft's annotation only: it is a factor. A file has 32, not 32.0, which vLLM expects.
        lora_alpha=int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=list(targets),
        init_lora_weights=True if lora.init == "default" else "gaussian",
        use_rslora=lora.rs_lora,
        bias="none",
    )


def targets_of(backbone: nn.Module, lora: Lora, *, key: str) -> list[str]:
    """Returns the names of the linear layers that get adapters, without the names of the modules around them.

    Raises:
        ConfigError: as `inject`.
    """
    linear = {name.rpartition(".")[2] for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    wanted = linear if lora.targets == "all-linear" else set(lora.targets)
    unknown = sorted(wanted - linear)
    if unknown or not wanted:
        named = f"no linear layer of {type(backbone).__name__} is named {', '.join(unknown)}"
        raise ConfigError(
            f"model.adapter.targets: {named if linear else f'{type(backbone).__name__} ({key}) has no linear layers'}; "
            + (f"set it to some of {', '.join(sorted(linear))}" if linear else "train all weights of this model")
        )
    return sorted(wanted)


def merge(weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> Tensor:
    """Returns W + scale * B A, added in float32 and rounded once to the type of `weight`.

    In bfloat16, changes below 2^-9 of an element of W round away.
    """
    return (weight.float() + product(a, b, scale)).to(weight.dtype)


def product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Returns scale * B A, in float32."""
    return (b.float() @ a.float()).mul_(scale)


def layers_of(model: nn.Module) -> list[Any]:
    """Returns the layers of a model that have adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    assert layers, "the model has no adapters"
    return layers


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Computes without adapters within the block: with the weights of the model itself.

    New heads stay as they are. Only a flag of each layer changes, and not which parameters have gradients.
    """
    layers = layers_of(model)
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """Computes without dropout within the block. Only adapters may have dropout."""
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.training]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer in layers:
            layer.train()
