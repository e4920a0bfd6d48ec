"""The critic under training: a plain class over DeepSpeed that runs with or without Ray."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_rl.algorithms.value_loss import clipped_value_loss
from ray_rl.batching.encoding import Encoded, Split
from ray_rl.config import RunConfig
from ray_rl.metrics.metric import Mean, Metric
from ray_rl.models.loading import attention_name, load_model_config, resolved_packing
from ray_rl.models.value import ValueModel, check_value_checkpoint, load_value_model
from ray_rl.training.process_group import Member, join_process_group
from ray_rl.training.trainer import Scores, assemble
from ray_rl.training.zero import ZeroEngine
from ray_rl.types import TrainBatch


class Critic:
    """One rank of the critic. All ranks are called with the same batch; each computes its share."""

    def __init__(self, config: RunConfig, folder: str, member: Member, *, threads: int = 1) -> None:
        """Loads the model and its optimizer; a collective.

        Args:
            config: of the run, with `model.dtype` resolved and a critic.
            folder: of the model to start from.
            member: this rank.
            threads: of this process on CPU.
        """
        assert config.critic is not None, "the run has no critic"
        role = config.critic
        self._algorithm, self._role, self._rank = config.algorithm, role, member.rank
        self._device = join_process_group(
            member, accelerator=config.cluster.accelerator, threads=threads, timeout_s=role.timeout_s
        )
        torch.manual_seed(config.run.seed)
        trust = config.model.trust_remote_code
        check_value_checkpoint(folder, trust_remote_code=trust)
        packing = resolved_packing(config, role, load_model_config(folder, trust_remote_code=trust, key="critic.path"))
        self._split = Split(
            workers=member.world,
            micro_batch_tokens=role.micro_batch_tokens,
            packing=packing,
        )

        def build() -> nn.Module:
            attention = attention_name(config, role, packing=packing)
            model = load_value_model(folder, dtype=config.model.dtype, attention=attention, trust_remote_code=trust)
            if role.gradient_checkpointing:
                model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
            return model.train()

        self.zero = ZeroEngine(config, role, build, name="critic", device=self._device)

    @property
    def model(self) -> ValueModel:
        """The critic; its parameters are shards under ZeRO-3."""
        model: ValueModel = self.zero.module
        return model

    @torch.no_grad()
    def values(self, batch: TrainBatch) -> Scores:
        """Values of the states of this rank's share of the batch under the current weights; a collective."""
        share = self._split.encode(batch, np.arange(batch.rows), rank=self._rank)
        return assemble([self.zero.engine(encoded.inputs.to(self._device)) for encoded in share], batch, share)

    def update(self, batch: TrainBatch) -> list[Metric]:
        """Trains on a batch with old values and returns, in as many optimizer steps as the actor; a collective.

        Raises:
            TrainingError: a loss or gradient is not finite and `train.on_nonfinite` is stop; raised on every rank.
        """
        metrics: list[Metric] = []
        for _ in range(self._algorithm.update_epochs):
            for rows in np.split(np.arange(batch.rows), self._algorithm.minibatches):
                has_loss = bool(batch.loss_mask_RT[rows].any())
                metrics += self.zero.step(partial(self.accumulate, batch, rows) if has_loss else None)
        return metrics

    def accumulate(self, batch: TrainBatch, rows: NDArray[np.int64]) -> list[Metric]:
        """Leaves the gradient of the mean value loss over the loss tokens of some rows in the engine; a collective."""

        def backward(encoded: Encoded) -> tuple[Tensor, list[Metric]]:
            return self._loss(encoded, batch)

        share = self._split.encode(batch, rows, rank=self._rank)
        return self.zero.accumulate(share, backward, count=float(batch.loss_mask_RT[rows].sum()))

    def _loss(self, encoded: Encoded, batch: TrainBatch) -> tuple[Tensor, list[Metric]]:
        """The sum of the loss over a micro-batch."""
        assert batch.old_values_RT is not None, "the batch has no values"
        assert batch.returns_RT is not None, "the batch has no returns"
        values_N = self.zero.engine(encoded.inputs.to(self._device))
        loss_N, is_clipped_N = clipped_value_loss(
            values_N,
            encoded.pick(batch.old_values_RT).to(self._device),
            encoded.pick(batch.returns_RT).to(self._device),
            clip=self._role.value_clip,
        )
        loss, count = loss_N.sum(), len(loss_N)
        return loss, [
            Mean("critic/loss", float(loss.detach()), count),
            Mean("critic/clip_fraction", float(is_clipped_N.sum()), count),
        ]
