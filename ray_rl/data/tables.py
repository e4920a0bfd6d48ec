"""Rows that are read: files, data sets of the hub, and users' own sequences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_rl.config.data import CustomSource, Hub, Jsonl, Parquet
from ray_rl.data.rows import Row, check_columns, make_row, shorten
from ray_rl.errors import DataError
from ray_rl.sandbox.importing import import_function

if TYPE_CHECKING:
    import pyarrow.parquet


class JsonlRows:
    """One JSON object a line; blank lines are skipped. Kept as bytes, parsed when read."""

    def __init__(self, config: Jsonl) -> None:
        self._config = config
        with _existing_file(config.path).open("rb") as file:
            self._lines = [(number, line) for number, line in enumerate(file, start=1) if line.strip()]
        if not self._lines:
            raise DataError(f"{config.path}: no lines; write one JSON object a line, or correct data.path")

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Row:
        number, line = self._lines[index]
        where = f"{self._config.path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: not JSON: {error.msg} at column {error.colno} of {shorten(error.doc.strip())}; "
                "write one JSON object a line"
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8: {error.reason} at byte {error.start}; convert the file") from error
        return make_row(
            record,
            id=f"{Path(self._config.path).name}:{number}",
            where=where,
            prompt_column=self._config.prompt_column,
            renames=self._config.columns,
        )


class ParquetRows:
    """A parquet file, in memory as Arrow. Rows are counted from 1."""

    def __init__(self, config: Parquet) -> None:
        self._config = config
        with open_parquet(config.path) as file:
            self._table = file.read()
        if not len(self):
            raise DataError(f"{config.path}: no rows; correct data.path")

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> Row:
        (record,) = self._table.slice(index, 1).to_pylist()
        return make_row(
            record,
            id=f"{Path(self._config.path).name}:{index + 1}",
            where=f"{self._config.path}: row {index + 1}",
            prompt_column=self._config.prompt_column,
            renames=self._config.columns,
        )


class HubRows:
    """A split of a data set of the hub."""

    def __init__(self, config: Hub) -> None:
        import datasets

        self._config = config
        self._where = f"{config.name}/{config.split}"
        try:
            self._dataset = datasets.load_dataset(
                config.name, config.subset, split=config.split, revision=config.revision
            )
        except (OSError, ValueError) as error:
            raise DataError(
                f"data.name={config.name}, subset={config.subset}, split={config.split}: "
                f"datasets.load_dataset failed: {type(error).__name__}: {error}; "
                "correct the names, or save the data set to a local folder and name that"
            ) from error
        if not len(self):
            raise DataError(f"{self._where}: no rows; correct data.split")

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        return make_row(
            self._dataset[index],
            id=f"{self._where}:{index + 1}",
            where=f"{self._where}: row {index + 1}",
            prompt_column=self._config.prompt_column,
            renames=self._config.columns,
        )


class CustomRows:
    """What the user's function returned; the prompt is in column `prompt`. Rows are counted from 0."""

    def __init__(self, config: CustomSource) -> None:
        self._config = config
        function = import_function(config.function)
        rows = function(**config.options)
        if not isinstance(rows, Iterable) or isinstance(rows, str | Mapping):
            raise DataError(f"data.function={config.function} returned {shorten(rows)}; return a list of mappings")
        self._rows: list[Any] = list(rows)
        if not self._rows:
            raise DataError(f"data.function={config.function} returned no rows; return at least one")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        where = f"{self._config.function}[{index}]"
        return make_row(self._rows[index], id=where, where=where, prompt_column="prompt", renames={})


def parquet_columns(config: Parquet) -> set[str]:
    """The columns that rewards see, by the schema alone.

    Raises:
        DataError: not a parquet file, or a column is missing.
    """
    with open_parquet(config.path) as file:
        names = list(file.schema_arrow.names)
    return check_columns(names, where=config.path, prompt_column=config.prompt_column, renames=config.columns)


def open_parquet(path: str) -> pyarrow.parquet.ParquetFile:
    """The open file; close it.

    Raises:
        DataError: missing, or not parquet.
    """
    import pyarrow
    import pyarrow.parquet

    file = _existing_file(path)
    try:
        return pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a parquet file: {error}; correct data.path or data.kind") from error


def _existing_file(path: str) -> Path:
    file = Path(path).expanduser()
    if file.is_dir():
        raise DataError(f"data.path={path} is a folder; name a file in it")
    if not file.is_file():
        raise DataError(f"data.path={path} does not exist (looked from {Path.cwd()}); correct data.path")
    return file
