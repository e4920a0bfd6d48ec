"""Recognises a form of data sets, groups the rows that belong together, and converts them into records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ray_rl.config.offline import Wanted
from ray_rl.data.columns import shorten
from ray_rl.data.formats.defects import defect
from ray_rl.data.formats.fields import Fields
from ray_rl.data.formats.record import Dropped, Record, Unusable
from ray_rl.data.records import SourceRecord
from ray_rl.errors import DataError

Conversion = Callable[[Sequence[Fields]], Sequence[Record]]
"""Turns the rows of a unit, nearly always one, into records. Raises DataError for what it cannot read, and Unusable."""


def _any(values: Mapping[str, Any]) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Format:
    """A form of data sets."""

    name: str
    """The value of `data.format`."""
    wanted: Wanted
    """The kind of its records."""
    line: str
    """A line for users about the content of a file of this form, and how it is read."""
    columns: tuple[str, ...]
    """Columns that its rows have, among others."""
    conversion: Conversion
    without: tuple[str, ...] = ()
    """Columns that its rows do not have: those that tell it from other forms."""
    looks: Callable[[Mapping[str, Any]], bool] = _any
    """Whether the values of a row with these columns look like this form."""
    joined_by: str | None = None
    """The column whose equal values join consecutive rows into one unit. None: every row is a unit."""

    def fits(self, content: object) -> bool:
        """Returns whether a row looks like this form."""
        if not isinstance(content, Mapping) or any(name in content for name in self.without):
            return False
        return all(name in content for name in self.columns) and self.looks(content)

    def units(self, records: Iterable[SourceRecord]) -> Iterator[tuple[SourceRecord, ...]]:
        """Yields the rows that are converted together."""
        if self.joined_by is None:
            yield from ((record,) for record in records)
            return
        for _, unit in groupby(records, key=self._key):
            yield tuple(unit)

    def convert(self, unit: Sequence[SourceRecord]) -> list[Record | Dropped]:
        """Returns the records that the rows of a unit give, or why there is none.

        Raises:
            DataError: a row cannot be read; the message begins with its place.
        """
        try:
            records = self.conversion([_fields(row) for row in unit])
        except Unusable as unusable:
            return [Dropped(str(unusable))]
        return [record if (reason := defect(record)) is None else Dropped(reason) for record in records]

    def _key(self, row: SourceRecord) -> object:
        assert self.joined_by is not None, "rows that no column joins are not compared"
        value = row.content.get(self.joined_by) if isinstance(row.content, Mapping) else None
        return row.id if value is None else ("same", value)


def _fields(row: SourceRecord) -> Fields:
    if not isinstance(row.content, Mapping):
        raise DataError(f"{row.where}: {shorten(row.content)} is not a row; write an object with named columns")
    return Fields(row.where, row.content)
