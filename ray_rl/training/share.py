"""One rank's share of a batch, and the numbers that its model computes for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_rl.batching.encoding import Encoded, Split
from ray_rl.config.train import Trained
from ray_rl.models.loading import attention_name, resolved_packing
from ray_rl.models.policy import ModelInputs
from ray_rl.training.member import Member
from ray_rl.types import TokenBatch

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Scores:
    """A number for each loss token that one rank computed: log-probabilities, or values."""

    rows: NDArray[np.int64]
    """[M] rows of the batch, those with loss tokens."""
    values_MT: NDArray[np.float32]
    """0 outside the loss mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How one rank reads its share of every batch."""

    rank: int
    split: Split
    device: str
    attention: str
    """The attention that the packing needs, as transformers names it."""

    @classmethod
    def of(
        cls, model_config: PretrainedConfig, layout: Trained, member: Member, *, accelerator: str, device: str
    ) -> Share:
        """Returns the share of a member; `layout` says how micro-batches are laid out, `accelerator` is cpu or gpu.

        Raises:
            ConfigError: the attention of the model cannot express the layout.
        """
        packing = resolved_packing(layout, model_config, accelerator=accelerator)
        return cls(
            rank=member.rank,
            split=Split(workers=member.world, micro_batch_tokens=layout.micro_batch_tokens, packing=packing),
            device=device,
            attention=attention_name(layout, packing=packing, accelerator=accelerator),
        )

    def encode(self, batch: TokenBatch, rows: NDArray[np.int64], *, whole_groups: bool = False) -> list[Encoded]:
        """Returns this rank's micro-batches of some rows of the batch: the same number on each rank."""
        return self.split.encode(batch, rows, rank=self.rank, whole_groups=whole_groups)

    @torch.no_grad()
    def scores(self, batch: TokenBatch, score: Callable[[ModelInputs], Tensor]) -> Scores:
        """Returns what `score` computes for the loss tokens of this rank's share; a collective under ZeRO-3."""
        share = self.encode(batch, np.arange(batch.rows))
        values_RT = np.zeros(batch.tokens_RT.shape, np.float32)
        for encoded in share:
            values_N = score(encoded.inputs.to(self.device))
            values_RT[encoded.row_N, encoded.time_N] = values_N.float().cpu().numpy()
        rows = np.unique(np.concatenate([encoded.row_N for encoded in share]))
        return Scores(rows, values_RT[rows])
