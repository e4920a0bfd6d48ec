"""Preferences: pairs of answers, and answers that are good or bad."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_rl.algorithms.preference import Kto, Pairs, kto_loss
from ray_rl.algorithms.summed import Summed
from ray_rl.batching.encoding import Encoded
from ray_rl.metrics.metric import Metric
from ray_rl.training.networks import PolicyNetwork
from ray_rl.training.objectives.rows import EveryRow, each_of, metrics_of, row_sums
from ray_rl.types import OfflineBatch

PairLoss = Callable[[Pairs], Summed]
"""A loss over pairs, with its settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairObjective(EveryRow):
    """Minimises the mean of a loss over pairs. Batches need sums of the reference if the loss reads a reference."""

    whole_groups: ClassVar[bool] = True
    name: str
    network: PolicyNetwork
    pair_loss: PairLoss

    def count(self, batch: OfflineBatch, rows: NDArray[np.int64]) -> float:
        """Counts the pairs."""
        return float(len(rows) // batch.group_size)

    def loss(self, model: nn.Module, encoded: Encoded, batch: OfflineBatch) -> tuple[Tensor, list[Metric]]:
        """Computes the loss of the pairs of a micro-batch, which has both rows of each."""
        rows, sums_R = row_sums(self.network.score(model, encoded.inputs), encoded)
        tokens_R = batch.loss_mask_RT.sum(1)
        pairs = Pairs(
            chosen_J=sums_R[0::2],
            rejected_J=sums_R[1::2],
            reference_J=None if batch.reference_R is None else _sides(batch.reference_R[rows], sums_R),
            chosen_tokens_J=torch.from_numpy(tokens_R[rows[0::2]]).to(sums_R.device),
            rejected_tokens_J=torch.from_numpy(tokens_R[rows[1::2]]).to(sums_R.device),
            tokens_per_pair=float(tokens_R[0::2].mean()) if batch.tokens_per_pair is None else batch.tokens_per_pair,
        )
        loss = self.pair_loss(pairs)
        each = each_of(loss.each, [batch.ids[row // 2] for row in rows[0::2]])
        return loss.loss_sum, metrics_of(loss, encoded=encoded, name=self.name) + each


@dataclass(frozen=True, slots=True, kw_only=True)
class KtoObjective(EveryRow):
    """Minimises the mean of `kto_loss` over rows. Batches need labels, sums of the reference, and the baseline."""

    name: ClassVar[str] = "kto"
    whole_groups: ClassVar[bool] = False
    network: PolicyNetwork
    settings: Kto

    def count(self, batch: OfflineBatch, rows: NDArray[np.int64]) -> float:
        """Counts the rows."""
        return float(len(rows))

    def loss(self, model: nn.Module, encoded: Encoded, batch: OfflineBatch) -> tuple[Tensor, list[Metric]]:
        """Computes `kto_loss`."""
        assert batch.labels_R is not None, "the batch has no labels"
        assert batch.reference_R is not None, "the batch has no log-probabilities of the reference"
        assert batch.baseline is not None, "the batch has no baseline"
        rows, sums_R = row_sums(self.network.score(model, encoded.inputs), encoded)
        loss = kto_loss(
            self.settings,
            sums_R,
            torch.from_numpy(batch.reference_R[rows]).to(sums_R.device),
            torch.from_numpy(batch.labels_R[rows]).to(sums_R.device),
            baseline=batch.baseline,
        )
        each = each_of(loss.each, [batch.ids[row] for row in rows])
        return loss.loss_sum, metrics_of(loss, encoded=encoded, name=self.name) + each


def _sides(values_R: NDArray[np.float64], like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the values of the chosen and of the rejected rows."""
    values = torch.from_numpy(values_R).to(like.device)
    return values[0::2], values[1::2]
