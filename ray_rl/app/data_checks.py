"""Checks `data` and `rewards` before anything is started. Loads no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ray_rl.catalog.shapes import read_settings, reads_chat
from ray_rl.config.data import Computed, CustomSource, DataConfig, Hub, Mixture, ReasoningGym
from ray_rl.config.environment import CustomEnvironment
from ray_rl.config.rewards import CustomReward
from ray_rl.config.run import RunConfig
from ray_rl.data.ahead import check_rows
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.examples.reading import Reading, sources_of
from ray_rl.data.messages import as_messages
from ray_rl.data.opening import open_rows
from ray_rl.data.order import epoch_order
from ray_rl.data.procedural import check_task
from ray_rl.data.row_checks import CheckedRows
from ray_rl.data.rows import Row
from ray_rl.errors import DataError
from ray_rl.isolation.checking import check_function

FIRST_ROWS = 256
"""The number of prompts that are enough to check `data.max_prompt_tokens`, and to check rows that we compute."""
ROWS_IN_ORDER = 10_000
"""Larger tables, which may take too long to check, are checked in the order in which their rows are used."""
QUICK_S = 5.0
"""Limit for checks that only read rows."""


def say_nothing(_: str) -> None:
    """Ignores a message."""


def check_data(
    config: RunConfig,
    *,
    model_folder: Path | str | None = None,
    row_checks: Sequence[Callable[[Row], None]] = (),
    with_tokenizer: bool = True,
    say: Callable[[str], None] = say_nothing,
) -> CheckedRows | None:
    """Checks the prompt source and its rows, as many as `data.check_s` allows.

    All rows are read first, in half of the time. Then each row gets all checks: the columns that rewards need, the chat
    template, the length, and the checks of the caller. If we compute the rows, only the first ones are checked.

    Args:
        config: a configuration that has passed the rules between its fields.
        model_folder: the folder of the model, if it is not `model.path`: a packaged model's cache, or a name of the
            hub. Prompts are not tokenised if it is a folder that does not exist yet.
        row_checks: called with every row that is checked; each raises DataError if the row is wrong.
        with_tokenizer: False imports no transformers, takes a few seconds at most, and asks neither the hub nor a
            user's function for rows.
        say: called with findings and with the progress of the checks.

    Returns:
        The rows, for the run; None if they were not opened.

    Raises:
        DataError: a file, a row or a column is wrong; the message names the line or row.
        ConfigError: a task, an option or an import path is wrong.
    """
    data = config.data
    for index, reward in enumerate(config.rewards):
        if isinstance(reward, CustomReward):
            check_function(reward.function, key=f"rewards[{index}].function")
    if isinstance(data, CustomSource):
        check_function(data.function, key="data.function")
    if isinstance(config.environment, CustomEnvironment):
        check_function(config.environment.function, key="environment.function")
    if isinstance(data, ReasoningGym):
        check_task(data.task)
    if not with_tokenizer and are_far(data):
        return None
    start = time.monotonic()
    rows = open_rows(data, seed=config.run.seed)
    for line in rows.notes:
        say(f"data: {line}")
    checked = CheckedRows(config.data, config.rewards, rows, [*row_checks, *_plain_readers(config)])
    seconds = data.check_s if with_tokenizer else min(data.check_s, QUICK_S)
    size = min(len(rows), FIRST_ROWS) if isinstance(data, Computed) else len(rows)
    # The first row is checked even if there is no time.
    checked.read(0)
    check_rows(checked.read, range(size), until=start + seconds / 2, say=say, what="read")
    if with_tokenizer:
        checked.tokenizer = _tokenizer(config, model_folder)
    order = range(size) if size <= ROWS_IN_ORDER else _first_use(config, size)
    is_complete = True
    for part in (order[:FIRST_ROWS], order[FIRST_ROWS:]):
        is_complete &= check_rows(checked.check, part, until=start + seconds, say=say, what="checked")
        checked.refuse_if_all_are_longer()
    _report(checked, is_complete=is_complete, say=say)
    return checked


def _plain_readers(config: RunConfig) -> list[Callable[[Row], None]]:
    """Returns a check of rows if a reward model was trained on plain text: it reads prompts of one message."""
    paths = [] if config.reward_models is None else config.reward_models.paths
    plain = [path for path in paths if not reads_chat(read_settings(path) or {})]

    def check(row: Row) -> None:
        roles = [message.role for message in as_messages(row.prompt, "user")]
        if roles != ["user"]:
            raise DataError(
                f"{row.id}: the prompt has the turns {', '.join(roles)}, and the reward model {plain[0]} was trained "
                "on plain text (data.chat=false), so it reads a question and its answer; give prompts of one message "
                "of the user, or train the reward model with data.chat=true"
            )

    return [check] if plain else []


def _report(checked: CheckedRows, *, is_complete: bool, say: Callable[[str], None]) -> None:
    if checked.longer:
        say(
            f"data: {checked.longer:,} of {len(checked.right):,} prompts are longer than "
            f"data.max_prompt_tokens={checked.data.max_prompt_tokens} and will be left out"
        )
    if checked.wrong:
        first = checked.wrong[min(checked.wrong)]
        count = f"{len(checked.wrong):,} of {len(checked.rows):,}"
        say(f"data: {count} rows are wrong and will be left out; the first: {first}")
    if checked.unanswered:
        say(
            f"data: {checked.unanswered:,} of {len(checked.right):,} rows have null for an answer that a reward "
            "compares with; it has no opinion on their completions"
        )
    if not is_complete and checked.tokenizer is not None:
        say(
            f"data: {len(checked.right):,} of {len(checked.rows):,} rows were checked in "
            f"data.check_s={checked.data.check_s:g}; the others are checked during training"
        )


def check_example_rows(config: RunConfig, *, say: Callable[[str], None]) -> None:
    """Converts rows of a run that learns from examples, for a few seconds and without a tokenizer.

    Asks neither the hub nor a user's function for rows.

    Raises:
        DataError: a file or a row is wrong; the message names the line or row.
        ConfigError: a format, a column or an import path is wrong.
    """
    for source in sources_of(config.data):
        if isinstance(source, CustomSource):
            check_function(source.function, key="data.function")
        if are_far(source):
            continue
        reading = Reading(source, wanted=config.offline.wanted, note=say)
        for _ in reading.units(until=time.monotonic() + QUICK_S):
            pass
        reading.refuse_wrong_rows()


def are_far(data: DataConfig) -> bool:
    """Returns whether the rows, or those of a part, come from the hub or from a user's function."""
    if isinstance(data, Mixture):
        return any(map(are_far, data.sources))
    return isinstance(data, CustomSource) or (isinstance(data, Hub) and not Path(data.name).expanduser().is_dir())


def _first_use(config: RunConfig, size: int) -> Sequence[int]:
    return epoch_order(size, shuffle=config.data.shuffle, seed=config.run.seed, epoch=0)


def _tokenizer(config: RunConfig, folder: Path | str | None) -> ChatTokenizer | None:
    """Returns the policy's tokenizer, if its files are on this machine or on the hub."""
    place = Path(config.model.path) if folder is None else folder
    if isinstance(place, Path) and not any(place.glob("tokenizer*")):
        return None
    tokenizer = ChatTokenizer.of_policy(config.model, config.data, place)
    tokenizer.ends_of(config.rollout, config.data)
    return tokenizer
