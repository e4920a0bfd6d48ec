"""What the objectives over whole answers have in common: sums by row, and the metrics of their losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_rl.algorithms.summed import Summed
from ray_rl.batching.encoding import Encoded
from ray_rl.metrics.metric import Each, Mean, Metric, Total
from ray_rl.types import TokenBatch


class EveryRow:
    """An objective that trains on every row of an optimizer step."""

    __slots__ = ()

    def trained(self, batch: TokenBatch, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[Metric]]:
        """Returns all rows."""
        return rows, []


def row_sums(values_N: Tensor, encoded: Encoded) -> tuple[NDArray[np.int64], Tensor]:
    """Returns the rows of a micro-batch in their order in the batch, and float64: the sum of the values of each row.

    In float64, so that the sum of a long answer does not depend on the order of its tokens.

    Args:
        values_N: differentiable, a value for each loss token.
        encoded: the micro-batch.
    """
    rows, index_N = np.unique(encoded.row_N, return_inverse=True)
    sums = values_N.new_zeros(len(rows), dtype=torch.float64)
    return rows, sums.index_add(0, torch.from_numpy(index_N).to(values_N.device), values_N.double())


def metrics_of(*losses: Summed, encoded: Encoded, name: str) -> list[Metric]:
    """Returns the metrics of losses under the name of their objective, and the number of tokens that were processed."""
    found: list[Metric] = [Total("train/tokens", encoded.tokens)]
    for loss in losses:
        found += [Mean(f"{name}/{key}", total, count) for key, (total, count) in loss.means.items()]
    return found


def each_of(values: Mapping[str, Tensor], ids: Sequence[str]) -> list[Metric]:
    """Returns a value for each example of a micro-batch, by name, copied to the host in one transfer.

    Args:
        values: one value for each example, by name.
        ids: the ids of the examples, in the same order.
    """
    if not values or not ids:
        return []
    columns = torch.stack([column.double() for column in values.values()]).tolist()
    return [Each(name, dict(zip(ids, column, strict=True))) for name, column in zip(values, columns, strict=True)]
