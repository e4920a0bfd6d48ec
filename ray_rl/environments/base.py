"""The interface of an environment. It sees messages, and never a token or a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ray_rl.types import FinishReason, Message, ToolCall


@dataclass(frozen=True, slots=True)
class Reply:
    """A turn of the policy, as the environment sees it."""

    text: str
    """Text without special tokens, and without its calls of tools if it has any."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls of tools in the text; () unless the environment has tools."""
    finish_reason: FinishReason = "stop"
    """Why the completion ended; "length" if the limit of tokens cut it off."""


@dataclass(frozen=True, slots=True)
class Step:
    """The answer of an environment to a turn."""

    messages: tuple[Message, ...] = ()
    """New messages for the policy, of role user or tool; never the whole conversation. Ignored if `done`."""
    reward: float | None = None
    """Reward of the turn that is answered; None for no opinion. The episode's is the sum over its turns."""
    done: bool = False
    """Whether the episode is over."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers about this turn, by name. A metric is their mean over the turns that have it."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How an episode begins, for environments that bring tools or a whole conversation."""

    messages: tuple[Message, ...]
    """Messages that follow the prompt of the row, of any role."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Schemas of tools in OpenAI's form, which the chat template writes into the prompt."""


class Environment(Protocol):
    """One episode. Each object is used once: `reset`, then `step` after each turn of the policy, then `close`.

    The methods may be plain functions instead of coroutines; such a call gets a thread of its own.
    """

    async def reset(self, row: Mapping[str, Any], seed: int) -> Sequence[Message] | Opening:
        """Begins the episode, and returns messages of the user that follow the prompt of the row; () for none.

        Args:
            row: the columns of the row of `data:`, with the text of its prompt as `prompt`.
            seed: seed of all that is random. The episodes of a group have the same seed and must begin the same.
        """

    async def step(self, reply: Reply) -> Step:
        """Takes a turn of the policy, and returns what follows it."""

    async def close(self) -> None:
        """Ends what the episode started. Called once, also after an error."""
