"""Rules for runs that continue adapters, and for folders of adapters as models. Loads without torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ray_rl.config.adapter import Lora
from ray_rl.config.adapter_folder import has_adapters, read_adapter_folder
from ray_rl.config.continuing import of_folder, other_settings
from ray_rl.config.loading.explain import show
from ray_rl.config.roles import models_of
from ray_rl.config.run import RunConfig
from ray_rl.errors import DataError

KEY = "model.adapter.path"


def continuing_rules(config: RunConfig, *, is_elsewhere: bool) -> Iterator[str]:
    """Checks that the folder of adapters can be continued with these settings.

    If the run `is_elsewhere`, an absolute path need not exist here.
    """
    yield from _folders(config)
    adapter = config.model.adapter
    if adapter is None or adapter.path is None:
        return
    place = Path(adapter.path).expanduser()
    if is_elsewhere and place.is_absolute() and not place.exists():
        return
    try:
        folder = read_adapter_folder(adapter.path)
    except (DataError, OSError) as error:
        yield f"{KEY}={error}"
        return
    for feature in folder.unsupported:
        yield (
            f"{KEY}={adapter.path}: it has {feature}, which a run cannot continue; merge the adapters into their model "
            "and set model.path to the result"
        )
    for name, own, theirs in other_settings(adapter, of_folder(folder), model=config.model.path):
        yield (
            f"model.adapter.{name}={show(own)}: the adapters in {adapter.path} have {show(theirs)}, and their values "
            "mean nothing without it; remove it"
        )
    if adapter.init != Lora.model_fields["init"].default:
        yield f"model.adapter.init={adapter.init}: the adapters start as in {KEY}={adapter.path}; remove it"


def _folders(config: RunConfig) -> Iterator[str]:
    for key, path in models_of(config):
        if not has_adapters(path):
            continue
        reason = f"{key}={path}: the folder has adapters without the model that they belong to"
        if key != "model.path":
            yield (
                f"{reason}; merge them into their model and set {key} to the result, such as an export with "
                "checkpoint.export_adapter=merged"
            )
        elif config.model.adapter is not None and config.model.adapter.path is not None:
            yield f"{reason}, and {KEY}={config.model.adapter.path} has others; remove one of them"
        else:
            yield _unread(path) or f"{reason}, and does not name it; set model.path to that model, and {KEY} to {path}"


def _unread(path: str) -> str | None:
    """Returns why a folder of adapters does not stand for its model; None if it only does not name it."""
    try:
        read_adapter_folder(path)
    except (DataError, OSError) as error:
        return f"model.path={error}"
    return None
