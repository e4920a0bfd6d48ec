"""Computes the rewards of a prompt's rollouts: the score of every judge, and their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ray_rl.concurrency import together
from ray_rl.config.rewards import ModelReward, RewardConfig, ToolPart
from ray_rl.errors import RewardError
from ray_rl.metrics.metric import Metric
from ray_rl.rewards.functions.calls import Elsewhere, PartCalls
from ray_rl.rewards.functions.parts import build_part
from ray_rl.rewards.judge import Judge
from ray_rl.rewards.model.judge import ModelJudge, Models
from ray_rl.rewards.tools.judge import ToolJudge
from ray_rl.types import RolloutGroup

Save = Callable[[Sequence[RolloutGroup]], Path]
"""Writes samples that could not be scored, and returns their file. Any thread may call it."""


@dataclass(frozen=True, slots=True)
class Part:
    """A judge with its place in the sum."""

    name: str
    weight: float
    judge: Judge


def build_rewards(
    rewards: Sequence[RewardConfig],
    *,
    models: Models | None = None,
    elsewhere: Elsewhere | None = None,
    save: Save | None = None,
) -> Rewards:
    """Returns the judges of a run. Worker processes of functions start at the first call that needs them.

    Args:
        rewards: the entries of `rewards:`, whose names differ (a rule of the configuration).
        models: the reward models of the entry with kind model.
        elsewhere: other machines for the worker processes of functions whose number is not set.
        save: called with the samples of a prompt before their error is raised, which then names the file.
    """
    parts, functions = [], []
    for config in rewards:
        judge: Judge
        if isinstance(config, ModelReward):
            assert models is not None, "the run has reward models"
            judge = ModelJudge(config, models)
        elif isinstance(config, ToolPart):
            judge = ToolJudge(config)
        else:
            judge = PartCalls(build_part(config), elsewhere=elsewhere if config.workers is None else None)
            functions.append(judge)
        parts.append(Part(config.label, config.weight, judge))
    return Rewards(parts, functions=functions, save=save)


class Rewards:
    """Scores groups of rollouts; `close` ends the worker processes."""

    def __init__(self, parts: Sequence[Part], *, functions: Sequence[PartCalls] = (), save: Save | None = None) -> None:
        self._parts = parts
        self._functions = functions
        self._save = save

    async def score(self, group: RolloutGroup) -> tuple[RolloutGroup, list[Metric]]:
        """Returns the group with its rewards, and the metrics of the judges. The judges work concurrently.

        Raises:
            RewardError: a judge failed, or returned something that is neither a finite number nor None, and its part
                is not set to `on_error: skip`.
            ConfigError: a part needs a column that the prompt does not have.
        """
        try:
            found = await together(part.judge.judge(group) for part in self._parts)
        except RewardError as error:
            if self._save is not None:
                error.args = (f"{error}. The samples of the prompt are in {self._save([group])}",)
            raise
        metrics = [metric for judgements in found for judgement in judgements for metric in judgement.metrics]
        rollouts = []
        judged = zip(*found, strict=True) if found else [()] * len(group.rollouts)
        for rollout, judgements in zip(group.rollouts, judged, strict=True):
            scores = [judgement.score for judgement in judgements]
            parts = {part.name: score for part, score in zip(self._parts, scores, strict=True)}
            # An environment that failed is no fault of the policy: such an episode teaches nothing.
            reward = None if rollout.stop == "environment" else self._weighted_sum(scores)
            rollouts.append(replace(rollout, reward=reward, reward_parts=parts))
        return replace(group, rollouts=rollouts), metrics

    def metrics(self) -> list[Metric]:
        """Returns how busy the worker processes of functions were since the last call. Call it in the event loop."""
        return [metric for function in self._functions for metric in function.metrics()]

    def close(self) -> None:
        """Ends the worker processes, and with them the calls in flight. No call may follow."""
        self._save = None  # the calls that fail now are not errors of the run
        for function in self._functions:
            function.close()

    def _weighted_sum(self, scores: Sequence[float | None]) -> float | None:
        weighted = [part.weight * s for part, s in zip(self._parts, scores, strict=True) if s is not None]
        return math.fsum(weighted) if weighted else None
