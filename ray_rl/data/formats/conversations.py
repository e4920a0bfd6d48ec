"""Whole conversations: messages in OpenAI's form, or ShareGPT's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_rl.data.columns import shorten
from ray_rl.data.formats.content import read_messages, text_or_turns
from ray_rl.data.formats.defects import NO_ANSWER
from ray_rl.data.formats.fields import Fields
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.record import Demonstration, Unusable
from ray_rl.errors import DataError


def from_messages(rows: Sequence[Fields]) -> list[Demonstration]:
    """Returns the turns of the assistant in the column `messages` as one demonstration."""
    (row,) = rows
    return [_demonstration(row, "messages")]


def from_sharegpt(rows: Sequence[Fields]) -> list[Demonstration]:
    """Returns the turns of the assistant in the column `conversations` as one demonstration."""
    (row,) = rows
    return [_demonstration(row, "conversations")]


def _demonstration(row: Fields, column: str) -> Demonstration:
    """Returns a demonstration from the first to the last turn to imitate."""
    messages = read_messages(row, column)
    if not messages or messages[-1].role != "assistant":
        raise Unusable(NO_ANSWER)
    weights = _weights(row, column)
    # A system message from a column of its own comes before the turns.
    weights = [1] * (len(messages) - len(weights)) + weights
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    trained = [index for index in answers if weights[index]]
    if not trained:
        raise Unusable("every turn of the assistant has weight 0")
    first, last = trained[0], trained[-1]
    untrained = frozenset(index - first for index in answers if first < index < last and not weights[index])
    return Demonstration(messages[:first], messages[first : last + 1], untrained)


def _weights(row: Fields, column: str) -> list[int]:
    """Returns the weight of each turn: OpenAI's form has 0 for answers that are not imitated."""
    weights = []
    for index, turn in enumerate(text_or_turns(row, column)):
        weight = turn.get("weight") if isinstance(turn, Mapping) else None
        if weight not in (None, 0, 1):
            raise DataError(
                f"{row.place(column)}[{index}].weight is {shorten(weight)}; write 0 (do not train on this turn) or 1"
            )
        weights.append(1 if weight is None else int(weight))
    return weights


MESSAGES = Format(
    name="messages",
    wanted="demonstration",
    line="conversations of {role, content} messages, in OpenAI's form",
    columns=("messages",),
    conversion=from_messages,
    without=("chosen", "preferred_output"),
)


SHAREGPT = Format(
    name="sharegpt",
    wanted="demonstration",
    line="conversations of {from, value} turns, in ShareGPT's form",
    columns=("conversations",),
    conversion=from_sharegpt,
    without=("chosen",),
)
