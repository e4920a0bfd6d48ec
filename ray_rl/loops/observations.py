"""What a batch says before it is trained on."""

from __future__ import annotations

import math

import torch

from ray_rl.algorithms.credit import mean_kl
from ray_rl.algorithms.kl_control import KlControl
from ray_rl.algorithms.value_loss import explained_variance
from ray_rl.config import RunConfig
from ray_rl.metrics.metric import Last, Mean, Metric
from ray_rl.types import TrainBatch


def observe(config: RunConfig, batch: TrainBatch, kl: KlControl) -> list[Metric]:
    """What the batch says of critic and KL before the update; moves the KL coefficient for the next step."""
    metrics: list[Metric] = []
    if batch.returns_RT is not None and batch.old_values_RT is not None:
        values, returns, mask = map(torch.from_numpy, (batch.old_values_RT, batch.returns_RT, batch.loss_mask_RT))
        metrics.append(Mean("critic/value_mean", float(values[mask].sum()), int(mask.sum())))
        metrics.append(Mean("critic/return_mean", float(returns[mask].sum()), int(mask.sum())))
        explained = explained_variance(values, returns, mask)
        metrics += [] if math.isnan(explained) else [Last("critic/explained_variance", explained)]
    if batch.reference_logprobs_RT is not None:
        metrics.append(Last("policy/kl_coefficient", kl.coefficient))
        if batch.old_logprobs_RT is not None:
            distance = mean_kl(batch, config.algorithm.kl)
            metrics.append(Last("policy/kl_before_update", distance))
            kl.observe(distance, samples=batch.rows)
    return metrics


def mean_advantages(batch: TrainBatch) -> list[float]:
    """[R], over the loss tokens of each rollout; 0 where there are none."""
    assert batch.advantages_RT is not None
    totals_R = batch.advantages_RT.sum(1, dtype=float)
    means: list[float] = (totals_R / batch.loss_mask_RT.sum(1).clip(min=1)).tolist()
    return means
