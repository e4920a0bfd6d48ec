"""Completes the section `model` of a run that continues adapters, from their folder. Loads without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ray_rl.catalog.models import find_shape
from ray_rl.config.adapter import Lora
from ray_rl.config.adapter_folder import AdapterFolder, has_adapters, read_adapter_folder, template_of
from ray_rl.config.base import Config
from ray_rl.errors import DataError

OF_FOLDER = ("rank", "alpha", "targets", "rs_lora")
"""Settings of adapters that belong to their values."""


def with_adapters_of_folder(model: Any) -> Any:
    """Returns the given section `model` with what a folder of adapters decides.

    A folder of adapters as `path` becomes the path of the model that they belong to, with the folder as `adapter.path`;
    the chat template is then that of the folder, unless another is given. What the folder says of `adapter` is added
    where nothing is given. A folder that cannot be read changes nothing: a rule refuses it.
    """
    given = _plain(model)
    if given is None:
        return model
    path, adapter = given.get("path"), _plain(given.get("adapter"))
    is_folder = isinstance(path, str) and has_adapters(path) and (adapter is None or adapter.get("path") is None)
    folder = path if is_folder else (adapter or {}).get("path")
    if not isinstance(folder, str):
        return model
    try:
        found = read_adapter_folder(folder)
    except (DataError, OSError):
        return model
    if is_folder and found.base is None:
        return model
    given = {**given, "adapter": {**of_folder(found), **(adapter or {}), "path": folder}}
    if is_folder:
        given["path"] = found.base
        if given.get("chat_template") is None:
            given["chat_template"] = template_of(folder)
    return given


def of_folder(folder: AdapterFolder) -> dict[str, Any]:
    """Returns the settings of `model.adapter` that belong to the values in a folder."""
    return {
        "rank": folder.rank,
        "alpha": folder.alpha,
        "targets": list(folder.targets),
        "rs_lora": folder.rs_lora,
    }


def other_settings(adapter: Lora, values: Mapping[str, Any], *, model: str) -> Iterator[tuple[str, Any, Any]]:
    """Yields name, value and the value of the folder for settings of adapters that contradict their folder's.

    Args:
        adapter: the settings.
        values: those of the folder, by name.
        model: folder or hub name of the model, which may tell what all its layers are.
    """
    for name in OF_FOLDER:
        own, theirs = vars(adapter)[name], values[name]
        if name == "targets":
            both = [_names(each, model) for each in (own, theirs)]
            if None in both or both[0] == both[1]:  # None: compared when the model is read
                continue
        if own != theirs:
            yield name, own, theirs


def _names(targets: Any, model: str) -> set[str] | None:
    """Returns the names of the targeted layers; None if they are not known without the model."""
    if targets != "all-linear":
        return set(targets)
    shape = find_shape(model)
    return None if shape is None else set(shape.linears)


def _plain(section: Any) -> dict[str, Any] | None:
    """Returns what is given of a section; None if it is missing or no section."""
    if isinstance(section, Config):
        return section.model_dump(exclude_unset=True)
    return dict(section) if isinstance(section, Mapping) else None
