"""The interface of everything that judges completions: reward functions and reward models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ray_rl.metrics.metric import Metric
from ray_rl.types import RolloutGroup


@dataclass(frozen=True, slots=True)
class Judgement:
    """The opinion of one judge on one rollout."""

    score: float | None
    """Finite, without the weight; None for no opinion."""
    metrics: tuple[Metric, ...] = ()
    """The metrics of the judge. Those of a whole group come with its first judgement."""


class Judge(Protocol):
    """Scores the rollouts of a prompt. A judge is awaited while later prompts are sampled."""

    async def judge(self, group: RolloutGroup) -> list[Judgement]:
        """Returns one judgement for each rollout, in order. The rewards of the group are not set yet.

        Raises:
            RewardError: a rollout could not be judged; the samples of the prompt are saved.
        """
