"""Holds the environments of many episodes in one process, and turns what they answer into tokens."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ray_rl.environments.base import Environment, Opening, Reply, Step
from ray_rl.environments.tools.calls import CallParser, Parsed
from ray_rl.environments.users_code import UsersCode, shown
from ray_rl.errors import ConfigError, DataError, EnvironmentFailed
from ray_rl.types import Completion, Message, Prompt, ToolCall

CHARACTERS_PER_TOKEN = 16
"""Text has 3 to 5 characters per token. Longer messages than this many for each token that is left are not tokenised:
they do not fit."""
ROLES = ("user", "tool")
"""The roles of messages of an environment."""
ANY_ROLES = ("system", "assistant", *ROLES)
"""The roles of messages before the first turn of the policy."""

Make = Callable[[], Environment]


class Conversation(Protocol):
    """Writes the tokens of the messages of an environment."""

    def begin(self, prompt: Prompt, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Prompt:
        """Returns the prompt followed by the first messages of the environment, with the schemas of its tools."""

    def follow(self, messages: Sequence[Message], sampled: Sequence[int], calls: Sequence[ToolCall]) -> tuple[int, ...]:
        """Returns the tokens between a completion and the next one."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of a completion with its special tokens."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What follows a completion in an episode."""

    token_ids: tuple[int, ...] = ()
    """The tokens before the next completion; () if the episode is over."""
    messages: tuple[Message, ...] = ()
    reward: float | None = None
    done: bool = False
    is_too_long: bool = False
    """Whether the tokens were left out, because they do not fit into the episode."""
    tool_calls: tuple[ToolCall, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Those of the environment, and `seconds`, which it took."""


class Host:
    """The environments of many episodes. Its methods run concurrently, on one event loop."""

    def __init__(
        self,
        make: Make,
        conversation: Conversation,
        *,
        parse: CallParser | None,
        timeout_s: float,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Makes a host without episodes.

        Args:
            make: makes the environment of an episode.
            conversation: writes tokens.
            parse: reads calls of tools; None for environments without.
            timeout_s: limit for one call of an environment.
            tools: schemas of tools for the prompt, of environments that do not bring any with an `Opening`.
        """
        self._make = make
        self._conversation = conversation
        self._parse = parse
        self._tools = tuple(tools)
        self._code = UsersCode(timeout_s)
        self._environments: dict[str, Environment] = {}

    @property
    def stuck(self) -> int:
        """Calls that did not return within the limit, and have not ended since."""
        return self._code.stuck

    async def begin(self, episode: str, prompt: Prompt, seed: int) -> Prompt:
        """Begins an episode, and returns its prompt, with the first messages of the environment.

        Raises:
            EnvironmentFailed: the environment failed, or the chat template cannot write its messages.
            ConfigError: it is no environment.
        """
        environment = self._environments[episode] = _complete(await self._code.call("its function", self._make))
        row = {"prompt": prompt.text, **prompt.columns}
        opening = _checked_opening(await self._code.call("reset", environment.reset, row, seed), self._tools)
        with _as_failure():
            return self._conversation.begin(prompt, opening.messages, opening.tools)

    async def step(self, episode: str, completion: Completion, room: int) -> Answer:
        """Passes a completion to the environment, and returns what follows.

        Args:
            episode: the name of the episode.
            completion: what the policy said.
            room: tokens that the episode may still have.

        Raises:
            EnvironmentFailed: the environment failed, or the chat template cannot write its messages.
        """
        sampled = completion.token_ids.tolist()
        parsed = Parsed(completion.text)
        if self._parse is not None:
            found = self._parse(self._conversation.decode(sampled))
            parsed = found if found.calls else parsed
        calls = parsed.calls
        began_s = time.perf_counter()
        reply = Reply(parsed.content, calls, completion.finish_reason)
        step = _checked(await self._code.call("step", self._environments[episode].step, reply))
        metrics = {**step.metrics, "seconds": time.perf_counter() - began_s}
        if step.done:
            return Answer(messages=step.messages, reward=step.reward, done=True, tool_calls=calls, metrics=metrics)
        is_too_long = sum(len(message.content) for message in step.messages) > room * CHARACTERS_PER_TOKEN
        with _as_failure():
            token_ids = () if is_too_long else self._conversation.follow(step.messages, sampled, calls)
        return Answer(token_ids, step.messages, step.reward, False, is_too_long, calls, metrics)

    async def end(self, episode: str) -> None:
        """Closes the environment of an episode. What that raises is written to the log."""
        environment = self._environments.pop(episode, None)
        if environment is None:
            return
        try:
            await self._code.call("close", environment.close)
        except EnvironmentFailed:
            traceback.print_exc()


@contextmanager
def _as_failure() -> Iterator[None]:
    """Turns text that the policy cannot read into a failure of the environment that wrote it."""
    try:
        yield
    except DataError as error:
        raise EnvironmentFailed(str(error)) from error


def _complete(environment: Any) -> Environment:
    """Returns an object, once it is known to have the methods of an environment.

    Raises:
        ConfigError: it has not.
    """
    try:
        _ = environment.reset, environment.step, environment.close
    except AttributeError as error:
        raise ConfigError(
            f"the function of the environment made {shown(environment)}, which has no {error.name}; it needs the "
            "methods reset(row, seed), step(reply) and close()"
        ) from error
    found: Environment = environment
    return found


def _checked(step: Any) -> Step:
    """Returns what `step` returned, once it is known to be a `Step` with usable values.

    Raises:
        EnvironmentFailed: it is not.
    """
    if not isinstance(step, Step):
        raise EnvironmentFailed(f"step returned {shown(step)}, not a ray_rl.environments.base.Step; return one")
    messages = _checked_messages(step.messages, where="step")
    if not step.done and not messages:
        raise EnvironmentFailed("step returned neither messages nor done=True; return what the policy shall answer")
    if step.reward is not None and not _is_number(step.reward):
        raise EnvironmentFailed(f"step returned the reward {shown(step.reward)}; a reward is a finite number or None")
    wrong = next((name for name, value in step.metrics.items() if not _is_number(value)), None)
    if wrong is not None:
        raise EnvironmentFailed(f"step returned the metric {wrong}={shown(step.metrics[wrong])}; give a finite number")
    metrics = {str(name): float(value) for name, value in step.metrics.items()}
    return Step(messages, None if step.reward is None else float(step.reward), bool(step.done), metrics)


def _checked_opening(opening: Any, tools: tuple[Mapping[str, Any], ...]) -> Opening:
    """Returns what `reset` returned, once it is known to be messages.

    Raises:
        EnvironmentFailed: it is not.
    """
    if not isinstance(opening, Opening):
        return Opening(_checked_messages(opening, where="reset"), tools)
    return replace(opening, messages=_checked_messages(opening.messages, where="reset", roles=ANY_ROLES))


def _checked_messages(messages: Any, *, where: str, roles: Sequence[str] = ROLES) -> tuple[Message, ...]:
    if isinstance(messages, (str, Message, Mapping)) or not isinstance(messages, Sequence):
        raise EnvironmentFailed(f"{where} returned messages of {shown(messages)}; give a list of Message")
    for message in messages:
        if not isinstance(message, Message) or not isinstance(message.content, str) or message.role not in roles:
            raise EnvironmentFailed(
                f"{where} returned the message {shown(message)}; give Message(role, content) with text, and the role "
                f"{' or '.join(roles)}"
            )
    return tuple(messages)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, (str, bytes)) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
