"""The values that flow between the stages, and the legend of all axes.

Axes are suffixes of array names:
    P  prompts of a step
    G  completions per prompt
    R  rollouts, or rows of examples, R = P * G, ordered by prompt
    T  tokens of a row after its prompt, padded to the longest of the batch
    V  vocabulary
    J  pairs of a chosen and a rejected completion of one prompt

Loads without torch and numpy: the arrays are numpy's, named only for type checkers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound="np.generic")
FinishReason = Literal["stop", "length", "abort"]
StopReason = FinishReason | Literal["turns", "tool", "environment", "time"]
"""Why an episode ended: as its last completion did, by the limit of turns, of calls of tools or of time, or because its
environment failed."""
ScoredAt = Literal["end", "steps"]
"""Which states a classifier scores: that at the end of an answer (a reward model), or those at the ends of steps (a
process reward model), where the loss mask of an answer is."""
LossAt = Literal["tokens"] | ScoredAt
"""Where a model is trained on an example: at the tokens of its loss mask (a language model), or at states."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as the policy sees it, with what its rewards need to judge the answer."""

    id: str
    """Id, the same in all runs and epochs, for example "addition/17" or "train.jsonl:42"."""
    token_ids: tuple[int, ...]
    """The prompt after the chat template, generation prompt included. Never re-tokenised."""
    text: str
    """The last user message, for people who read a table of samples."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the row ("answer", ...), handed to the rewards by name."""
    messages: tuple[Message, ...] = ()
    """The conversation that was tokenised, for judges with another tokenizer."""
    is_conversation: bool = False
    """Whether the row held messages instead of text: then reward functions of TRL get messages."""


def column_value(columns: Mapping[str, Any], path: str) -> Any:
    """Returns the value of a column, which may be nested: `reward_model.ground_truth`.

    A column whose whole name is the path comes first. Lists have no names inside.

    Raises:
        KeyError: there is no such value.
    """
    if path in columns:
        return columns[path]
    outer, _, inner = path.rpartition(".")
    if not outer:
        raise KeyError(path)
    within = column_value(columns, outer)
    if not isinstance(within, Mapping) or inner not in within:
        raise KeyError(path)
    return within[inner]


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion of a prompt, sampled by an engine."""

    token_ids: NDArray[np.int32]
    """[T_i] sampled tokens, the end-of-sequence token included if it was sampled."""
    logprobs: NDArray[np.float32]
    """[T_i] log-probability of each token when it was sampled (`rollout_logprobs`)."""
    versions: NDArray[np.int32]
    """[T_i] policy version that sampled each token."""
    finish_reason: FinishReason
    text: str
    """Text without special tokens, for rewards and people, never for training."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool in a completion, well formed or not."""

    name: str
    """Name of the tool; "" if it cannot be read."""
    arguments: Mapping[str, Any] | None
    """Arguments by name; None if they cannot be read."""
    error: str | None = None
    """Why this looks like a call and is none, for the model; None for a well-formed call."""


@dataclass(frozen=True, slots=True)
class Turn:
    """An observation of the environment, and the completion that answers it."""

    observation: tuple[int, ...]
    """Tokens of the environment before this completion; () in the first turn, which follows the prompt."""
    completion: Completion
    reward: float | None = None
    """Reward of this turn alone, added to the rollout's. It belongs to the last token of the turn."""
    messages: tuple[Message, ...] = ()
    """The observation as messages: for judges and people, never for training."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls of tools in the completion."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the environment measured when it got this completion, by name."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One episode: its turns in order, with its reward. A prompt that is answered once is an episode of one turn.

    Array properties are [T]: all tokens after the prompt, observations included.
    """

    turns: tuple[Turn, ...]
    """At least one."""
    reward: float | None
    """Weighted sum of the parts that have a score; None if none has. Does not include rewards of turns and tokens."""
    reward_parts: Mapping[str, float | None]
    """Unweighted value of every reward function, by name."""
    stop: StopReason
    token_rewards: NDArray[np.float32] | None = None
    """[T] dense rewards, added to the others; only those on sampled tokens are used."""

    @classmethod
    def single(
        cls, completion: Completion, reward: float | None = None, reward_parts: Mapping[str, float | None] | None = None
    ) -> Rollout:
        """Makes an episode of one turn from a completion of the prompt."""
        return cls((Turn((), completion),), reward, reward_parts or {}, completion.finish_reason)

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """Observations and completions in order."""
        return self._joined([(turn.observation, turn.completion.token_ids) for turn in self.turns])

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """Log-probability of each token when it was sampled; 0 on observations."""
        return self._joined([((0.0,) * len(turn.observation), turn.completion.logprobs) for turn in self.turns])

    @property
    def versions(self) -> NDArray[np.int32]:
        """Policy version that sampled each token; -1 on observations."""
        return self._joined([((-1,) * len(turn.observation), turn.completion.versions) for turn in self.turns])

    @property
    def is_sampled(self) -> NDArray[np.bool_]:
        """True on the tokens of completions, by position."""
        import numpy as np

        sampled = [np.ones(len(turn.completion.token_ids), np.bool_) for turn in self.turns]
        gaps = [(False,) * len(turn.observation) for turn in self.turns]
        return self._joined(list(zip(gaps, sampled, strict=True)))

    @property
    def sampled_tokens(self) -> int:
        """Number of tokens that the policy sampled."""
        return sum([len(turn.completion.token_ids) for turn in self.turns])

    @property
    def total_reward(self) -> float | None:
        """The reward of the whole episode: of judges, of turns and of tokens; None if none gave one."""
        given = [self.reward, *(turn.reward for turn in self.turns)]
        if self.token_rewards is not None:
            given.append(float(self.token_rewards[self.is_sampled].sum()))
        known = [reward for reward in given if reward is not None]
        return math.fsum(known) if known else None

    @property
    def text(self) -> str:
        """The completions and the observations between them in order, for judges and people."""
        said = ([*(message.content for message in turn.messages), turn.completion.text] for turn in self.turns)
        return "\n".join(text for texts in said for text in texts)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation after the prompt: each completion as an assistant's message."""
        return tuple(
            message for turn in self.turns for message in (*turn.messages, Message("assistant", turn.completion.text))
        )

    @staticmethod
    def _joined(parts: Sequence[tuple[tuple[float, ...], NDArray[Scalar]]]) -> NDArray[Scalar]:
        """Joins observations and completions in one array of the completions' type; does not copy a single turn."""
        if len(parts) == 1 and not parts[0][0]:
            return parts[0][1]
        import numpy as np

        return np.concatenate([np.asarray(part, own.dtype) for before, own in parts for part in (before, own)])


@dataclass(frozen=True, slots=True, weakref_slot=True)
class RolloutGroup:
    """The G rollouts of one prompt."""

    prompt: Prompt
    rollouts: Sequence[Rollout]


@dataclass(frozen=True, slots=True)
class Answer:
    """What follows a prompt in an example, tokenised: one turn of the assistant, or several with turns between them."""

    token_ids: NDArray[np.int32]
    """[T_i] tokens, at least one."""
    loss_mask: NDArray[np.bool_]
    """[T_i] True on the tokens that are trained on, by position and never by token value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row of data for training without rollouts: a demonstration, a pair, a judged answer, or a solution in steps."""

    id: str
    """Id, the same in all runs and epochs, for example "train.jsonl:42"."""
    prompt_ids: tuple[int, ...]
    """The tokens of the prompt, at least one."""
    answers: tuple[Answer, ...]
    """One answer, or the chosen and the rejected one."""
    label: bool | None = None
    """Whether a judged answer is desirable."""
    margin: float | None = None
    """By how much the chosen answer is better."""
    step_labels: NDArray[np.float32] | None = None
    """[S] how right each step is, in [0, 1], by the order of the loss tokens."""
    prompt: str = ""
    """The prompt as text, for records."""
    texts: tuple[str, ...] = ()
    """The answers as text, for records."""

    @property
    def digest(self) -> str:
        """Hash of all that a log-probability of the answers depends on besides the model."""
        parts = [str(self.prompt_ids)]
        parts += [f"{answer.token_ids.tolist()} {answer.loss_mask.tolist()}" for answer in self.answers]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Sequences as arrays, as far as a model reads them. Row r is number r % G of prompt r // G."""

    prompt_ids: tuple[NDArray[np.int32], ...]
    """P prompts, each [L_p] tokens, at least one."""
    group_size: int
    """G, the number of rows per prompt."""
    tokens_RT: NDArray[np.int32]
    """Tokens after the prompt; 0 past the end."""
    lengths_R: NDArray[np.int32]
    """All tokens of each row, observations included, 0 < length <= T."""
    loss_mask_RT: NDArray[np.bool_]
    """True on tokens that are trained on, by position and never by token value."""

    @property
    def rows(self) -> int:
        """R, the number of rows."""
        return len(self.lengths_R)


Batch = TypeVar("Batch", bound=TokenBatch, contravariant=True)
"""The batches that an objective reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBatch(TokenBatch):
    """The rollouts of one step as arrays."""

    sampled_R: NDArray[np.int32]
    """Number of tokens of each rollout that the policy sampled; length penalties count these."""
    rollout_logprobs_RT: NDArray[np.float32]
    """Log-probabilities reported by the engine; 0 on observations and past the end."""
    rewards_R: NDArray[np.float32]
    """Reward of each rollout; nan if no reward function scored it and no turn or token has a reward."""
    token_rewards_RT: NDArray[np.float32] | None = None
    """Rewards of single turns and tokens, in addition to `rewards_R`; None if no rollout has any."""
    old_logprobs_RT: NDArray[np.float32] | None = None
    """The trainer's log-probabilities before the update; None with one optimizer step per batch, as they are equal."""
    reference_logprobs_RT: NDArray[np.float32] | None = None
    old_values_RT: NDArray[np.float32] | None = None
    """The critic's values before the update, of the state before each token."""
    advantages_RT: NDArray[np.float32] | None = None
    returns_RT: NDArray[np.float32] | None = None
    """Targets of the critic."""
    kl_coefficient: float = 0.0
    """Coefficient of the KL penalty in the loss at this step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineBatch(TokenBatch):
    """The examples of one optimizer step as arrays. A pair is a group of two, the chosen row before the rejected one.

    Only pairs are groups: G is 2 for them and 1 for all others, whether or not examples have the same prompt.
    """

    ids: tuple[str, ...]
    """[P] ids of the examples."""
    reference_R: NDArray[np.float64] | None = None
    """Sum of the reference's log-probabilities over the loss tokens of each row."""
    margins_J: NDArray[np.float32] | None = None
    """By how much the score of the chosen row should be the larger one, for each pair."""
    labels_R: NDArray[np.bool_] | None = None
    """Whether each row is desirable."""
    labels_RT: NDArray[np.float32] | None = None
    """How right the step that ends before each loss token is, in [0, 1]; 0 elsewhere."""
    baseline: float | None = None
    """KTO's estimate of the KL to the reference (see `kto_baseline`), of the whole optimizer step or evaluation."""
    tokens_per_pair: float | None = None
    """Mean number of loss tokens of the chosen rows of a whole evaluation, whose metrics are means over its batches.
    None: that of this batch, which is a whole optimizer step."""
