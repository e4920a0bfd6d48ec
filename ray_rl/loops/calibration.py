"""Measures a reward model on held-out pairs beyond its loss: calibration, the influence of length, an interval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ray_rl.algorithms.calibration import calibration_error, length_correlation, reliability, wilson_interval
from ray_rl.loops.reference import row_sums
from ray_rl.metrics.metric import Last, Metric
from ray_rl.types import OfflineBatch
from ray_rl.weight_sync.audit import Scorer

if TYPE_CHECKING:
    from numpy.typing import NDArray


ACCURACY, TIED = "eval/accuracy", "eval/tied"


class Calibration:
    """Collects the scores of one evaluation."""

    def __init__(self, model: Scorer) -> None:
        """Starts without scores; `model` gives one for each answer."""
        self._model = model
        self._margins: list[NDArray[np.float64]] = []
        self._longer: list[NDArray[np.int32]] = []

    async def add(self, batch: OfflineBatch) -> None:
        """Scores the pairs of a batch."""
        scores_R = row_sums(await self._model.logprobs(batch), batch)
        self._margins.append(scores_R[0::2] - scores_R[1::2])
        self._longer.append(batch.lengths_R[0::2] - batch.lengths_R[1::2])

    def take(self) -> list[Metric]:
        """Returns the metrics of all batches since the last call, of the mean score of an ensemble's members.

        If a score is not finite, the error, the accuracy and the share of ties are nan, and there are no others.
        """
        margins_J, longer_J = np.concatenate(self._margins), np.concatenate(self._longer)
        self._margins, self._longer = [], []
        if not np.isfinite(margins_J).all():
            return [Last(name, math.nan) for name in ("eval/calibration_error", ACCURACY, TIED)]
        bins = reliability(margins_J)
        right = int((margins_J > 0).sum())
        low, high = wilson_interval(right, len(margins_J))
        correlation = length_correlation(margins_J, longer_J)
        return [
            Last("eval/calibration_error", calibration_error(bins)),
            *([] if correlation is None else [Last("eval/length_correlation", correlation)]),
            Last(ACCURACY, right / len(margins_J)),
            Last(TIED, float((margins_J == 0).mean())),
            Last("eval/accuracy_low", low),
            Last("eval/accuracy_high", high),
            *(Last(f"eval/accuracy_at_confidence_{each.low:.2f}", each.accuracy) for each in bins),
        ]
