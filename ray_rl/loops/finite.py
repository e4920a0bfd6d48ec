"""Refuses batches with numbers that are not finite. `guard` says what becomes of the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ray_rl.errors import RewardError, TrainingError
from ray_rl.metrics.metric import Metric, Total
from ray_rl.types import OfflineBatch, RolloutGroup, TrainBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray


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


def require_finite_reference(batch: OfflineBatch) -> None:
    """Refuses examples for which the reference's log-probability or KTO's baseline is not finite.

    Raises:
        TrainingError: the message names the first of these examples.
    """
    if batch.reference_R is not None:
        for row in np.flatnonzero(~np.isfinite(batch.reference_R))[:1]:
            raise TrainingError(
                f"example {batch.ids[row // batch.group_size]}: the reference's log-probability of its answer is "
                f"{batch.reference_R[row]}. The weights of the reference are not finite, or model.dtype=float32 helps"
            )
    if batch.baseline is not None:
        require_finite_baseline(batch.baseline)


def require_finite_baseline(baseline: float) -> None:
    """Refuses a baseline of KTO that is not finite.

    Raises:
        TrainingError: the baseline is nan or inf.
    """
    if not np.isfinite(baseline):
        raise TrainingError(
            f"KTO's baseline is {baseline}: a log-probability of a mismatched answer is not finite. A lower "
            "learning_rate or model.dtype=float32 may help"
        )


def without_loss_tokens(batch: OfflineBatch) -> OfflineBatch:
    """Returns the batch without loss tokens: an update with it only advances the schedules."""
    return replace(batch, loss_mask_RT=np.zeros(batch.tokens_RT.shape, np.bool_))
