"""A row: a prompt and the columns that belong to it, whatever it was read from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ray_rl.errors import DataError
from ray_rl.types import Message

RESERVED_COLUMNS = frozenset({"completions", "prompts", "finish_reasons", "lengths"})
"""What reward functions get beside the columns of the row."""

_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Row:
    """One question."""

    id: str
    """Stable over runs and epochs."""
    prompt: str | tuple[Message, ...]
    """Text, or a conversation."""
    columns: Mapping[str, Any]
    """The other columns, renamed."""


class Rows(Protocol):
    """An epoch in the order of its source. Reading a row may raise DataError that names it."""

    def __len__(self) -> int:
        """Rows of an epoch."""

    def __getitem__(self, index: int) -> Row:
        """Row `index`: the same at every call."""


def make_row(record: object, *, id: str, where: str, prompt_column: str, renames: Mapping[str, str]) -> Row:
    """The row that a record holds.

    Args:
        record: what the source holds at this place.
        id: of the row.
        where: named in errors, for example "train.jsonl:3".
        prompt_column: holds text, or a list of {role, content}.
        renames: {new name: column of the record}; other columns keep their names.

    Raises:
        DataError: not a mapping, a column is missing or taken, or the prompt is neither text nor messages.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: {shorten(record)} is no row; write an object with a column {prompt_column!r}")
    check_columns(record, where=where, prompt_column=prompt_column, renames=renames)
    moved = {prompt_column, *renames.values()}
    columns = {name: value for name, value in record.items() if name not in moved}
    columns |= {new: record[old] for new, old in renames.items()}
    return Row(id, _prompt(record[prompt_column], where=f"{where}: {prompt_column}"), columns)


def check_columns(columns: Iterable[str], *, where: str, prompt_column: str, renames: Mapping[str, str]) -> set[str]:
    """The names that rewards see, of a record or table with these columns.

    Args:
        columns: names in the source.
        where: named in errors.
        prompt_column: must be one of them.
        renames: {new name: column of the source}.

    Raises:
        DataError: a column that is asked for does not exist, or a name is taken.
    """
    existing = set(columns)
    if prompt_column not in existing:
        raise DataError(
            f"{where}: no column {prompt_column!r}; {_have(existing, prompt_column)} set data.prompt_column"
        )
    for new, old in renames.items():
        if old not in existing:
            raise DataError(f"{where}: no column {old!r}; {_have(existing, old)} correct data.columns.{new}")
    kept = existing - {prompt_column, *renames.values()}
    for name in sorted(kept & renames.keys()):
        raise DataError(f"{where}: data.columns.{name} gives a name that another column has; rename that one too")
    names = kept | renames.keys()
    for name in sorted(names & RESERVED_COLUMNS):
        raise DataError(
            f"{where}: reward functions get their own {name!r}; rename the column with data.columns: {{other: {name}}}"
        )
    return names


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


def shorten(value: object) -> str:
    """The repr of a value, at most a line of it."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _have(existing: set[str], wanted: str) -> str:
    near = difflib.get_close_matches(wanted, existing, n=1)
    nearest = f" (nearest: {near[0]})" if near else ""
    return f"the columns are {', '.join(sorted(existing)) or 'none'}{nearest};"


def _prompt(value: object, *, where: str) -> str | tuple[Message, ...]:
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where} is empty; write a prompt, or remove the row")
        return value
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{where} is {shorten(value)}; write text or a list of {{role, content}} messages")
    return tuple(_message(turn, where=f"{where}[{number}]") for number, turn in enumerate(value))


def _message(turn: object, *, where: str) -> Message:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        raise DataError(f"{where} is {shorten(turn)}; write a message {{role: ..., content: ...}}")
    if not isinstance(turn.get("content"), str):
        raise DataError(f"{where}.content is {shorten(turn.get('content'))}; only text is supported")
    return Message(turn["role"], turn["content"])
