"""Reward models: the better of two answers, and right or wrong steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_rl.algorithms.ranking import bradley_terry_loss, step_loss
from ray_rl.algorithms.summed import Summed
from ray_rl.batching.encoding import Encoded
from ray_rl.metrics.metric import Metric
from ray_rl.training.networks import ScoreNetwork
from ray_rl.training.objectives.rows import EveryRow, each_of, metrics_of, row_sums
from ray_rl.types import OfflineBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardObjective(EveryRow):
    """Minimises the mean of `bradley_terry_loss` over pairs. Each row has one loss token, after its end.

    Each member of an ensemble has a bootstrap sample of its own: a pair counts as often as a draw from Poisson(1) says,
    always the same for this member, pair and seed. Source: Oza and Russell 2001, "Online bagging and boosting". The
    metrics are means over members and their pairs; an evaluation counts each pair once, and its accuracy and ties are
    those of the mean score (see `Calibration`).
    """

    name: ClassVar[str] = "reward_model"
    whole_groups: ClassVar[bool] = True
    network: ScoreNetwork
    centering: float
    seed: int

    def count(self, batch: OfflineBatch, rows: NDArray[np.int64]) -> float:
        """Counts the pairs."""
        return float(len(rows) // batch.group_size)

    def loss(self, model: nn.Module, encoded: Encoded, batch: OfflineBatch) -> tuple[Tensor, list[Metric]]:
        """Computes `bradley_terry_loss`, with margins if the batch has them."""
        scores_MN = self.network.each(model, encoded.inputs)
        losses = [self._of_member(member, scores_N, encoded, batch) for member, scores_N in enumerate(scores_MN)]
        total = torch.stack([loss.loss_sum for loss in losses]).sum()
        return total, metrics_of(*losses, encoded=encoded, name=self.name) + _scores_of_each(scores_MN, encoded, batch)

    def _of_member(self, member: int, scores_N: Tensor, encoded: Encoded, batch: OfflineBatch) -> Summed:
        """Returns the loss of a member over the pairs of its own sample."""
        rows, scores_R = row_sums(scores_N, encoded)
        pairs = rows[0::2] // 2
        if self.network.members > 1 and torch.is_grad_enabled():
            drawn = np.repeat(np.arange(len(pairs)), [self._draws(batch.ids[pair], member) for pair in pairs])
        else:
            drawn = np.arange(len(pairs))
        margins = None if batch.margins_J is None else batch.margins_J[pairs[drawn]]
        drawn_J = torch.from_numpy(drawn).to(scores_R.device)
        return bradley_terry_loss(
            scores_R[0::2][drawn_J],
            scores_R[1::2][drawn_J],
            margin_J=None if margins is None else torch.from_numpy(margins).to(scores_R.device),
            centering=self.centering,
        )

    def _draws(self, pair: str, member: int) -> int:
        """Returns how often a pair is in the sample of a member."""
        return int(np.random.default_rng([self.seed, member, crc32(pair.encode())]).poisson(1.0))


def _scores_of_each(scores_MN: Tensor, encoded: Encoded, batch: OfflineBatch) -> list[Metric]:
    """Returns the scores of each pair, means over the members."""
    rows, scores_R = row_sums(scores_MN.detach().mean(0), encoded)
    chosen_J, rejected_J = scores_R[0::2], scores_R[1::2]
    scores = {"chosen_score": chosen_J, "rejected_score": rejected_J, "score_margin": chosen_J - rejected_J}
    return each_of(scores, [batch.ids[row // 2] for row in rows[0::2]])


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
        return loss.loss_sum, metrics_of(loss, encoded=encoded, name=self.name)
