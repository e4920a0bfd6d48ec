"""The prompts of a run, with an order and a position that survive an interruption."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ray_rl.config.data import DataConfig
from ray_rl.data.ahead import Lookahead
from ray_rl.data.chat import ChatTokenizer, uses_chat
from ray_rl.data.messages import as_messages, with_system_prompt
from ray_rl.data.opening import open_rows
from ray_rl.data.order import RowOrder
from ray_rl.data.rows import Row, Rows
from ray_rl.errors import DataError
from ray_rl.metrics.metric import Last, Metric
from ray_rl.types import Message, Prompt

USUAL_CHARACTERS = 16
"""Text has 3 to 5 characters per token. If a text has more than this, its start is tokenised first."""
MOST_CHARACTERS = 256
"""The longest tokens of common vocabularies are runs of 128 spaces."""


def build_source(
    config: DataConfig,
    *,
    seed: int,
    tokenizer: ChatTokenizer,
    rows: Rows | None = None,
    ahead: Lookahead | None = None,
    note: Callable[[str], None] | None = None,
) -> PromptSource:
    """Returns the prompts that `data:` describes, at the start of their first epoch.

    Args:
        config: the section `data`.
        seed: `run.seed`, which determines the order of epochs and the procedural questions.
        tokenizer: the tokenizer of the policy.
        rows: the result of `open_rows` for this section; None opens them.
        ahead: checks upcoming rows, and raises errors that it found when prompts are taken.
        note: called with lines for the user.

    Raises:
        DataError: a file, a data set or a row is wrong.
        ConfigError: a name or an option is wrong.
    """
    opened = open_rows(config, seed=seed) if rows is None else rows
    return PromptSource(opened, config, seed=seed, tokenizer=tokenizer, ahead=ahead, note=note)


def row_order(rows: Rows, config: DataConfig, *, seed: int) -> RowOrder:
    """Returns the order of rows in the epochs of a source, whose `compare` takes the `source` of a saved position."""
    return RowOrder(kind=config.kind, size=len(rows), seed=seed, shuffle=config.shuffle, digests=rows.digests)


def tokenize_row(row: Row, config: DataConfig, tokenizer: ChatTokenizer) -> Prompt | None:
    """Returns the prompt of a row; None for one so long that tokenising it would take too long.

    Raises:
        DataError: the chat template refuses the row, or it has a second system prompt; the message names the row.
    """
    content = with_system_prompt(row.prompt, config.system_prompt, where=row.id)
    messages = as_messages(content, "user")
    if _is_far_too_long(messages, config.max_prompt_tokens, tokenizer):
        return None
    try:
        token_ids = tokenizer.encode(content, chat=uses_chat(config))
    except DataError as error:
        raise DataError(f"{row.id}: {error}") from error
    return Prompt(row.id, token_ids, _shown(row), row.columns, messages, not isinstance(row.prompt, str))


def _is_far_too_long(messages: Sequence[Message], limit: int, tokenizer: ChatTokenizer) -> bool:
    """Returns whether a prompt exceeds the limit, judged by its first characters if it is very long."""
    characters = sum(len(message.content) for message in messages)
    if characters <= limit * USUAL_CHARACTERS:
        return False
    if characters > limit * MOST_CHARACTERS:
        return True
    longest = max((message.content for message in messages), key=len)
    start = tokenizer.encode(longest[: limit * USUAL_CHARACTERS], chat=False)
    # The last few tokens of a part can differ in the whole text.
    return len(start) > limit + 16


@dataclass(frozen=True, slots=True)
class Filtered:
    """Prompts left out because they are longer than `data.max_prompt_tokens`."""

    epoch: int
    """Number in the current epoch so far."""
    total: int
    """Number in all epochs so far; a row counts once per epoch."""


@dataclass(slots=True)
class _Position:
    epoch: int = 0
    index: int = 0
    """Next place in the epoch's order."""
    filtered: int = 0
    """Filtered prompts in the current epoch."""
    filtered_before: int = 0
    """Filtered prompts in earlier epochs."""
    shortest: int | None = None
    """Tokens of the shortest prompt filtered in this epoch."""
    skipped: int = 0
    """Wrong rows in the current epoch."""
    skipped_before: int = 0
    """Wrong rows in earlier epochs."""


class PromptSource:
    """An endless stream of prompts, epoch after epoch. The order of an epoch is a function of (seed, epoch)."""

    def __init__(
        self,
        rows: Rows,
        config: DataConfig,
        *,
        seed: int,
        tokenizer: ChatTokenizer,
        ahead: Lookahead | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self._ahead = ahead
        self._note = note
        """Called with the note about a missing digest, at most once; None afterwards."""
        self._rows = rows
        self._config = config
        self._tokenizer = tokenizer
        self._orders = row_order(rows, config, seed=seed)
        self._position = _Position()
        self._order = self._orders.of_epoch(0)

    @property
    def epoch(self) -> int:
        """Epoch of the next prompt, from 0."""
        return self._position.epoch

    @property
    def filtered(self) -> Filtered:
        """The numbers of prompts that were too long."""
        at = self._position
        return Filtered(epoch=at.filtered, total=at.filtered_before + at.filtered)

    def take(self, count: int) -> list[Prompt]:
        """Returns the next prompts that are short enough, from as many epochs as necessary.

        Raises:
            DataError: a row is malformed, or all prompts of an epoch are too long.
        """
        if self._ahead is not None:
            self._ahead.watch(self._upcoming)
        prompts: list[Prompt] = []
        while len(prompts) < count:
            prompt = self._next()
            if prompt is not None:
                prompts.append(prompt)
        return prompts

    def metrics(self) -> list[Metric]:
        """Returns metrics of the position."""
        metrics: list[Metric] = [Last("data/epoch", self.epoch), Last("data/filtered_total", self.filtered.total)]
        if self._config.on_bad_row == "skip":
            metrics.append(Last("data/skipped_total", self._position.skipped_before + self._position.skipped))
        return metrics

    def state(self) -> dict[str, Any]:
        """Returns the state for `restore`, as JSON values."""
        return {"source": self._orders.fingerprint(), **asdict(self._position)}

    def compare(self, state: Mapping[str, Any]) -> None:
        """Checks that a state belongs to this source and the same data.

        Raises:
            ConfigError: the state belongs to another source, or the data has changed.
        """
        saved = state["source"]
        if "digests" not in saved and self._note is not None and self._rows.digests:
            self._note("data: the checkpoint has no digest of the data; whether the data changed cannot be told")
            self._note = None
        self._orders.compare(saved)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores the position of `state`, so that the same prompts follow.

        Raises:
            ConfigError: as in `compare`.
        """
        self.compare(state)
        self._position = _Position(**{key: value for key, value in state.items() if key != "source"})
        self._order = self._orders.of_epoch(self._position.epoch)

    def _next(self) -> Prompt | None:
        """Returns the next prompt; None if it is too long, or its row is wrong and left out."""
        at = self._position
        if at.index == len(self._rows):
            self._position = at = _Position(
                epoch=at.epoch + 1,
                filtered_before=at.filtered_before + at.filtered,
                skipped_before=at.skipped_before + at.skipped,
            )
            self._order = self._orders.of_epoch(at.epoch)
        try:
            prompt = tokenize_row(self._rows[self._order[at.index]], self._config, self._tokenizer)
        except DataError:
            if self._config.on_bad_row == "stop":
                raise
            at.index += 1
            at.skipped += 1
            self._refuse_empty_epoch()
            return None
        at.index += 1
        length, limit = None if prompt is None else len(prompt.token_ids), self._config.max_prompt_tokens
        if length is not None and length <= limit:
            return prompt
        at.filtered += 1
        if length is not None:
            at.shortest = length if at.shortest is None else min(at.shortest, length)
        self._refuse_empty_epoch()
        return None

    def _refuse_empty_epoch(self) -> None:
        at = self._position
        if at.filtered + at.skipped < len(self._rows):
            return
        if not at.filtered:
            raise DataError(
                f"data.on_bad_row=skip: all {at.skipped} rows are wrong; set data.on_bad_row=stop to see why"
            )
        limit = self._config.max_prompt_tokens
        raise DataError(f"data.max_prompt_tokens={limit}: all {at.filtered} prompts are longer; {_needed(at)}")

    def _upcoming(self) -> list[int]:
        """Returns all rows in the order of their next use: the rest of this epoch, then its earlier rows."""
        index = self._position.index
        return [*self._order[index:], *self._order[:index]]


def _needed(at: _Position) -> str:
    if at.shortest is None:
        return "so much that they were not tokenised; shorten them, or raise the limit"
    return f"the shortest has {at.shortest} tokens with the chat template; set it to {at.shortest} or more"


def _shown(row: Row) -> str:
    if isinstance(row.prompt, str):
        return row.prompt
    said_by_user = [message.content for message in row.prompt if message.role == "user"]
    return said_by_user[-1] if said_by_user else row.prompt[-1].content
