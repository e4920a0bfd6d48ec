"""Where the models of a run are, for every way to train."""

from __future__ import annotations

from pathlib import Path

from ray_rl.catalog.models import PACKAGED_MODELS
from ray_rl.config import RunConfig
from ray_rl.config.roles import roles_of
from ray_rl.models.packaged import cached_folder, resolve_model


def what_is_loaded(config: RunConfig, data: str) -> str:
    """Returns a text about what is loaded first: the tokenizer of the model, and `data`."""
    model = config.model.path
    text = f"loading the tokenizer of {model} and {data}"
    if model in PACKAGED_MODELS and not (cached_folder(model) / "config.json").is_file():
        return f"converting {model} into {cached_folder(model)}, once; then {text}"
    return text


def cached_model(path: str) -> Path | str:
    """Returns the folder of a model (for a packaged one its cache, which may not exist yet), or its hub name."""
    if path in PACKAGED_MODELS:
        return cached_folder(path)
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else path


def folders_of(config: RunConfig, model: str) -> dict[str, tuple[str, ...]]:
    """Returns the folders or hub names of the models of each role; `model` is where the policy's was found.

    After the model of a role that continues adapters comes the folder with these.
    """
    found = {config.model.path: model}
    folders = {
        role.name: tuple(found[path] if path in found else resolve_model(path) for _, path in role.models)
        for role in roles_of(config)
    }
    adapter = config.model.adapter
    if adapter is not None and adapter.path is not None:
        for role in roles_of(config):
            if role.trained is not None and role.models[0][1] == config.model.path:
                folders[role.name] += (resolve_model(adapter.path),)
    return folders
