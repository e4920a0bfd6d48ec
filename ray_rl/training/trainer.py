"""The policy under training: a plain class over DeepSpeed that runs with or without Ray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ray_rl.algorithms.policy_loss import LossInputs, LossSum, policy_loss
from ray_rl.algorithms.reduce import reduction_count, token_weights
from ray_rl.algorithms.select import informative_rows
from ray_rl.config import RunConfig
from ray_rl.errors import TrainingError
from ray_rl.metrics.metric import Last, Maximum, Mean, Metric, Total
from ray_rl.models.loading import attention_name, load_causal_lm, load_model_config, shares_prefixes
from ray_rl.models.policy import PolicyModel
from ray_rl.training.deepspeed_config import deepspeed_config
from ray_rl.training.encoding import Encoded, Split
from ray_rl.training.gather import ParameterStream
from ray_rl.training.process_group import Member, join_process_group
from ray_rl.training.schedule import learning_rate_factor
from ray_rl.types import TrainBatch


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities that one rank computed."""

    rows: NDArray[np.int64]
    """[M] rows of the batch, those with loss tokens."""
    logprobs_MT: NDArray[np.float32]
    """0 outside the loss mask."""


class Trainer:
    """One rank of the actor. All ranks are called with the same batch; each computes its share."""

    def __init__(self, config: RunConfig, folder: str, member: Member, *, threads: int = 1) -> None:
        """Loads the model and its optimizer; a collective.

        Args:
            config: of the run, with `model.dtype` resolved.
            folder: of the model to start from.
            member: this rank.
            threads: of this process on CPU.
        """
        self._config = config
        self._rank = member.rank
        train = config.train
        self._device = join_process_group(
            member, accelerator=config.cluster.accelerator, threads=threads, timeout_s=train.timeout_s
        )
        torch.manual_seed(config.run.seed)
        trust = config.model.trust_remote_code
        shared_prefix = shares_prefixes(config, load_model_config(folder, trust_remote_code=trust))
        self._split = Split(
            workers=member.world,
            micro_batch_tokens=train.micro_batch_tokens,
            logit_chunk_tokens=train.logit_chunk_tokens,
            shared_prefix=shared_prefix,
        )
        self._engine = _initialize(config, folder, shared_prefix=shared_prefix)
        self.stream = ParameterStream(self._engine.module, dtype=config.model.dtype)
        self._steps = 0

    @property
    def model(self) -> PolicyModel:
        """The policy; its parameters are shards under ZeRO-3."""
        return self._engine.module

    def update(self, batch: TrainBatch) -> list[Metric]:
        """Trains on a batch: `update_epochs` passes of `minibatches` optimizer steps; a collective.

        Args:
            batch: with advantages; with old_logprobs if there is more than one optimizer step.

        Raises:
            TrainingError: a loss or gradient is not finite, raised on every rank. The parameters are as they were
                before the optimizer step, but gradients are left behind: load a new trainer.
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
        return score(self._engine, batch, share, device=self._device)

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
        reduction = self._config.algorithm.reduction
        loss_tokens_R = batch.loss_mask_RT.sum(1)
        weights_R = token_weights(loss_tokens_R, reduction)
        count = reduction_count(loss_tokens_R[rows], reduction)
        share = self._split.encode(batch, self._with_gradient(batch, rows), rank=self._rank)
        metrics: list[Metric] = [Total("train/tokens", sum(encoded.tokens for encoded in share))]
        loss_sum = 0.0
        for i, encoded in enumerate(share):
            self._engine.set_gradient_accumulation_boundary(i == len(share) - 1)
            loss, gap = self._backward(encoded, batch, weights_R, count)
            metrics += _loss_metrics(loss) + gap
            loss_sum += float(loss.loss_sum.detach())
        self._require_finite(loss_sum)
        return metrics

    def _with_gradient(self, batch: TrainBatch, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows that have a gradient. The others stay in the count, so leaving them out changes nothing but time."""
        assert batch.advantages_RT is not None, "the batch has no advantages"
        algorithm = self._config.algorithm
        if algorithm.kl.coefficient > 0 or algorithm.entropy_coefficient > 0:
            return rows
        return rows[informative_rows(batch.advantages_RT[rows])]

    def _optimizer_step(self, batch: TrainBatch, rows: NDArray[np.int64]) -> list[Metric]:
        """One step on some rows of the batch."""
        trained = len(self._with_gradient(batch, rows))
        metrics: list[Metric] = []
        if self._rank == 0:
            metrics.append(Mean("train/skipped_fraction", len(rows) - trained, len(rows)))
        rate = self._set_learning_rate()
        if trained > 0 and batch.loss_mask_RT[rows].any():
            metrics += self.accumulate(batch, rows)
            metrics += [Last("policy/grad_norm", self._apply()), Last("policy/learning_rate", rate)]
        self._steps += 1
        return metrics

    def _backward(
        self, encoded: Encoded, batch: TrainBatch, weights_R: NDArray[np.float32], count: float
    ) -> tuple[LossSum, list[Metric]]:
        """Forward and backward pass of one micro-batch."""
        algorithm = self._config.algorithm
        device = self._device
        logprobs_N, entropy_N = self._engine(
            encoded.inputs.to(device), with_entropy=True, entropy_grad=algorithm.entropy_coefficient > 0
        )
        assert batch.advantages_RT is not None, "the batch has no advantages"
        old, reference = batch.old_logprobs_RT, batch.reference_logprobs_RT
        loss = policy_loss(
            algorithm,
            LossInputs(
                logprobs_N=logprobs_N,
                old_logprobs_N=None if old is None else encoded.pick(old).to(device),
                reference_logprobs_N=None if reference is None else encoded.pick(reference).to(device),
                advantages_N=encoded.pick(batch.advantages_RT).to(device),
                entropy_N=entropy_N,
                weights_N=torch.from_numpy(weights_R[encoded.row_N]).to(device),
                row_N=torch.from_numpy(encoded.row_N).to(device),
            ),
        )
        # DeepSpeed averages over the ranks; the count is already global, so the average is undone.
        self._engine.backward(loss.loss_sum / count * self._split.workers, scale_wrt_gas=False)
        baseline = logprobs_N.detach().cpu() if old is None else encoded.pick(old)
        gap_N = (baseline - encoded.pick(batch.rollout_logprobs_RT)).abs()
        if len(gap_N) == 0:
            return loss, []
        gap: list[Metric] = [
            Mean("sync/logprob_gap_mean", float(gap_N.sum()), len(gap_N)),
            Maximum("sync/logprob_gap_max", float(gap_N.max())),
        ]
        return loss, gap

    def _require_finite(self, loss: float) -> None:
        """Every rank raises if any has a loss that is not finite; nothing has been applied."""
        is_bad = torch.tensor(0.0 if math.isfinite(loss) else 1.0, device=self._device)
        dist.all_reduce(is_bad, op=dist.ReduceOp.MAX)
        if is_bad.item():
            raise TrainingError(
                f"optimizer step {self._steps}: the loss of rank {self._rank} is {loss}, and that of one rank at least "
                "is not finite; the step was not applied. Look at the step's rollouts; a lower train.learning_rate or "
                "train.clip_grad_norm may help"
            )

    def _apply(self) -> float:
        """Clips and applies the accumulated gradient; returns its norm before clipping."""
        engine = self._engine
        if engine.zero_optimization_stage() == 0 and self._config.model.dtype == "float32":
            # Here DeepSpeed neither reports the norm nor refuses one that is not finite.
            norm = float(torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters()]))
            is_applied = math.isfinite(norm)
            if is_applied:
                engine.step()
        else:
            engine.step()
            norm, is_applied = float(engine.get_global_grad_norm()), engine.was_step_applied()
        if not is_applied:
            raise TrainingError(
                f"optimizer step {self._steps}: the loss is finite, the norm of its gradient is not; the step was not "
                "applied. Look at the step's rollouts; a lower train.learning_rate may help, or model.dtype=float32"
            )
        return norm

    def _set_learning_rate(self) -> float:
        """Sets and returns the learning rate of this step."""
        config = self._config
        total = config.run.steps * config.algorithm.optimizer_steps
        factor = learning_rate_factor(config.train.schedule, step=self._steps, total_steps=total)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = config.train.learning_rate * factor
        return config.train.learning_rate * factor


def score(model: Any, batch: TrainBatch, share: Sequence[Encoded], *, device: str) -> Scores:
    """Log-probabilities of the loss tokens of some micro-batches under `model`, a `PolicyModel` or an engine of one."""
    logprobs_RT = np.zeros(batch.tokens_RT.shape, np.float32)
    for encoded in share:
        logprobs_N, _ = model(encoded.inputs.to(device), with_entropy=False)
        logprobs_RT[encoded.row_N, encoded.time_N] = logprobs_N.cpu().numpy()
    rows = np.unique(np.concatenate([encoded.row_N for encoded in share]))
    return Scores(rows, logprobs_RT[rows])


def _loss_metrics(loss: LossSum) -> list[Metric]:
    means: list[Metric] = [Mean(name, total, loss.weight) for name, total in loss.totals.items()]
    return means + [Maximum(name, value) for name, value in loss.maxima.items()]


def _initialize(config: RunConfig, folder: str, *, shared_prefix: bool) -> Any:
    """The DeepSpeed engine around a `PolicyModel`."""
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    settings = deepspeed_config(config)
    # While it is alive, from_pretrained shards ZeRO-3 parameters as it reads them; it must outlive the loading.
    sharded_loading = HfDeepSpeedConfig(settings) if config.train.zero_stage == 3 else None
    causal_lm = load_causal_lm(
        folder,
        dtype=config.model.dtype,
        attention=attention_name(config, shared_prefix=shared_prefix),
        trust_remote_code=config.model.trust_remote_code,
    )
    del sharded_loading
    if config.train.gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    policy = PolicyModel(
        causal_lm, chunk_tokens=config.train.logit_chunk_tokens, temperature=config.rollout.temperature
    )
    policy.train()
    engine, *_ = deepspeed.initialize(
        model=policy, optimizer=_optimizer(policy, config), config=settings, dist_init_required=False
    )
    return engine


def _optimizer(policy: PolicyModel, config: RunConfig) -> torch.optim.Optimizer:
    """AdamW; norms and biases (one axis) are not decayed."""
    train = config.train
    matrices = [p for p in policy.parameters() if len(_shape(p)) > 1]
    vectors = [p for p in policy.parameters() if len(_shape(p)) <= 1]
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=train.learning_rate,
        betas=train.betas,
        eps=train.eps,
        fused=True,
    )


def _shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    return tuple(parameter.__dict__.get("ds_shape", parameter.shape))
