"""Adds advantages to a batch, adapts the KL coefficient from step to step, and measures both."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ray_rl.algorithms.credit import mean_kl
from ray_rl.algorithms.value_loss import explained_variance
from ray_rl.checkpoint.store import read_json, write_json
from ray_rl.config.algorithm import Algorithm
from ray_rl.errors import CheckpointError
from ray_rl.metrics.metric import Last, Mean, Metric
from ray_rl.training.configured import credit_fn, kl_control, kl_of
from ray_rl.types import TrainBatch

FILE = "kl.json"
"""File in the folder of a checkpoint. Checkpoints of version 0.1 have the same key in `run.json`."""


@dataclass(frozen=True, slots=True)
class KlPosition:
    """The KL coefficient at one moment."""

    kl_coefficient: float

    def write(self, folder: Path) -> None:
        """Writes `kl.json` into a checkpoint."""
        write_json(folder / FILE, asdict(self))


class Crediting:
    """Turns rewards into advantages, and adapts the KL coefficient to the measured divergence."""

    def __init__(self, settings: Algorithm, *, max_tokens: int) -> None:
        """Starts with the configured KL coefficient. Length penalties need `max_tokens`, the limit of a completion."""
        self._credit = credit_fn(settings, max_tokens=max_tokens)
        self._estimate = kl_of(settings.kl)
        self._kl = kl_control(settings.kl)

    def __call__(self, batch: TrainBatch) -> tuple[TrainBatch, list[Metric]]:
        """Returns the batch with advantages, and its metrics. It needs rewards and the numbers of all models."""
        credited = self._credit(batch, self._kl.coefficient)
        return credited, [*_of_critic(credited), *self._of_kl(credited)]

    def position(self) -> KlPosition:
        """Returns the KL coefficient of the next step."""
        return KlPosition(self._kl.coefficient)

    def resume(self, folder: Path) -> None:
        """Continues with the KL coefficient in a checkpoint.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        file = folder / FILE if (folder / FILE).exists() else folder / "run.json"
        try:
            self._kl.coefficient = float(read_json(file)["kl_coefficient"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file}: no KL coefficient ({error!r}); resume from another checkpoint") from error

    def _of_kl(self, batch: TrainBatch) -> list[Metric]:
        if batch.reference_logprobs_RT is None:
            return []
        metrics: list[Metric] = [Last("policy/kl_coefficient", self._kl.coefficient)]
        if batch.old_logprobs_RT is not None:
            distance = mean_kl(batch, self._estimate)
            metrics.append(Last("policy/kl_before_update", distance))
            self._kl.observe(distance, samples=batch.rows)
        return metrics


def _of_critic(batch: TrainBatch) -> list[Metric]:
    if batch.returns_RT is None or batch.old_values_RT is None:
        return []
    values, returns, mask = map(torch.from_numpy, (batch.old_values_RT, batch.returns_RT, batch.loss_mask_RT))
    explained = explained_variance(values, returns, mask)
    return [
        Mean("critic/value_mean", float(values[mask].sum()), int(mask.sum())),
        Mean("critic/return_mean", float(returns[mask].sum()), int(mask.sum())),
        *([] if math.isnan(explained) else [Last("critic/explained_variance", explained)]),
    ]


def mean_advantages(batch: TrainBatch) -> list[float]:
    """Returns [R], the mean over the loss tokens of each rollout; 0 for a rollout without any."""
    assert batch.advantages_RT is not None
    totals_R = batch.advantages_RT.sum(1, dtype=float)
    means: list[float] = (totals_R / batch.loss_mask_RT.sum(1).clip(min=1)).tolist()
    return means
