"""The policy gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_rl.algorithms.kl import MAX_LOG_RATIO
from ray_rl.algorithms.policy_loss import LossInputs, LossSum, PolicyLoss, policy_loss
from ray_rl.algorithms.reduce import Reduction, reduction_count, token_weights
from ray_rl.algorithms.select import informative_rows
from ray_rl.batching.encoding import Encoded
from ray_rl.metrics.metric import EffectiveFraction, Maximum, Mean, Metric, Total
from ray_rl.training.networks import PolicyNetwork
from ray_rl.types import TrainBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyObjective:
    """Minimises `policy_loss`. Batches need advantages, and old log-probabilities for more than one optimizer step."""

    name: ClassVar[str] = "policy"
    whole_groups: ClassVar[bool] = False
    network: PolicyNetwork
    settings: PolicyLoss
    reduction: Reduction
    denominator: float
    """Divides the token losses under the reduction `constant`."""
    has_kl_loss: bool
    """Whether a KL to the reference is part of the loss."""
    keeps_all_rows: bool = False
    """Whether rows whose advantages are all 0 are trained on too: the loss of a user need not be 0 there."""

    def trained(self, batch: TrainBatch, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[Metric]]:
        """Returns the rows that can have a gradient.

        These are all rows if there is a KL penalty, an entropy bonus or a user's loss, else those with an advantage
        other than 0.
        """
        assert batch.advantages_RT is not None, "the batch has no advantages"
        found = rows
        has_other_terms = batch.kl_coefficient > 0 or self.settings.entropy_coefficient > 0
        if not (self.keeps_all_rows or has_other_terms):
            found = rows[informative_rows(batch.advantages_RT[rows])]
        return found, [Mean("train/skipped_fraction", len(rows) - len(found), len(rows))]

    def count(self, batch: TrainBatch, rows: NDArray[np.int64]) -> float:
        """Counts tokens or sequences (see `reduction_count`)."""
        return reduction_count(batch.loss_mask_RT[rows].sum(1), self.reduction)

    def loss(self, model: nn.Module, encoded: Encoded, batch: TrainBatch) -> tuple[Tensor, list[Metric]]:
        """Computes `policy_loss`."""
        logprobs_N, entropy_N = model(
            encoded.inputs, with_entropy=True, entropy_grad=self.settings.entropy_coefficient > 0
        )
        assert batch.advantages_RT is not None, "the batch has no advantages"
        old = batch.old_logprobs_RT
        reference = batch.reference_logprobs_RT if self.has_kl_loss else None
        rollout_logprobs_N = encoded.pick(batch.rollout_logprobs_RT)
        old_logprobs_N = None if old is None else encoded.pick(old)
        inputs = LossInputs(
            logprobs_N=logprobs_N,
            old_logprobs_N=old_logprobs_N,
            reference_logprobs_N=None if reference is None else encoded.pick(reference),
            advantages_N=encoded.pick(batch.advantages_RT),
            rollout_logprobs_N=rollout_logprobs_N,
            entropy_N=entropy_N,
            weights_N=torch.from_numpy(self._weights(encoded, batch)).to(logprobs_N.device),
            row_N=torch.from_numpy(encoded.row_N).to(logprobs_N.device),
        )
        loss = policy_loss(self.settings, inputs, kl_coefficient=batch.kl_coefficient)
        baseline_N = logprobs_N.detach() if old_logprobs_N is None else old_logprobs_N
        gap_N = baseline_N.cpu() - rollout_logprobs_N.cpu()
        return loss.loss_sum, [Total("train/tokens", encoded.tokens), *_metrics(loss), *_gap(gap_N)]

    def _weights(self, encoded: Encoded, batch: TrainBatch) -> NDArray[np.float32]:
        """Returns [N], the weight of each loss token in the reduction."""
        rows, index_N = np.unique(encoded.row_N, return_inverse=True)
        weights = token_weights(batch.loss_mask_RT[rows].sum(1), self.reduction, denominator=self.denominator)
        return weights[index_N]


def _metrics(loss: LossSum) -> list[Metric]:
    means: list[Metric] = [Mean(name, total, loss.weight) for name, total in loss.totals.items()]
    return means + [Maximum(name, value) for name, value in loss.maxima.items()]


def _gap(difference_N: Tensor) -> list[Metric]:
    """Measures the gap between the log-probabilities of the trainer and those that the engine reported."""
    count = len(difference_N)
    if count == 0:
        return []
    gap_N = difference_N.abs()
    log_weights_N = difference_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    weights_N = log_weights_N.exp()
    return [
        Mean("sync/logprob_gap_mean", float(gap_N.sum()), count),
        Maximum("sync/logprob_gap_max", float(gap_N.max())),
        # KL(engine || trainer) on the engine's own tokens.
        Mean("sync/logprob_gap_k3", float((weights_N - 1.0 - log_weights_N).sum()), count),
        EffectiveFraction(
            "sync/effective_fraction", float(weights_N.sum()), float(weights_N.square().sum()), float(count)
        ),
    ]
