"""Opens the source that `data:` describes."""

from __future__ import annotations

from typing import assert_never

from ray_rl.config.data import (
    Addition,
    Csv,
    CustomSource,
    DataConfig,
    Episodes,
    Files,
    Hub,
    Jsonl,
    Mixture,
    Parquet,
    ReasoningGym,
    RecordSource,
)
from ray_rl.data.json_lines import JsonlRecords
from ray_rl.data.layout import Layout, layout_of
from ray_rl.data.procedural import AdditionRows, EpisodeRows, ReasoningGymRows
from ray_rl.data.records import Records
from ray_rl.data.rows import Rows, TableRows
from ray_rl.data.tables import ArrowRecords, CustomRecords, HubRecords, is_saved
from ray_rl.errors import ConfigError


def open_rows(config: DataConfig, *, seed: int) -> Rows:
    """Returns the prompts that `data:` describes, with their columns.

    Raises:
        DataError: a file or a data set is missing, malformed or empty.
        ConfigError: there is no such task, option or function.
    """
    match config:
        case Addition():
            return AdditionRows(config, seed=seed)
        case ReasoningGym():
            return ReasoningGymRows(config, seed=seed)
        case Episodes():
            return EpisodeRows(config)
        case Mixture():
            raise ConfigError("data.kind=mixture: its parts have examples, and prompts come from one source")
        case _:
            records = open_records(config)
    if isinstance(config, CustomSource):
        return TableRows(records, Layout(function=config.function))
    return TableRows(records, layout_of(config, records.columns, where=records.where, first=records[0].content))


def open_records(config: RecordSource) -> Records:
    """Returns the records of a source with columns.

    Raises:
        DataError: a file or a data set is missing, malformed or empty.
        ConfigError: there is no such function.
    """
    match config:
        case Files() if is_saved(config.path):
            return HubRecords(config)
        case Jsonl():
            return JsonlRecords(config)
        case Parquet() | Csv():
            return ArrowRecords(config)
        case Hub():
            return HubRecords(config)
        case CustomSource():
            return CustomRecords(config)
        case _:
            assert_never(config)
