"""Adds advantages to a batch, adapts the KL coefficient from step to step, and measures both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ray_rl.algorithms.kl_control import Adaptive, KlControl
from ray_rl.checkpoint.store import read_json, write_json
from ray_rl.config.algorithm import Algorithm, FixedKl
from ray_rl.errors import CheckpointError
from ray_rl.metrics.metric import Last, Metric
from ray_rl.types import TrainBatch

if TYPE_CHECKING:
    from ray_rl.training.crediting import Credited

Credit = Callable[..., Awaitable["Credited"]]
"""The method `loops.roles.Actor.credit`."""

FILE = "kl.json"
"""File in the folder of a checkpoint. Checkpoints of version 0.1 have the same key in `run.json`."""


@dataclass(frozen=True, slots=True)
class KlPosition:
    """The KL coefficient at one moment."""

    kl_coefficient: float

    def write(self, folder: Path) -> None:
        """Writes `kl.json` into a checkpoint."""
        write_json(folder / FILE, asdict(self))


class Crediting:
    """Turns rewards into advantages, and adapts the KL coefficient to the measured divergence."""

    def __init__(self, settings: Algorithm, credit: Credit, *, max_tokens: int) -> None:
        """Starts with the configured KL coefficient.

        Args:
            settings: the section `algorithm`.
            credit: computes advantages, in a worker.
            max_tokens: the limit of a completion, for length penalties.
        """
        self._credit = partial(credit, settings, max_tokens=max_tokens)
        control = settings.kl.control
        adaptive = None if isinstance(control, FixedKl) else Adaptive(control.target, control.horizon)
        self._kl = KlControl(settings.kl.coefficient, adaptive)

    async def __call__(self, batch: TrainBatch) -> tuple[TrainBatch, list[Metric]]:
        """Returns the batch with advantages, and its metrics. It needs rewards and the numbers of all models."""
        credited = await self._credit(batch, kl_coefficient=self._kl.coefficient)
        return credited.added_to(batch), [*credited.metrics, *self._of_kl(batch, credited.kl)]

    def position(self) -> KlPosition:
        """Returns the KL coefficient of the next step."""
        return KlPosition(self._kl.coefficient)

    def resume(self, folder: Path) -> None:
        """Continues with the KL coefficient in a checkpoint.

        Raises:
            CheckpointError: the checkpoint has none.
        """
        file = folder / FILE if (folder / FILE).exists() else folder / "run.json"
        try:
            self._kl.coefficient = float(read_json(file)["kl_coefficient"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file}: no KL coefficient ({error!r}); resume from another checkpoint") from error

    def _of_kl(self, batch: TrainBatch, distance: float | None) -> list[Metric]:
        if batch.reference_logprobs_RT is None:
            return []
        metrics: list[Metric] = [Last("policy/kl_coefficient", self._kl.coefficient)]
        if distance is not None:
            metrics.append(Last("policy/kl_before_update", distance))
            self._kl.observe(distance, samples=batch.rows)
        return metrics


def mean_advantages(batch: TrainBatch) -> list[float]:
    """Returns [R], the mean over the loss tokens of each rollout; 0 for a rollout without any."""
    assert batch.advantages_RT is not None
    totals_R = batch.advantages_RT.sum(1, dtype=float)
    means: list[float] = (totals_R / batch.loss_mask_RT.sum(1).clip(min=1)).tolist()
    return means
