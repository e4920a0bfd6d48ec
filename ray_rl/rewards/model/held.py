"""Holds the reward models of one worker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ray_rl.metrics.metric import Metric
from ray_rl.rewards.model.scorer import ModelScorer
from ray_rl.types import Message


class RewardModels:
    """A worker with reward models. All workers are called with the same conversations, and each scores its share."""

    def __init__(self, scorers: Sequence[ModelScorer], rows: slice) -> None:
        """Makes a worker from its models, and from the rows of each call that it scores."""
        self._scorers = scorers
        self._rows = rows

    def scores(self, conversations: Sequence[tuple[Message, ...]]) -> tuple[NDArray[np.float32], list[Metric]]:
        """Returns float32 [models of this worker, conversations of its share], and the metrics of its models."""
        share = conversations[self._rows]
        scores = np.stack([scorer.scores(share) for scorer in self._scorers])
        return scores, [metric for scorer in self._scorers for metric in scorer.metrics()]
