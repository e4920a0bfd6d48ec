"""Says what a chat template can append to a conversation, and whether it rewrites earlier turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ray_rl.data.template import ChatTemplate, as_dict
from ray_rl.errors import DataError
from ray_rl.types import Message

QUESTION, ANSWER, THOUGHT, NEW = "Zq1question1qZ", "Zq2answer2qZ", "Zq3thought3qZ", "Zq4new4qZ"
"""Unique texts: what the template writes does not contain them."""
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Names under which templates read the thought of an assistant's message."""
THOUGHT_MARKS = (("<think>", "</think>"), ("<|channel>thought", "<channel|>"))
"""Texts before and behind a thought that is part of what was sampled."""
SHOWN_CHARACTERS = 20


@dataclass(frozen=True, slots=True)
class TurnSupport:
    """Abilities of a chat template in an episode of several turns."""

    refuses_user: str | None
    """Why it cannot append a user message, so that no environment can run; None if it can."""
    refuses_tool: str | None
    """Why it cannot append a tool message, so that a user message takes its place; None if it can."""
    rewrites_history: str | None
    """How a later prompt differs from the earlier one and what was sampled; None if it begins with them."""

    @property
    def tool_role(self) -> str:
        """The role as which the policy reads the result of a tool."""
        return "tool" if self.refuses_tool is None else "user"


@dataclass(frozen=True, slots=True)
class Continued:
    """How messages of one role follow an answer."""

    role: str
    after: Callable[[str, Message], list[dict[str, Any]]]
    """Returns an answer and a new message as the template reads them."""
    has_content: bool
    """Whether the answer is content, and not a call of a tool."""
    as_parts: bool
    """Whether content is a list of one part instead of a text."""


def rewriting(template: ChatTemplate, continued: Sequence[Continued], *, start: str) -> str | None:
    """Returns in words how the template rewrites earlier turns; None if it only appends.

    Two rounds of an answer and a message are rendered with each pair of roles, with thoughts and without.

    Args:
        template: the chat template.
        continued: the roles of the messages that follow an answer.
        start: the text that the policy samples before an answer (`ChatTokenizer.answer_start`).
    """
    for first, second in product(continued, repeat=2):
        try:
            changed = _lost_thought(template, first, second) or _changed_turn(template, first, second, start)
        except DataError as error:
            changed = str(error)
        if changed is not None:
            return changed
    return None


def _lost_thought(template: ChatTemplate, first: Continued, second: Continued) -> str | None:
    """Returns that thoughts disappear, if they are in the text of an answer or in a field of their own."""
    asked = [as_dict(Message("user", QUESTION), first.as_parts)]
    prompt = template.written(asked, generation_prompt=True).text
    said: list[tuple[str, dict[str, str]]] = [(ANSWER, dict.fromkeys(THOUGHT_FIELDS, THOUGHT))]
    if first.has_content:
        said += [(_thinking(prompt, *marks), {}) for marks in THOUGHT_MARKS if marks[1] in template.text]
    for content, fields in said:
        answer, new = first.after(content, Message(first.role, NEW))
        rounds = [*asked, answer | fields]
        if fields and THOUGHT not in template.written(rounds, generation_prompt=False).text:
            continue  # The template reads no such field.
        for role, more in ((first.role, [new]), (second.role, second.after(ANSWER, Message(second.role, NEW)))):
            rounds += more
            if THOUGHT not in template.written(rounds, generation_prompt=True).text:
                return f"it drops the thoughts of earlier turns once a {role} message follows"
    return None


def _changed_turn(template: ChatTemplate, first: Continued, second: Continued, start: str) -> str | None:
    """Returns where a later prompt differs from the one before with the answer that followed it."""
    rounds = [as_dict(Message("user", QUESTION), first.as_parts)]
    for each in (first, second):
        prompt = template.written(rounds, generation_prompt=True).text
        opened = next((marks for marks in THOUGHT_MARKS if _opens(prompt, marks[0])), None)
        answer = _thinking(prompt, *opened) if opened else ANSWER
        seen = prompt + ("" if opened else start) + answer
        said: list[tuple[str, dict[str, str]]] = [(answer, {})]
        if opened:
            # Some templates want the opening again that their generation prompt has, others the thought in its field.
            said += [(f"{opened[0]}\n{answer}", {}), (ANSWER, dict.fromkeys(THOUGHT_FIELDS, THOUGHT))]
        forms = []
        for content, fields in said:
            message, new = each.after(content, Message(each.role, NEW))
            forms.append([*rounds, message | fields, new])
        later = [template.written(form, generation_prompt=True).text for form in forms]
        kept = [text.startswith(seen) for text in later]
        if each.has_content and not any(kept):
            now, before = _apart(later[-1], seen), _apart(seen, later[-1])
            return f"it writes {now!r} in a later prompt, where the policy saw {before!r}"
        rounds = forms[kept.index(True) if any(kept) else 0]
    return None


def _apart(text: str, other: str) -> str:
    """Returns the part of a text around its first difference to another one."""
    same = next((index for index, (one, two) in enumerate(zip(text, other, strict=False)) if one != two), len(other))
    return text[max(0, same - SHOWN_CHARACTERS) : same + SHOWN_CHARACTERS]


def _opens(prompt: str, opening: str) -> bool:
    return prompt.rstrip().endswith(opening)


def _thinking(prompt: str, opening: str, closing: str) -> str:
    """Returns a thought and an answer as a policy samples them; a prompt may already end with the opening."""
    before = "" if _opens(prompt, opening) else f"{opening}\n"
    return f"{before}{THOUGHT}\n{closing}\n\n{ANSWER}"
