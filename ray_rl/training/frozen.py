"""The frozen reference: a whole model on each of its workers, which split the batch among them."""

from __future__ import annotations

import numpy as np
import torch

from ray_rl.config import RunConfig
from ray_rl.models.loading import attention_name, load_causal_lm, load_model_config, shares_prefixes
from ray_rl.models.policy import PolicyModel
from ray_rl.training.encoding import Split
from ray_rl.training.trainer import Scores, score
from ray_rl.types import TrainBatch


class Reference:
    """One replica. All replicas are called with the same batch; each computes its share."""

    def __init__(self, config: RunConfig, folder: str, *, rank: int, threads: int = 1) -> None:
        """Loads the model.

        Args:
            config: of the run, with `model.dtype` resolved.
            folder: of the model.
            rank: of this replica among `reference.workers`.
            threads: of this process on CPU.
        """
        self._rank = rank
        on_cpu = config.cluster.accelerator == "cpu"
        if on_cpu:
            torch.set_num_threads(threads)
        self._device = "cpu" if on_cpu else "cuda:0"
        trust = config.model.trust_remote_code
        shared_prefix = shares_prefixes(config, load_model_config(folder, trust_remote_code=trust))
        self._split = Split(
            workers=config.reference.workers,
            micro_batch_tokens=config.train.micro_batch_tokens,
            logit_chunk_tokens=config.train.logit_chunk_tokens,
            shared_prefix=shared_prefix,
        )
        causal_lm = load_causal_lm(
            folder,
            dtype=config.model.dtype,
            attention=attention_name(config, shared_prefix=shared_prefix),
            trust_remote_code=trust,
        )
        policy = PolicyModel(
            causal_lm, chunk_tokens=config.train.logit_chunk_tokens, temperature=config.rollout.temperature
        )
        self._policy = policy.requires_grad_(False).eval().to(self._device)

    @torch.no_grad()
    def logprobs(self, batch: TrainBatch) -> Scores:
        """Log-probabilities of this replica's share of the batch."""
        share = self._split.encode(batch, np.arange(batch.rows), rank=self._rank)
        return score(self._policy, batch, share, device=self._device)
