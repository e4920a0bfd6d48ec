"""Reads dialogues that are written as one text with markers before the turns."""

from __future__ import annotations

import re

from ray_rl.data.columns import shorten
from ray_rl.data.formats.defects import EMPTY, NO_ANSWER
from ray_rl.data.formats.record import Unusable
from ray_rl.data.messages import role_of
from ray_rl.errors import DataError
from ray_rl.types import Message

MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
"""The text before a turn in Anthropic's dialogues, and in those of Nectar."""


def turns(text: str, *, where: str) -> list[Message]:
    """Returns the turns of a dialogue in their order, as they are marked: two of one role can follow each other.

    Raises:
        DataError: the text does not begin with a marker.
    """
    lead, *rest = MARKER.split(text)
    if lead.strip() or not rest:
        raise DataError(
            f"{where} is {shorten(text)}; write a dialogue with a marker before every turn: "
            "'\\n\\nHuman: ...\\n\\nAssistant: ...'"
        )
    return [Message(role_of(name.lower()), said.strip()) for name, said in zip(rest[::2], rest[1::2], strict=True)]


def joined(messages: list[Message]) -> tuple[Message, ...]:
    """Returns the messages with those of one role in a row joined by an empty line.

    A text that holds a marker itself is cut there, and most chat templates refuse two turns of one role.
    """
    kept: list[Message] = []
    for message in messages:
        if kept and kept[-1].role == message.role:
            message = Message(message.role, f"{kept.pop().content}\n\n{message.content}")
        kept.append(message)
    return tuple(kept)


def before_last_answer(messages: list[Message]) -> tuple[list[Message], Message]:
    """Returns the turns before the last one, and that one, which is the assistant's.

    Raises:
        Unusable: the last turn is the human's, or empty.
    """
    *before, last = messages
    if last.role != "assistant":
        raise Unusable(NO_ANSWER)
    if not last.content:
        raise Unusable(EMPTY)
    return before, last
