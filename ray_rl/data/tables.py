"""Reads records of tables: parquet and CSV files, data sets of the `datasets` package, and users' own sequences."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_rl.config.data import Csv, CustomSource, Files, Hub, Parquet
from ray_rl.data.columns import reason
from ray_rl.data.files import WHOLE_BYTES, DataFile, data_files, digests
from ray_rl.data.records import SourceRecord
from ray_rl.data.users_rows import users_rows
from ray_rl.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pyarrow

DIGEST_ROWS = 16_384
"""Number of evenly spread rows that are hashed of a larger data set without files."""


class ArrowRecords:
    """The rows of parquet or CSV files, as Arrow. Rows are counted from 1, in each file."""

    def __init__(self, config: Parquet | Csv) -> None:
        """Reads the files; large ones into a temporary file, which is mapped into memory.

        Raises:
            DataError: a file is missing or damaged, or its columns differ from the first, or there are no rows.
        """
        files = data_files(config)
        self.digests: Mapping[str, str] = digests(files)
        """The digest of each file, by its name."""
        self._files: list[DataFile] = []
        self._tables: list[pyarrow.Table] = []
        for file in files:
            table = _csv(file, config.delimiter) if isinstance(config, Csv) else _parquet(file)
            if table.num_rows:
                self._files.append(file)
                self._tables.append(table)
        if not self._tables:
            raise DataError(f"{config.path}: no rows; correct data.path")
        names = self._tables[0].column_names
        for file, table in zip(self._files, self._tables, strict=True):
            if set(table.column_names) != set(names):
                raise DataError(
                    f"{file.shown}: the columns are {', '.join(sorted(table.column_names))}, and those of "
                    f"{self._files[0].shown} are {', '.join(sorted(names))}; give files of one kind in data.path"
                )
        self.where = self._files[0].shown
        """The first file with rows."""
        self.columns: Sequence[str] = names
        """The columns of all files."""

    def __len__(self) -> int:
        return sum(table.num_rows for table in self._tables)

    def __getitem__(self, index: int) -> SourceRecord:
        which = 0
        while index >= self._tables[which].num_rows:
            index -= self._tables[which].num_rows
            which += 1
        file = self._files[which]
        where = f"{file.shown}: row {index + 1}"
        try:
            (record,) = self._tables[which].slice(index, 1).to_pylist()
        except ValueError as error:  # includes text that is not UTF-8, and times that Python cannot represent
            raise DataError(f"{where}: cannot be read: {reason(error)}; correct the row") from error
        return SourceRecord(record, f"{file.name}:{index + 1}", where)


class HubRecords:
    """A split of a data set from the hub, or from a folder that `datasets` wrote. Rows are counted from 1."""

    def __init__(self, config: Hub | Files) -> None:
        """Loads the data set, memory-mapped.

        Raises:
            DataError: there is no such data set or split, it cannot be read, or it has no rows.
        """
        name = config.name if isinstance(config, Hub) else config.path
        self.where = f"{name}/{config.split}"
        """The name of the data set and its split."""
        self._dataset = _from_disk(name, config.split) if is_saved(name) else _from_hub(config)
        if not len(self):
            raise DataError(f"{self.where}: no rows; correct data.split")
        self.digests: Mapping[str, str] = {self.where: rows_digest(self._dataset)}
        """A digest of the rows, by the name of the data set."""
        self.columns: Sequence[str] = self._dataset.column_names
        """The columns of the data set."""

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> SourceRecord:
        where = f"{self.where}: row {index + 1}"
        try:
            record = self._dataset[index]
        except (OSError, ValueError) as error:
            raise DataError(f"{where}: cannot be read: {reason(error)}; correct the row") from error
        return SourceRecord(record, f"{self.where}:{index + 1}", where)


class CustomRecords:
    """The rows that the user's function returned. Rows are counted from 0."""

    def __init__(self, config: CustomSource) -> None:
        """Reads the rows from the function, which runs in a process of its own.

        Raises:
            DataError, ConfigError: as in `users_rows`.
        """
        self._rows = users_rows(config)
        self.where = config.function
        """The import path of the function."""
        self.columns: Sequence[str] = list(self._rows[0]) if isinstance(self._rows[0], Mapping) else []
        """The columns of the first row."""
        self.digests: Mapping[str, str] = {config.function: rows_digest(self._rows)}
        """A digest of the rows, by the name of the function."""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> SourceRecord:
        place = f"{self.where}[{index}]"
        return SourceRecord(self._rows[index], place, place)


def rows_digest(rows: Any) -> str:
    """Returns a digest of the rows, `rows:...`.

    With more than DIGEST_ROWS rows it is a digest of a sample and of the number of rows, `rows-sampled:...`.

    Args:
        rows: a sequence of mappings. Values that JSON cannot represent count only by their type.
    """
    size = len(rows)
    chosen = range(size) if size <= DIGEST_ROWS else [size * number // DIGEST_ROWS for number in range(DIGEST_ROWS)]
    hashed = hashlib.blake2b(str(size).encode(), digest_size=16)
    for index in chosen:
        try:
            text = json.dumps(rows[index], sort_keys=True, default=_type_name)
        except (TypeError, ValueError, RecursionError):
            text = _type_name(rows[index])  # keys that are no text, or a value that holds itself
        hashed.update(text.encode())
    return f"{'rows' if size <= DIGEST_ROWS else 'rows-sampled'}:{hashed.hexdigest()}"


def is_saved(folder: str) -> bool:
    """Returns whether `save_to_disk` of a data set wrote a folder."""
    root = Path(folder).expanduser()
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def _type_name(value: object) -> str:
    return type(value).__name__


def _from_disk(name: str, split: str) -> datasets.Dataset:
    import datasets
    import pyarrow

    try:
        saved = datasets.load_from_disk(str(Path(name).expanduser()))
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{name}: this data set of save_to_disk cannot be read: {type(error).__name__}: "
            f"{reason(error)}; write it again"
        ) from error
    if isinstance(saved, datasets.Dataset):
        return saved
    if split not in saved:
        raise DataError(f"{name}: no split {split!r}; it has {', '.join(saved)}; set data.split")
    return saved[split]


def _from_hub(config: Hub | Files) -> datasets.Dataset:
    import datasets
    import pyarrow

    assert isinstance(config, Hub), "files are read from a folder that save_to_disk wrote"
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(config.name, config.subset, split=config.split, revision=config.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError, pyarrow.ArrowException) as error:
        raise DataError(
            f"data.name={config.name}, subset={config.subset}, split={config.split}: "
            f"datasets.load_dataset failed: {_cause(error)}; "
            "correct the names, or the files if it is a folder: all of a split have the same columns"
        ) from error


def _cause(error: BaseException) -> str:
    """Returns the root cause of an error, on one line."""
    import datasets

    deepest = error
    while isinstance(deepest, datasets.exceptions.DatasetGenerationError) and deepest.__cause__ is not None:
        deepest = deepest.__cause__
    return f"{type(deepest).__name__}: {reason(deepest)}"


def _parquet(file: DataFile) -> pyarrow.Table:
    """Returns the table of a file. If it is larger than WHOLE_BYTES unpacked, it is mapped from a temporary file."""
    import pyarrow
    import pyarrow.parquet

    try:
        opened = pyarrow.parquet.ParquetFile(file.path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file.shown}: not a parquet file: {reason(error)}; correct data.path or data.kind") from error
    with opened:
        metadata = opened.metadata
        unpacked = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
        groups = _row_groups(opened, file)
        if unpacked > WHOLE_BYTES:
            return _mapped(groups, opened.schema_arrow, file)
        return pyarrow.concat_tables([opened.schema_arrow.empty_table(), *groups])


def _row_groups(opened: Any, file: DataFile) -> Iterator[pyarrow.Table]:
    import pyarrow

    first = 1
    for number in range(opened.num_row_groups):
        try:
            group = opened.read_row_group(number)
        except (pyarrow.ArrowException, OSError) as error:
            last = first + opened.metadata.row_group(number).num_rows - 1
            raise DataError(
                f"{file.shown}: row group {number + 1} of {opened.num_row_groups} (rows {first} to {last}) is damaged: "
                f"{reason(error)}; copy or write the file again"
            ) from error
        yield group
        first += group.num_rows


def _mapped(groups: Iterable[pyarrow.Table], schema: pyarrow.Schema, file: DataFile) -> pyarrow.Table:
    """Returns the groups as one table in an unnamed file that is mapped into memory."""
    import pyarrow

    with tempfile.NamedTemporaryFile(prefix="ray_rl_data_") as written:
        try:
            with pyarrow.OSFile(written.name, "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
                for group in groups:
                    writer.write_table(group)
        except OSError as error:
            raise DataError(
                f"{file.shown}: no room to unpack it in {tempfile.gettempdir()}: {reason(error)}; "
                "set TMPDIR to a larger folder"
            ) from error
        return pyarrow.ipc.open_file(pyarrow.memory_map(written.name)).read_all()


def _csv(file: DataFile, delimiter: str) -> pyarrow.Table:
    """Returns the table of a file with all values as text: an answer 007 or 1,234 is not converted."""
    import pyarrow
    import pyarrow.csv

    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    try:
        with pyarrow.csv.open_csv(file.path, parse_options=parse) as reader:
            names = reader.schema.names
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise DataError(f"{file.shown}: the columns {', '.join(twice)} are in the header twice; rename one of them")
        convert = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False
        )
        return pyarrow.csv.read_csv(file.path, parse_options=parse, convert_options=convert)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{file.shown}: not a CSV file with a header: {reason(error)}; correct the file, or data.delimiter"
        ) from error
