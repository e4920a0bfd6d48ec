"""A tool: its schema, the check of arguments, and the function behind it. And where the tools of episodes come from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ray_rl.environments.tools.schema import Schema, Validator, function_schema, given_schema
from ray_rl.types import Message


class ToolError(Exception):
    """What a tool tells the policy instead of a result. Its text is passed on without the name of a class."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a policy may call."""

    schema: Schema
    """The tool as a function of OpenAI: `{"type": "function", "function": {"name": ..., "parameters": ...}}`."""
    function: Callable[..., Any]
    """Called with the arguments by name. A plain function gets a thread of its own; a coroutine function is awaited."""
    validator: Validator = field(repr=False, compare=False)

    @classmethod
    def of(cls, function: Callable[..., Any], *, name: str | None = None) -> Tool:
        """Makes a tool of a function with type hints and a docstring; see `function_schema`.

        Raises:
            ConfigError: no schema can be made of it.
        """
        return cls.given(function_schema(function, name=name), function)

    @classmethod
    def given(cls, schema: Mapping[str, Any], function: Callable[..., Any]) -> Tool:
        """Makes a tool of a function and the schema that was written for it; see `given_schema`.

        Raises:
            ConfigError: the schema is wrong.
        """
        whole = given_schema(schema)
        inner = whole["function"]
        return cls(whole, function, Validator(inner["name"], inner["parameters"]))

    @property
    def name(self) -> str:
        """The name by which the policy calls it."""
        return str(self.schema["function"]["name"])

    def calling(self, function: Callable[..., Any]) -> Tool:
        """Returns the same tool with another function behind it."""
        return replace(self, function=function)


async def _nothing() -> None:
    """Does nothing."""


@dataclass(frozen=True, slots=True)
class EpisodeTools:
    """What a source has opened for one episode."""

    tools: Sequence[Tool]
    messages: tuple[Message, ...] = ()
    """Messages for the policy that follow the prompt."""
    reward: Callable[[], Any] | None = None
    """Returns the reward of the episode after its last reply; plain or a coroutine function."""
    close: Callable[[], Awaitable[None]] = _nothing
    """Ends what was opened. Called once."""


class ToolSource(Protocol):
    """Where tools come from. One object serves all episodes of a process, concurrently."""

    async def schemas(self) -> list[Schema]:
        """Returns the schemas of the tools, for the prompt. They are the same in all episodes.

        Raises:
            ConfigError: the source is configured wrongly.
            EnvironmentFailed: a server does not start.
        """

    async def open(self, row: Mapping[str, Any], seed: int) -> EpisodeTools:
        """Returns the tools of one episode; for `row` and `seed` see `Environment.reset`.

        Raises:
            EnvironmentFailed: they cannot be opened.
        """

    async def close(self) -> None:
        """Ends what episodes share. No call may follow."""
