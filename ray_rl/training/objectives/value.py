"""The critic's regression on returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_rl.algorithms.value_loss import clipped_value_loss
from ray_rl.batching.encoding import Encoded
from ray_rl.config.roles import CRITIC
from ray_rl.metrics.metric import Mean, Metric
from ray_rl.training.networks import ValueNetwork
from ray_rl.training.objectives.rows import EveryRow
from ray_rl.types import TrainBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueObjective(EveryRow):
    """Minimises the mean of `clipped_value_loss` over the loss tokens. Batches need old values and returns."""

    name: ClassVar[str] = CRITIC
    whole_groups: ClassVar[bool] = False
    network: ValueNetwork
    clip: float | None
    """The most that a value may differ from the value computed before the update of this step. None: no bound."""

    def count(self, batch: TrainBatch, rows: NDArray[np.int64]) -> float:
        """Counts the loss tokens."""
        return float(batch.loss_mask_RT[rows].sum())

    def loss(self, model: nn.Module, encoded: Encoded, batch: TrainBatch) -> tuple[Tensor, list[Metric]]:
        """Computes `clipped_value_loss`."""
        assert batch.old_values_RT is not None, "the batch has no values"
        assert batch.returns_RT is not None, "the batch has no returns"
        loss_N, is_clipped_N = clipped_value_loss(
            model(encoded.inputs),
            encoded.pick(batch.old_values_RT),
            encoded.pick(batch.returns_RT),
            clip=self.clip,
        )
        loss, count = loss_N.sum(), len(loss_N)
        return loss, [
            Mean("critic/loss", float(loss.detach()), count),
            Mean("critic/clip_fraction", float(is_clipped_N.sum()), count),
        ]
