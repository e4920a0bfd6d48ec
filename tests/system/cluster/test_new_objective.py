"""A new objective is a class: supervised fine-tuning, written here, goes through the trainer without a change to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_rl.batching.encoding import Encoded
from ray_rl.config.train import Trained
from ray_rl.metrics.metric import Mean, Metric, reduce_metrics
from ray_rl.training.member import Member
from ray_rl.training.networks import PolicyNetwork
from ray_rl.training.settings import TrainSettings
from ray_rl.types import TrainBatch
from tests.system.cluster.ranks import Ranks
from tests.unit.models.tiny import one_by_one, ragged_batch, tiny_llama

BATCH = ragged_batch((5, 2, 7, 4), (3, 6, 1, 4, 4, 2, 8, 5, 7, 1, 2, 3))
UPDATES = 6

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True, kw_only=True)
class SupervisedObjective:
    """Minimises the mean negative log-likelihood of the loss tokens."""

    name: ClassVar[str] = "supervised"
    whole_groups: ClassVar[bool] = False
    network: PolicyNetwork

    def trained(self, batch: TrainBatch, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[Metric]]:
        return rows, []

    def count(self, batch: TrainBatch, rows: NDArray[np.int64]) -> float:
        return float(batch.loss_mask_RT[rows].sum())

    def loss(self, model: nn.Module, encoded: Encoded, batch: TrainBatch) -> tuple[Tensor, list[Metric]]:
        loss = -self.network.score(model, encoded.inputs).sum()
        return loss, [Mean("supervised/loss", float(loss.detach()), len(encoded.row_N))]


def fine_tuned(member: Member, folder: str, zero_stage: int) -> list[list[Metric]]:
    """The metrics of each update."""
    from ray_rl.training.trainer import Trainer

    network = PolicyNetwork(
        folder=folder,
        key="model.path",
        dtype="float32",
        trust_remote_code=False,
        chunk_tokens=2,
        temperature=1.0,
    )
    settings = TrainSettings(
        role=Trained(zero_stage=zero_stage, learning_rate=2e-2, micro_batch_tokens=16),
        dtype="float32",
        accelerator="cpu",
        seed=0,
        run_steps=UPDATES,
        update_epochs=1,
        minibatches=1,
        on_nonfinite="stop",
    )
    trainer = Trainer(SupervisedObjective(network=network), settings, member)
    return [trainer.update(BATCH) for _ in range(UPDATES)]


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_an_objective_that_the_package_does_not_know_trains_a_model(
    ranks: Ranks, tmp_path: Path, zero_stage: int
) -> None:
    tiny_llama().save_pretrained(tmp_path)
    by_rank = ranks.run(fine_tuned, str(tmp_path), zero_stage)
    updates = [
        reduce_metrics(metric for found in by_update for metric in found) for by_update in zip(*by_rank, strict=True)
    ]
    losses = [metrics["supervised/loss"] for metrics in updates]
    with torch.no_grad():
        logprobs_RT = one_by_one(tiny_llama(), BATCH).numpy()
    untrained = -float(logprobs_RT[BATCH.loss_mask_RT].mean())
    assert losses[0] == pytest.approx(untrained, rel=1e-5)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * losses[0]
    assert all(metrics["supervised/grad_norm"] > 0 for metrics in updates)
    assert set(updates[0]) == {"supervised/loss", "supervised/grad_norm", "supervised/learning_rate"}
