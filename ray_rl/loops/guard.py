"""Handles steps with numbers that are not finite.

Such a step is not applied. `train.on_nonfinite` says whether the run skips it, or saves its samples and ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ray_rl.checkpoint.store import read_json, write_json
from ray_rl.config.train import TrainConfig
from ray_rl.errors import CheckpointError, RewardError, TrainingError
from ray_rl.metrics.metric import SKIPPED, Metric, Total
from ray_rl.metrics.run import Run
from ray_rl.metrics.sinks import Records

NONFINITE = (TrainingError, RewardError)
"""The errors about numbers that are not finite, which the guard handles."""
FILE = "guard.json"
"""In the folder of a checkpoint."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """How many of the last steps were skipped at one moment."""

    in_a_row: int

    def write(self, folder: Path) -> None:
        """Writes `guard.json` into a checkpoint."""
        write_json(folder / FILE, asdict(self))


class Guard:
    """Skips steps, counts those in a row, and saves the samples of a step that ends the run."""

    def __init__(self, settings: TrainConfig, run: Run) -> None:
        self._may_skip = settings.on_nonfinite == "skip"
        self._most = settings.max_skips
        self._run = run
        self._reason: str | None = None
        """Why the current step is skipped."""
        self._in_a_row = 0

    @property
    def may_skip(self) -> bool:
        """Whether numbers that are not finite may be left out, instead of ending the run."""
        return self._may_skip

    @contextmanager
    def saving(self, records: Records) -> Iterator[None]:
        """Saves the samples if numbers in the block are not finite; the error then names their file."""
        try:
            yield
        except NONFINITE as error:
            self._save(error, records)
            raise

    def skip(self, error: TrainingError | RewardError, records: Records) -> None:
        """Skips the current step, or raises `error` where steps may not be skipped.

        Raises:
            TrainingError: the step may not be skipped; the samples are saved.
            RewardError: the same.
        """
        if not self._may_skip:
            self._save(error, records)
            raise error
        self._reason = str(error)

    def counted(self, trained: Sequence[Metric], records: Records) -> list[Metric]:
        """Ends the step for the guard, and returns its metrics; none where steps may not be skipped.

        Args:
            trained: the metrics of the update.
            records: the samples of the step.

        Raises:
            TrainingError: more steps in a row were skipped than `train.max_skips`; the samples are saved.
        """
        roles = [metric.name.removesuffix(f"/{SKIPPED}") for metric in trained if metric.name.endswith(SKIPPED)]
        if roles:
            self._reason = (
                f"the loss or a gradient of the {' and the '.join(roles)} was not finite, see the logs of the role"
            )
        reason, self._reason = self._reason, None
        self._in_a_row = 0 if reason is None else self._in_a_row + 1
        if self._in_a_row > self._most:
            error = TrainingError(
                f"{self._in_a_row} steps in a row had numbers that are not finite (train.max_skips={self._most}); "
                f"the last one: {reason}"
            )
            self._save(error, records)
            raise error
        if reason is not None:
            self._run.note(f"step {self._run.step + 1} is skipped ({self._in_a_row} in a row): {reason}")
        return [Total("guard/skipped_steps", int(reason is not None))] if self._may_skip else []

    def position(self) -> Skipped:
        """Returns how many of the last steps were skipped."""
        return Skipped(self._in_a_row)

    def resume(self, folder: Path) -> None:
        """Continues to count from a checkpoint; from 0 if the checkpoint is of version 0.2.0 or older.

        Raises:
            CheckpointError: the file of the guard does not hold a count.
        """
        file = folder / FILE
        if not file.exists():
            return
        try:
            self._in_a_row = int(read_json(file)["in_a_row"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{file}: no number of skipped steps ({error!r}); resume from another checkpoint"
            ) from error

    def _save(self, error: BaseException, records: Records) -> None:
        error.args = (
            f"{error}. The step's samples are in {self._run.records.add_failed(self._run.step + 1, records)}",
        )
