"""The advantages of a batch, which a worker computes for the driver: only workers import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from ray_rl.algorithms.credit import mean_kl
from ray_rl.algorithms.value_loss import explained_variance
from ray_rl.config.algorithm import Algorithm
from ray_rl.metrics.metric import Last, Mean, Metric
from ray_rl.training.configured import credit_fn, kl_of
from ray_rl.types import TrainBatch

CHANGED = ("loss_mask_RT", "advantages_RT", "returns_RT", "kl_coefficient")
"""The fields of a batch that the credit may change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credited:
    """The changes that `algorithms.credit.credit` made to a batch, and measurements of it."""

    changes: dict[str, Any]
    """Fields of `TrainBatch`."""
    kl: float | None
    """The mean divergence from the reference before the update; None if the batch does not say."""
    metrics: list[Metric]
    """Those of the critic."""

    def added_to(self, batch: TrainBatch) -> TrainBatch:
        """Returns the batch with the changes."""
        return replace(batch, **self.changes)


def credited(_: object, settings: Algorithm, batch: TrainBatch, *, kl_coefficient: float, max_tokens: int) -> Credited:
    """Returns the advantages of a batch; it needs rewards and the numbers of all models.

    Args:
        settings: the section `algorithm`.
        batch: the batch, whole.
        kl_coefficient: the coefficient of this step.
        max_tokens: the limit of a completion, for length penalties.
    """
    found = credit_fn(settings, max_tokens=max_tokens)(batch, kl_coefficient)
    has_both = found.reference_logprobs_RT is not None and found.old_logprobs_RT is not None
    return Credited(
        changes={name: new for name in CHANGED if (new := getattr(found, name)) is not getattr(batch, name)},
        kl=mean_kl(found, kl_of(settings.kl)) if has_both else None,
        metrics=_of_critic(found),
    )


def _of_critic(batch: TrainBatch) -> list[Metric]:
    if batch.returns_RT is None or batch.old_values_RT is None:
        return []
    values, returns, mask = map(torch.tensor, (batch.old_values_RT, batch.returns_RT, batch.loss_mask_RT))
    explained = explained_variance(values, returns, mask)
    return [
        Mean("critic/value_mean", float(values[mask].sum()), int(mask.sum())),
        Mean("critic/return_mean", float(returns[mask].sum()), int(mask.sum())),
        *([] if math.isnan(explained) else [Last("critic/explained_variance", explained)]),
    ]
