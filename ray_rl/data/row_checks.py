"""Checks that a row can be read and tokenised, and has the columns that the rewards need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_rl.config.data import Computed, CustomSource, DataConfig, Files, Table
from ray_rl.config.rewards import Comparison, RewardConfig, RightCall
from ray_rl.data.ahead import Lookahead
from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.columns import column_names, has_column, shorten
from ray_rl.data.layout import possible_answers
from ray_rl.data.rows import Row, Rows
from ray_rl.data.source import tokenize_row
from ray_rl.errors import DataError
from ray_rl.types import column_value


@dataclass(slots=True)
class CheckedRows:
    """The rows of a run, and the results of their checks."""

    data: DataConfig
    rewards: Sequence[RewardConfig]
    rows: Rows
    others: Sequence[Callable[[Row], None]] = ()
    """Further checks of a row: each raises DataError if it is wrong."""
    tokenizer: ChatTokenizer | None = None
    """The tokenizer, which only one thread may use at a time."""
    right: set[int] = field(default_factory=set)
    """Indices of rows that have passed all checks."""
    longer: int = 0
    """Number of these rows that are longer than `data.max_prompt_tokens`."""
    wrong: dict[int, str] = field(default_factory=dict)
    """Errors of rows that the run leaves out, by index."""
    unanswered: int = 0
    """Number of checked rows in which a column that a reward compares with is null."""
    _first_longer: str = ""

    def read(self, index: int) -> Row | None:
        """Returns a row with the columns that the rewards need; None for a wrong row that the run leaves out.

        Raises:
            DataError: the row is wrong; the message names it.
        """
        try:
            row = self.rows[index]
        except DataError as error:
            self._left_out(index, error)
            return None
        _check_reward_columns(self.data, self.rewards, row.columns, where=_place(self.data, row.id))
        return row

    def check(self, index: int) -> None:
        """Runs all checks of a row.

        Raises:
            DataError: the row is wrong; the message names it.
        """
        row = self.read(index)
        if row is None:
            return
        if self.tokenizer is not None:
            try:
                prompt = tokenize_row(row, self.data, self.tokenizer)
            except DataError as error:
                self._left_out(index, error)
                return
            if prompt is None or len(prompt.token_ids) > self.data.max_prompt_tokens:
                length = "very many" if prompt is None else len(prompt.token_ids)
                self._first_longer = self._first_longer or (
                    f"{_place(self.data, row.id)}: {length} tokens with the chat template"
                )
                self.longer += 1
        self.unanswered += not self._has_gold(row)
        for check in self.others:
            check(row)
        if self.tokenizer is not None:
            self.right.add(index)

    def _left_out(self, index: int, error: DataError) -> None:
        """Notes a row that the run leaves out.

        Raises:
            DataError: the given error, if such a row stops the run.
        """
        if self.data.on_bad_row == "stop":
            raise error
        self.wrong.setdefault(index, str(error))

    def _has_gold(self, row: Row) -> bool:
        golds = [each.column for each in self.rewards if isinstance(each, Comparison)]
        return all(column_value(row.columns, column) is not None for column in golds)

    def refuse_if_all_are_longer(self) -> None:
        """Refuses a limit that all checked rows exceed.

        Raises:
            DataError: all rows exceed it; the message has the first row and its length.
        """
        if self.longer and self.longer == len(self.right):
            raise DataError(
                f"{self._first_longer}, more than data.max_prompt_tokens={self.data.max_prompt_tokens}, "
                "and so are the others that were tried; raise data.max_prompt_tokens"
            )

    def ahead(self, make_tokenizer: Callable[[], ChatTokenizer]) -> Lookahead | None:
        """Checks the other rows during training. Returns None if all were checked or if we compute the rows.

        Args:
            make_tokenizer: makes a tokenizer if there is none yet; a tokenizer serves one thread.
        """
        is_computed = isinstance(self.data, Computed)
        if is_computed or len(self.right) + len(self.wrong) == len(self.rows):
            return None
        self.tokenizer = self.tokenizer or make_tokenizer()
        return Lookahead(self.check, done=self.right | self.wrong.keys())


def _check_reward_columns(
    data: DataConfig, rewards: Sequence[RewardConfig], columns: Mapping[str, Any], *, where: str
) -> None:
    for index, reward in enumerate(rewards):
        if not isinstance(reward, Comparison | RightCall):
            continue
        if not has_column(columns, reward.column):
            raise DataError(
                f"{where}: no column {reward.column!r}, which rewards[{index}] ({reward.kind}) compares with; "
                f"the columns are {', '.join(column_names(columns)) or 'none'}; "
                f"set rewards[{index}].column{_naming(data, reward.column, columns)}"
            )
        if isinstance(reward, RightCall):
            continue  # calls have a form of their own
        value = column_value(columns, reward.column)
        if isinstance(value, Mapping) or (isinstance(value, list | tuple) and len(value) != 1):
            inner = f", for example {reward.column}.{next(iter(value))}" if isinstance(value, Mapping) and value else ""
            raise DataError(
                f"{where}: {reward.column} is {shorten(value)}, and rewards[{index}] ({reward.kind}) compares with one "
                f"answer; set rewards[{index}].column to what holds it{inner}"
            )


def _naming(data: DataConfig, column: str, columns: Mapping[str, Any]) -> str:
    """Returns the second half of an advice: how a column gets a name. Empty if rows are computed."""
    match data:
        case Table():
            others = possible_answers(columns)
            return f", or rename one: data.columns: {{{column}: {others[0] if len(others) == 1 else '...'}}}"
        case CustomSource():
            return f", or let {data.function} return a column {column!r}"
        case _:
            return ""


def _place(data: DataConfig, row_id: str) -> str:
    """Returns a name by which the user can find the row: with the path in the configuration if that is one file."""
    name, _, number = row_id.rpartition(":")
    if isinstance(data, Files) and data.path.endswith(name):
        return f"{data.path}:{number}"
    return row_id
