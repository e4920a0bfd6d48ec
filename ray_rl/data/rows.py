"""A row: a prompt and the columns that belong to it, whatever it was read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray_rl.data.columns import column_names, column_value, plain, shorten
from ray_rl.data.layout import Layout, check_columns
from ray_rl.data.messages import read_prompt
from ray_rl.errors import DataError
from ray_rl.types import Message


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

    digests: Mapping[str, str]
    """Digests of the content, by the name of the file or data set; empty where the rows are computed."""
    notes: Sequence[str]
    """What the user should know about how the data is read, a line each."""

    def __len__(self) -> int:
        """Rows of an epoch."""

    def __getitem__(self, index: int) -> Row:
        """Row `index`: the same at every call."""


def make_row(record: object, *, id: str, where: str, layout: Layout = Layout()) -> Row:  # noqa: B008 - frozen
    """The row that a record holds.

    Args:
        record: what the source holds at this place.
        id: the id of the row.
        where: named in errors, for example "train.jsonl:3".
        layout: which columns are the prompt and the answer.

    Raises:
        DataError: not a mapping, a column is missing or taken, text that is no Unicode, or a prompt that is none.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: {shorten(record)} is no row; write an object with a column {layout.prompt_column!r}")
    if not all(isinstance(name, str) for name in record):
        raise DataError(f"{where}: the columns {shorten(list(record))} are not all named by text; correct the names")
    check_columns(record, layout, where=where)
    moved = {layout.prompt_column, *layout.renames.values()}
    columns = {name: value for name, value in record.items() if name not in moved}
    for new, old in (*layout.aliases.items(), *layout.renames.items()):
        columns[new] = _value(record, old, where=where)
    columns = {name: plain(value, where=f"{where}: {name}") for name, value in columns.items()}
    written = _value(record, layout.prompt_column, where=where)
    prompt = read_prompt(written, where=f"{where}: {layout.prompt_column}", drop_last_answer=layout.drop_last_answer)
    return Row(id, prompt, columns)


def _value(record: Mapping[str, Any], column: str, *, where: str) -> Any:
    try:
        return column_value(record, column)
    except KeyError:
        names = ", ".join(column_names(record))
        raise DataError(f"{where}: no column {column!r}; the columns are {names}; correct the row") from None
