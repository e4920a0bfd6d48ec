"""The values that flow between the stages, and the one legend of axes.

Axes are suffixes of array names:
    P  prompts of a step
    G  completions per prompt
    R  rollouts, R = P * G, ordered by prompt
    T  tokens of a completion, padded to the longest of the batch
    V  vocabulary

Loads without torch and numpy: the arrays are numpy's, named only for type checkers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as the policy sees it, with what its rewards need to judge the answer."""

    id: str
    """Stable over runs and epochs, for example "addition/17" or "train.jsonl:42"."""
    token_ids: tuple[int, ...]
    """The prompt after the chat template, generation prompt included. Never re-tokenised."""
    text: str
    """What a person reads in a sample table: the last user message."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the row ("answer", ...), handed to the rewards by name."""
    messages: tuple[Message, ...] = ()
    """The conversation that was tokenised: what a judge with a tokenizer of its own reads."""
    is_conversation: bool = False
    """Whether the row held messages, and not text: reward functions of TRL get messages then."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine sampled for one prompt."""

    token_ids: NDArray[np.int32]
    """[T_i] sampled tokens, the end-of-sequence token included if it was sampled."""
    logprobs: NDArray[np.float32]
    """[T_i] log-probability of each token when it was sampled (`rollout_logprobs`)."""
    versions: NDArray[np.int32]
    """[T_i] policy version that sampled each token."""
    finish_reason: FinishReason
    text: str
    """Decoded without special tokens: for rewards and people, never for training."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion with its reward."""

    completion: Completion
    reward: float | None
    """Weighted sum of the parts that have an opinion; None when none has."""
    reward_parts: Mapping[str, float | None]
    """Unweighted value of every reward function, by name."""


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The G rollouts of one prompt."""

    prompt: Prompt
    rollouts: Sequence[Rollout]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch:
    """The rollouts of one step as arrays. Row r is completion r % G of prompt r // G."""

    prompt_ids: tuple[NDArray[np.int32], ...]
    """P prompts, each [L_p] tokens."""
    group_size: int
    """G."""
    tokens_RT: NDArray[np.int32]
    """Completion tokens; 0 past the end."""
    lengths_R: NDArray[np.int32]
    """Tokens of each completion, 0 < length <= T."""
    loss_mask_RT: NDArray[np.bool_]
    """True on tokens that the policy sampled and that are trained on. By position, never by token value."""
    rollout_logprobs_RT: NDArray[np.float32]
    """Log-probabilities reported by the engine; 0 past the end."""
    rewards_R: NDArray[np.float32]
    """nan where no reward function had an opinion."""
    old_logprobs_RT: NDArray[np.float32] | None = None
    """Trainer's log-probabilities before the update. None: one optimizer step a batch, so they equal `logprobs`."""
    reference_logprobs_RT: NDArray[np.float32] | None = None
    old_values_RT: NDArray[np.float32] | None = None
    """The critic's values before the update, of the state before each token."""
    advantages_RT: NDArray[np.float32] | None = None
    returns_RT: NDArray[np.float32] | None = None
    """Targets of the critic."""
    kl_coefficient: float = 0.0
    """Of the KL penalty in the loss, as it is at this step."""

    @property
    def rows(self) -> int:
        """R."""
        return len(self.lengths_R)
