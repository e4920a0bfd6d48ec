"""What the driver asks of each role. Ray actors answer in production, scripted fakes in unit tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ray_rl.metrics.metric import Metric
from ray_rl.types import RolloutGroup, TrainBatch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Position(Protocol):
    """Where something was at one moment; it does not change afterwards."""

    def write(self, folder: Path) -> None:
        """Writes it into the folder of a checkpoint, in files of its own. Any thread may call it."""


class Resumable(Protocol):
    """A part of a run that has a position, and resumes from it: prompts, rollouts, the KL coefficient."""

    def position(self) -> Position:
        """Returns where it is now."""

    def resume(self, folder: Path) -> None:
        """Continues from the position in the folder of a checkpoint; before the first step."""


class Rollouts(Resumable, Protocol):
    """Prompts in, scored groups out."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """The block in which rollouts may be in flight; those left at its end are dropped."""

    async def take(self, *, step: int, progress: Callable[[str], None]) -> tuple[Sequence[RolloutGroup], list[Metric]]:
        """The groups of a batch, in the order of their prompts. May be cancelled: no group is lost."""


class Saved(Protocol):
    """A model under training, as checkpoints see it."""

    async def save(self, folder: Path) -> None:
        """Returns when the state is copied; it is then written to files in `folder`, beside training."""

    async def is_saved(self) -> bool:
        """Whether they are written."""

    async def load(self, folder: Path) -> None:
        """Goes on where another stood."""


class Scorer(Protocol):
    """A model that gives log-probabilities."""

    async def logprobs(self, batch: TrainBatch) -> NDArray[np.float32]:
        """float32 [R, T] of the loss tokens; 0 elsewhere."""


class Actor(Scorer, Saved, Protocol):
    """The policy under training."""

    async def update(self, batch: TrainBatch) -> list[Metric]:
        """Trains on a batch with advantages."""

    async def export(self, folder: Path, *, step: int) -> None:
        """Writes the policy in Hugging Face format; the folder names the step."""


class Critic(Saved, Protocol):
    """The value model under training."""

    async def values(self, batch: TrainBatch) -> NDArray[np.float32]:
        """float32 [R, T] of the states before the loss tokens; 0 elsewhere."""

    async def update(self, batch: TrainBatch) -> list[Metric]:
        """Trains on a batch with old values and returns."""


class Weights(Protocol):
    """The way from the actor to the engines."""

    async def publish(self, version: int) -> list[Metric]:
        """Returns when every engine serves `version`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """All roles of a run; None where nothing needs it."""

    rollouts: Rollouts
    actor: Actor
    weights: Weights
    critic: Critic | None = None
    reference: Scorer | None = None
