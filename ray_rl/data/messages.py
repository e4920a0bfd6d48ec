"""Reads the value of a prompt column: a text or a conversation."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence

from ray_rl.data.columns import check_text, shorten
from ray_rl.errors import DataError
from ray_rl.types import Message

ROLES = ("system", "developer", "user", "assistant", "tool")
_MEANT = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_MEANT |= {"ai": "assistant", "chatbot": "assistant", "function": "tool", "ipython": "tool"}
"""Our roles for those of other formats."""

_STORED_AS_TEXT = re.compile(r"\s*\[?\s*\{\s*(['\"])(role|content|from|value)\1\s*:")
"""The start of a text that is a conversation or message in written form."""


def read_prompt(value: object, *, where: str, drop_last_answer: bool = False) -> str | tuple[Message, ...]:
    """Returns the prompt in a column. A conversation that is stored as JSON text is read as a conversation.

    Args:
        value: the value of the column.
        where: the row and the column, for errors.
        drop_last_answer: leave out the assistant's messages at the end.

    Raises:
        DataError: the value is neither text nor messages, is empty, has keys that the template would not see, or is a
            conversation that ends with the assistant's answer.
    """
    if isinstance(value, str):
        check_text(value, where=where)
        if not value.strip():
            raise DataError(f"{where} is empty; write a prompt, or remove the row")
        stored = stored_messages(value, where=where)
        if stored is None:
            return value
        value = stored
    if not isinstance(value, list | tuple) or not value:
        raise DataError(f"{where} is {shorten(value)}; write text or a list of {{role, content}} messages")
    messages = tuple(read_message(turn, where=f"{where}[{number}]") for number, turn in enumerate(value))
    return _without_answer(messages, where=where, drop=drop_last_answer)


def stored_messages(text: str, *, where: str) -> list[object] | None:
    """Returns the messages in a JSON text; None for other text.

    Raises:
        DataError: the text holds messages in another written form, such as that of Python.
    """
    start = _STORED_AS_TEXT.match(text)
    if start is None:
        return None
    try:
        value = json.loads(text) if start[1] == '"' else ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None  # a question about JSON or Python code
    turns = value if isinstance(value, list) else [value]
    if not all(
        isinstance(turn, Mapping) and ({"role", "content"} <= turn.keys() or is_sharegpt(turn)) for turn in turns
    ):
        return None
    if isinstance(value, list) and start[1] == '"':
        return value
    raise DataError(
        f"{where} is text that holds messages, {shorten(text)}; store a list of {{role, content}} messages, or its JSON"
    )


def is_sharegpt(turn: Mapping[object, object]) -> bool:
    """Returns whether a turn has the keys `from` and `value` instead of `role` and `content`."""
    return {"from", "value"} <= turn.keys()


def role_of(name: str) -> str:
    """Returns our role for a name that other formats use; any other name as it is."""
    return _MEANT.get(name.lower(), name)


def read_message(turn: object, *, where: str) -> Message:
    """Returns a message of a conversation.

    Raises:
        DataError: it is no message, has an unknown role, keys that the template would not see, or no text.
    """
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        remedy = ", not {from: ..., value: ...}" if isinstance(turn, Mapping) and is_sharegpt(turn) else ""
        raise DataError(f"{where} is {shorten(turn)}; write a message {{role: ..., content: ...}}{remedy}")
    role = turn["role"]
    if role not in ROLES:
        meant = f" ({role!r} is {role_of(role)!r} here)" if role_of(role) != role else ""
        raise DataError(f"{where}.role is {shorten(role)}; the roles are {', '.join(ROLES)}{meant}")
    lost = sorted(str(key) for key, value in turn.items() if key not in ("role", "content") and _says_something(value))
    if lost:
        raise DataError(
            f"{where} has {', '.join(lost)} in addition to role and content, which no prompt would show; "
            "write it into the content as text, or remove it"
        )
    content = _content(turn.get("content"), where=where)
    if role == "user" and not content.strip():
        raise DataError(f"{where}.content is empty; write what the user says, or remove the message")
    return Message(role, content)


def _says_something(value: object) -> bool:
    """Returns whether a value has content: tables fill missing keys of messages with None or empty lists."""
    return value is not None and not (isinstance(value, str | Sequence | Mapping) and len(value) == 0)


def _content(content: object, *, where: str) -> str:
    """Returns the text, or the joined text of all parts."""
    if isinstance(content, list | tuple) and content:
        content = "".join(_part(part, where=f"{where}.content[{number}]") for number, part in enumerate(content))
    if not isinstance(content, str):
        raise DataError(f"{where}.content is {shorten(content)}; only text is supported")
    check_text(content, where=f"{where}.content")
    return content


def _part(part: object, *, where: str) -> str:
    if isinstance(part, str):
        return part
    others = set()
    if isinstance(part, Mapping):
        others = {key for key, value in part.items() if key not in ("type", "text") and _says_something(value)}
        if part.get("type", "text") == "text" and isinstance(part.get("text"), str) and not others:
            return str(part["text"])
    raise DataError(f"{where} is {shorten(part)}; only text is supported, as {{type: text, text: ...}}")


def _without_answer(messages: tuple[Message, ...], *, where: str, drop: bool) -> tuple[Message, ...]:
    kept = messages
    while kept and kept[-1].role == "assistant" and drop:
        kept = kept[:-1]
    if kept and kept[-1].role == "assistant":
        raise DataError(
            f"{where} ends with a message of the assistant, {shorten(kept[-1].content)}: the model would read the "
            "answer instead of writing it; remove the message, or set data.drop_last_answer: true (for files and the "
            "hub)"
        )
    if not any(message.role == "user" for message in kept):
        raise DataError(f"{where} has no message of the user; write one, or give the prompt as text")
    return kept


def as_messages(content: str | tuple[Message, ...], role: str) -> tuple[Message, ...]:
    """Returns the content as messages: text is one message of this role."""
    return (Message(role, content),) if isinstance(content, str) else content


def with_system_prompt(
    prompt: str | tuple[Message, ...], system_prompt: str | None, *, where: str
) -> str | tuple[Message, ...]:
    """Returns the prompt with `data.system_prompt` as its first message; without one, the prompt itself.

    Raises:
        DataError: the prompt already starts with a system message.
    """
    if system_prompt is None:
        return prompt
    turns = as_messages(prompt, "user")
    if turns[0].role == "system":
        raise DataError(f"{where}: starts with a system message, and data.system_prompt is set too; remove one of them")
    return (Message("system", system_prompt), *turns)
