"""Tools that are functions of Python, or the methods of an object that each episode has of its own."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ray_rl.environments.tools.running import run_tool
from ray_rl.environments.tools.schema import Schema
from ray_rl.environments.tools.tool import EpisodeTools, Tool, ToolSource
from ray_rl.errors import ConfigError, EnvironmentFailed
from ray_rl.types import Message

START_S = 60.0
"""Limit for making the object of an episode, and for its `reset`."""
NOT_TOOLS = ("reset", "get_reward", "close")
"""Public methods of a class with tools that the policy cannot call."""


def source_of(tool: Callable[..., Any] | Tool | ToolSource) -> ToolSource:
    """Returns the source for a function, a class whose methods are tools, a tool, or a source.

    Raises:
        ConfigError: it is none of these, or no schema can be made of it.
    """
    if isinstance(tool, Tool):
        return FunctionTools([tool])
    if isinstance(tool, type):
        return ObjectTools(tool)
    if callable(tool):
        return FunctionTools([Tool.of(tool)])
    return tool


class FunctionTools:
    """Tools that all episodes share; see `ToolSource`."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        """Makes a source of tools."""
        self._tools = tuple(tools)

    async def schemas(self) -> list[Schema]:
        """Returns the schemas of the tools."""
        return [tool.schema for tool in self._tools]

    async def open(self, row: Mapping[str, Any], seed: int) -> EpisodeTools:
        """Returns the tools."""
        return EpisodeTools(self._tools)

    async def close(self) -> None:
        """Does nothing."""


class ObjectTools:
    """Tools that are the public methods of an object; each episode makes its own. See `ToolSource`.

    The same classes as for TRL's `environment_factory` work: `reset(**columns)` may return a text for the policy, and
    `get_reward()` the reward of the episode. `close()` is called at the end. None of the three is a tool.
    """

    def __init__(self, made: type) -> None:
        """Makes the schemas of a class. It is called without arguments for each episode.

        Raises:
            ConfigError: it has no public method, or no schema can be made of one.
        """
        self._class = made
        self._tools = tuple(Tool.of(method) for method in _methods(made))
        if not self._tools:
            raise ConfigError(f"{made.__name__} has no public methods, so it has no tools; add one")

    async def schemas(self) -> list[Schema]:
        """Returns the schemas of the methods."""
        return [tool.schema for tool in self._tools]

    async def open(self, row: Mapping[str, Any], seed: int) -> EpisodeTools:
        """Makes an object for the episode, and calls its `reset` with the columns that it names.

        A parameter `seed` gets the seed, unless it is a column.

        Raises:
            EnvironmentFailed: the class or its `reset` raised, or took too long.
        """
        own = await self._called(self._class, {})
        columns = {"seed": seed, **row}
        said = await self._called(own.reset, _taken(own.reset, columns)) if _has(own, "reset") else None
        return EpisodeTools(
            [tool.calling(_method(own, tool.name)) for tool in self._tools],
            (Message("user", said),) if isinstance(said, str) and said else (),
            own.get_reward if _has(own, "get_reward") else None,
            partial(self._end, own),
        )

    async def close(self) -> None:
        """Does nothing: objects end with their episodes."""

    async def _end(self, own: Any) -> None:
        if _has(own, "close"):
            await self._called(own.close, {})

    async def _called(self, function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        outcome = await run_tool(function, arguments, timeout_s=START_S)
        if outcome.error is not None:
            raise EnvironmentFailed(f"{function.__qualname__}: {outcome.error}")
        return outcome.value


def _method(own: object, name: str) -> Callable[..., Any]:
    """Returns the method of an object."""
    method: Callable[..., Any] = getattr(own, name)
    return method


def _has(own: object, name: str) -> bool:
    return callable(inspect.getattr_static(type(own), name, None))


def _methods(made: type) -> list[Callable[..., Any]]:
    """Returns the public methods of a class, as if bound, in the order in which they were written."""
    found: dict[str, Any] = {}
    for owner in reversed(made.__mro__):
        found |= vars(owner)
    methods: list[Callable[..., Any]] = []
    for name, member in found.items():
        if name.startswith("_") or name in NOT_TOOLS:
            continue
        if isinstance(member, types.FunctionType):
            methods.append(types.MethodType(member, object()))
        elif isinstance(member, staticmethod):
            methods.append(member.__func__)
    return methods


def _taken(function: Callable[..., Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns that a function takes: all with `**`, else those that it names."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(columns)
    return {parameter.name: columns[parameter.name] for parameter in parameters if parameter.name in columns}
