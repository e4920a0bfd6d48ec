"""The frozen reference: a whole model on each worker, or one that the workers share under ZeRO-3."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ray_rl.batching.encoding import Split
from ray_rl.config import RunConfig
from ray_rl.config.train import ReferenceConfig
from ray_rl.models.loading import (
    attention_name,
    check_checkpoint,
    load_causal_lm,
    load_model_config,
    resolved_packing,
)
from ray_rl.models.policy import PolicyModel
from ray_rl.training.deepspeed_config import frozen_config
from ray_rl.training.logit_check import require_own_logprobs
from ray_rl.training.process_group import Member, join_process_group
from ray_rl.training.trainer import Scores, score
from ray_rl.types import TrainBatch


class Reference:
    """One worker. All are called with the same batch; each computes its share."""

    def __init__(self, config: RunConfig, folder: str, member: Member, *, threads: int = 1) -> None:
        """Loads the model; a collective under ZeRO-3.

        Args:
            config: of the run, with `model.dtype` resolved and a reference.
            folder: of the model.
            member: this worker among `reference.workers`.
            threads: of this process on CPU.
        """
        assert config.reference is not None, "the run has no reference"
        role = config.reference
        self._rank = member.rank
        if role.zero_stage == 3:
            self._device = join_process_group(
                member, accelerator=config.cluster.accelerator, threads=threads, timeout_s=role.timeout_s
            )
        else:
            on_cpu = config.cluster.accelerator == "cpu"
            self._device = "cpu" if on_cpu else "cuda:0"
            if on_cpu:
                torch.set_num_threads(threads)
        trust = config.model.trust_remote_code
        model_config = load_model_config(folder, trust_remote_code=trust, key="reference.path")
        check_checkpoint(folder, trust_remote_code=trust, key="reference.path")
        packing = resolved_packing(config, config.train, model_config)
        self._split = Split(
            workers=member.world,
            micro_batch_tokens=config.train.micro_batch_tokens,
            packing=packing,
        )
        attention = attention_name(config, config.train, packing=packing)
        self._policy = _load(config, role, folder, attention=attention, device=self._device)
        require_own_logprobs(
            self._policy,
            self._split,
            rank=self._rank,
            model_config=model_config,
            dtype=config.model.dtype,
            device=self._device,
            name=f"reference.path={folder}",
        )

    @torch.no_grad()
    def logprobs(self, batch: TrainBatch) -> Scores:
        """Log-probabilities of this worker's share of the batch; a collective under ZeRO-3."""
        share = self._split.encode(batch, np.arange(batch.rows), rank=self._rank)
        return score(self._policy, batch, share, device=self._device)


def _load(config: RunConfig, role: ReferenceConfig, folder: str, *, attention: str, device: str) -> Any:
    """A `PolicyModel`, or DeepSpeed's engine around one; what ZeRO-3 shards is sharded as it is read."""
    settings = frozen_config(config, role) if role.zero_stage == 3 else None
    sharded_loading = None
    if settings is not None:
        from transformers.integrations import HfDeepSpeedConfig

        sharded_loading = HfDeepSpeedConfig(settings)
    causal_lm = load_causal_lm(
        folder,
        dtype=config.model.dtype,
        attention=attention,
        trust_remote_code=config.model.trust_remote_code,
        key="reference.path",
    )
    del sharded_loading
    policy = PolicyModel(causal_lm, chunk_tokens=config.logit_chunk_tokens, temperature=config.rollout.temperature)
    policy.requires_grad_(False).eval()
    if settings is None:
        return policy.to(device)
    import deepspeed

    engine, *_ = deepspeed.initialize(model=policy, config=settings, dist_init_required=False)
    return engine
