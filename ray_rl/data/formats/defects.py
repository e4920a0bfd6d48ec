"""Finds what makes a record useless, whatever form it came in."""

from __future__ import annotations

from collections.abc import Sequence

from ray_rl.data.formats.record import Comparison, Content, Record, Steps
from ray_rl.data.messages import as_messages
from ray_rl.types import Message

NO_ANSWER = "no answer of the assistant at the end"
NO_PROMPT = "an empty prompt"
NO_QUESTION = "no message of the user before the answer"
EMPTY = "an empty answer"
OUT_OF_ORDER = "roles out of order"
SAME = "chosen and rejected are the same"


def defect(record: Record) -> str | None:
    """Returns the reason to drop a record, or None.

    Reasons are an empty prompt, answer or step; a conversation that does not end with the assistant; an assistant that
    speaks before the user; other roles out of order: a system message after the start, two turns of one role in a row;
    and two answers that are the same.
    """
    if isinstance(record.prompt, str) and not record.prompt.strip():
        return NO_PROMPT
    if not isinstance(record.prompt, str) and not any(_says(message, "user") for message in record.prompt):
        return NO_QUESTION
    if isinstance(record, Steps):
        return _fault_of_steps(record)
    if isinstance(record, Comparison):
        faults = [_fault(record.prompt, answer) for answer in (record.chosen, record.rejected)]
        return faults[0] or faults[1] or (SAME if record.chosen == record.rejected else None)
    return _fault(record.prompt, record.completion)


def _fault_of_steps(record: Steps) -> str | None:
    if not record.steps:
        return "no steps"
    if not all(map(str.strip, record.steps)):
        return "an empty step"
    # The steps are an answer, so that nothing but a message of the user can precede them.
    answered = [*as_messages(record.prompt, "user"), Message("assistant", record.steps[0])]
    return None if _is_in_order(answered) else OUT_OF_ORDER


def _says(message: Message, role: str) -> bool:
    return message.role == role and bool(message.content.strip())


def _fault(prompt: Content, answer: Content) -> str | None:
    if isinstance(answer, str):
        return None if answer.strip() else EMPTY
    if not answer or answer[-1].role != "assistant":
        return NO_ANSWER
    if any(message.role == "assistant" and not message.content.strip() for message in answer):
        return EMPTY
    assert isinstance(prompt, tuple), "prompt and answer have the same type"
    return None if _is_in_order([*prompt, *answer]) and answer[0].role == "assistant" else OUT_OF_ORDER


def _is_in_order(messages: Sequence[Message]) -> bool:
    roles = [message.role for message in messages]
    while roles and roles[0] in ("system", "developer"):
        roles = roles[1:]
    return roles == (["user", "assistant"] * len(roles))[: len(roles)]
