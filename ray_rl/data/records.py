"""A record as its source holds it, for every kind of source with columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """A record before its columns have a meaning."""

    content: Any
    """The record as the source holds it: usually a mapping with the columns, but a wrong record can be anything."""
    id: str
    """Id of the record, the same in all runs and epochs, for example "train.jsonl:42"."""
    where: str
    """The place of the record for errors, as the user wrote its path."""


class Records(Protocol):
    """The records of a source in its order. Reading a record may raise a DataError that names it."""

    digests: Mapping[str, str]
    """Digests of the content, by the name of the file or data set."""
    columns: Sequence[str]
    """Names of the columns of the table, or of its first record."""
    where: str
    """The place of these columns for errors: a file, a data set or the first record."""

    def __len__(self) -> int:
        """Returns the number of records."""

    def __getitem__(self, index: int) -> SourceRecord:
        """Returns the record with this index, the same at every call."""
