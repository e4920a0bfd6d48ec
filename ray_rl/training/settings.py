"""The settings of a model under training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ray_rl.config.train import Trained


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How a model is trained, whatever its objective."""

    role: Trained
    """Optimizer, ZeRO and micro-batches."""
    dtype: str
    """The type of the weights in the forward pass, as torch names it."""
    accelerator: Literal["cpu", "gpu"]
    seed: int
    run_steps: int
    """Batches of the run, the length of the learning rate's schedule."""
    update_epochs: int
    """Passes over a batch."""
    minibatches: int
    """Optimizer steps a pass."""
    on_nonfinite: Literal["stop", "skip"]
    """What happens at a loss or gradient that is not finite."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.run_steps * self.update_epochs * self.minibatches
