"""The interface between the trainer and an objective."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_rl.batching.encoding import Encoded
from ray_rl.metrics.metric import Metric
from ray_rl.training.networks import Network
from ray_rl.types import Batch


class Objective(Protocol[Batch]):
    """A model and the loss that it is trained on. Holds settings and no weights, so that it can be sent to workers.

    The gradient of an optimizer step is that of (sum of `loss` over all micro-batches of all ranks) / `count`.
    """

    @property
    def name(self) -> str:
        """The name in messages and metrics: "policy" gives "policy/grad_norm"."""

    @property
    def whole_groups(self) -> bool:
        """Whether `loss` compares the rows of a prompt: then they are in one micro-batch."""

    @property
    def network(self) -> Network:
        """The model."""

    def trained(self, batch: Batch, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[Metric]]:
        """Returns the rows that have a gradient, and metrics about them. The other rows still belong to `count`.

        Args:
            batch: the whole batch.
            rows: the rows of the optimizer step.
        """

    def count(self, batch: Batch, rows: NDArray[np.int64]) -> float:
        """Returns what the sum of the losses of an optimizer step is divided by; the same on every rank."""

    def loss(self, model: nn.Module, encoded: Encoded, batch: Batch) -> tuple[Tensor, list[Metric]]:
        """Returns the sum of the losses of a micro-batch, never a mean, and its metrics.

        Args:
            model: the network, inside DeepSpeed's engine. It must be called exactly once.
            encoded: the micro-batch, on the device of the model. It may have no loss tokens.
            batch: the whole batch, whose arrays `encoded.pick` reads.
        """
