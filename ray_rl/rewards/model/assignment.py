"""Assigns models and rollouts to the reward workers, and joins their scores in one array. Axis M is models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Assignment:
    """The part of one worker."""

    models: tuple[int, ...]
    """Indexes into the reward's `paths`, ascending."""
    share: int
    """Number of the worker's share of the rollouts, 0 <= share < shares."""
    shares: int
    """Number of shares into which the rollouts are split."""

    @property
    def rows(self) -> slice:
        """The rollouts of the worker: every `shares`-th, so that long groups are spread."""
        return slice(self.share, None, self.shares)


def assignment(models: int, workers: int, worker: int) -> Assignment:
    """Returns the part of a worker.

    With at most as many workers as models, worker w holds the models m with m % workers == w, and scores all rollouts.
    With a multiple of the models, worker w holds model w % models, and scores every (workers / models)-th rollout.

    Args:
        models: M, at least 1.
        workers: the number of workers: at most M, or a multiple of M (a rule of the configuration).
        worker: the index of the worker, 0 <= worker < workers.

    Raises:
        ValueError: the models cannot be held equally often, or there is no such worker.
    """
    if not 0 <= worker < workers:
        raise ValueError(f"worker={worker}: there are {workers} reward workers, counted from 0")
    if workers <= models:
        return Assignment(tuple(range(worker, models, workers)), share=0, shares=1)
    if workers % models:
        raise ValueError(f"{workers} reward workers cannot hold {models} models equally often; take a multiple of them")
    return Assignment((worker % models,), share=worker // models, shares=workers // models)


def assembled(parts: Sequence[NDArray[np.float32]], *, models: int, rows: int) -> NDArray[np.float32]:
    """Returns the scores of all models for all rollouts, float32 [M, R].

    Args:
        parts: the scores of each worker in order, float32 [models that it holds, rollouts of its share].
        models: M.
        rows: R.

    Raises:
        ValueError: the parts do not fit the assignment of their workers, or there is none (see `assignment`).
    """
    scores_MR = np.full((models, rows), np.nan, np.float32)
    for worker, part in enumerate(parts):
        given = assignment(models, len(parts), worker)
        place = scores_MR[list(given.models), given.rows]
        if part.shape != place.shape:
            raise ValueError(
                f"reward worker {worker} returned scores of shape {part.shape}, and its models {given.models} and "
                f"share {given.share} of {given.shares} make {place.shape}"
            )
        scores_MR[list(given.models), given.rows] = part
    return scores_MR
