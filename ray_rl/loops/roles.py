"""The Protocols of the roles. Ray actors implement them in production, scripted fakes in unit tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ray_rl.loops.scoring import Scores
from ray_rl.metrics.metric import Metric
from ray_rl.types import OfflineBatch, RolloutGroup, TrainBatch
from ray_rl.weight_sync.audit import Publisher, Scorer
from ray_rl.weight_sync.phases import Phases

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ray_rl.config.algorithm import Algorithm
    from ray_rl.training.crediting import Credited


class Position(Protocol):
    """A snapshot of a position in the run; it does not change afterwards."""

    def write(self, folder: Path) -> None:
        """Writes the position into the folder of a checkpoint, in files of its own. Any thread may call it."""


class Resumable(Protocol):
    """A part of a run that has a position, and resumes from it: prompts, rollouts, the KL coefficient."""

    def position(self) -> Position:
        """Returns the current position."""

    def resume(self, folder: Path) -> None:
        """Continues from the position in the folder of a checkpoint; called before the first step."""


class Rollouts(Resumable, Protocol):
    """Turns prompts into scored groups."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Lets rollouts be in flight within the block, and drops the rest at its end."""

    async def take(self, *, step: int, progress: Callable[[str], None]) -> tuple[Sequence[RolloutGroup], list[Metric]]:
        """Returns the groups of a batch, in the order of their prompts. A cancelled call loses no group."""


class Saved(Protocol):
    """A model under training, as checkpoints see it."""

    async def save(self, folder: Path) -> None:
        """Returns when the state is copied. It is then written to files in `folder` while training continues."""

    async def is_saved(self) -> bool:
        """Returns whether the files are written."""

    async def load(self, folder: Path) -> None:
        """Restores the state in the files of `folder`."""


class Exported(Saved, Protocol):
    """A model under training that the run writes at its end."""

    async def export(self, folder: Path, *, step: int) -> None:
        """Writes the model in Hugging Face format, with the step."""


class Actor(Scorer, Exported, Protocol):
    """The policy under training."""

    async def credit(
        self, settings: Algorithm, batch: TrainBatch, *, kl_coefficient: float, max_tokens: int
    ) -> Credited:
        """Returns the advantages of a batch (see `training.crediting.credited`)."""

    async def update(self, batch: TrainBatch) -> list[Metric]:
        """Trains on a batch with advantages."""


class Critic(Saved, Protocol):
    """The value model under training."""

    async def values(self, batch: TrainBatch) -> NDArray[np.float32]:
        """Returns the values of the states before the loss tokens, float32 [R, T]; 0 elsewhere."""

    async def update(self, batch: TrainBatch) -> list[Metric]:
        """Trains on a batch with old values and returns."""


class Learner(Scorer, Exported, Protocol):
    """A model that learns from examples."""

    async def update(self, batch: OfflineBatch) -> list[Metric]:
        """Trains on a batch."""

    async def evaluate(self, batch: OfflineBatch) -> list[Metric]:
        """Returns the metrics of the loss on a batch. Trains nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """All roles of a run; None for a role that the run does not have."""

    rollouts: Rollouts
    actor: Actor
    weights: Publisher
    phases: Phases
    critic: Critic | None = None
    scores: Mapping[str, Scores]
    """Log-probabilities and values of a batch before it is trained on, by the field of `TrainBatch` that they fill."""
