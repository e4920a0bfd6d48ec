"""What can be known to be wrong with `data` and `rewards` before anything is started. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from ray_rl.config.data import CustomSource, DataConfig, Hub, Jsonl, Parquet, ReasoningGym, Table
from ray_rl.config.rewards import CustomReward, MathVerify, Number, RewardConfig
from ray_rl.config.run import RunConfig
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.procedural import check_task
from ray_rl.data.rows import Row, Rows
from ray_rl.data.source import open_rows, tokenize_row
from ray_rl.data.tables import parquet_columns
from ray_rl.errors import ConfigError, DataError
from ray_rl.sandbox.importing import import_function

TOKENIZED_ROWS = 256
"""So many prompts tell whether `data.max_prompt_tokens` can be right; all of a large file would take too long."""


def check_data(
    config: RunConfig,
    *,
    model_folder: Path | str | None = None,
    row_checks: Sequence[Callable[[Row], None]] = (),
    with_tokenizer: bool = True,
) -> None:
    """Checks the prompt source, the columns that the rewards need, and that prompts fit `data.max_prompt_tokens`.

    Every line of a jsonl file is read; of a parquet file the schema and the first rows. A data set that the hub would
    have to send, and what a custom source returns, are left for the start of the run.

    Args:
        config: has passed the rules between its fields.
        model_folder: where the model lies, if that is not `model.path`: a packaged model's cache. Without a
            tokenizer.json there, the length of prompts is not checked.
        row_checks: called with every row that is checked; each raises DataError if the row is wrong.
        with_tokenizer: whether to check the length of prompts at all.

    Raises:
        DataError: a file, a row or a column; of a jsonl file with its line.
        ConfigError: a task, an option or an import path.
    """
    _check_system_prompt(config.data)
    for index, reward in enumerate(config.rewards):
        if isinstance(reward, CustomReward):
            _check_import(reward.function, key=f"rewards[{index}].function")
    match config.data:
        case CustomSource():
            _check_import(config.data.function, key="data.function")
            return
        case Hub() if not Path(config.data.name).is_dir():
            return
        case Parquet():
            _check_reward_columns(config.rewards, parquet_columns(config.data), where=config.data.path)
        case ReasoningGym():
            check_task(config.data.task)
        case _:
            pass
    rows = open_rows(config.data, seed=config.run.seed)
    # Each row of a file can be wrong by itself; where the columns are a schema's or ours, one row stands for all.
    for index in range(len(rows) if isinstance(config.data, Jsonl) else 1):
        row = rows[index]
        _check_reward_columns(config.rewards, set(row.columns), where=_place(config.data, row.id))
        for check in row_checks:
            check(row)
    if with_tokenizer:
        _check_lengths(config, rows, Path(model_folder or config.model.path))


def _check_system_prompt(data: DataConfig) -> None:
    if isinstance(data, Table) and not data.chat and data.system_prompt is not None:
        raise ConfigError(
            "data.system_prompt needs the chat template, but data.chat=false; "
            "remove it, or put it into the text of the prompts"
        )


def _check_import(path: str, *, key: str) -> None:
    try:
        import_function(path)
    except ConfigError as error:
        raise ConfigError(f"{key}={error}") from error


def _check_reward_columns(rewards: list[RewardConfig], columns: set[str], *, where: str) -> None:
    for index, reward in enumerate(rewards):
        if isinstance(reward, Number | MathVerify) and reward.column not in columns:
            raise DataError(
                f"{where}: no column {reward.column!r}, which rewards[{index}] ({reward.kind}) compares with; "
                f"the columns are {', '.join(sorted(columns)) or 'none'}; "
                f"set rewards[{index}].column, or rename one: data.columns: {{{reward.column}: ...}}"
            )


def _check_lengths(config: RunConfig, rows: Rows, folder: Path) -> None:
    """Refuses a limit that none of the first prompts meets, if the tokenizer is on this machine already."""
    if not (folder / "tokenizer.json").is_file():
        return
    tokenizer = ChatTokenizer.of_run(config, folder)
    tokenizer.ends_of(config)
    limit = config.data.max_prompt_tokens
    first = None
    for index in islice(range(len(rows)), TOKENIZED_ROWS):
        prompt = tokenize_row(rows[index], config.data, tokenizer)
        if len(prompt.token_ids) <= limit:
            return
        first = first or prompt
    if first is not None:
        raise DataError(
            f"{_place(config.data, first.id)}: {len(first.token_ids)} tokens with the chat template, more than "
            f"data.max_prompt_tokens={limit}, and so are the others that were tried; raise data.max_prompt_tokens"
        )


def _place(data: DataConfig, row_id: str) -> str:
    """The row as its user finds it: with the path of its file as the config gives it."""
    if isinstance(data, Jsonl | Parquet):
        return f"{data.path}:{row_id.rpartition(':')[2]}"
    return row_id
