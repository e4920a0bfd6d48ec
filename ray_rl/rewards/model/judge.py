"""Judges rollouts with reward models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ray_rl.config.rewards import MeanMinusStd, ModelReward
from ray_rl.errors import RewardError
from ray_rl.metrics.metric import Mean, Metric, Total
from ray_rl.rewards.judge import Judgement
from ray_rl.rewards.model.queue import Conversation
from ray_rl.types import RolloutGroup

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Models(Protocol):
    """One reward model or an ensemble."""

    async def scores(self, conversations: Sequence[Conversation]) -> tuple[NDArray[np.float32], list[Metric]]:
        """Returns float32 [M, R], the score of each conversation by each model."""


class ModelJudge:
    """Scores each rollout by the models, which read the prompt's conversation and the rollout as its continuation."""

    def __init__(self, config: ModelReward, models: Models) -> None:
        self._config = config
        self._models = models

    async def judge(self, group: RolloutGroup) -> list[Judgement]:
        """Returns the combined score of the models for each rollout.

        Raises:
            RewardError: a score is nan or infinite, and `on_error` is stop.
        """
        # Imported here: a run without reward models needs no torch for its rewards.
        from ray_rl.algorithms.ensemble import combined

        conversations = [(*group.prompt.messages, *rollout.messages) for rollout in group.rollouts]
        scores_MR, metrics = await self._models.scores(conversations)
        how = self._config.combine
        scores_R = combined(scores_MR, how.kind, k=how.k if isinstance(how, MeanMinusStd) else 0.0).tolist()
        well = [index for index, score in enumerate(scores_R) if math.isfinite(score)]
        failed = [index for index in range(len(scores_R)) if index not in well]
        if self._config.on_error == "skip":
            metrics = [*metrics, Total(f"reward/{self._config.label}_errors", len(failed))]
        elif failed:
            raise RewardError(self._failure(group, failed[0], scores_MR))
        metrics = [*metrics, *disagreement(scores_MR[:, well])]
        first, *others = [Judgement(score if math.isfinite(score) else None) for score in scores_R]
        return [Judgement(first.score, tuple(metrics)), *others]

    def _failure(self, group: RolloutGroup, index: int, scores_MR: NDArray[np.float32]) -> str:
        scores = zip(self._config.paths, scores_MR[:, index].tolist(), strict=True)
        path, score = next(((path, score) for path, score in scores if not math.isfinite(score)), ("all", math.inf))
        return (
            f"the reward model {path} gave completion {index} of {len(group.rollouts)} of prompt {group.prompt.id} "
            f"the score {score}. The completion is {group.rollouts[index].text[:200]!r}. Try model.dtype=float32 or "
            "another model, or set on_error: skip to continue without a score"
        )


def disagreement(scores_MR: NDArray[np.float32]) -> list[Metric]:
    """Returns reward/model_std of an ensemble: the standard deviation over the models (ddof 0), a mean over rollouts.

    It grows when the policy leaves the distribution on which the models were trained (arXiv:2310.02743).
    """
    if len(scores_MR) < 2:
        return []
    return [Mean("reward/model_std", float(scores_MR.std(0).sum()), scores_MR.shape[1])]
