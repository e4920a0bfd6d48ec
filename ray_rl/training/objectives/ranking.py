"""Reward models: the better of two answers, and right or wrong steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_rl.algorithms.ranking import bradley_terry_loss, step_loss
from ray_rl.batching.encoding import Encoded
from ray_rl.metrics.metric import Metric
from ray_rl.training.networks import ScoreNetwork
from ray_rl.training.objectives.rows import EveryRow, metrics_of, row_sums
from ray_rl.types import OfflineBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardObjective(EveryRow):
    """Minimises the mean of `bradley_terry_loss` over pairs. Each row has one loss token, after its end."""

    name: ClassVar[str] = "reward_model"
    whole_groups: ClassVar[bool] = True
    network: ScoreNetwork
    centering: float

    def count(self, batch: OfflineBatch, rows: NDArray[np.int64]) -> float:
        """Counts the pairs."""
        return float(len(rows) // batch.group_size)

    def loss(self, model: nn.Module, encoded: Encoded, batch: OfflineBatch) -> tuple[Tensor, list[Metric]]:
        """Computes `bradley_terry_loss`, with margins if the batch has them."""
        rows, scores_R = row_sums(self.network.score(model, encoded.inputs), encoded)
        margins = batch.margins_J
        loss = bradley_terry_loss(
            scores_R[0::2],
            scores_R[1::2],
            margin_J=None if margins is None else torch.from_numpy(margins[rows[0::2] // 2]).to(scores_R.device),
            centering=self.centering,
        )
        return loss.loss_sum, metrics_of(loss, encoded, name=self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepObjective(EveryRow):
    """Minimises the mean of `step_loss` over the labelled steps, whose ends are before the loss tokens."""

    name: ClassVar[str] = "process_reward_model"
    whole_groups: ClassVar[bool] = False
    network: ScoreNetwork

    def count(self, batch: OfflineBatch, rows: NDArray[np.int64]) -> float:
        """Counts the labelled steps."""
        return float(batch.loss_mask_RT[rows].sum())

    def loss(self, model: nn.Module, encoded: Encoded, batch: OfflineBatch) -> tuple[Tensor, list[Metric]]:
        """Computes `step_loss`."""
        assert batch.labels_RT is not None, "the batch has no labels of steps"
        loss = step_loss(self.network.score(model, encoded.inputs), encoded.pick(batch.labels_RT))
        return loss.loss_sum, metrics_of(loss, encoded, name=self.name)
