"""Handles steps with numbers that are not finite.

Such a step is not applied. `train.on_nonfinite` says whether the run skips it, or saves its samples and ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ray_rl.checkpoint.store import read_json, write_json
from ray_rl.config.train import TrainConfig
from ray_rl.errors import CheckpointError, RewardError, TrainingError
from ray_rl.metrics.metric import SKIPPED, Metric, Total
from ray_rl.metrics.run import Run
from ray_rl.metrics.sinks import Records
from ray_rl.types import RolloutGroup, TrainBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
        error.args = (f"{error}. The step's samples are in {self._run.save_failed(records)}",)


def require_finite(batch: TrainBatch, groups: Sequence[RolloutGroup], metrics: Sequence[Metric]) -> None:
    """Refuses a batch with numbers that are not finite, from engines, models or rewards.

    Args:
        batch: the batch before its advantages are computed.
        groups: the rollouts of the batch.
        metrics: the metrics of the rollouts.

    Raises:
        TrainingError: a log-probability or a value of a loss token is nan or inf; the message names the first.
        RewardError: a reward is too large for float32, or every reward failed.
    """
    for who, values_RT in (
        ("the engine's log-probability", batch.rollout_logprobs_RT),
        ("the trainer's log-probability", batch.old_logprobs_RT),
        ("the reference's log-probability", batch.reference_logprobs_RT),
        ("the critic's value", batch.old_values_RT),
    ):
        if values_RT is not None:
            _require_finite_tokens(who, values_RT, batch, groups)
    for row in np.flatnonzero(np.isinf(batch.rewards_R)):
        reward = groups[row // batch.group_size].rollouts[row % batch.group_size].reward
        raise RewardError(f"{_which(row, batch, groups)}: its reward {reward} is not finite in float32; scale it down")
    failed = sum(m.value for m in metrics if isinstance(m, Total) and m.name.endswith("_errors"))
    if failed and np.isnan(batch.rewards_R).all():
        raise RewardError(
            f"no completion of the step has a reward: functions with on_error: skip failed {failed:g} times on "
            f"{batch.rows} completions"
        )


def _require_finite_tokens(
    who: str, values_RT: NDArray[np.float32], batch: TrainBatch, groups: Sequence[RolloutGroup]
) -> None:
    bad_RT = batch.loss_mask_RT & ~np.isfinite(values_RT)
    if not bad_RT.any():
        return
    row, time = np.argwhere(bad_RT)[0]
    version = groups[row // batch.group_size].rollouts[row % batch.group_size].versions[time]
    share = f"{int(bad_RT.sum())} of {int(batch.loss_mask_RT.sum())}"
    raise TrainingError(
        f"{_which(row, batch, groups)}: {who} of token {time}, sampled by version {version}, is "
        f"{values_RT[row, time]}; of the step's tokens {share} are not finite. The step was not applied. In the first "
        "step, the weights of the model are not finite; later, a lower learning_rate or model.dtype=float32 may help"
    )


def _which(row: int, batch: TrainBatch, groups: Sequence[RolloutGroup]) -> str:
    prompt, sample = divmod(int(row), batch.group_size)
    return f"prompt {groups[prompt].prompt.id}, completion {sample} of {batch.group_size}"


def without_loss(batch: TrainBatch) -> TrainBatch:
    """Returns the batch without loss tokens: an update with it only advances the schedules."""
    nothing_RT = np.zeros(batch.tokens_RT.shape, np.float32)
    return replace(
        batch,
        loss_mask_RT=np.zeros(batch.tokens_RT.shape, np.bool_),
        advantages_RT=nothing_RT,
        old_values_RT=nothing_RT,
        returns_RT=nothing_RT,
    )
