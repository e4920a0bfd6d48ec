"""Adapters that a run continues: their values from a folder of peft, and a frozen copy of them as the reference."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_rl.catalog.weight_files import tensor_shapes
from ray_rl.config.adapter import Lora
from ray_rl.config.adapter_folder import WEIGHTS_FILE
from ray_rl.errors import DataError
from ray_rl.models.adapter import (
    ACTIVE,
    COPY,
    adapters_off,
    is_adapter,
    is_copy,
    layers_of,
    peft_config,
    peft_name,
    targets_of,
)

KEY = "model.adapter.path"
LISTED = 3
"""The most names that an error lists."""


@torch.no_grad()
def load_values(backbone: nn.Module, folder: str) -> None:
    """Gives the adapters of a backbone the values in a folder, in their own type.

    Raises:
        DataError: the folder has other adapters than the backbone.
    """
    from safetensors.torch import load_file

    adapters = {_file_name(backbone, name): each for name, each in backbone.named_parameters() if is_adapter(name)}
    require_fit(folder, {name: tuple(each.shape) for name, each in adapters.items()})
    for name, values in load_file(Path(folder) / WEIGHTS_FILE).items():
        adapters[name].copy_(values)


def require_fit(folder: str, expected: Mapping[str, Sequence[int]]) -> None:
    """Compares names and shapes in a folder with those that the model's adapters have.

    Raises:
        DataError: there are others.
    """
    found = tensor_shapes(Path(folder).expanduser() / WEIGHTS_FILE)
    if found == expected:
        return
    lacks, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    problems = [f"has no {', '.join(lacks[:LISTED])}"] if lacks else []
    problems += [f"has {', '.join(more[:LISTED])}"] if more else []
    other = sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name])
    problems += [f"has {name} of shape {list(found[name])} in place of {list(expected[name])}" for name in other[:1]]
    raise DataError(
        f"{KEY}={folder}: {WEIGHTS_FILE} does not fit the model, it {', and '.join(problems)}; set model.path to the "
        "model that the adapters were trained with"
    )


def shapes_of(backbone: nn.Module, lora: Lora) -> dict[str, tuple[int, ...]]:
    """Returns name and shape of each tensor that a folder of adapters of a backbone without adapters has."""
    targets = targets_of(backbone, lora, key="model.path")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in backbone.named_modules():
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in targets:
            shapes[_file_name(backbone, f"{name}.lora_A.weight")] = (lora.rank, layer.in_features)
            shapes[_file_name(backbone, f"{name}.lora_B.weight")] = (layer.out_features, lora.rank)
    return shapes


def keep_copy(backbone: nn.Module, lora: Lora) -> None:
    """Adds a frozen copy of the adapters as they are now; it has no effect outside of `as_at_start`."""
    from peft import inject_adapter_in_model

    layers = {id(layer) for layer in layers_of(backbone)}
    targets = {name.rpartition(".")[2] for name, module in backbone.named_modules() if id(module) in layers}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # peft's doubt whether two are meant
        inject_adapter_in_model(peft_config(lora, sorted(targets)), backbone, adapter_name=COPY)
    for layer in layers_of(backbone):
        layer.set_adapter(ACTIVE)
    parameters = dict(backbone.named_parameters())
    with torch.no_grad():
        for name, copy in parameters.items():
            if is_copy(name):
                copy.copy_(parameters[name.replace(f".{COPY}.", f".{ACTIVE}.")]).requires_grad_(False)


@contextmanager
def as_at_start(model: nn.Module) -> Iterator[None]:
    """Computes as before training within the block: with the frozen copy of adapters, or without adapters.

    New heads stay as they are. Only a flag of each layer changes, and not which parameters have gradients.
    """
    layers: list[Any] = layers_of(model)
    copied = [layer for layer in layers if COPY in layer.lora_A]
    if not copied:
        with adapters_off(model):
            yield
        return
    assert len(copied) == len(layers), "some layers have no copy of their adapters"
    for layer in layers:
        layer._active_adapter = [COPY]
    try:
        yield
    finally:
        for layer in layers:
            layer._active_adapter = [ACTIVE]


def _file_name(backbone: Any, name: str) -> str:
    """Returns the name of an adapter's parameter in files of peft, which know the backbone within its model."""
    return peft_name(f"{backbone.base_model_prefix}.{name}")
