"""Values of a row by the name of their column, also inside of nested columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RESERVED_COLUMNS = frozenset({"completions", "prompts", "finish_reasons", "lengths"})
"""What reward functions get beside the columns of the row."""


def column_value(columns: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or inside of nested columns: `reward_model.ground_truth`.

    A column whose whole name is the path comes first. Lists have no names inside.

    Raises:
        KeyError: there is no such value.
    """
    if path in columns:
        return columns[path]
    outer, _, inner = path.rpartition(".")
    if not outer:
        raise KeyError(path)
    within = column_value(columns, outer)
    if not isinstance(within, Mapping) or inner not in within:
        raise KeyError(path)
    return within[inner]


def has_column(columns: Mapping[str, Any], path: str) -> bool:
    """Whether there is a value of that name, which may be None."""
    try:
        column_value(columns, path)
    except KeyError:
        return False
    return True


def column_names(columns: Mapping[str, Any]) -> list[str]:
    """The names of all columns, and of what is in nested ones, as a configuration can name them."""
    inner = [f"{name}.{key}" for name, value in columns.items() if isinstance(value, Mapping) for key in value]
    return sorted([*columns, *inner])
