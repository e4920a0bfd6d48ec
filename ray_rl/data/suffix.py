"""The tokens that a chat template writes between two turns of the policy.

They are never the difference of two renderings, and what the policy sampled is never tokenised again: templates rewrite
earlier turns, and text that is tokenised again may become other tokens. One rendering has a random word in the place of
what the policy said, and the suffix is what follows the first token behind this word that ends a turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

import jinja2

from ray_rl.data.chat import ChatTokenizer
from ray_rl.data.control import ControlTexts
from ray_rl.data.ends import Ends, eos_token_ids
from ray_rl.data.history import Continued, TurnSupport, rewriting
from ray_rl.data.template import PART_AS_TEXT, as_dict, told
from ray_rl.data.tokenizer import squeezed
from ray_rl.errors import DataError
from ray_rl.types import Message, ToolCall

ROLES = ("user", "tool")
"""Roles of the messages that an environment writes."""
PARAGRAPH = "\n\n"
"""Separator of the texts of several messages that become one user message."""
CALLED = "add"
"""Name of the tool that was called, where it is tested what a template can write."""
MOST_WAYS = 1000
"""Number of sequences of roles for which the way to write them is remembered."""


@dataclass(frozen=True, slots=True)
class _Way:
    """How a chat template is made to write new messages behind a turn of the policy."""

    calls: Literal["", "object", "text"] = ""
    """Form of the arguments of calls, if the message before has calls instead of content; "" if it has content."""
    as_parts: bool = False
    """Whether content is a list of one part instead of a text."""
    as_user: bool = False
    """Whether all messages become one message of the role user."""


class _Unwritable(Exception):
    """A way does not write the messages; the text says why."""


class TurnSuffix:
    """Appends messages of an environment to what the policy sampled, as tokens. Made once for a run."""

    def __init__(self, tokenizer: ChatTokenizer, ends: Ends) -> None:
        """Makes it for a policy.

        Args:
            tokenizer: the tokenizer of the policy.
            ends: what ends a completion of the run, from `ChatTokenizer.ends_of`.

        Raises:
            DataError: the model has no chat template.
        """
        self._tokenizer, self._template = tokenizer, tokenizer.template
        model = tokenizer.model_tokenizer
        self._controls = ControlTexts(model, self._template.text, ends)
        self._visible = frozenset(token for text, token in model.added.items() if text.strip())
        self._ends = frozenset(ends.token_ids)
        of_model = (*eos_token_ids(model), tokenizer.turn_end)
        self._of_turns = frozenset(token for token in of_model if token is not None)
        self._ways: dict[tuple[tuple[str, ...], int], tuple[list[_Way], list[str]]] = {}

    def token_ids(
        self, messages: Sequence[Message], *, sampled: Sequence[int], calls: Sequence[ToolCall] = ()
    ) -> tuple[int, ...]:
        """Returns the tokens between a turn of the policy and its next one; none of them is trained on.

        They are the rest of the turn's end (with the token that ends a turn, if the completion was cut off or ended
        with a text or token of `rollout`), the messages, and the generation prompt. If the policy ended its turn with
        another token than the template's, the template's is left out, unless it also begins the message. Text in the
        messages that reads as a control token becomes ordinary tokens with the same text.

        Tool messages that the template cannot write become, with the others of this call, one user message.

        Args:
            messages: the new messages, of roles user and tool.
            sampled: the tokens that the policy sampled in the turn before, with the token that ended it.
            calls: the calls of tools in that turn; tool messages answer them in this order.

        Raises:
            DataError: the template cannot write the messages, the tokenizer loses text of them, or a role is neither
                user nor tool.
        """
        roles = tuple(message.role for message in messages)
        if not roles or not set(roles) <= set(ROLES):
            raise DataError(
                f"the environment answers with roles {', '.join(roles) or '(no message)'}; return at least one "
                "message, each of role user or tool, or done=True"
            )
        names = [call.name for call in calls if call.name]
        ways, reasons = self._ways_of(roles, names)
        for way in ways:
            try:
                return self._suffix(way, messages, names, sampled)
            except _Unwritable as error:
                reasons = [*reasons, str(error)]
        raise DataError(
            f"the chat template cannot write {' and '.join(dict.fromkeys(roles))} messages behind an answer: "
            f"{'; '.join(dict.fromkeys(reasons))}; set model.chat_template to one that writes them"
        )

    def prompt(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, ...]:
        """Returns the tokens of a prompt with messages of an environment, as `ChatTokenizer.encode` does.

        Text of user and tool messages that reads as a control token becomes ordinary tokens, as in `token_ids`.

        Raises:
            DataError: as in `ChatTokenizer.encode`.
        """
        mark = f"M{uuid4().hex}"
        broken = [self._broken(message, mark) for message in messages]
        if broken == list(messages):
            return self._tokenizer.encode(messages, chat=True, tools=tools)
        text = self._template.rendered(broken, generation_prompt=True, tools=tools).text
        token_ids = self._controls.encode(text, mark)
        written = squeezed(text.replace(mark, ""))
        self._tokenizer.check([m.content for m in messages if squeezed(m.content) in written], token_ids)
        return tuple(token_ids)

    def support(self, roles: Sequence[str] = ROLES) -> TurnSupport:
        """Returns what the chat template can append, and whether it rewrites earlier turns.

        Args:
            roles: the roles of the messages that the environment writes.
        """
        refusals: dict[str, str | None] = {}
        first: dict[str, _Way] = {}
        for role in ROLES:
            ways, reasons = self._ways_of((role,), [CALLED])
            refusals[role] = None if ways and not ways[0].as_user else "; ".join(reasons)
            if ways and role in roles:
                first[role] = ways[0]
        continued = [self._continued(role, way) for role, way in first.items()]
        rewrites = rewriting(self._template, continued, start=self._tokenizer.answer_start)
        return TurnSupport(refusals["user"], refusals["tool"], rewrites)

    def _continued(self, role: str, way: _Way) -> Continued:
        def after(answer: str, message: Message) -> list[dict[str, Any]]:
            return self._conversation(way, [message], [CALLED], answer)[1:]

        return Continued(role, after, has_content=not way.calls, as_parts=way.as_parts)

    def _ways_of(self, roles: tuple[str, ...], names: Sequence[str]) -> tuple[list[_Way], list[str]]:
        """Returns the ways that write messages of these roles, best first, and why others do not.

        Tested once for each sequence of roles, with unique words: a short text may also occur elsewhere in a suffix.
        """
        key = (roles, len(names))
        if key not in self._ways:
            if len(self._ways) >= MOST_WAYS:
                self._ways.clear()
            probes = [Message(role, f"Zq{index}marked{index}qZ") for index, role in enumerate(roles)]
            ways, reasons = [], []
            for way in _candidates(roles, names):
                try:
                    self._suffix(way, probes, names, ())
                except (_Unwritable, DataError) as error:
                    # A list of parts is the second form of what was tried before; a DataError says that text is lost.
                    behind = "it writes their text before the token that ends the turn"
                    reasons += [] if way.as_parts else [str(error) if isinstance(error, _Unwritable) else behind]
                else:
                    ways.append(way)
            self._ways[key] = ways, list(dict.fromkeys(reasons))
        return self._ways[key]

    def _suffix(
        self, way: _Way, messages: Sequence[Message], names: Sequence[str], sampled: Sequence[int]
    ) -> tuple[int, ...]:
        answer, mark = f"S{uuid4().hex}", f"M{uuid4().hex}"
        new = [self._broken(message, mark) for message in messages]
        try:
            text = self._template.written(self._conversation(way, new, names, answer), generation_prompt=True).text
        except DataError as error:
            cause = error.__cause__ or error
            refused = type(cause) is jinja2.TemplateError  # by raise_exception
            raise _Unwritable(f"it refuses them: {cause}" if refused else f"it fails with {told(cause)}") from error
        _, found, tail = text.rpartition(answer)
        if not found:
            raise _Unwritable("it leaves out the answer before them")
        forms = _forms(new, tail)
        if way.as_parts and PART_AS_TEXT in tail:
            raise _Unwritable("it writes content in the form of Python")
        token_ids = self._controls.encode(tail, mark)
        end, open_until = self._end(token_ids, of_calls=bool(way.calls))
        suffix = self._behind(token_ids, end, open_until, sampled, of_calls=bool(way.calls))
        self._check(forms, mark, suffix)
        return suffix

    def _end(self, token_ids: Sequence[int], *, of_calls: bool) -> tuple[int, int]:
        """Returns the index of the token that ends the policy's turn, and the length of the part before other text.

        Behind content, this part has only spaces and added tokens. Behind a call, the rest of the call comes first.
        """
        if of_calls:
            end = next((index for index, token in enumerate(token_ids) if token in self._ends), None)
            if end is None:
                raise _Unwritable("it writes no token behind a call of a tool that ends a completion")
            return end, end + 1
        length = 0
        while length < len(token_ids) and (token_ids[length] in self._visible or self._is_space(token_ids[length])):
            length += 1
        added = [index for index in range(length) if token_ids[index] in self._visible]
        if not added:
            raise _Unwritable("it writes no token behind an answer, so that nothing ends a turn")
        return next((index for index in added if token_ids[index] in self._ends), added[0]), length

    def _behind(
        self, token_ids: Sequence[int], end: int, open_until: int, sampled: Sequence[int], *, of_calls: bool
    ) -> tuple[int, ...]:
        """Returns the tokens that are missing behind what was sampled."""
        last = sampled[-1] if sampled else None
        if last in self._ends and last in self._visible and last in token_ids[:open_until]:
            return tuple(token_ids[token_ids.index(last) + 1 :])
        if last in self._of_turns:
            if self._only_ends(token_ids, end):
                return tuple(token_ids[end + 1 :])
            if of_calls:
                raise _Unwritable("it writes them inside the turn of the policy, which has ended")
        elif of_calls:
            return tuple(token_ids[end:])
        ending = list(token_ids[: end + 1])
        present = next((count for count in range(len(ending), 0, -1) if list(sampled[-count:]) == ending[:count]), 0)
        return tuple(token_ids[present:])

    def _only_ends(self, token_ids: Sequence[int], end: int) -> bool:
        """Returns whether the token at `end` only ends a turn: another special token begins what follows.

        In templates of GLM, the same token ends a turn and begins the next, `<|user|>`, so that it must be there.
        """
        following = next((token for token in token_ids[end + 1 :] if not self._is_space(token)), None)
        return following in self._tokenizer.model_tokenizer.special_ids

    def _check(self, forms: Sequence[str], mark: str, suffix: Sequence[int]) -> None:
        """Checks that the suffix has the texts of all messages, and only tokens that the model has.

        Raises:
            DataError: the tokenizer loses text.
        """
        self._tokenizer.check([form.replace(mark, "") for form in forms], suffix)

    def _broken(self, message: Message, mark: str) -> Message:
        if message.role not in ROLES:
            return message
        content = self._controls.broken(message.content, mark)
        return message if content == message.content else Message(message.role, content)

    def _is_space(self, token: int) -> bool:
        return not self._tokenizer.model_tokenizer.decode([token], skip_special_tokens=False).strip()

    def _conversation(
        self, way: _Way, messages: Sequence[Message], names: Sequence[str], answer: str
    ) -> list[dict[str, Any]]:
        """Returns a question, an answer and the new messages, in the form in which templates read them."""
        if way.as_user:
            messages = [Message("user", PARAGRAPH.join(message.content for message in messages))]
        said: dict[str, Any] = as_dict(Message("assistant", "" if way.calls else answer), way.as_parts)
        if way.calls:
            said["tool_calls"] = [_call(index, name, answer, way.calls) for index, name in enumerate(names)]
        new = [as_dict(message, way.as_parts) for message in messages]
        results = [message for message in new if message["role"] == "tool"]
        for index, (result, name) in enumerate(zip(results, names, strict=False)):
            result.update(name=name, tool_call_id=_call_id(index))
        return [as_dict(Message("user", "u"), way.as_parts), said, *new]


def _candidates(roles: Sequence[str], names: Sequence[str]) -> Iterator[_Way]:
    forms: list[Literal["", "object", "text"]] = [""]
    if "tool" in roles and names:
        forms += ["object", "text"]
    for calls in forms:
        for as_parts in (False, True):
            yield _Way(calls, as_parts)
    if len(roles) > 1 or "tool" in roles:
        for as_parts in (False, True):
            yield _Way(as_parts=as_parts, as_user=True)


def _forms(messages: Sequence[Message], tail: str) -> list[str]:
    """Returns the text of each message as it is in the tail: its content, or that in JSON.

    Raises:
        _Unwritable: a text is not in the tail.
    """
    whole = squeezed(tail)
    found = []
    for message in messages:
        forms = (message.content, json.dumps(message.content, ensure_ascii=False)[1:-1])
        form = next((form for form in forms if squeezed(form) in whole), None)
        if form is None:
            raise _Unwritable(f"it leaves out the text of the {message.role} message")
        found.append(form)
    return found


def _call_id(index: int) -> str:
    # Templates of Mistral demand nine letters and digits.
    return f"call{index:05d}"


def _call(index: int, name: str, argument: str, form: str) -> dict[str, Any]:
    arguments = {"q": argument}
    function = {"name": name, "arguments": json.dumps(arguments) if form == "text" else arguments}
    return {"id": _call_id(index), "type": "function", "function": function}
