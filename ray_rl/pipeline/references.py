"""Resolves references to stages, like `model.path: {stage: sft}`, which stand for the models that a stage exports."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ray_rl.config.loading.yaml_tree import Located
from ray_rl.errors import ConfigError

ONE = ("model.path", "critic.path", "reference.path")
"""Keys that take one model. `paths` of a reward model takes any number."""

_TYPED = re.compile(r"\{ *stage *: *([\w-]+) *\}")
"""A reference in an override of a key for text, which is taken as typed."""

Folders = Callable[[str], Sequence[str]]
"""Returns the model folders of an earlier stage; raises ConfigError if there is no such stage."""


def resolve(tree: Located, folders_of: Folders) -> None:
    """Replaces every reference to a stage in the tree of a configuration by model folders.

    Raises:
        ConfigError: a key for one model refers to a stage that exports several, or `folders_of` raises.
    """
    for key in ONE:
        node = tree.at(key)
        name = None if node is None else _named(node)
        if node is None or name is None:
            continue
        folders = _found(node, key, name, folders_of)
        if len(folders) > 1:
            raise ConfigError(
                f"{_place(node, key, name)}: the stage makes {len(folders)} models, and {key} takes one; "
                f"set it to one of {', '.join(folders)}"
            )
        node.value = folders[0]
    rewards = tree.child("rewards")
    for index, entry in enumerate(rewards.value if rewards is not None and isinstance(rewards.value, list) else ()):
        paths = entry.child("paths")
        if paths is not None:
            paths.value = _spliced(paths, f"rewards.{index}.paths", folders_of)


def _spliced(paths: Located, key: str, folders_of: Folders) -> object:
    """Returns `paths` with every reference, which may also be its only value, replaced by the stage's models."""
    is_list = isinstance(paths.value, list)
    entries: list[Located] = paths.value if is_list else [paths]
    if all(_named(entry) is None for entry in entries):
        return paths.value
    resolved: list[Located] = []
    for entry in entries:
        name = _named(entry)
        folders = None if name is None else _found(entry, key, name, folders_of)
        resolved += [entry] if folders is None else [Located(folder, entry.where) for folder in folders]
    return resolved


def _named(node: Located) -> str | None:
    """Returns the name of the stage to which a value refers; None if it is not a reference."""
    match node.value:
        case {"stage": Located(value=str(name)), **others} if not others:
            return name
        case str(text) if match := _TYPED.fullmatch(text):
            return match[1]
        case _:
            return None


def _found(node: Located, key: str, name: str, folders_of: Folders) -> Sequence[str]:
    try:
        return folders_of(name)
    except ConfigError as error:
        raise ConfigError(f"{_place(node, key, name)}: {error}") from None


def _place(node: Located, key: str, name: str) -> str:
    """Returns place, key and value, without repeating the key and value of an override."""
    return node.where if node.where.startswith("override ") else f"{node.where}: {key}={{stage: {name}}}"
