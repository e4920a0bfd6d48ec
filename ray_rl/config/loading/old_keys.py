"""Keys of older versions: an error names the new key, and `ray-rl migrate` rewrites files.

To rename a key, add one `Change` to CHANGES.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_rl.config.loading.explain import as_one_message, show
from ray_rl.config.loading.yaml_text import YamlText
from ray_rl.config.loading.yaml_tree import Located
from ray_rl.errors import ConfigError
from ray_rl.program import program


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the keys of the configuration."""

    old_key: str
    """A dotted key that no configuration of this version has."""
    remedy: Callable[[Any], str]
    """Returns what to write instead, for a value of the old key."""
    rewrite: Callable[[YamlText, bool], None]
    """Changes the text of a file if it has the old key. The flag says whether the file was written for 0.1."""


def refuse_old_keys(tree: Located, file: Path | None = None) -> None:
    """Refuses keys of older versions.

    Args:
        tree: the values that the user wrote.
        file: the file with these values; None for overrides.

    Raises:
        ConfigError: there is an old key; the message has the new one and the command that rewrites the file.
    """
    command = f", or rewrite the file with `{program()} migrate {shlex.quote(str(file))}`" if file is not None else ""
    old = [(change, node) for change in CHANGES if (node := tree.at(change.old_key)) is not None]
    if old:
        raise ConfigError(as_one_message([_refusal(change, node, command) for change, node in old]))


def _refusal(change: Change, node: Located, command: str) -> str:
    value = node.plain()
    seen = node.where if node.where.startswith("override") else f"{node.where}: {change.old_key}={show(value)}"
    return f"{seen}: a key of an older version; {change.remedy(value)}{command}"


def migrated(text: str, name: str, *, is_from_0_1: bool = False) -> str:
    """Returns the text of a file with the keys of this version.

    Layout and comments stay. Comments on lines of a removed key are put above the next key.

    Args:
        text: YAML in which lines end with a single newline.
        name: path of the file, for errors.
        is_from_0_1: whether the file was written for version 0.1. If False, that is assumed only if the file shows it.

    Raises:
        ConfigError: the text is not valid YAML, or has aliases.
    """
    file = YamlText(text, name)
    for change in CHANGES:
        change.rewrite(file, is_from_0_1)
    return file.text


def doubt(text: str, name: str) -> str | None:
    """Returns a warning if a file may have had another meaning in version 0.1; None if that is excluded."""
    tree = YamlText(text, name).tree()
    kind = tree.at("algorithm.kind")
    missing = _missing_defaults(tree)
    if kind is None or not missing or tree.at("algorithm.preset") is not None:
        return None
    values = ", ".join(f"{key}={show(value)}" for key, value in missing.items())
    return (
        f"{kind.where}: algorithm.kind={show(kind.value)} without these keys meant {values} in version 0.1; if the "
        f"file was written for that version, run `{program()} migrate --from 0.1 {shlex.quote(name)}`, which adds "
        "these values"
    )


_DEFAULTS_OF_0_1: Mapping[Any, Mapping[str, Any]] = {
    "grpo": {"algorithm.reduction": "token_mean", "algorithm.kl.coefficient": 0.0},
    "ppo": {
        "algorithm.group_size": 8,
        "algorithm.kl.coefficient": 0.0,
        "algorithm.kl.place": "loss",
        "algorithm.kl.estimator": "k3",
        "algorithm.update_epochs": 1,
    },
}
"""Defaults of version 0.1 that have changed, by `algorithm.kind`, for files without a preset."""


def _missing_defaults(tree: Located) -> dict[str, Any]:
    """Returns the old defaults that a file relies on; none if it extends another file, which may set them."""
    kind = tree.at("algorithm.kind")
    if kind is None or tree.child("extends") is not None:
        return {}
    defaults = _DEFAULTS_OF_0_1.get(kind.value, {})
    return {key: value for key, value in defaults.items() if tree.at(key) is None}


def _preset_to_kind(file: YamlText, is_from_0_1: bool) -> None:
    # In 0.1, `preset` named the algorithm, and `kind` said whether there is a critic.
    tree = file.tree()
    preset, kind = tree.at("algorithm.preset"), tree.at("algorithm.kind")
    if preset is not None and preset.value is not None:
        if not isinstance(preset.value, str):
            raise ConfigError(f"{preset.where}: algorithm.preset={show(preset.plain())} is not a name; correct it")
        if kind is not None:
            file.remove("algorithm.kind")
        file.rename("algorithm.preset", "kind")
        return
    if preset is not None:
        file.remove("algorithm.preset")
    is_whole = tree.child("model") is not None and tree.child("extends") is None
    if kind is None and is_whole:
        file.set("algorithm.kind", "grpo", first=True)
    if is_from_0_1 or preset is not None or (kind is None and is_whole):
        for key, value in _missing_defaults(file.tree()).items():
            file.set(key, value)


def _reward_to_rewards(file: YamlText, is_from_0_1: bool) -> None:
    # In 0.1, reward models had a section of their own.
    old = file.tree().child("reward")
    if old is None:
        return
    settings = old.plain()
    if not isinstance(settings, dict | None):
        raise ConfigError(f"{old.where}: reward={show(settings)} is not a mapping; correct it")
    file.remove("reward")
    if settings is not None:
        file.append("rewards", {"kind": "model", **settings})


CHANGES = (
    Change(
        old_key="algorithm.preset",
        remedy=lambda preset: (
            "algorithm.kind now names the algorithm; "
            + (f"set algorithm.kind={show(preset)}" if preset is not None else "remove algorithm.preset")
        ),
        rewrite=_preset_to_kind,
    ),
    Change(
        old_key="reward",
        remedy=lambda settings: (
            "reward models are now an entry of rewards; "
            + ("move these settings to an entry with kind: model" if settings is not None else "remove reward")
        ),
        rewrite=_reward_to_rewards,
    ),
)
