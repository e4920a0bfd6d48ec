"""Finds out what a dotted key may hold from the annotations of `RunConfig`, for messages and overrides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import JsonValue

from ray_rl.config.base import Config
from ray_rl.config.loading.override_values import Reading
from ray_rl.config.loading.yaml_tree import Located


def bare(annotation: Any) -> Any:
    """Returns the annotation without `Annotated` and `| None`."""
    if get_origin(annotation) is Annotated:
        return bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not NoneType]
        return bare(members[0]) if len(members) == 1 else annotation
    return annotation


def sections_of(annotation: Any) -> dict[str, type[Config]]:
    """Returns the sections that an annotation allows, by `kind`; the name of a section without kinds is ""."""
    annotation = bare(annotation)
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    models = [member for member in members if isinstance(member, type) and issubclass(member, Config)]
    return {_kind(model): model for model in models}


def item_of(annotation: Any, step: str | int) -> Any:
    """Returns the annotation of an entry of a list, tuple or mapping; None for a scalar."""
    annotation = bare(annotation)
    args = get_args(annotation)
    match get_origin(annotation):
        case origin if origin is list and isinstance(step, int):
            return args[0]
        case origin if origin is tuple and isinstance(step, int):
            return args[min(step, len(args) - 1)]
        case origin if origin is dict and step != "[key]":
            return args[1]
        case _:
            return None


def reading_at(model: type[Config], keys: Sequence[str], tree: Located) -> Reading:
    """Returns how the value of a dotted key is read: as typed if the field takes text, else as YAML.

    Args:
        model: the model of the whole configuration.
        keys: the keys that lead to the value, and the indexes of list entries as text.
        tree: the values that were set before. A `kind` in it chooses among sections. Without a `kind`, all
            sections with the key are considered; if they disagree, the value is read as for any field.
    """
    annotations: list[Any] = [model]
    node: Located | None = tree
    for key in keys:
        annotations = [below for each in annotations for below in _below(each, key, node)]
        step = int(key) if node and isinstance(node.value, list) and key.isdecimal() else key
        node = node.child(step) if node else None
    readings = {_reading(each) for each in annotations}
    return readings.pop() if len(readings) == 1 else Reading()


def section_without(model: type[Config], keys: Sequence[str], tree: Located) -> str | None:
    """Returns the innermost kind that the values choose if it has no such key: "data.kind=jsonl". None if it has.

    Arguments are those of `reading_at`.
    """
    annotations: list[Any] = [model]
    node: Located | None = tree
    chosen: str | None = None
    for depth, key in enumerate(keys):
        kind = node.child("kind") if node else None
        if kind is not None and any(len(sections_of(each)) > 1 for each in annotations):
            chosen = f"{'.'.join(keys[:depth])}.kind={kind.value}"
        annotations = [below for each in annotations for below in _below(each, key, node)]
        if not annotations:
            return chosen
        node = node.child(key) if node else None
    return None


def all_keys(annotation: Any, prefix: str = "") -> Iterator[str]:
    """Yields every dotted key of every kind; entries of lists have index 0."""
    if get_origin(bare(annotation)) is list:
        annotation, prefix = item_of(annotation, 0), f"{prefix}0."
    for section in sections_of(annotation).values():
        for name, field in section.model_fields.items():
            yield f"{prefix}{name}"
            yield from all_keys(field.annotation, f"{prefix}{name}.")


def _kind(model: type[Config]) -> str:
    field = model.model_fields.get("kind")
    return str(get_args(field.annotation)[0]) if field else ""


def _below(annotation: Any, key: str, node: Located | None) -> list[Any]:
    sections = sections_of(annotation)
    if sections:
        chosen = node.child("kind") if node else None
        given = sections.get(str(chosen.value)) if chosen else None
        owners = list(sections.values()) if given is None else [given]
        return [owner.model_fields[key].annotation for owner in owners if key in owner.model_fields]
    if bare(annotation) is Any or annotation is JsonValue:
        return [Any]
    below = item_of(annotation, int(key) if key.isdecimal() else key)
    if below is None and key.isdecimal():
        below = item_of(annotation, key)
    return [] if below is None else [below]


def _reading(annotation: Any) -> Reading:
    if get_origin(annotation) is Annotated:
        return _reading(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        members = [_reading(member) for member in get_args(annotation)]
        return Reading(
            text=any(each.text for each in members),
            null=any(each.null for each in members),
            numbers=any(each.numbers for each in members),
            structures=any(each.structures for each in members),
            blocks=any(each.blocks for each in members) and not any(each.text for each in members),
        )
    if annotation is Any or annotation is JsonValue:
        return Reading(blocks=False)
    if annotation in (str, Path):
        return _ONLY_TEXT
    if annotation is NoneType:
        return _ONLY_NULL
    if get_origin(annotation) is Literal or annotation in (int, float, bool):
        return _ONLY_NUMBERS
    return _ONLY_STRUCTURES


_ONLY_TEXT = Reading(null=False, numbers=False, structures=False, blocks=False)
_ONLY_NULL = Reading(text=False, numbers=False, structures=False, blocks=False)
_ONLY_NUMBERS = Reading(text=False, null=False, structures=False, blocks=False)
_ONLY_STRUCTURES = Reading(text=False, null=False, numbers=False)
