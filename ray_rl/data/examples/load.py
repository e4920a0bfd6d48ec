"""Loads the examples that `data:` describes: opens, converts, tokenises, cleans, and holds out a share."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ray_rl.config.data import Addition, CustomSource, DataConfig, Files, Hub, ReasoningGym, Table
from ray_rl.config.offline import Wanted
from ray_rl.data.ahead import PROGRESS_S, SHOWN_FAULTS, as_one
from ray_rl.data.chat import ChatTokenizer, uses_chat
from ray_rl.data.columns import column_names
from ray_rl.data.examples.held_out import is_held_out
from ray_rl.data.examples.hygiene import Hygiene, hygiene_of
from ray_rl.data.examples.report import reasons, shown_example, summary
from ray_rl.data.examples.tokenize import ExampleTokenizer, TrainOn
from ray_rl.data.formats.choose import choose_format
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.record import Dropped, Record, Unusable
from ray_rl.data.layout import Layout, notes
from ray_rl.data.opening import open_records
from ray_rl.data.records import Records, SourceRecord
from ray_rl.errors import ConfigError, DataError
from ray_rl.types import Example, column_value

FIRST_RECORDS = 8
"""Number of records from which the format is detected."""


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples of a run."""

    kind: str
    """`data.kind`."""
    train: Sequence[Example]
    """The examples to train on, in the order of their source."""
    held_out: Sequence[Example]
    """The examples to evaluate, in the order of their source."""
    lines: Sequence[str]
    """Lines for the user: what the data is taken for, one example, and what was left out."""
    digests: Mapping[str, str]
    """Digests of the files or data sets by their name, and one of which of their examples are trained on.

    Tokens are not part of them: some templates write today's date, and a run may be resumed tomorrow.
    """


def load_examples(
    data: DataConfig,
    *,
    wanted: Wanted,
    tokenizer: ChatTokenizer,
    note: Callable[[str], None],
    train_on: TrainOn = "assistant",
    separator: str = "\n",
) -> Examples:
    """Returns the examples that `data:` describes.

    Args:
        data: the section `data`.
        wanted: what the algorithm trains on.
        tokenizer: the tokenizer of the model.
        note: called with the progress of long work.
        train_on: the tokens of demonstrations with a loss.
        separator: the text after each step of a solution.

    Raises:
        DataError: a file, a data set or a row is wrong, with its place; or no example can be used.
        ConfigError: the source, the format or a column is wrong.
    """
    if isinstance(data, Addition | ReasoningGym):
        raise ConfigError(
            f"data.kind={data.kind} generates questions without answers to learn from; set data.kind to jsonl, "
            "parquet, csv, hub or custom"
        )
    records = open_records(data)
    chat = uses_chat(data)
    loading = _Loading(
        data,
        records,
        tokens=ExampleTokenizer(
            tokenizer, chat=chat, system_prompt=data.system_prompt, train_on=train_on, separator=separator
        ),
        hygiene=hygiene_of(
            tokenizer, chat=chat, max_tokens=data.max_tokens, too_long=data.too_long, deduplicate=data.deduplicate
        ),
        note=note,
    )
    form = loading.load(wanted)
    first = (loading.train or loading.held_out)[:1]
    lines = [
        *notes(Layout(), records.digests),
        f"{_name(data)} is read as {form.name}: {form.line}",
        *(line for example in first for line in shown_example(example, tokenizer)),
        *summary(loading.train, loading.held_out, loading.hygiene, wanted=wanted, rows=len(records)),
        *loading.wrong_rows(),
    ]
    digests = {**records.digests, "the list of examples": _digest(loading.train)}
    return Examples(data.kind, loading.train, loading.held_out, lines, digests)


@dataclass(slots=True)
class _Loading:
    """The examples of a source while its rows are read."""

    data: DataConfig
    records: Records
    tokens: ExampleTokenizer
    hygiene: Hygiene
    note: Callable[[str], None]
    train: list[Example] = field(default_factory=list)
    held_out: list[Example] = field(default_factory=list)
    faults: dict[int, DataError] = field(default_factory=dict)
    """Errors of wrong rows, by the number of the row at which they were found."""
    _row: int = -1

    def load(self, wanted: Wanted) -> Format:
        """Loads all rows, and returns their format.

        Raises:
            DataError, ConfigError: as in `load_examples`.
        """
        form = self._format(wanted)
        for unit in form.units(self._readable()):
            try:
                converted = form.convert(unit)
            except DataError as error:
                self.faults[self._row] = error
                continue
            self._take(converted, unit[0])
        if self.faults and self._stops:
            raise as_one(self.faults, is_complete=self._row + 1 == len(self.records))
        self._refuse_if_empty()
        return form

    def wrong_rows(self) -> list[str]:
        """Returns a line about the rows that are wrong and left out, if there are any."""
        if not self.faults:
            return []
        first = self.faults[min(self.faults)]
        return [f"{len(self.faults):,} of {len(self.records):,} rows are wrong and left out; the first: {first}"]

    @property
    def _stops(self) -> bool:
        return self.data.on_bad_row == "stop"

    def _format(self, wanted: Wanted) -> Format:
        first: list[SourceRecord] = []
        faults: dict[int, DataError] = {}
        for index in range(len(self.records)):
            try:
                first.append(_renamed(self.records[index], self.data))
            except DataError as error:
                faults[index] = error
            if len(first) == FIRST_RECORDS or len(faults) == SHOWN_FAULTS:
                break
        if not first:
            raise as_one(faults, is_complete=len(faults) == len(self.records))
        name = self.data.format if isinstance(self.data, Table) else "auto"
        return choose_format(name, first, wanted=wanted)

    def _readable(self) -> Iterator[SourceRecord]:
        """Yields the rows that can be read, until enough of them are wrong to end the run."""
        start = told = time.monotonic()
        for index in range(len(self.records)):
            if self._stops and len(self.faults) >= SHOWN_FAULTS:
                return
            self._row = index
            now = time.monotonic()
            if now - told > PROGRESS_S:
                self.note(f"data: {index:,} of {len(self.records):,} rows tokenised in {now - start:.0f} s")
                told = now
            try:
                record = _renamed(self.records[index], self.data)
            except DataError as error:
                self.faults[index] = error
                continue
            yield record

    def _take(self, converted: Sequence[Record | Dropped], row: SourceRecord) -> None:
        for number, record in enumerate(converted, start=1):
            if isinstance(record, Dropped):
                self.hygiene.left_out[record.reason] += 1
                continue
            id = row.id if len(converted) == 1 else f"{row.id}/{number}"
            try:
                whole = self.tokens.example(record, id=id, where=row.where)
            except Unusable as unusable:
                self.hygiene.left_out[str(unusable)] += 1
                continue
            except DataError as error:
                self.faults[self._row] = error
                continue
            example = self.hygiene.admitted(whole, where=row.where)
            if example is not None:
                side = self.held_out if is_held_out(record.prompt, share=self.data.held_out) else self.train
                side.append(example)

    def _refuse_if_empty(self) -> None:
        """Refuses data of which nothing can be used, or of which one side has nothing.

        Raises:
            DataError: it is so; the message has the reasons.
        """
        if not self.train and not self.held_out:
            why = "; ".join(filter(None, [reasons(self.hygiene), *self.wrong_rows()]))
            raise DataError(f"{_name(self.data)}: none of {len(self.records):,} rows can be used: {why}")
        empty = "to train on" if not self.train else "held out" if self.data.held_out and not self.held_out else None
        if empty is not None:
            count = len(self.train) + len(self.held_out)
            raise DataError(
                f"data.held_out={self.data.held_out:g}: of {count:,} examples, none is {empty}; a hash of the prompt "
                "decides; set another share, or use data with more prompts"
            )


def _name(data: DataConfig) -> str:
    """Returns the source as the user named it."""
    match data:
        case Files():
            return data.path
        case Hub():
            return data.name
        case CustomSource():
            return data.function
        case _:
            return data.kind


def _renamed(record: SourceRecord, data: DataConfig) -> SourceRecord:
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


def _digest(examples: Iterable[Example]) -> str:
    hashed = hashlib.blake2b("\n".join(example.id for example in examples).encode(), digest_size=16)
    return f"blake2b:{hashed.hexdigest()}"
