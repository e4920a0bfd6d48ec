"""An environment in which the policy calls tools until it replies without a call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray_rl.config.environment import ToolsEnvironment
from ray_rl.environments.base import Reply, Step
from ray_rl.environments.tools.running import run_tool
from ray_rl.environments.tools.schema import Schema
from ray_rl.environments.tools.sources import source_of
from ray_rl.environments.tools.tool import EpisodeTools, Tool, ToolSource
from ray_rl.environments.tools.words import cut, error_text, listed, printable, quoted, result_text
from ray_rl.errors import ConfigError, EnvironmentFailed
from ray_rl.types import Message, ToolCall


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call of a tool led to."""

    call: ToolCall
    text: str
    """What the policy reads: the result, or the error."""
    is_error: bool
    """Whether it is an error, of the call or of the tool."""
    is_valid: bool
    """Whether the call was well formed, named a tool, and its arguments fitted; the tool may have failed."""


@dataclass(slots=True)
class Episode:
    """An episode, for its reward."""

    row: Mapping[str, Any]
    """The columns of the row, and the text of the prompt as `prompt`."""
    seed: int
    replies: list[Reply] = field(default_factory=list)
    """What the policy said, in order; the last reply has no call."""
    answers: list[tuple[Answer, ...]] = field(default_factory=list)
    """The answers to the calls of each reply."""


class ToolEnvironment:
    """Checks and runs the calls of a reply in order, and answers with their results; see `Environment`.

    Ready to use, and a base class: override `reset` (and await the one here first) for messages at the beginning, or
    `finish` for what happens at a reply without calls.
    """

    def __init__(
        self,
        tools: Sequence[Callable[..., Any] | Tool | ToolSource],
        *,
        settings: ToolsEnvironment | None = None,
        reward: Callable[[Episode], Any] | None = None,
    ) -> None:
        """Makes the environment of one episode.

        Args:
            tools: functions with type hints and docstrings, tools with schemas of their own, classes whose public
                methods are tools, and sources.
            settings: the limits; None for the defaults. Its `tools`, `sources` and `reward` are not read.
            reward: called with the episode after its last reply; plain or a coroutine function. Returns a number, or
                None for no opinion.

        Raises:
            ConfigError: no schema can be made of a function.
        """
        self._sources = [source_of(tool) for tool in tools]
        self._settings = settings or ToolsEnvironment()
        self._reward = reward
        self._opened: list[EpisodeTools] = []
        self._open = AsyncExitStack()
        self._tools: dict[str, Tool] = {}
        self._had_error = False
        self.episode = Episode({}, 0)

    async def schemas(self) -> list[Schema]:
        """Returns the schemas of all tools, for the prompt, in the order of the tools.

        Raises:
            ConfigError: two tools have the same name.
        """
        found = [schema for source in self._sources for schema in await source.schemas()]
        _check_names([schema["function"]["name"] for schema in found])
        return found

    async def reset(self, row: Mapping[str, Any], seed: int) -> Sequence[Message]:
        """Opens the tools, and returns what they say at the beginning; see `Environment`."""
        self.episode = Episode(row, seed)
        for source in self._sources:
            opened = await source.open(row, seed)
            self._open.push_async_callback(opened.close)
            self._opened.append(opened)
        tools = [tool for opened in self._opened for tool in opened.tools]
        _check_names([tool.name for tool in tools])
        self._tools = {tool.name: tool for tool in tools}
        return [message for opened in self._opened for message in opened.messages]

    async def step(self, reply: Reply) -> Step:
        """Replies to every call of the reply in order, or ends the episode if it has none; see `Environment`."""
        most = self._settings.max_calls_per_turn
        late = f"not run: a reply may have at most {most} calls"
        until_s = time.monotonic() + self._settings.tool_timeout_s
        answers = [await self._answer(call, until_s) for call in reply.tool_calls[:most]]
        answers += [Answer(call, error_text(late), True, False) for call in reply.tool_calls[most:]]
        self.episode.replies.append(reply)
        self.episode.answers.append(tuple(answers))
        metrics = self._metrics(answers)
        if not reply.tool_calls:
            ended = await self.finish(reply)
            return Step(ended.messages, ended.reward, ended.done, {**metrics, **ended.metrics})
        messages = [Message("tool", each.text) for each in answers if each.call.error is None]
        # There is no call that a message of role tool could answer.
        messages += [Message("user", each.text) for each in answers if each.call.error is not None]
        return Step(tuple(messages), metrics=metrics)

    async def finish(self, reply: Reply) -> Step:
        """Ends the episode at a reply without calls, with its reward.

        Raises:
            EnvironmentFailed: the reward raised, hung, or is neither a finite number nor None.
        """
        hooks = [opened.reward for opened in self._opened if opened.reward is not None]
        if self._reward is not None:
            hooks.append(partial(self._reward, self.episode))
        values = [value for hook in hooks if (value := await self._rewarded(hook)) is not None]
        return Step(reward=math.fsum(values) if values else None, done=True)

    async def close(self) -> None:
        """Closes the tools of the episode, all of them also if one cannot be closed."""
        await self._open.aclose()

    async def _answer(self, call: ToolCall, until_s: float) -> Answer:
        if call.error is not None:
            return Answer(call, printable(call.error), True, False)
        tool = self._tools.get(call.name)
        if tool is None:
            what = f"there is no tool {quoted(call.name)}; the tools are {listed(self._tools)}"
            return Answer(call, error_text(what), True, False)
        arguments = call.arguments or {}
        wrong = tool.validator.error(arguments)
        if wrong is not None:
            return Answer(call, error_text(wrong), True, False)
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            what = f"{call.name}: not run: the calls before it took {self._settings.tool_timeout_s:g} s"
            return Answer(call, error_text(what), True, True)
        outcome = await run_tool(tool.function, tool.validator.fitted(arguments), timeout_s=left_s, convert=self._shown)
        if outcome.error is not None:
            return Answer(call, error_text(f"{call.name}: {outcome.error}"), True, True)
        return Answer(call, outcome.value, False, True)

    def _shown(self, result: Any) -> str:
        return printable(cut(result_text(result), self._settings.max_result_characters))

    def _metrics(self, answers: Sequence[Answer]) -> dict[str, float]:
        """Returns the counts of a turn, and after a turn with an error whether this one has a call that worked."""
        errors = sum(answer.is_error for answer in answers)
        metrics = {
            "calls": float(len(answers)),
            "valid": float(sum(answer.is_valid for answer in answers)),
            "errors": float(errors),
            "unknown": float(sum(a.call.error is None and a.call.name not in self._tools for a in answers)),
        }
        if self._had_error:
            metrics["recovered"] = float(errors < len(answers))
        self._had_error = errors > 0
        return metrics

    async def _rewarded(self, hook: Callable[[], Any]) -> float | None:
        outcome = await run_tool(hook, {}, timeout_s=self._settings.tool_timeout_s)
        value = outcome.value
        if outcome.error is not None:
            raise EnvironmentFailed(f"the reward of an environment with tools: {outcome.error}; correct the function")
        if value is None:
            return None
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise EnvironmentFailed(
                f"the reward of an environment with tools is {quoted(repr(value))}; return a finite number or None"
            )
        return float(value)


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"environment: several tools have the name {twice[0]!r}; rename all but one")
