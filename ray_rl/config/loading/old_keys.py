"""Keys that older versions had: each gets an error that names the new one, and `ray-rl migrate` rewrites files.

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


@dataclass(frozen=True, slots=True)
class Change:
    """One change of what a configuration may say."""

    old_key: str
    """A dotted key that no configuration of this version has."""
    remedy: Callable[[Any], str]
    """Says what to write instead of a value of the old key."""
    rewrite: Callable[[YamlText, bool], None]
    """Changes the text of a file, if the change concerns it. The flag says that the file was written for 0.1."""


def refuse_old_keys(tree: Located, file: Path | None = None) -> None:
    """Refuses keys of older versions.

    Args:
        tree: what was written.
        file: the file that has it; None for overrides.

    Raises:
        ConfigError: an old key, with the new one and the command that rewrites the file.
    """
    command = f", or rewrite the file with `ray-rl migrate {shlex.quote(str(file))}`" if file is not None else ""
    old = [(change, node) for change in CHANGES if (node := tree.at(change.old_key)) is not None]
    if old:
        raise ConfigError(as_one_message([_refusal(change, node, command) for change, node in old]))


def _refusal(change: Change, node: Located, command: str) -> str:
    value = node.plain()
    seen = node.where if node.where.startswith("override") else f"{node.where}: {change.old_key}={show(value)}"
    return f"{seen}: a key of an older version; {change.remedy(value)}{command}"


def migrated(text: str, name: str, *, is_from_0_1: bool = False) -> str:
    """The text of a file in the keys of this version, comments and layout kept.

    Args:
        text: YAML, whose lines end in a newline alone.
        name: path of the file, for errors.
        is_from_0_1: the file was written for version 0.1; else that is assumed only where the file shows it.

    Raises:
        ConfigError: not valid YAML, or it has aliases.
    """
    file = YamlText(text, name)
    for change in CHANGES:
        change.rewrite(file, is_from_0_1)
    return file.text


def doubt(text: str, name: str) -> str | None:
    """Says why a file may not mean what it meant in version 0.1, if the file itself does not show its version."""
    tree = YamlText(text, name).tree()
    kind = tree.at("algorithm.kind")
    missing = _missing_defaults(tree)
    if kind is None or not missing or tree.at("algorithm.preset") is not None:
        return None
    values = ", ".join(f"{key}={show(value)}" for key, value in missing.items())
    return (
        f"{kind.where}: algorithm.kind={show(kind.value)} without these keys meant {values} in version 0.1; if the "
        "file was written for that version, run `ray-rl migrate` with --from 0.1, which writes these values out"
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
"""By `algorithm.kind` without a preset, where the defaults of the kind are others now."""


def _missing_defaults(tree: Located) -> dict[str, Any]:
    """The values of version 0.1 that a file does not write out; a file that extends another may inherit them."""
    kind = tree.at("algorithm.kind")
    if kind is None or tree.child("extends") is not None:
        return {}
    defaults = _DEFAULTS_OF_0_1.get(kind.value, {})
    return {key: value for key, value in defaults.items() if tree.at(key) is None}


def _preset_to_kind(file: YamlText, is_from_0_1: bool) -> None:
    """0.2: `algorithm.kind` names the algorithm. In 0.1 `preset` did, and `kind` said whether there is a critic."""
    tree = file.tree()
    preset, kind = tree.at("algorithm.preset"), tree.at("algorithm.kind")
    if preset is not None and preset.value is not None:
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
    """0.2: reward models are an entry of `rewards`, of kind model. In 0.1 they had a section of their own."""
    old = file.tree().child("reward")
    if old is None:
        return
    settings = old.plain()
    file.remove("reward")
    if settings is not None:
        file.append("rewards", {"kind": "model", **settings})


CHANGES = (
    Change(
        old_key="algorithm.preset",
        remedy=lambda preset: (
            "algorithm.kind names the algorithm now; "
            + (f"set algorithm.kind={show(preset)}" if preset is not None else "remove algorithm.preset")
        ),
        rewrite=_preset_to_kind,
    ),
    Change(
        old_key="reward",
        remedy=lambda settings: (
            "reward models are an entry of rewards now; "
            + ("move its settings to an entry with kind: model" if settings is not None else "remove reward")
        ),
        rewrite=_reward_to_rewards,
    ),
)
