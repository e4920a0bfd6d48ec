"""Rewards of a prompt's completions: every part by itself, and their weighted sum."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ray_rl.config.rewards import RewardConfig
from ray_rl.errors import RewardError
from ray_rl.metrics.metric import Metric, Total
from ray_rl.rewards.functions.calls import Group, PartCalls
from ray_rl.rewards.functions.parts import RewardPart, build_parts
from ray_rl.types import Completion, Prompt, Rollout, RolloutGroup

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
        self._parts = tuple(PartCalls(part) for part in parts)
        self._save = save

    def score(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[RolloutGroup, list[Metric]]:
        """The completions with their rewards, and what the parts count.

        That is errors that were skipped, what no verifier could check, and what users' functions log.

        Raises:
            RewardError: a function raised, hung, or returned something that is neither a finite number nor None, and
                its part does not say `on_error: skip`.
            ConfigError: a part needs a column that the prompt does not have.
        """
        group = Group(prompt, completions)
        metrics: list[Metric] = []
        scores_by_part: dict[str, list[float | None]] = {}
        for calls in self._parts:
            part = calls.part
            verdicts, counted = calls.verdicts(group)
            metrics += counted
            errors = [verdict for verdict in verdicts if isinstance(verdict, RewardError)]
            if part.on_error == "skip":
                metrics.append(Total(f"reward/{part.name}_errors", len(errors)))
            elif errors:
                raise self._saved(errors[0], group)
            scores_by_part[part.name] = [None if isinstance(v, RewardError) else v for v in verdicts]
        rollouts = []
        for index, completion in enumerate(completions):
            scores = {name: scores[index] for name, scores in scores_by_part.items()}
            rollouts.append(Rollout.single(completion, self._weighted_sum(scores), scores))
        return RolloutGroup(prompt, rollouts), metrics

    def _saved(self, error: RewardError, group: Group) -> RewardError:
        save = self._save
        if save is not None:
            unscored = RolloutGroup(group.prompt, [Rollout.single(each) for each in group.completions])
            error.args = (f"{error}. The samples of the prompt are in {save([unscored])}",)
        return error

    async def ascore(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[RolloutGroup, list[Metric]]:
        """`score` in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self.score, prompt, completions)

    def close(self) -> None:
        """Ends the worker processes, and calls in flight with them. No call may follow."""
        self._save = None  # nobody asks any more for what these calls were about
        for calls in self._parts:
            calls.close()

    def _weighted_sum(self, scores: Mapping[str, float | None]) -> float | None:
        opinions = [
            calls.part.weight * score
            for calls, score in zip(self._parts, scores.values(), strict=True)
            if score is not None
        ]
        return math.fsum(opinions) if opinions else None
