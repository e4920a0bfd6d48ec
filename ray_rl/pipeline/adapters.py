"""Lets a stage continue the adapters that an earlier stage exports without their model (`export_adapter: peft`)."""

from __future__ import annotations

from collections.abc import Mapping

from ray_rl.config.adapter_folder import TEMPLATE_FILE
from ray_rl.config.continuing import OF_FOLDER, other_settings
from ray_rl.config.loading.explain import show
from ray_rl.config.loading.yaml_tree import Located
from ray_rl.config.run import RunConfig
from ray_rl.errors import ConfigError


def continue_adapters(tree: Located, makers: Mapping[str, RunConfig]) -> None:
    """Replaces an export of adapters as `model.path` by their model, with the export as `model.adapter.path`.

    The same happens for a run whose `model.path` is a folder of adapters. Here the folder need not exist yet: what it
    will say is in the configuration of the stage that makes it.

    Args:
        tree: the configuration of a stage, in which references to stages are the folders of their models.
        makers: the configuration of the stage that makes each of these folders.

    Raises:
        ConfigError: a key that takes a whole model names an export of adapters.
    """
    model, node = tree.child("model"), tree.at("model.path")
    maker = None if node is None or not isinstance(node.value, str) else makers.get(node.value)
    for key in ("critic.path", "reference.path"):
        other = tree.at(key)
        is_export = other is not None and isinstance(other.value, str) and exports_adapters(makers.get(other.value))
        is_start = key == "reference.path" and node is not None and other is not None and other.value == node.value
        if other is not None and is_export and not is_start:
            raise ConfigError(
                f"{other.where}: {key}={other.value}: the stage exports adapters without their model; set its "
                "checkpoint.export_adapter to merged"
            )
    if model is None or node is None or maker is None or not exports_adapters(maker):
        return
    assert maker.model.adapter is not None, "it exports adapters"
    given = model.child("adapter")
    own = dict(given.value) if given is not None and isinstance(given.value, dict) else {}
    values = {name: vars(maker.model.adapter)[name] for name in OF_FOLDER}
    added = {name: _located(value, node.where) for name, value in {**values, "path": node.value}.items()}
    model.value["adapter"] = Located({**added, **own}, node.where if given is None else given.where)
    if model.child("chat_template") is None and (maker.model.chat_template or maker.data.template_options):
        model.value["chat_template"] = Located(f"{node.value}/{TEMPLATE_FILE}", node.where)
    model.value["path"] = Located(maker.model.path, node.where)


def _located(value: object, where: str) -> Located:
    entries = [Located(entry, where) for entry in value] if isinstance(value, list) else value
    return Located(entries, where)


def require_same_adapters(config: RunConfig, makers: Mapping[str, RunConfig], *, stage: str) -> None:
    """Refuses settings of adapters that contradict those of the stage that makes them.

    Raises:
        ConfigError: there are such settings.
    """
    adapter = config.model.adapter
    maker = None if adapter is None or adapter.path is None else makers.get(adapter.path)
    if adapter is None or maker is None or maker.model.adapter is None:
        return
    for name, own, theirs in other_settings(adapter, vars(maker.model.adapter), model=config.model.path):
        raise ConfigError(
            f"stage {stage}: model.adapter.{name}={show(own)}: the adapters of stage {maker.run.name} have "
            f"{show(theirs)}, and their values mean nothing without it; remove it"
        )


def exports_adapters(maker: RunConfig | None) -> bool:
    """Returns whether the stage with this configuration exports adapters without their model."""
    return maker is not None and maker.exports_adapters
