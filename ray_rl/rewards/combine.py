"""Rewards of a prompt's completions: every part by itself, and their weighted sum."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_rl.config.redact import hide, secrets_of
from ray_rl.config.rewards import RewardConfig
from ray_rl.errors import ConfigError, RewardError, SandboxError
from ray_rl.metrics.metric import Metric, Total
from ray_rl.rewards.parts import RewardPart, build_parts
from ray_rl.sandbox.importing import import_function
from ray_rl.sandbox.worker import Worker
from ray_rl.types import Completion, Prompt, Rollout, RolloutGroup

Verdict = float | None | RewardError
"""Of one completion by one part; the error is raised or counted, as the part says."""

_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class _Group:
    prompt: Prompt
    completions: Sequence[Completion]
    columns: Mapping[str, list[Any]]


Save = Callable[[Sequence[RolloutGroup]], Path]
"""Writes samples that could not be scored and returns their file; from any thread."""


def build_rewards(rewards: Sequence[RewardConfig], *, save: Save | None = None) -> Rewards:
    """The reward functions of a run. Worker processes start at the first call that needs them."""
    return Rewards(build_parts(rewards), save=save)


class Rewards:
    """Scores groups of completions. Safe to call from several threads; `close` ends the worker processes."""

    def __init__(self, parts: Sequence[RewardPart], *, save: Save | None = None) -> None:
        """Starts nothing yet.

        Args:
            parts: to add up.
            save: called with the samples of a prompt before their error is raised, which then names the file.
        """
        self._parts = tuple(parts)
        self._save = save
        # One process a part: killing one that hangs must not lose another's imports.
        self._workers = {part.name: Worker() for part in self._parts if part.isolated}

    def score(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[RolloutGroup, list[Metric]]:
        """The completions with their rewards, and how many had no opinion because of an error that was skipped.

        Raises:
            RewardError: a function raised, hung, or returned something that is neither a finite number nor None, and
                its part does not say `on_error: skip`.
            ConfigError: a part needs a column that the prompt does not have.
        """
        group = _Group(prompt, completions, _columns(prompt, completions))
        metrics: list[Metric] = []
        scores_by_part: dict[str, list[float | None]] = {}
        for part in self._parts:
            verdicts = self._verdicts(part, group)
            errors = [verdict for verdict in verdicts if isinstance(verdict, RewardError)]
            if part.on_error == "skip":
                metrics.append(Total(f"reward/{part.name}_errors", len(errors)))
            elif errors:
                raise self._saved(errors[0], group)
            scores_by_part[part.name] = [None if isinstance(v, RewardError) else v for v in verdicts]
        rollouts = []
        for index, completion in enumerate(completions):
            scores = {name: scores[index] for name, scores in scores_by_part.items()}
            rollouts.append(Rollout(completion, self._weighted_sum(scores), scores))
        return RolloutGroup(prompt, rollouts), metrics

    def _saved(self, error: RewardError, group: _Group) -> RewardError:
        save = self._save
        if save is not None:
            unscored = RolloutGroup(group.prompt, [Rollout(each, None, {}) for each in group.completions])
            error.args = (f"{error}. The samples of the prompt are in {save([unscored])}",)
        return error

    async def ascore(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[RolloutGroup, list[Metric]]:
        """`score` in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.score, prompt, completions)

    def close(self) -> None:
        """Ends the worker processes, and calls that are under way with them. No call may follow."""
        self._save = None  # nobody asks any more for what these calls were about
        for worker in self._workers.values():
            worker.close()

    def _weighted_sum(self, scores: Mapping[str, float | None]) -> float | None:
        opinions = [
            part.weight * score for part, score in zip(self._parts, scores.values(), strict=True) if score is not None
        ]
        return math.fsum(opinions) if opinions else None

    def _verdicts(self, part: RewardPart, group: _Group) -> list[Verdict]:
        everyone = range(len(group.completions))
        if part.users:
            together = self._call(part, group, everyone)
            failure = together[0] if len(together) > 1 else None
            if part.on_error == "stop" and isinstance(failure, RewardError) and failure.__cause__ is not None:
                return [self._culprit(part, group) or failure]
            return together
        verdicts: list[Verdict] = []
        for index in everyone:
            verdicts += self._call(part, group, [index])
            if part.on_error == "stop" and isinstance(verdicts[-1], RewardError):
                return verdicts
        return verdicts

    def _culprit(self, part: RewardPart, group: _Group) -> RewardError | None:
        """The error of the first completion that fails alone, after a call over all failed, or None."""
        give_up_s = time.monotonic() + part.timeout_s
        for index in range(len(group.completions)):
            (verdict,) = self._call(part, group, [index])
            if isinstance(verdict, RewardError):
                return verdict
            if time.monotonic() > give_up_s:
                break
        return None

    def _call(self, part: RewardPart, group: _Group, indices: Sequence[int]) -> list[Verdict]:
        """One call of the part's function over some completions of the group."""
        texts = [group.completions[index].text for index in indices]
        keywords = _keywords(part, group, indices)
        try:
            if part.isolated:
                returned = self._workers[part.name].call(
                    part.function,
                    timeout_s=part.timeout_s,
                    args=[texts],
                    kwargs=keywords,
                    convert="ray_rl.rewards.functions:plain_scores",
                )
            else:
                returned = import_function(part.function)(texts, **keywords)
        except (SandboxError, TimeoutError, ValueError) as cause:
            return [_error(part, group, indices, str(cause), cause)] * len(indices)
        if len(returned) != len(indices):
            what = f"{part.function} returned {len(returned)} values for {len(indices)} completions, not one for each"
            return [_error(part, group, indices, what)] * len(indices)
        return [
            value if _is_opinion(value) else _error(part, group, [index], f"{part.function} returned {value}")
            for index, value in zip(indices, returned, strict=True)
        ]


def _is_opinion(value: float | str | None) -> bool:
    return value is None or (isinstance(value, float) and math.isfinite(value))


def _columns(prompt: Prompt, completions: Sequence[Completion]) -> dict[str, list[Any]]:
    """What reward functions get by name, one entry a completion: the columns of the row, and of the completions."""
    columns = {name: [value] * len(completions) for name, value in prompt.columns.items()}
    columns["prompts"] = [prompt.text] * len(completions)
    columns["finish_reasons"] = [completion.finish_reason for completion in completions]
    columns["lengths"] = [len(completion.token_ids) for completion in completions]
    return columns


def _keywords(part: RewardPart, group: _Group, indices: Sequence[int]) -> dict[str, Any]:
    columns = group.columns
    if part.users:
        taken = sorted(columns.keys() & part.options.keys())
        if taken:
            raise ConfigError(f"reward {part.name!r}: options {', '.join(taken)} are columns too; rename the options")
        return {name: [column[i] for i in indices] for name, column in columns.items()} | dict(part.options)
    for column in part.needs.values():
        if column not in columns:
            existing = ", ".join(sorted(group.prompt.columns)) or "none"
            raise ConfigError(
                f"reward {part.name!r} needs a column {column!r}; prompt {group.prompt.id} has {existing}; "
                "name one of them in the reward, or rename one with data.columns"
            )
    return {keyword: [columns[c][i] for i in indices] for keyword, c in part.needs.items()} | dict(part.options)


def _error(
    part: RewardPart, group: _Group, indices: Sequence[int], what: str, cause: Exception | None = None
) -> RewardError:
    text = group.completions[indices[0]].text
    shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
    count = len(group.completions)
    which = f"completion {indices[0]} of {count}: " if len(indices) == 1 else f"all {count} completions, the first: "
    error = RewardError(
        f"reward {part.name!r}, prompt {group.prompt.id}, {which}{shown!r}: {hide(what, secrets_of(part.options))}. "
        "Correct the function or the data, or set on_error: skip to go on without an opinion"
    )
    error.__cause__ = cause
    return error
