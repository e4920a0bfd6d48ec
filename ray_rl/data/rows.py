"""A row: a prompt and its columns, for every kind of source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray_rl.data.columns import column_names, plain, shorten
from ray_rl.data.layout import Layout, check_columns, notes
from ray_rl.data.messages import read_prompt
from ray_rl.data.records import Records
from ray_rl.errors import DataError
from ray_rl.types import Message, column_value


@dataclass(frozen=True, slots=True)
class Row:
    """One question."""

    id: str
    """Id of the row, the same in all runs and epochs."""
    prompt: str | tuple[Message, ...]
    """The prompt: text or a conversation."""
    columns: Mapping[str, Any]
    """The other columns, renamed."""


class Rows(Protocol):
    """The rows of an epoch in the order of their source. Reading a row may raise a DataError that names it."""

    digests: Mapping[str, str]
    """Digests of the content, by the name of the file or data set; empty if the rows are computed."""
    notes: Sequence[str]
    """Lines for the user about how the data is read."""

    def __len__(self) -> int:
        """Returns the number of rows in an epoch."""

    def __getitem__(self, index: int) -> Row:
        """Returns the row with this index, the same at every call."""


class TableRows:
    """The rows of a source with columns: each is made from a record by one layout."""

    def __init__(self, records: Records, layout: Layout) -> None:
        """Makes the rows of these records.

        Args:
            records: the records of the source.
            layout: the columns of the prompt and the answer.
        """
        self._records = records
        self._layout = layout
        self.digests = records.digests
        """The digests of the records."""
        self.notes = notes(records.digests, detected=layout.detected)
        """Lines for the user about how the records are read."""

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Row:
        record = self._records[index]
        return make_row(record.content, id=record.id, where=record.where, layout=self._layout)


def make_row(record: object, *, id: str, where: str, layout: Layout = Layout()) -> Row:  # noqa: B008 - frozen
    """Makes a row from a record.

    Args:
        record: the record of the source.
        id: the id of the row.
        where: the place of the record for errors, such as "train.jsonl:3".
        layout: the columns of the prompt and the answer.

    Raises:
        DataError: the record is not a mapping, a column is missing or its name in use, or text or prompt is invalid.
    """
    if not isinstance(record, Mapping):
        raise DataError(
            f"{where}: {shorten(record)} is not a row; write an object with a column {layout.prompt_column!r}"
        )
    if not all(isinstance(name, str) for name in record):
        raise DataError(f"{where}: the names of the columns {shorten(list(record))} are not all text; correct them")
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
