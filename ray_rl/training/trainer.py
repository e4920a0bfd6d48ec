"""The policy under training: a plain class over DeepSpeed that runs with or without Ray."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
from ray_rl.training.encoding import Encoded, encode
from ray_rl.training.gather import ParameterStream
from ray_rl.training.micro_batches import MicroBatch, Sizes, plan_micro_batches
from ray_rl.training.process_group import Member, join_process_group
from ray_rl.training.schedule import learning_rate_factor
from ray_rl.types import TrainBatch


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities that one rank computed."""

    rows: NDArray[np.int64]
    """[M] rows of the batch."""
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
        self._rank, self._world = member.rank, member.world
        train = config.train
        self._device = join_process_group(
            member, accelerator=config.cluster.accelerator, threads=threads, timeout_s=train.timeout_s
        )
        torch.manual_seed(config.run.seed)
        trust = config.model.trust_remote_code
        self._shared_prefix = shares_prefixes(config, load_model_config(folder, trust_remote_code=trust))
        self._engine = _initialize(config, folder, shared_prefix=self._shared_prefix)
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
            TrainingError: a loss or gradient is not finite. The step is not applied if a loss was the cause.
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
        shares = self._shares(batch, np.arange(batch.rows))
        return score(self._engine, batch, shares, shared_prefix=self._shared_prefix, device=self._device)

    def _shares(self, batch: TrainBatch, rows: NDArray[np.int64]) -> list[MicroBatch]:
        return plan_micro_batches(
            sizes_of(batch),
            rows.tolist(),
            workers=self._world,
            budget=self._config.train.micro_batch_tokens,
            shared_prefix=self._shared_prefix,
        )[self._rank]

    def _optimizer_step(self, batch: TrainBatch, rows: NDArray[np.int64]) -> list[Metric]:
        """One step on some rows of the batch. Sums over this rank, divided by counts over all of them."""
        assert batch.advantages_RT is not None, "the batch has no advantages"
        algorithm = self._config.algorithm
        loss_tokens_R = batch.loss_mask_RT.sum(1)
        weights_R = token_weights(loss_tokens_R, algorithm.reduction)
        count = reduction_count(loss_tokens_R[rows], algorithm.reduction)
        trained = rows
        if algorithm.kl.coefficient == 0 and algorithm.entropy_coefficient == 0:
            # The others have no gradient. They stay in the count, so leaving them out changes nothing but time.
            trained = rows[informative_rows(batch.advantages_RT[rows])]
        metrics: list[Metric] = [Mean("train/skipped_fraction", len(rows) - len(trained), len(rows))]
        if len(trained) == 0 or count == 0:
            return metrics if self._rank == 0 else []
        self._set_learning_rate()
        plan = self._shares(batch, trained)
        losses = [
            self._accumulate(encode(batch, micro, shared_prefix=self._shared_prefix), batch, weights_R, count, is_last)
            for micro, is_last in _with_last(plan)
        ]
        metrics = metrics if self._rank == 0 else []
        for loss, gap in losses:
            metrics += _loss_metrics(loss) + gap
        metrics.append(Total("train/tokens", sum(sizes_of(batch).tokens(tree) for micro in plan for tree in micro)))
        self._require_finite(sum(float(loss.loss_sum.detach()) for loss, _ in losses))
        self._engine.step()
        self._steps += 1
        return metrics + self._step_metrics()

    def _accumulate(
        self, encoded: Encoded, batch: TrainBatch, weights_R: NDArray[np.float32], count: float, is_last: bool
    ) -> tuple[LossSum, list[Metric]]:
        """Forward and backward pass of one micro-batch."""
        algorithm = self._config.algorithm
        device = self._device
        logprobs_N, entropy_N = self._engine(
            encoded.inputs.to(device), with_entropy=True, entropy_grad=algorithm.entropy_coefficient > 0
        )
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
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages over the ranks; the count is already global, so the average is undone.
        self._engine.backward(loss.loss_sum / count * self._world, scale_wrt_gas=False)
        baseline = logprobs_N.detach().cpu() if old is None else encoded.pick(old)
        gap_N = (baseline - encoded.pick(batch.rollout_logprobs_RT)).abs()
        if len(gap_N) == 0:
            return loss, []
        gap = [
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
                f"optimizer step {self._steps}: the loss of rank {self._rank} is {loss}; the step was not applied. "
                "Look at the step's rollouts; a lower train.learning_rate or clip_grad_norm may help"
            )

    def _step_metrics(self) -> list[Metric]:
        norm = float(self._engine.get_global_grad_norm() or 0.0)
        if not math.isfinite(norm):
            raise TrainingError(
                f"optimizer step {self._steps - 1}: the gradient norm is {norm}; the weights are lost and were not "
                "published. Resume from before, with a lower train.learning_rate"
            )
        rate = self._engine.optimizer.param_groups[0]["lr"]
        return [Last("policy/grad_norm", norm), Last("policy/learning_rate", rate)]

    def _set_learning_rate(self) -> None:
        config = self._config
        total = config.run.steps * config.algorithm.optimizer_steps
        factor = learning_rate_factor(config.train.schedule, step=self._steps, total_steps=total)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = config.train.learning_rate * factor


def score(model: Any, batch: TrainBatch, shares: list[MicroBatch], *, shared_prefix: bool, device: str) -> Scores:
    """Log-probabilities of the loss tokens of some micro-batches under `model`, a `PolicyModel` or an engine of one."""
    logprobs_RT = np.zeros(batch.tokens_RT.shape, np.float32)
    for micro in shares:
        encoded = encode(batch, micro, shared_prefix=shared_prefix)
        logprobs_N, _ = model(encoded.inputs.to(device), with_entropy=False)
        logprobs_RT[encoded.row_N, encoded.time_N] = logprobs_N.cpu().numpy()
    rows = np.array(sorted(row for micro in shares for tree in micro for row in tree.rows), np.int64)
    return Scores(rows, logprobs_RT[rows])


def sizes_of(batch: TrainBatch) -> Sizes:
    """Token counts of a batch."""
    return Sizes([len(prompt) for prompt in batch.prompt_ids], batch.lengths_R.tolist(), batch.group_size)


def _with_last(plan: list[MicroBatch]) -> Iterator[tuple[MicroBatch, bool]]:
    return ((micro, i == len(plan) - 1) for i, micro in enumerate(plan))


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
