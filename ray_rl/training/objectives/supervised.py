"""Supervised fine-tuning: the likelihood of given answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_rl.algorithms.supervised import SupervisedKind, supervised_loss
from ray_rl.batching.encoding import Encoded
from ray_rl.metrics.metric import Metric
from ray_rl.training.networks import PolicyNetwork
from ray_rl.training.objectives.rows import EveryRow, metrics_of
from ray_rl.types import OfflineBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedObjective(EveryRow):
    """Minimises the mean of `supervised_loss` over the loss tokens."""

    name: ClassVar[str] = "sft"
    whole_groups: ClassVar[bool] = False
    network: PolicyNetwork
    kind: SupervisedKind

    def count(self, batch: OfflineBatch, rows: NDArray[np.int64]) -> float:
        """Counts the loss tokens."""
        return float(batch.loss_mask_RT[rows].sum())

    def loss(self, model: nn.Module, encoded: Encoded, batch: OfflineBatch) -> tuple[Tensor, list[Metric]]:
        """Computes `supervised_loss`."""
        loss = supervised_loss(self.network.score(model, encoded.inputs), self.kind)
        return loss.loss_sum, metrics_of(loss, encoded=encoded, name=self.name)
