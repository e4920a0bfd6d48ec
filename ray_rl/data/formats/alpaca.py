"""Alpaca: instruction, input and output, with an optional system message and history."""

from __future__ import annotations

from collections.abc import Sequence

from ray_rl.data.columns import check_text, shorten
from ray_rl.data.formats.content import answer_to
from ray_rl.data.formats.fields import Fields
from ray_rl.data.formats.format import Format
from ray_rl.data.formats.record import Content, Demonstration
from ray_rl.errors import DataError
from ray_rl.types import Message


def demonstrations(rows: Sequence[Fields]) -> list[Demonstration]:
    """Returns the output of a row as a demonstration.

    The prompt is the instruction with the input on the next line. With a system message or a history of questions and
    answers it is a conversation.
    """
    (row,) = rows
    question = "\n".join(text for text in (row.text("instruction"), row.optional_text("input")) if text.strip())
    before = _history(row)
    if (system := row.optional_text("system")).strip():
        before.insert(0, Message("system", system))
    prompt: Content = (*before, Message("user", question)) if before else question
    return [Demonstration(prompt, answer_to(prompt, row.text("output")))]


def _history(row: Fields) -> list[Message]:
    history = row.values.get("history")
    if history is None:
        return []
    place = row.place("history")
    if not isinstance(history, list | tuple):
        raise DataError(f"{place} is {shorten(history)}; write a list of [question, answer]")
    messages = []
    for index, pair in enumerate(history):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise DataError(f"{place}[{index}] is {shorten(pair)}; write [question, answer], both text")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            check_text(text, where=f"{place}[{index}]")
            messages.append(Message(role, text))
    return messages


FORMAT = Format(
    name="alpaca",
    wanted="demonstration",
    line="instructions and outputs, in Alpaca's form; an input follows its instruction on the next line",
    columns=("instruction", "output"),
    conversion=demonstrations,
)
