"""Evaluates held-out examples: each metric is of all of them at once, so that none depends on the size of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ray_rl.errors import TrainingError
from ray_rl.loops.finite import require_finite_baseline
from ray_rl.loops.session import OfflineSession
from ray_rl.metrics.metric import Each, Metric, Total
from ray_rl.metrics.phases import EVALUATE
from ray_rl.types import Example, OfflineBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEFT_OUT = "eval/left_out"
"""Name of the metric with the number of examples for which the reference has no finite log-probability."""


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """An example with the reference's sum for each of its answers; None without a reference."""

    example: Example
    reference: NDArray[np.float64] | None


async def evaluate(s: OfflineSession) -> list[Metric]:
    """Returns the metrics of the loss on the held-out examples, and remembers whether this step is the best one.

    Raises:
        TrainingError: the reference's log-probability of an example is not finite, and steps may not be skipped.
    """
    found: list[Metric] = []
    with s.run.phase(EVALUATE):
        held_out, left_out = _without_nonfinite(s, await _with_reference(s))
        batches = s.evaluation.batches(held_out)
        baseline = None
        if s.baseline is not None:
            examples = [[each.example for each in batch] for batch in batches]
            baseline = await s.baseline.of(*examples, may_skip=s.guard.may_skip)
            if not s.guard.may_skip:
                require_finite_baseline(baseline)
        tokens_per_pair = float(np.mean([each.example.answers[0].loss_mask.sum() for each in held_out]))
        done = 0
        for batch in batches:
            s.run.note(f"{done} of {len(held_out)} held-out examples")
            packed = replace(_packed(s, batch), baseline=baseline, tokens_per_pair=tokens_per_pair)
            found += await s.actor.evaluate(packed)
            if s.calibration is not None:
                await s.calibration.add(packed)
            done += len(batch)
    evaluated = as_evaluation(found) + left_out
    if s.calibration is not None:
        measured = s.calibration.take()
        names = {metric.name for metric in measured}
        evaluated = [metric for metric in evaluated if metric.name not in names] + measured
    s.evaluation.observe(evaluated, step=s.run.step + 1)
    return evaluated


def as_evaluation(metrics: Sequence[Metric]) -> list[Metric]:
    """Returns the metrics of a loss under names of an evaluation: "dpo/accuracy" becomes "eval/accuracy"."""
    return [
        replace(metric, name=f"eval/{metric.name.partition('/')[2]}")
        for metric in metrics
        if not (metric.name.startswith("train/") or isinstance(metric, Each))
    ]


async def _with_reference(s: OfflineSession) -> list[_HeldOut]:
    """Returns the held-out examples with the log-probabilities of the reference."""
    if s.reference is None:
        return [_HeldOut(example, None) for example in s.evaluation.held_out]
    found: list[_HeldOut] = []
    for batch in s.evaluation.batches(s.evaluation.held_out):
        s.run.note(f"the reference of {len(found)} of {len(s.evaluation.held_out)} held-out examples")
        sums_R = await s.reference.sums(batch, s.pack(batch))
        found += map(_HeldOut, batch, sums_R.reshape(len(batch), -1))
    return found


def _without_nonfinite(s: OfflineSession, held_out: Sequence[_HeldOut]) -> tuple[Sequence[_HeldOut], list[Metric]]:
    """Returns the examples whose log-probabilities are finite, and the number of others if steps may be skipped.

    Raises:
        TrainingError: there are others, and steps may not be skipped; or there are only others.
    """
    finite = [each for each in held_out if each.reference is None or np.isfinite(each.reference).all()]
    others = [each for each in held_out if each.reference is not None and not np.isfinite(each.reference).all()]
    if others:
        error = TrainingError(
            f"evaluation after step {s.run.step + 1}: the reference's log-probability of held-out example "
            f"{others[0].example.id} is not finite, nor that of {len(others) - 1} others of {len(held_out)}. The "
            "weights of the reference are not finite, or model.dtype=float32 helps"
        )
        if not finite or not s.guard.may_skip:
            raise error
        s.run.tell(f"{error}. The evaluation leaves them out (train.on_nonfinite=skip)")
    return finite, [Total(LEFT_OUT, len(others))] if s.guard.may_skip and s.reference is not None else []


def _packed(s: OfflineSession, held_out: Sequence[_HeldOut]) -> OfflineBatch:
    batch = s.pack([each.example for each in held_out])
    sums = [each.reference for each in held_out if each.reference is not None]
    return replace(batch, reference_R=np.concatenate(sums)) if sums else batch
