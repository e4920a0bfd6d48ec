"""Reads the rows of a source and converts them into records, for the loader and for quick checks.

Loads without numpy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import assert_never

from ray_rl.config.data import CustomSource, DataConfig, Files, Hub, Mixture, RecordSource, Table
from ray_rl.config.offline import Wanted
from ray_rl.data.ahead import PROGRESS_S, SHOWN_FAULTS, as_one
from ray_rl.data.columns import column_names
from ray_rl.data.formats.choose import choose_format
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.record import Dropped, Record
from ray_rl.data.opening import open_records
from ray_rl.data.records import SourceRecord
from ray_rl.errors import ConfigError, DataError
from ray_rl.types import column_value

FIRST_RECORDS = 8
"""Number of records from which the format is detected."""


class Reading:
    """The rows of a source as records. Remembers which rows are wrong, until enough of them are to end the run."""

    def __init__(self, data: RecordSource, *, wanted: Wanted, note: Callable[[str], None]) -> None:
        """Opens the source, and finds out its format from the first rows.

        Args:
            data: the source.
            wanted: what the algorithm trains on.
            note: called with the progress of long work.

        Raises:
            DataError: a file or a data set is missing, malformed or empty, or has no known format.
            ConfigError: the source or its format is wrong.
        """
        self._data = data
        self._note = note
        self._row = -1
        self.records = open_records(data)
        self.faults: dict[int, DataError] = {}
        """Errors of wrong rows, by the index of the row up to which the source was read when they were found."""
        self.form: Format = self._format(wanted)
        """The format of the rows."""

    def units(self, *, until: float = math.inf) -> Iterator[tuple[SourceRecord, list[Record | Dropped]]]:
        """Yields what rows were converted into, with the first of the rows that belong together.

        Args:
            until: when to stop, on the clock of `time.monotonic`.
        """
        for unit in self.form.units(self._readable(until)):
            if time.monotonic() > until:
                return  # Further rows may belong to this unit.
            try:
                converted = self.form.convert(unit)
            except DataError as error:
                self.fail(error)
                continue
            yield unit[0], converted

    def fail(self, error: DataError) -> None:
        """Remembers that the row, or one of the rows, that was converted last is wrong."""
        self.faults[self._row] = error

    def refuse_wrong_rows(self) -> None:
        """Ends the reading.

        Raises:
            DataError: rows are wrong, and `data.on_bad_row` is stop; the message has their places.
        """
        if self.faults and self._stops:
            raise as_one(self.faults, is_complete=self._row == len(self.records))

    def wrong_rows(self) -> list[str]:
        """Returns a line about the rows that are wrong and left out, if there are any."""
        if not self.faults:
            return []
        first = self.faults[min(self.faults)]
        return [f"{len(self.faults):,} of {len(self.records):,} rows are wrong and left out; the first: {first}"]

    @property
    def _stops(self) -> bool:
        return self._data.on_bad_row == "stop"

    def _format(self, wanted: Wanted) -> Format:
        first: list[SourceRecord] = []
        faults: dict[int, DataError] = {}
        for index in range(len(self.records)):
            try:
                first.append(_renamed(self.records[index], self._data))
            except DataError as error:
                faults[index] = error
            if len(first) == FIRST_RECORDS or len(faults) == SHOWN_FAULTS:
                break
        if not first:
            raise as_one(faults, is_complete=len(faults) == len(self.records))
        name = self._data.format if isinstance(self._data, Table) else "auto"
        return choose_format(name, first, wanted=wanted)

    def _readable(self, until: float) -> Iterator[SourceRecord]:
        """Yields the rows that can be read, until enough of them are wrong to end the run."""
        start = told = time.monotonic()
        for index in range(len(self.records)):
            now = time.monotonic()
            if now > until or (self._stops and len(self.faults) >= SHOWN_FAULTS):
                return
            self._row = index
            if now - told > PROGRESS_S:
                self._note(f"data: {index:,} of {len(self.records):,} rows read in {now - start:.0f} s")
                told = now
            try:
                record = _renamed(self.records[index], self._data)
            except DataError as error:
                self.fail(error)
                continue
            yield record
        # Rows that belong together are converted once a row that does not, or the end, has been read.
        self._row = len(self.records)


def sources_of(data: DataConfig) -> tuple[RecordSource, ...]:
    """Returns the sources that `data:` describes: one, or those of a mixture.

    Raises:
        ConfigError: it describes questions without answers.
    """
    match data:
        case Mixture():
            return data.sources
        case Table() | CustomSource():
            return (data,)
        case _:
            raise ConfigError(
                f"data.kind={data.kind} generates questions without answers to learn from; set data.kind to jsonl, "
                "parquet, csv, hub, custom or mixture"
            )


def name_of(data: RecordSource) -> str:
    """Returns the source as the user named it."""
    match data:
        case Files():
            return data.path
        case Hub():
            return data.name
        case CustomSource():
            return data.function
        case _:
            assert_never(data)


def _renamed(record: SourceRecord, data: RecordSource) -> SourceRecord:
    """Returns the record with the columns that `data.columns` and `data.prompt_column` name under their new names."""
    if not isinstance(data, Table) or not isinstance(record.content, Mapping):
        return record
    renames = dict(data.columns)
    if data.prompt_column is not None:
        renames["prompt"] = data.prompt_column
    content = {name: value for name, value in record.content.items() if name not in renames.values()}
    for new, old in renames.items():
        try:
            content[new] = column_value(record.content, old)
        except KeyError:
            names = ", ".join(column_names(record.content))
            key = "data.prompt_column" if old == data.prompt_column else f"data.columns.{new}"
            raise DataError(
                f"{record.where}: no column {old!r}; the columns are {names}; correct {key}, or the row"
            ) from None
    return SourceRecord(content, record.id, record.where)
