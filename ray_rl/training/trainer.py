"""The policy under training: a plain class over DeepSpeed that runs with or without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_rl.algorithms.kl import MAX_LOG_RATIO
from ray_rl.algorithms.policy_loss import LossInputs, LossSum, policy_loss
from ray_rl.algorithms.reduce import reduction_count, token_weights
from ray_rl.algorithms.select import informative_rows
from ray_rl.batching.encoding import Encoded, Split
from ray_rl.config import RunConfig
from ray_rl.metrics.metric import EffectiveFraction, Maximum, Mean, Metric, Total
from ray_rl.models.freezing import freeze
from ray_rl.models.loading import (
    attention_name,
    check_checkpoint,
    load_causal_lm,
    load_model_config,
    resolved_packing,
)
from ray_rl.models.policy import PolicyModel
from ray_rl.training.configured import policy_loss_of
from ray_rl.training.gather import ParameterStream
from ray_rl.training.logit_check import require_own_logprobs
from ray_rl.training.process_group import Member, join_process_group
from ray_rl.training.zero import ZeroEngine
from ray_rl.types import TrainBatch


@dataclass(frozen=True, slots=True)
class Scores:
    """A number for each loss token that one rank computed: log-probabilities, or values."""

    rows: NDArray[np.int64]
    """[M] rows of the batch, those with loss tokens."""
    values_MT: NDArray[np.float32]
    """0 outside the loss mask."""


class Trainer:
    """One rank of the actor. All ranks are called with the same batch; each computes its share."""

    def __init__(self, config: RunConfig, folder: str, member: Member, *, threads: int = 1) -> None:
        """Loads the model and its optimizer; a collective.

        Args:
            config: the configuration of the run, with `model.dtype` resolved.
            folder: the folder of the model to start from.
            member: this rank.
            threads: how many threads this process has on CPU.

        Raises:
            DataError: the checkpoint is not that of the model, as `load_causal_lm` says.
            ConfigError: the log-probabilities of the loss would not be the model's.
        """
        self._config = config
        self._rank = member.rank
        train = config.train
        self._device = join_process_group(
            member, accelerator=config.cluster.accelerator, threads=threads, timeout_s=train.timeout_s
        )
        torch.manual_seed(config.run.seed)
        model_config = load_model_config(folder, trust_remote_code=config.model.trust_remote_code)
        check_checkpoint(folder, trust_remote_code=config.model.trust_remote_code, key="model.path")
        packing = resolved_packing(config, train, model_config)
        self._split = Split(
            workers=member.world,
            micro_batch_tokens=train.micro_batch_tokens,
            packing=packing,
        )

        def build() -> nn.Module:
            return _policy(config, folder, attention=attention_name(config, train, packing=packing))

        self.zero = ZeroEngine(config, train, build, name="policy", device=self._device)
        self.stream = ParameterStream(self.zero.module, dtype=config.model.dtype)
        require_own_logprobs(
            self.zero.engine,
            self._split,
            rank=self._rank,
            model_config=model_config,
            dtype=config.model.dtype,
            device=self._device,
            name=f"model.path={folder}",
        )

    @property
    def model(self) -> PolicyModel:
        """The policy; its parameters are shards under ZeRO-3."""
        policy: PolicyModel = self.zero.module
        return policy

    def update(self, batch: TrainBatch) -> list[Metric]:
        """Trains on a batch: `update_epochs` passes of `minibatches` optimizer steps; a collective.

        Args:
            batch: with advantages; with old_logprobs if there is more than one optimizer step.

        Raises:
            TrainingError: a loss or gradient is not finite and `train.on_nonfinite` is stop; raised on every rank, with
                weights and moments as they were before the optimizer step.
        """
        algorithm = self._config.algorithm
        metrics: list[Metric] = []
        for _ in range(algorithm.update_epochs):
            for rows in np.split(np.arange(batch.rows), algorithm.minibatches):
                metrics += self._optimizer_step(batch, rows)
        return metrics

    @torch.no_grad()
    def logprobs(self, batch: TrainBatch) -> Scores:
        """Log-probabilities of this rank's share of the batch under the current weights; a collective."""
        share = self._split.encode(batch, np.arange(batch.rows), rank=self._rank)
        return score(self.zero.engine, batch, share, device=self._device)

    def accumulate(self, batch: TrainBatch, rows: NDArray[np.int64]) -> list[Metric]:
        """Leaves the gradient of the mean loss over some rows in the engine; a collective.

        Sums over this rank's tokens, divided by counts over all rows: neither the number of workers nor the
        micro-batches change the gradient.

        Args:
            batch: with advantages.
            rows: of the batch, with at least one loss token.

        Raises:
            TrainingError: the loss of a rank is not finite; raised on every rank.
        """
        algorithm = self._config.algorithm
        loss_tokens_R = batch.loss_mask_RT.sum(1)
        denominator = algorithm.reduction_denominator or float(self._config.rollout.max_tokens)
        weights_R = token_weights(loss_tokens_R, algorithm.reduction, denominator=denominator)
        count = reduction_count(loss_tokens_R[rows], algorithm.reduction)
        share = self._split.encode(batch, self._with_gradient(batch, rows), rank=self._rank)

        def backward(encoded: Encoded) -> tuple[Tensor, list[Metric]]:
            return self._loss(encoded, batch, weights_R)

        metrics: list[Metric] = [Total("train/tokens", sum(encoded.tokens for encoded in share))]
        return metrics + self.zero.accumulate(share, backward, count=count)

    def _with_gradient(self, batch: TrainBatch, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows that have a gradient. The others stay in the count, so leaving them out changes nothing but time."""
        assert batch.advantages_RT is not None, "the batch has no advantages"
        if batch.kl_coefficient > 0 or self._config.algorithm.entropy_coefficient > 0:
            return rows
        return rows[informative_rows(batch.advantages_RT[rows])]

    def _optimizer_step(self, batch: TrainBatch, rows: NDArray[np.int64]) -> list[Metric]:
        """One step on some rows of the batch."""
        trained = len(self._with_gradient(batch, rows))
        has_loss = trained > 0 and bool(batch.loss_mask_RT[rows].any())
        metrics = self.zero.step(partial(self.accumulate, batch, rows) if has_loss else None)
        if self._rank == 0:
            metrics.append(Mean("train/skipped_fraction", len(rows) - trained, len(rows)))
        return metrics

    def _loss(self, encoded: Encoded, batch: TrainBatch, weights_R: NDArray[np.float32]) -> tuple[Tensor, list[Metric]]:
        """The sum of the loss over a micro-batch."""
        algorithm, device = self._config.algorithm, self._device
        logprobs_N, entropy_N = self.zero.engine(
            encoded.inputs.to(device), with_entropy=True, entropy_grad=algorithm.entropy_coefficient > 0
        )
        assert batch.advantages_RT is not None, "the batch has no advantages"
        old = batch.old_logprobs_RT
        reference = batch.reference_logprobs_RT if algorithm.kl.place == "loss" else None
        loss = policy_loss(
            policy_loss_of(algorithm),
            LossInputs(
                logprobs_N=logprobs_N,
                old_logprobs_N=None if old is None else encoded.pick(old).to(device),
                reference_logprobs_N=None if reference is None else encoded.pick(reference).to(device),
                advantages_N=encoded.pick(batch.advantages_RT).to(device),
                rollout_logprobs_N=encoded.pick(batch.rollout_logprobs_RT).to(device),
                entropy_N=entropy_N,
                weights_N=torch.from_numpy(weights_R[encoded.row_N]).to(device),
                row_N=torch.from_numpy(encoded.row_N).to(device),
            ),
            kl_coefficient=batch.kl_coefficient,
        )
        baseline = logprobs_N.detach().cpu() if old is None else encoded.pick(old)
        return loss.loss_sum, _loss_metrics(loss) + _gap(baseline - encoded.pick(batch.rollout_logprobs_RT))


def score(model: Any, batch: TrainBatch, share: Sequence[Encoded], *, device: str) -> Scores:
    """Log-probabilities of the loss tokens of some micro-batches under `model`, a `PolicyModel` or an engine of one."""
    logprobs = [model(encoded.inputs.to(device), with_entropy=False)[0] for encoded in share]
    return assemble(logprobs, batch, share)


def assemble(values: Sequence[Tensor], batch: TrainBatch, share: Sequence[Encoded]) -> Scores:
    """What was computed for the loss tokens of some micro-batches, by row of the batch."""
    values_RT = np.zeros(batch.tokens_RT.shape, np.float32)
    for values_N, encoded in zip(values, share, strict=True):
        values_RT[encoded.row_N, encoded.time_N] = values_N.float().cpu().numpy()
    rows = np.unique(np.concatenate([encoded.row_N for encoded in share]))
    return Scores(rows, values_RT[rows])


def _gap(difference_N: Tensor) -> list[Metric]:
    """How far the trainer's log-probabilities are from those that the engine reported: trainer - engine."""
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


def _loss_metrics(loss: LossSum) -> list[Metric]:
    means: list[Metric] = [Mean(name, total, loss.weight) for name, total in loss.totals.items()]
    return means + [Maximum(name, value) for name, value in loss.maxima.items()]


def _policy(config: RunConfig, folder: str, *, attention: str) -> PolicyModel:
    causal_lm = load_causal_lm(
        folder,
        dtype=config.model.dtype,
        attention=attention,
        trust_remote_code=config.model.trust_remote_code,
    )
    if config.train.gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    freeze(causal_lm, layers=config.train.frozen_layers)
    policy = PolicyModel(causal_lm, chunk_tokens=config.logit_chunk_tokens, temperature=config.rollout.temperature)
    policy.train()
    return policy
