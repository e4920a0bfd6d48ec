"""Samples episodes of several turns, with an environment between them.

    prompt -> completion -> environment -> observation -> completion -> environment -> ... -> end

The tokens of an episode are those that were sampled, and between them those that the chat template writes for the
messages of the environment. What was sampled is never tokenised again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from ray_rl.concurrency import together
from ray_rl.environments.host import Answer
from ray_rl.errors import EnvironmentFailed
from ray_rl.rollout.pool import EnginePool
from ray_rl.rollout.request import SampleRequest, Sampling, sampling_seed
from ray_rl.types import Completion, Prompt, Rollout, RolloutGroup, StopReason, Turn

BEGINNINGS = 3
"""How often the beginning of an episode is tried: before its first turn there is nothing that could be kept."""
MOST_FAILURES = 32
"""The most episodes that may fail one after the other: then all do, and training would learn from none."""
TOLD_FAILURES = 3
"""The number of failures that the user is told of; each is in the log of its worker."""


class Environments(Protocol):
    """The environments of a run. Each call has a limit."""

    async def begin(self, episode: str, prompt: Prompt, *, seed: int) -> Prompt:
        """Begins an episode and returns its whole prompt.

        Raises:
            EnvironmentFailed: its environment failed.
        """

    async def step(self, episode: str, completion: Completion, *, room: int) -> Answer:
        """Returns what follows a completion; `room` is the number of tokens that the episode may still have.

        Raises:
            EnvironmentFailed: its environment failed.
        """

    def end(self, episode: str) -> None:
        """Ends an episode, without waiting for it. Does nothing for an episode that is not known."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of an episode; see the section `environment`."""

    prompt_tokens: int
    """The most tokens of a prompt with the first messages of its environment."""
    tokens: int
    """The most tokens after the prompt."""
    turns: int
    tool_calls: int | None
    seconds: float


@dataclass(slots=True)
class Failures:
    """Counts the episodes that failed."""

    tell: Callable[[str], None]
    """Called with the first failures."""
    told: int = 0
    in_a_row: int = 0

    def add(self, error: EnvironmentFailed) -> None:
        """Counts an episode that failed.

        Raises:
            EnvironmentFailed: too many failed one after the other.
        """
        self.in_a_row += 1
        if self.told < TOLD_FAILURES:
            self.told += 1
            self.tell(f"an episode has no reward, because its environment failed: {error}")
        if self.in_a_row >= MOST_FAILURES:
            raise EnvironmentFailed(
                f"the last {self.in_a_row} episodes failed, and none between them ended; the last one: {error}; "
                "correct the environment, or raise environment.turn_timeout_s if it is slow"
            ) from error


@dataclass(frozen=True, slots=True)
class MultiTurn:
    """Samples the rollouts of a prompt as episodes; see `Episodes`."""

    pool: EnginePool
    sampling: Sampling
    """How completions are sampled. Its seed is that of the run; the seeds of requests derive from it."""
    environments: Environments
    limits: Limits
    failures: Failures
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    """Part of the names of episodes: a prompt that is sampled again must not meet its earlier environment."""

    async def sample(self, prompt: Prompt, *, samples: int, step: int, index: int) -> RolloutGroup:
        """Returns the episodes of a prompt, which are sampled concurrently; see `Episodes`.

        Raises:
            EnvironmentFailed: an environment cannot begin, too many failed, or those of a group began differently.
        """
        place = f"{step}/{index}/{next(self._numbers)}"
        names = [f"{place}/{number}" for number in range(samples)]
        seed_of = partial(sampling_seed, run_seed=self.sampling.seed, step=step, index=index, prompt_id=prompt.id)
        try:
            prompts = await together(self._begin(name, prompt, seed_of()) for name in names)
            _require_equal(prompts)
            self._require_short(prompts[0])
            return RolloutGroup(
                prompts[0],
                await together(
                    self._episode(name, prompts[0], partial(seed_of, sample=number))
                    for number, name in enumerate(names)
                ),
            )
        finally:
            for name in names:
                self.environments.end(name)

    def _require_short(self, prompt: Prompt) -> None:
        count, limit = len(prompt.token_ids), self.limits.prompt_tokens
        if count > limit:
            raise EnvironmentFailed(
                f"{prompt.id}: the prompt has {count} tokens with the first messages of its environment, more than "
                f"data.max_prompt_tokens={limit}; raise data.max_prompt_tokens, or let reset return less"
            )

    async def _begin(self, name: str, prompt: Prompt, seed: int) -> Prompt:
        for _ in range(BEGINNINGS - 1):
            try:
                return await self.environments.begin(name, prompt, seed=seed)
            except EnvironmentFailed:
                self.environments.end(name)
        return await self.environments.begin(name, prompt, seed=seed)

    async def _episode(self, name: str, prompt: Prompt, seed_of: Callable[..., int]) -> Rollout:
        """Returns one episode. Its turns have the rewards of the environment; judges add theirs."""
        began_s = time.monotonic()
        turns: list[Turn] = []
        tokens, after = prompt.token_ids, Answer()
        stop: StopReason | None = None
        while stop is None:
            room = self.limits.tokens - (len(tokens) - len(prompt.token_ids))
            sampling = replace(
                self.sampling, seed=seed_of(turn=len(turns)), max_tokens=min(self.sampling.max_tokens, room)
            )
            request = SampleRequest(f"{name}/{len(turns)}", tokens, 1, sampling)
            (completion,) = await self.pool.generate(request, sticky=name)
            turn = Turn(after.token_ids, completion, messages=after.messages)
            try:
                after = await self.environments.step(name, completion, room=room - len(completion.token_ids))
            except EnvironmentFailed as error:
                self.failures.add(error)
                return _failed([*turns, turn])
            turns.append(replace(turn, reward=after.reward, tool_calls=after.tool_calls, metrics=after.metrics))
            tokens = (*tokens, *completion.token_ids.tolist(), *after.token_ids)
            room = self.limits.tokens - (len(tokens) - len(prompt.token_ids))
            stop = self._stop(turns, after, room=room, seconds=time.monotonic() - began_s)
        self.failures.in_a_row = 0
        self.environments.end(name)
        return Rollout(tuple(turns), None, {}, stop)

    def _stop(self, turns: Sequence[Turn], after: Answer, *, room: int, seconds: float) -> StopReason | None:
        """Returns why an episode ends after its last turn; None if another turn follows."""
        finish_reason = turns[-1].completion.finish_reason
        calls = sum(len(turn.tool_calls) for turn in turns)
        if after.done or finish_reason == "abort":
            return finish_reason
        if len(turns) >= self.limits.turns:
            return "turns"
        if self.limits.tool_calls is not None and calls >= self.limits.tool_calls:
            return "tool"
        if after.is_too_long or room < 1:
            return "length"
        return "time" if seconds > self.limits.seconds else None


def _failed(turns: Sequence[Turn]) -> Rollout:
    """Returns an episode whose environment failed, without rewards: that is no fault of the policy."""
    return Rollout(tuple(replace(turn, reward=None) for turn in turns), None, {}, "environment")


def _require_equal(prompts: Sequence[Prompt]) -> None:
    """Checks that the episodes of a group begin the same: they are compared with each other.

    Raises:
        EnvironmentFailed: they do not.
    """
    first = prompts[0]
    other = next((prompt for prompt in prompts if prompt.token_ids != first.token_ids), None)
    if other is not None:
        raise EnvironmentFailed(
            f"{first.id}: reset began two episodes of one group differently, with {first.text[-200:]!r} and "
            f"{other.text[-200:]!r}; let all that is random in it depend on `seed` alone"
        )
