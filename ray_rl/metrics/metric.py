"""Numbers with their reduction over ranks and over the parts of a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import assert_never

SKIPPED = "skipped_optimizer_steps"
"""Last part of the metric's name with which a role counts the optimizer steps that it skipped."""


@dataclass(frozen=True, slots=True)
class Mean:
    """total / count of all merged values; nothing is logged while the count is 0."""

    name: str
    total: float
    count: float


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of all merged values."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Maximum:
    """The largest value seen."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Last:
    """The value merged last, for values that are equal on every rank: the gradient norm, the learning rate."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class EffectiveFraction:
    """Effective sample size of importance weights as a share of the samples: (sum w)^2 / (count * sum w^2) (Kish)."""

    name: str
    total: float
    """Sum of the weights."""
    squares: float
    """Sum of their squares."""
    count: float


@dataclass(frozen=True, slots=True)
class Each:
    """One value for each example. They are in the records of a step, and no number of them is logged."""

    name: str
    """The name in the records, without a prefix."""
    values: Mapping[str, float]
    """By the id of the example."""


Metric = Mean | Total | Maximum | Last | EffectiveFraction | Each


def values_of_each(metrics: Iterable[Metric]) -> dict[str, dict[str, float]]:
    """Returns the values of each example, first by its id, then by name."""
    found: dict[str, dict[str, float]] = {}
    for metric in metrics:
        if isinstance(metric, Each):
            for id, value in metric.values.items():
                found.setdefault(id, {})[metric.name] = value
    return found


def reduce_metrics(metrics: Iterable[Metric]) -> dict[str, float]:
    """Returns one number per name, in order of first appearance.

    Raises:
        ValueError: one name with two kinds of reduction.
    """
    merged: dict[str, Metric] = {}
    for metric in metrics:
        seen = merged.get(metric.name)
        merged[metric.name] = metric if seen is None else _merge(seen, metric)
    values = {name: _value(metric) for name, metric in merged.items()}
    return {name: value for name, value in values.items() if value is not None}


def _merge(seen: Metric, new: Metric) -> Metric:
    match seen, new:
        case Mean(), Mean():
            return Mean(seen.name, seen.total + new.total, seen.count + new.count)
        case EffectiveFraction(), EffectiveFraction():
            squares = seen.squares + new.squares
            return EffectiveFraction(seen.name, seen.total + new.total, squares, seen.count + new.count)
        case Total(), Total():
            return Total(seen.name, seen.value + new.value)
        case Maximum(), Maximum():
            return seen if math.isnan(seen.value) or seen.value >= new.value else new  # nan on either side is kept
        case Last(), Last():
            return new
        case Each(), Each():
            return seen
        case _:
            raise ValueError(f"metric {seen.name!r} is both {type(seen).__name__} and {type(new).__name__}")


def _value(metric: Metric) -> float | None:
    match metric:
        case Mean():
            return metric.total / metric.count if metric.count else None
        case EffectiveFraction():
            return metric.total**2 / (metric.count * metric.squares) if metric.count and metric.squares else None
        case Total() | Maximum() | Last():
            return metric.value
        case Each():
            return None
        case _:
            assert_never(metric)
