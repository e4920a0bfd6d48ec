"""The reward models of one worker: those that its assignment gives it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ray_rl.config import RunConfig
from ray_rl.metrics.metric import Metric
from ray_rl.rewards.model.assignment import assignment
from ray_rl.rewards.model.scorer import ModelScorer
from ray_rl.types import Message


class RewardModels:
    """One worker of the role. All are called with the same conversations; each scores its share with its models."""

    def __init__(self, config: RunConfig, folders: Sequence[str], *, worker: int, threads: int = 1) -> None:
        """Loads the models.

        Args:
            config: of the run, with `model.dtype` resolved and reward models.
            folders: of all models, in the order of the reward's `paths`.
            worker: among its `workers`.
            threads: of this process on CPU.
        """
        judges = config.reward_models
        assert judges is not None, "the run has no reward models"
        # What is scored together changes the last bits, and which groups wait together is a matter of time.
        tokens = 1 if config.run.deterministic else judges.micro_batch_tokens
        on_cpu = config.cluster.accelerator == "cpu"
        if on_cpu:
            torch.set_num_threads(threads)
        self._given = assignment(len(folders), judges.workers, worker)
        self._scorers = [
            ModelScorer.load(
                folders[model],
                micro_batch_tokens=tokens,
                max_tokens=judges.max_tokens,
                dtype=config.model.dtype,
                attention="sdpa",
                trust_remote_code=config.model.trust_remote_code,
                device="cpu" if on_cpu else "cuda:0",
            )
            for model in self._given.models
        ]

    def scores(self, conversations: Sequence[tuple[Message, ...]]) -> tuple[NDArray[np.float32], list[Metric]]:
        """float32 [models of this worker, conversations of its share]."""
        share = conversations[self._given.rows]
        scores = np.stack([scorer.scores(share) for scorer in self._scorers])
        return scores, [metric for scorer in self._scorers for metric in scorer.metrics()]
