"""The reward models of one worker: those that its assignment gives it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ray_rl.metrics.metric import Metric
from ray_rl.rewards.model.scorer import ModelScorer
from ray_rl.types import Message


class RewardModels:
    """One worker of the role. All are called with the same conversations; each scores its share with its models."""

    def __init__(self, scorers: Sequence[ModelScorer], rows: slice) -> None:
        """Takes the models of this worker, and the conversations of each call that it scores."""
        self._scorers = scorers
        self._rows = rows

    def scores(self, conversations: Sequence[tuple[Message, ...]]) -> tuple[NDArray[np.float32], list[Metric]]:
        """Returns float32 [models of this worker, conversations of its share]."""
        share = conversations[self._rows]
        scores = np.stack([scorer.scores(share) for scorer in self._scorers])
        return scores, [metric for scorer in self._scorers for metric in scorer.metrics()]
