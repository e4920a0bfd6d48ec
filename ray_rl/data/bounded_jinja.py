"""Jinja with the settings of transformers for chat templates, and with a limit on the work of one rendering."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import wraps
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import ext, nodes, parser, runtime, sandbox, visitor

RENDER_STEPS = 200_000
"""The most loop rounds and calls of one rendering: a conversation needs a few for each message."""
RENDER_S = 5.0

ITEM_CHARACTERS = 64
"""Number of characters that an item of a list counts for."""


@dataclass
class _Budget:
    steps: int
    characters: int
    deadline: float
    written: int = 0
    """Number of characters of the result so far."""
    marked: list[tuple[int, str]] = field(default_factory=list)
    """Each text between generation markers, with `written` before it."""

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise TooMuchWork(f"more than {RENDER_STEPS:,} rounds of loops and calls")
        if self.steps % 1024 == 0 and time.monotonic() > self.deadline:
            raise TooMuchWork(f"more than {RENDER_S:g} s for one conversation")

    def room(self, characters: int) -> None:
        if characters > self.characters:
            raise TooMuchWork(f"a text of more than {self.characters:,} characters")


class TooMuchWork(jinja2.TemplateRuntimeError):
    """Rendering a template takes too much work."""


_BUDGET: ContextVar[_Budget] = ContextVar("budget of the rendering")
_OF_A_COMPILATION = _Budget(sys.maxsize, 2**24, math.inf)
"""Budget while a template is compiled, when Jinja computes constants."""


def _budget() -> _Budget:
    return _BUDGET.get(_OF_A_COMPILATION)


@dataclass(frozen=True, slots=True)
class Rendered:
    """The result of a rendering."""

    text: str
    generated: tuple[tuple[int, int], ...] | None
    """First character and the one after the last of each text between `{% generation %}` and `{% endgeneration %}`;
    None if the place of one is not known, because the template does not write it directly (it is in a macro)."""


def rendered(template: jinja2.Template, variables: Mapping[str, Any], *, characters: int) -> Rendered:
    """Renders the template with its variables.

    Args:
        template: a template of `environment()`.
        variables: the values of its variables by name.
        characters: the most characters of the result and of every intermediate text.

    Raises:
        jinja2.TemplateError: the template raised it (`raise_exception`), has an error, or takes too much work.
        Exception: any other exception of the template, which is code.
    """
    budget = _Budget(RENDER_STEPS, characters, time.monotonic() + RENDER_S)
    token = _BUDGET.set(budget)
    try:
        pieces: list[str] = []
        for piece in template.generate(variables):
            budget.written += len(piece)
            budget.room(budget.written)
            pieces.append(piece)
        text = "".join(pieces)
        is_known = all(text.startswith(marked, start) for start, marked in budget.marked)
        return Rendered(text, tuple((start, start + len(each)) for start, each in budget.marked) if is_known else None)
    finally:
        _BUDGET.reset(token)


def _sized(value: Any) -> Any:
    """Returns the value; raises if it is a text beyond the limit."""
    if isinstance(value, str):
        _budget().room(len(value))
    return value


def _widths(arguments: Sequence[Any]) -> None:
    """Refuses a number to which a text would be padded, before the padding uses too much memory."""
    for argument in arguments:
        if isinstance(argument, int):
            _budget().room(argument)


def _stepped(iterable: Any) -> Iterator[Any]:
    """Yields the items of the iterable and counts each round."""
    for item in iterable:
        _budget().step()
        yield item


def _joined(values: Sequence[Any]) -> str:
    texts = [str(value) for value in values]
    _budget().room(sum(map(len, texts)))
    return "".join(texts)


class _Counting(visitor.NodeTransformer):
    """Rewrites loops and text operations to use functions that count."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        # A template does not see whether a loop knows its length: Jinja counts if necessary.
        node.iter = nodes.Filter(node.iter, "_stepped", [], [], None, None)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "_joined", [], [], None, None)


class _Environment(sandbox.ImmutableSandboxedEnvironment):
    """The environment of transformers, with loops, calls and texts counted."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def _generate(self, source: nodes.Template, *rest: Any, **named: Any) -> str:
        counted: nodes.Template = _Counting().visit(source)
        counted.set_environment(self)
        return super()._generate(counted, *rest, **named)

    def call(self, context: runtime.Context, called: Any, /, *arguments: Any, **named: Any) -> Any:
        _budget().step()
        if isinstance(called, BuiltinMethodType) and isinstance(called.__self__, str):
            _widths(arguments)
        return _sized(super().call(context, called, *arguments, **named))

    def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
        _budget().room(_result_size(operator, left, right))
        return super().call_binop(context, operator, left, right)


def _result_size(operator: str, left: Any, right: Any) -> int:
    """Returns the size of an operation's result: characters of a text, or the equivalent for a list or number."""
    if operator == "+":
        return _size(left) + _size(right)
    if operator == "**":
        return left.bit_length() * abs(right) if isinstance(left, int) and isinstance(right, int) else 0
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() + right.bit_length()
    return max(
        _size(left) * right if isinstance(right, int) else 0, _size(right) * left if isinstance(left, int) else 0
    )


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return ITEM_CHARACTERS * len(value) if isinstance(value, list | tuple) else 0


class _Generation(ext.Extension):
    """The tag `{% generation %}`, which marks the text of an assistant, as transformers' AssistantTracker does."""

    tags = {"generation"}  # noqa: RUF012 - as its base class has it

    def parse(self, parser: parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        budget, text = _budget(), caller()
        budget.marked.append((budget.written, text))
        return text


def has_generation_markers(template: nodes.Template) -> bool:
    """Returns whether a parsed template marks the text of the assistant."""
    return any(each.identifier == _Generation.identifier for each in template.find_all(nodes.ExtensionAttribute))


def reads_date(template: nodes.Template) -> bool:
    """Returns whether a parsed template asks for the date of today."""
    return any(each.name == "strftime_now" for each in template.find_all(nodes.Name))


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Returns JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> jinja2.Environment:
    """Returns a sandbox for chat templates, with the settings, filters and functions of transformers."""
    made = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols], finalize=_sized
    )
    made.filters["tojson"] = _tojson
    made.filters = {name: _checked(function) for name, function in made.filters.items()}
    made.filters.update(_stepped=_stepped, _joined=_joined)
    made.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return made


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        _widths(arguments)
        return _sized(function(*arguments, **named))

    return checked
