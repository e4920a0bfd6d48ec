"""What the driver asks of each role. Ray actors answer in production, scripted fakes in unit tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ray_rl.metrics.metric import Metric
from ray_rl.types import RolloutGroup, TrainBatch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Rollouts(Protocol):
    """Prompts in, scored groups out."""

    async def take(
        self, count: int, *, step: int, progress: Callable[[str], None]
    ) -> tuple[Sequence[RolloutGroup], list[Metric]]:
        """The groups of the next `count` prompts, in the order of the prompts."""


class Scorer(Protocol):
    """A model that gives log-probabilities."""

    async def logprobs(self, batch: TrainBatch) -> NDArray[np.float32]:
        """float32 [R, T] of the loss tokens; 0 elsewhere."""


class Actor(Scorer, Protocol):
    """The policy under training."""

    async def update(self, batch: TrainBatch) -> list[Metric]:
        """Trains on a batch with advantages."""

    async def export(self, folder: Path) -> None:
        """Writes the policy in Hugging Face format."""


class Weights(Protocol):
    """The way from the actor to the engines."""

    async def publish(self, version: int) -> list[Metric]:
        """Returns when every engine serves `version`."""


@dataclass(frozen=True, slots=True)
class Roles:
    """All roles of a run."""

    rollouts: Rollouts
    actor: Actor
    weights: Weights
    reference: Scorer | None
    """None where nothing needs it."""
