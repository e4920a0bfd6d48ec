"""Reads prompts and answers that are text, messages, turns of ShareGPT, or whole dialogues that hold both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_rl.data.columns import check_text, shorten
from ray_rl.data.formats.fields import Fields
from ray_rl.data.formats.record import Content, Unusable
from ray_rl.data.messages import as_messages, is_sharegpt, read_message, role_of, stored_messages
from ray_rl.errors import DataError
from ray_rl.types import Message

DIFFERENT = "the two dialogues differ before their last answers"
TOOLS = "tools or calls of tools, which are not supported"

_CALLS = ("tool_calls", "function_call")
_NO_TOOLS = ("", "[]", "{}", "null")
"""Texts of the column `tools` in rows without tools, where tables have it as JSON."""
_TOOL_ROLES = ("tool", "function", "function_call", "observation")


def read_content(fields: Fields, name: str) -> Content:
    """Returns text as it is, and anything else as messages: a list of turns, one turn, or the JSON of turns.

    Raises:
        DataError: there is no such column, its value is neither, or a turn is none.
        Unusable: a turn calls a tool or is the answer of one.
    """
    turns, where = text_or_turns(fields, name), fields.place(name)
    if isinstance(turns, str):
        return turns
    return tuple(_message(turn, where=f"{where}[{index}]") for index, turn in enumerate(turns))


def text_or_turns(fields: Fields, name: str) -> str | Sequence[object]:
    """Returns the text in a column, or its turns as they are written.

    Raises:
        DataError: the value is neither text nor a list, or the text cannot be encoded.
    """
    value, where = fields.value(name), fields.place(name)
    if isinstance(value, str):
        check_text(value, where=where)
        stored = stored_messages(value, where=where)
        return value if stored is None else stored
    if isinstance(value, Mapping):
        return [value]
    if not isinstance(value, list | tuple):
        raise DataError(f"{where} is {shorten(value)}; write text or a list of {{role, content}} messages")
    return value


def read_messages(fields: Fields, name: str) -> tuple[Message, ...]:
    """Returns the messages in a column.

    Raises:
        DataError: it has no messages.
        Unusable: as `read_content`, or the row has tools that the conversation could call.
    """
    _refuse_tools(fields)
    content = read_content(fields, name)
    if isinstance(content, str):
        raise DataError(f"{fields.place(name)} is {shorten(content)}; write a list of {{role, content}} messages")
    return _with_system(content, fields)


def read_answers(fields: Fields, given: Content | None, names: Sequence[str]) -> tuple[Content, list[Content]]:
    """Returns the prompt and the answers to it: all text, or all messages.

    Answers that are whole dialogues, which do not begin with the assistant, hold the prompt: if it is given as
    messages, they are taken off their start; otherwise the prompt is what precedes the last message, and must be the
    same in all of them. Text is never compared by characters: answers to one prompt often begin with the same words.

    Args:
        fields: the columns of the row. Text in a column `system` becomes the first message.
        given: the prompt that the row has apart; None if the answers hold it.
        names: the names of the columns with answers.

    Raises:
        DataError: a column is missing or cannot be read.
        Unusable: the dialogues have different prompts, or not the one in the column of the prompt.
    """
    _refuse_tools(fields)
    read = [read_content(fields, name) for name in names]
    if given is None and any(isinstance(answer, str) for answer in read):
        raise DataError(
            f"{fields.where}: {' and '.join(names)} are text, and there is no column with the prompt; "
            "add a column prompt, or name it with data.columns: {prompt: ...}"
        )
    is_text = all(isinstance(content, str) for content in (given, *read))
    if given is not None and is_text and not fields.optional_text("system").strip():
        return given, read
    dialogues = [as_messages(answer, "assistant") for answer in read]
    if given is not None and not all(map(_is_dialogue, dialogues)):
        return _with_system(as_messages(given, "user"), fields), list(dialogues)
    before, after = _split(dialogues, given)
    return _with_system(before, fields), list(after)


def answer_to(prompt: Content, text: str) -> Content:
    """Returns the text of an answer as content of the same type as its prompt."""
    return text if isinstance(prompt, str) else (Message("assistant", text),)


def _is_dialogue(answer: Sequence[Message]) -> bool:
    roles = [message.role for message in answer]
    return "assistant" in roles[1:] and roles[0] != "assistant"


def _split(
    dialogues: Sequence[tuple[Message, ...]], given: Content | None
) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """Returns the prompt that all dialogues begin with, and what follows it in each."""
    length = len(given) if isinstance(given, tuple) else len(dialogues[0]) - 1
    before = dialogues[0][:length]
    if any(dialogue[:length] != before for dialogue in dialogues):
        raise Unusable(DIFFERENT)
    if not isinstance(given, tuple) and any(len(dialogue) != length + 1 for dialogue in dialogues):
        raise Unusable(DIFFERENT)
    is_held = given is None or given == before
    if isinstance(given, str):
        is_held = given.strip() in {message.content.strip() for message in before if message.role == "user"}
    if not is_held:
        raise Unusable("a dialogue that does not hold the prompt in the column of the prompt")
    return before, [dialogue[length:] for dialogue in dialogues]


def _with_system(messages: tuple[Message, ...], fields: Fields) -> tuple[Message, ...]:
    system = fields.optional_text("system")
    return (Message("system", system), *messages) if system.strip() else messages


def _refuse_tools(fields: Fields) -> None:
    tools = fields.values.get("tools")
    if tools and not (isinstance(tools, str) and tools.strip() in _NO_TOOLS):
        raise Unusable(TOOLS)


def _message(turn: object, *, where: str) -> Message:
    if isinstance(turn, Mapping):
        if is_sharegpt(turn):
            role = turn["from"]
            turn = {"role": role_of(role) if isinstance(role, str) else role, "content": turn["value"]}
        if turn.get("role") in _TOOL_ROLES or any(turn.get(call) for call in _CALLS):
            raise Unusable(TOOLS)
        # The weight of OpenAI's form is read by the conversion of conversations; it means nothing elsewhere.
        turn = {key: value for key, value in turn.items() if key != "weight"}
    return read_message(turn, where=where)
