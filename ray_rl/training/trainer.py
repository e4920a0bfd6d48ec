"""A model under training: a plain class over DeepSpeed that runs with or without Ray."""

from __future__ import annotations

from functools import partial
from typing import Any, Generic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_rl.batching.encoding import Encoded
from ray_rl.metrics.metric import Metric
from ray_rl.models.adapter import dropout_off
from ray_rl.models.continued import as_at_start
from ray_rl.training.gather import ParameterStream
from ray_rl.training.member import Member
from ray_rl.training.objectives.objective import Objective
from ray_rl.training.process_group import join_process_group
from ray_rl.training.residence import Residence
from ray_rl.training.settings import TrainSettings
from ray_rl.training.share import Scores, Share
from ray_rl.training.zero import ZeroEngine
from ray_rl.types import Batch, TokenBatch


class Trainer(Generic[Batch]):
    """One rank of a model under training. All ranks are called with the same batch; each computes its share."""

    def __init__(
        self, objective: Objective[Batch], settings: TrainSettings, member: Member, *, threads: int = 1
    ) -> None:
        """Loads the model and its optimizer; a collective. `threads` of this process work on CPU.

        Raises:
            DataError: the model cannot be loaded whole.
            ConfigError: the model cannot be trained this way.
        """
        self._objective = objective
        self._settings = settings
        role, network = settings.role, objective.network
        device = join_process_group(member, accelerator=settings.accelerator, threads=threads, timeout_s=role.timeout_s)
        torch.manual_seed(settings.seed)
        self._share = Share.of(network.check(), role, member, accelerator=settings.accelerator, device=device)
        self.zero = ZeroEngine(
            settings, lambda: network.build(self._share.attention).train(), name=objective.name, device=device
        )
        self.stream = ParameterStream(
            self.zero.module, dtype=settings.dtype, on_host=lambda tensor: self.zero.residence.on_host(tensor)
        )
        network.verify(self.zero.engine, self._share)

    @property
    def model(self) -> Any:
        """The model that the objective's network built; its parameters are shards under ZeRO-3."""
        return self.zero.module

    @property
    def residence(self) -> Residence:
        """Moves the model to the host and back."""
        return self.zero.residence

    def update(self, batch: Batch) -> list[Metric]:
        """Trains on a batch: `update_epochs` passes of `minibatches` optimizer steps; a collective.

        Raises:
            TrainingError: a loss or gradient is not finite and `train.on_nonfinite` is stop; raised on every rank, with
                weights and moments as they were before the optimizer step.
        """
        metrics: list[Metric] = []
        for _ in range(self._settings.update_epochs):
            for rows in np.split(np.arange(batch.rows), self._settings.minibatches):
                metrics += self._optimizer_step(batch, rows)
        return metrics

    def scores(self, batch: TokenBatch) -> Scores:
        """Scores this rank's share of the batch with the current weights; a collective."""
        with dropout_off(self.model):
            return self._share.scores(batch, partial(self._objective.network.score, self.zero.engine))

    def reference_scores(self, batch: TokenBatch) -> Scores:
        """Scores this rank's share of the batch with the weights before training (see `as_at_start`); a collective."""
        with as_at_start(self.model):
            return self.scores(batch)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> list[Metric]:
        """Returns the metrics of the loss over this rank's share of the batch; a collective that trains nothing."""
        metrics: list[Metric] = []
        share = self._share.encode(batch, np.arange(batch.rows), whole_groups=self._objective.whole_groups)
        with dropout_off(self.model):
            for encoded in share:
                _, found = self._objective.loss(self.zero.engine, encoded.to(self._share.device), batch)
                metrics += found
        return metrics

    def accumulate(self, batch: Batch, rows: NDArray[np.int64]) -> list[Metric]:
        """Leaves the gradient of the loss over some rows in the engine; a collective.

        Sums over this rank's tokens, divided by a count over all rows: neither the number of workers nor the
        micro-batches change the gradient. The rows must have at least one loss token.

        Raises:
            TrainingError: the loss of a rank is not finite; raised on every rank.
        """
        objective, device = self._objective, self._share.device

        def backward(encoded: Encoded) -> tuple[Tensor, list[Metric]]:
            return objective.loss(self.zero.engine, encoded.to(device), batch)

        trained, _ = objective.trained(batch, rows)
        share = self._share.encode(batch, trained, whole_groups=objective.whole_groups)
        return self.zero.accumulate(share, backward, count=objective.count(batch, rows))

    def _optimizer_step(self, batch: Batch, rows: NDArray[np.int64]) -> list[Metric]:
        """Takes one optimizer step on some rows of the batch."""
        trained, found = self._objective.trained(batch, rows)
        has_loss = len(trained) > 0 and bool(batch.loss_mask_RT[rows].any())
        metrics = self.zero.step(partial(self.accumulate, batch, rows) if has_loss else None)
        return metrics + (found if self._share.rank == 0 else [])
