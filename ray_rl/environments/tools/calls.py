"""Reads calls of tools out of completions. A call that is not well formed becomes one with an error for the policy.

The text is decoded with special tokens, because some tokenizers have tags such as `<tool_call>` as special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray_rl.environments.tools.pythonic import BadList, read_list
from ray_rl.environments.tools.strict_json import BadJson, after_space, read_value
from ray_rl.environments.tools.words import quoted
from ray_rl.errors import ConfigError
from ray_rl.types import ToolCall


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a completion says, apart from its calls."""

    content: str
    """The text without calls and without special tokens at its end; thoughts included."""
    calls: tuple[ToolCall, ...] = ()


CallParser = Callable[[str], Parsed]
"""Reads the calls of one completion, well formed or not, in the order of the text. Never raises because of the text."""


class OtherParsers(Protocol):
    """Knows parsers by name that this folder does not have."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the parsers."""

    def parser(self, name: str, schemas: Sequence[Mapping[str, Any]]) -> CallParser:
        """Returns a parser.

        Args:
            name: one of `names`.
            schemas: the schemas of all tools, as functions of OpenAI.

        Raises:
            ConfigError: the parser does not work with the model's tokenizer.
        """


def call_parser(
    name: str, *, template: str | None, schemas: Sequence[Mapping[str, Any]], others: OtherParsers | None = None
) -> CallParser:
    """Returns the parser for a value of `environment.parser`.

    Args:
        name: the name, or `auto`.
        template: the text of the model's chat template, for `auto`; None for a model without one.
        schemas: the schemas of the tools.
        others: the parsers that this folder does not have.

    Raises:
        ConfigError: there is no such parser, or the template does not say how calls are written.
    """
    chosen = parser_of_template(template or "") if name == "auto" else name
    if chosen in OWN:
        return OWN[chosen]
    known = () if others is None else others.names
    if others is not None and chosen in known:
        return others.parser(chosen, schemas)
    raise ConfigError(
        f"environment.parser={name}: "
        + ("" if name == chosen else f"the chat template needs the parser {chosen!r}, which does not exist here; ")
        + f"set it to one of {', '.join(dict.fromkeys(['auto', *OWN, *known]))}"
    )


MARKS: tuple[tuple[str, str], ...] = (
    ("<function=", "qwen3_coder"),
    ("<arg_key>", "glm45"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("<\uff5ctool\u2581calls\u2581begin\uff5c>", "deepseek_v3"),
    ("<|tool_call_start|>", "lfm2"),
    ("<|tool_call>", "gemma4"),
    ("<|channel|>", "openai"),
    ("[TOOL_CALLS]", "mistral"),
    ("<function_calls>", "olmo3"),
    ("<start_function_call>", "functiongemma"),
    ("functools[", "phi4_mini_json"),
    ("<minimax:tool_call>", "minimax_m2"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3_json"),
    ('{"name": function name, "parameters":', "llama3_json"),
)
"""What templates write around calls, and the parser of it. The first mark that a template has decides: several
templates have `<tool_call>` and another form inside."""


def parser_of_template(template: str) -> str:
    """Returns the name of the parser for the calls that a chat template writes.

    Raises:
        ConfigError: the template has none of the known marks.
    """
    for mark, name in MARKS:
        if mark in template:
            return name
    raise ConfigError(
        "environment.parser=auto: the chat template does not show how the model writes calls of tools; set "
        f"environment.parser to the form that your prompt asks for: {', '.join(OWN)}, or a name of vLLM's parsers"
    )


def hermes(text: str) -> Parsed:
    """Reads `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`. The last tag may miss its end."""
    said, at = _after_thoughts(text)
    calls: list[ToolCall] = []
    content, place = [text[:at]], at
    while (begin := said.find(_OPEN, place)) >= 0:
        content.append(said[place:begin])
        if len(calls) == MOST_CALLS:
            return Parsed(_content("".join(content)), _numbered([*calls, malformed(f"one of more than {MOST_CALLS}")]))
        call, place = _hermes_call(said, begin + len(_OPEN))
        calls.append(call)
    content.append(said[place:])
    return Parsed(_content("".join(content)), _numbered(calls))


MOST_CALLS = 256
"""Calls that are read of one completion: Python's time for the error of one grows with the text before it."""
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


def _hermes_call(text: str, begin: int) -> tuple[ToolCall, int]:
    """Returns the call behind an opening tag, and the position behind it."""
    after = text.find(_OPEN, begin)
    close = text.find(_CLOSE, begin, after if after >= 0 else len(text))
    fallback = close + len(_CLOSE) if close >= 0 else after if after >= 0 else len(text)
    try:
        value, end = read_value(text, begin)
    except BadJson as error:
        return malformed(f"not valid JSON: {error}"), fallback
    end = after_space(text, end)
    if text.startswith(_CLOSE, end):
        return _call(value, ("arguments",)), end + len(_CLOSE)
    if _is_end(text, end):
        return _call(value, ("arguments",)), len(text)
    what = f"{_CLOSE} expected, not {quoted(text[end : end + 20])}"
    return malformed(f"not well formed: behind the JSON, {what}", _name(value)), max(fallback, end)


def llama3_json(text: str) -> Parsed:
    """Reads `{"name": ..., "parameters": {...}}`, several with semicolons, maybe after `<|python_tag|>`.

    Calls are the whole completion, as Llama's template asks for; text that does not begin so has none.
    """
    said, at = _after_thoughts(text)
    tag = said.find(_PYTHON_TAG, at)
    begin = after_space(said, at if tag < 0 else tag + len(_PYTHON_TAG))
    before = said[:at] if tag < 0 else said[:tag]
    if tag < 0 and not said.startswith("{", begin):
        return Parsed(_content(text))
    calls: list[ToolCall] = []
    while not _is_end(said, begin) or not calls:
        try:
            value, end = read_value(said, begin)
        except BadJson as error:
            calls.append(malformed(f"not valid JSON: {error}"))
            break
        calls.append(_call(value, ("parameters", "arguments")))
        begin = after_space(said, end)
        if said.startswith((";", _PYTHON_TAG), begin):
            begin = after_space(said, begin + (1 if said[begin] == ";" else len(_PYTHON_TAG)))
        elif not _is_end(said, begin):
            calls.append(malformed(f"not well formed: text behind the JSON, {quoted(said[begin : begin + 20])}"))
            break
    return Parsed(_content(before), _numbered(calls))


_PYTHON_TAG = "<|python_tag|>"


def pythonic(text: str) -> Parsed:
    """Reads a list of Python calls with constant arguments: `[add(a=1, b=2), sub(a=3, b=1)]`.

    Calls are the whole completion; text that does not begin so has none.
    """
    said, at = _after_thoughts(text)
    begin = after_space(said, at)
    if _LIST.match(said, begin) is None:
        return Parsed(_content(text))
    try:
        found = read_list(_content(said[begin:]))
    except BadList as error:
        return Parsed(_content(said[:at]), (malformed(f"not a list of Python calls: {error}"),))
    return Parsed(_content(said[:at]), tuple(ToolCall(name, arguments) for name, arguments in found))


_LIST = re.compile(r"\[\s*[A-Za-z_][\w.]*\s*\(")

OWN: dict[str, CallParser] = {"hermes": hermes, "llama3_json": llama3_json, "pythonic": pythonic}
"""The parsers of this folder, by name. Each says why a call is not well formed, and where."""

_THOUGHTS_END, _THOUGHTS = "</think>", "<think>"
_END = re.compile(r"(?:\s|<\|[^<>|]{1,40}\|>|</s>|<eos>|<end_of_turn>)+\Z")
_MOST_END = 400
"""Characters at the end of a text among which special tokens are looked for."""


def without_thoughts(text: str) -> str:
    """Returns what follows the thoughts of a completion; "" if its thoughts do not end."""
    said, at = _after_thoughts(text)
    return said[at:]


def _after_thoughts(text: str) -> tuple[str, int]:
    """Returns the text, and where its thoughts end. What a policy only thinks of is no call."""
    end = text.rfind(_THOUGHTS_END)
    if end >= 0:
        return text, end + len(_THOUGHTS_END)
    return text, len(text) if text.lstrip().startswith(_THOUGHTS) else 0


def _content(text: str) -> str:
    start = max(0, len(text) - _MOST_END)
    return text[:start] + _END.sub("", text[start:])


def _is_end(text: str, begin: int) -> bool:
    """Returns whether only spaces and special tokens follow."""
    return begin >= len(text) or (len(text) - begin <= _MOST_END and _END.match(text, begin) is not None)


def _call(value: Any, keys: Sequence[str]) -> ToolCall:
    """Returns the call that a JSON value describes.

    Args:
        value: the value.
        keys: the keys under which the arguments may be, the usual one first.
    """
    form = f'{{"name": ..., "{keys[0]}": {{...}}}}'
    if not isinstance(value, dict):
        return malformed(f"not an object of the form {form}")
    name = _name(value)
    if not name:
        return malformed(f"without the name of a tool; the form is {form}")
    key = next((key for key in keys if key in value), None)
    if key is None:
        return malformed(f"without the key {keys[0]!r}; the form is {form}", name)
    if not isinstance(value[key], dict):
        return malformed(f"not well formed: {key!r} must be an object, like {{...}}", name)
    return ToolCall(name, value[key])


def _name(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else None
    return name if isinstance(name, str) else ""


def malformed(why: str, name: str = "") -> ToolCall:
    """Returns what looks like a call and is none, with the reason as "Your tool call is ..."."""
    return ToolCall(name, None, f"Your tool call is {why}")


def _numbered(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """Returns the calls; of several, errors say which one is meant."""
    if len(calls) < 2:
        return tuple(calls)
    return tuple(
        ToolCall(call.name, call.arguments, call.error and call.error.replace("Your", f"Your {number}.", 1))
        for number, call in enumerate(calls, start=1)
    )
