"""Renders chat templates as transformers does, with limits, and checks that the result has every message's text."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta

from ray_rl.data.bounded_jinja import Rendered, TooMuchWork, environment, has_generation_markers, reads_date, rendered
from ray_rl.data.tokenizer import ModelTokenizer, squeezed
from ray_rl.errors import ConfigError, DataError
from ray_rl.types import Message

RENDER_CHARACTERS = 16 * 2**20
"""The most characters of the result and of every intermediate text, in addition to four times the conversation."""
SHOWN_CHARACTERS = 200
PART_AS_TEXT = "{'type': 'text', 'text': "
"""The output of a template that treats a part as text."""

OF_THE_CONVERSATION = ("messages", "tools", "documents", "add_generation_prompt")
"""Variables that a template gets with every conversation, so that no option may set them."""
_PROBE: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "Zq57probe",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "description": "A number."}},
            "required": ["a"],
        },
    },
}
"""A tool that shows whether a template writes tools."""
_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""Exceptions that a template can raise, because it is code; RecursionError is a RuntimeError."""


class ChatTemplate:
    """One chat template of a model, with the values of its own variables.

    Content is passed as text. If the template loses it, because it expects a list of parts, content is passed as one
    part, `[{"type": "text", "text": ...}]`.
    """

    def __init__(
        self,
        text: str,
        *,
        special_tokens: Mapping[str, str],
        owner: str,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Compiles the template.

        Args:
            text: Jinja text in the form that transformers accepts.
            special_tokens: special tokens by name, such as `bos_token`.
            owner: the name of the model in errors.
            options: values for variables that the template reads, such as `enable_thinking`.

        Raises:
            DataError: the template is not valid.
            ConfigError: the template does not read an option.
        """
        self._owner = owner
        self._special_tokens = dict(special_tokens)
        self._lost: dict[tuple[tuple[str, ...], bool], int | None] = {}
        self._text = with_options(text, options or {})
        jinja = environment()
        try:
            tree = jinja.parse(text)
            self._has_markers, self._reads_date = has_generation_markers(tree), reads_date(tree)
            variables = meta.find_undeclared_variables(tree) - set(jinja.globals)
            self._check_options(options or {}, variables)
            self._template = jinja.from_string(self._text)
        except _FAULTS as error:
            if isinstance(error, ConfigError):
                raise
            raise DataError(f"the chat template of {owner} is not valid: {told(error)}; correct it") from error

    @property
    def text(self) -> str:
        """The rendered text: the values of the options, followed by the template."""
        return self._text

    @property
    def has_markers(self) -> bool:
        """Whether the template marks what the assistant says, with `{% generation %}`."""
        return self._has_markers

    @property
    def reads_date(self) -> bool:
        """Whether the template may write the date of today."""
        return self._reads_date

    @cached_property
    def reads_tools(self) -> bool:
        """Whether the template writes the tools that it is given; else the caller must describe them in a message."""
        try:
            text = self.written([{"role": "user", "content": "x"}], generation_prompt=True, tools=[_PROBE]).text
        except DataError:
            return False
        return _PROBE["function"]["name"] in text

    def render(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        """Returns the conversation as one text that contains every message; see `rendered`."""
        return self.rendered(messages, generation_prompt=generation_prompt).text

    def rendered(
        self, messages: Sequence[Message], *, generation_prompt: bool, tools: Sequence[Mapping[str, Any]] = ()
    ) -> Rendered:
        """Returns the conversation as one text that contains every message, and what of it is marked.

        Args:
            messages: the messages of the conversation.
            generation_prompt: whether to end with the beginning of the assistant's turn.
            tools: JSON schemas of tools in the form of OpenAI, for a template that reads them.

        Raises:
            DataError: the template refuses the conversation, fails, takes too much work, or leaves out a message or a
                tool.
        """
        try:
            return self._whole(messages, generation_prompt=generation_prompt, tools=tools, as_parts=False)
        except DataError as error:
            if isinstance(error.__cause__, TooMuchWork):
                raise
            of_text = error
        try:
            return self._whole(messages, generation_prompt=generation_prompt, tools=tools, as_parts=True)
        except DataError:
            raise of_text from of_text.__cause__

    def _whole(
        self,
        messages: Sequence[Message],
        *,
        generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]],
        as_parts: bool,
    ) -> Rendered:
        conversation = [as_dict(message, as_parts) for message in messages]
        result = self.written(conversation, generation_prompt=generation_prompt, tools=tools)
        text = result.text
        names = [tool.get("function", tool)["name"] for tool in tools]
        missing = [name for name in names if not self.reads_tools or name not in text]
        if missing:
            raise DataError(
                f"the chat template of {self._owner} leaves out the tool {missing[0]!r}; describe the tools in a "
                "system message, or set model.chat_template to one that writes them"
            )
        lost = left_out(messages, text)
        if lost is None and as_parts and PART_AS_TEXT in text:
            lost = messages[0]
        if lost is None:
            index = self._lost_by_role(tuple(message.role for message in messages), as_parts)
            lost = None if index is None else messages[index]
        if lost is None:
            return result
        raise DataError(
            f"the chat template of {self._owner} leaves out the text of the {lost.role} message, "
            f"{lost.content[:SHOWN_CHARACTERS]!r}; set model.chat_template to one that writes it, or "
            + ("remove data.system_prompt or the message" if lost.role == "system" else "correct the conversation")
        )

    def _lost_by_role(self, roles: tuple[str, ...], as_parts: bool) -> int | None:
        """Returns the index of a message that the template always leaves out with these roles, or None.

        This is tested once, with unique words: a short text may also occur in another message.
        """
        if (roles, as_parts) not in self._lost:
            marked = [Message(role, f"Zq{index}marked{index}qZ") for index, role in enumerate(roles)]
            try:
                text = self.written([as_dict(each, as_parts) for each in marked], generation_prompt=False).text
            except DataError:
                # The template depends on the content of such messages, so only their own texts can be checked.
                self._lost[roles, as_parts] = None
            else:
                self._lost[roles, as_parts] = next((i for i, m in enumerate(marked) if m.content not in text), None)
        return self._lost[roles, as_parts]

    def written(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Rendered:
        """Returns what the template writes for messages in its own form, without checking that it is complete.

        Args:
            conversation: the messages as a template reads them: `role`, `content` and others, such as `tool_calls`.
            generation_prompt: whether to end with the beginning of the assistant's turn.
            tools: JSON schemas of tools in the form of OpenAI.

        Raises:
            DataError: the template refuses the conversation, fails, or takes too much work.
        """
        variables = {
            **self._special_tokens,
            "messages": conversation,
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": generation_prompt,
        }
        room = RENDER_CHARACTERS + 4 * sum(_characters(message["content"]) for message in conversation)
        try:
            return rendered(self._template, variables, characters=room)
        except _FAULTS as error:
            roles = ", ".join(message["role"] for message in conversation)
            if type(error) is jinja2.TemplateError:  # by raise_exception
                raise DataError(
                    f"the chat template of {self._owner} refuses roles {roles}: {error}; correct the messages"
                ) from error
            raise DataError(
                f"the chat template of {self._owner} fails on roles {roles}: {told(error)}; correct the messages, "
                "or set model.chat_template to a template that works"
            ) from error

    def _check_options(self, options: Mapping[str, Any], variables: set[str]) -> None:
        own = sorted(variables - set(OF_THE_CONVERSATION) - set(self._special_tokens))
        for name in options:
            if name in OF_THE_CONVERSATION or name in self._special_tokens:
                raise ConfigError(f"data.template_options.{name}: is given with every conversation; remove it")
            if name not in own:
                raise ConfigError(
                    f"data.template_options.{name}: the chat template of {self._owner} does not read it; "
                    f"it reads {', '.join(own) or 'no variables of its own'}"
                )


def default_template(tokenizer: ModelTokenizer, *, place: str, remedy: str) -> str:
    """Returns the chat template of a model: the only one, or the one called `default`.

    Args:
        tokenizer: the tokenizer of the model.
        place: the key and the path of the model, for the error.
        remedy: what the user can do without such a template.

    Raises:
        DataError: there is no such template.
    """
    templates = tokenizer.templates
    if "default" in templates:
        return templates["default"]
    named = f"the chat templates {', '.join(sorted(templates))}, and none of them is called default"
    raise DataError(f"{place}: the tokenizer has {named if templates else 'no chat template'}; {remedy}")


def template_text(value: str, templates: Mapping[str, str]) -> str:
    """Returns the Jinja text for a value of `model.chat_template`.

    Args:
        value: Jinja text, a Jinja file, or a name.
        templates: the templates of the model, by name.

    Raises:
        ConfigError: the value is none of these.
    """
    if value in templates:
        return templates[value]
    text = without_file(value)
    if not _is_jinja(text) and text == value:
        raise ConfigError(
            f"model.chat_template={value}: neither Jinja text, nor a file, nor the name of a template of the model, "
            f"which has {', '.join(sorted(templates)) or 'none'}"
        )
    return text


def without_file(value: str) -> str:
    """Returns the content of the file if `model.chat_template` is a path, and otherwise the value itself.

    Raises:
        ConfigError: the file cannot be read.
    """
    file = Path(value).expanduser()
    if _is_jinja(value) or not file.is_file():
        return value
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.chat_template={value}: the file cannot be read: {error}") from error


def _is_jinja(text: str) -> bool:
    return "{{" in text or "{%" in text


def with_options(template: str, options: Mapping[str, Any]) -> str:
    """Returns the template, preceded by default values for its variables."""
    # On a separate line: the line end after a block is not written, so the template still begins on a new line.
    lines = [
        f"{{% if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif %}}\n"
        for name, value in options.items()
    ]
    return "".join(lines) + template


def left_out(messages: Sequence[Message], text: str) -> Message | None:
    """Returns the first message whose text is not in `text`, ignoring all space.

    The thoughts in an assistant's message may be missing: templates of reasoning models drop them in earlier turns.
    """
    whole = squeezed(text)
    behind = 0
    for message in messages:
        for form in _forms(message):
            wanted = squeezed(form)
            # Most templates keep the order: then a long conversation is searched only once, not once per message.
            found = whole.find(wanted, behind)
            if found < 0:
                found = whole.find(wanted)
            if found >= 0:
                behind = found + len(wanted)
                break
        else:
            return message
    return None


def _forms(message: Message) -> Iterator[str]:
    """Yields the possible forms of a message's text."""
    yield message.content
    yield json.dumps(message.content, ensure_ascii=False)[1:-1]
    if message.role == "assistant":
        yield message.content.rpartition("</think>")[2]


def as_dict(message: Message, as_parts: bool) -> dict[str, Any]:
    """Returns a message as a template reads it, with its content as text or as a list of one part."""
    return {
        "role": message.role,
        "content": [{"type": "text", "text": message.content}] if as_parts else message.content,
    }


def _characters(content: str | Sequence[Mapping[str, str]]) -> int:
    return len(content) if isinstance(content, str) else sum(len(part["text"]) for part in content)


def told(error: BaseException) -> str:
    """Returns kind, template line and message of an error, on one line."""
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    line = error.lineno if isinstance(error, jinja2.TemplateSyntaxError) else frames[-1] if frames else None
    place = "" if line is None else f" in line {line}"
    return f"{type(error).__name__}{place}: {' '.join(str(error).split())[:SHOWN_CHARACTERS]}"
