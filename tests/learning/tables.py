"""Tables in Markdown, and the intervals in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ray_rl.algorithms.calibration import wilson_interval

RESAMPLED = 2000


def printed(title: str, *columns: str) -> Iterator[list[Sequence[str]]]:
    """The body of a fixture: tests add rows, which are printed as a table after the last test of the module."""
    rows: list[Sequence[str]] = []
    yield rows
    lines = [columns, ["---"] * len(columns), *rows]
    print(f"\n\n{title}\n", *(f"| {' | '.join(line)} |" for line in lines), sep="\n")


def share(found_J: NDArray[np.bool_]) -> str:
    """A share with its 95% interval of Wilson."""
    low, high = wilson_interval(int(found_J.sum()), len(found_J))
    return f"{found_J.mean():.3f} [{low:.3f}, {high:.3f}]"


def bootstrap(statistic: Callable[[NDArray], float], values_J: NDArray) -> tuple[float, float]:
    """The 95% interval of a statistic over pairs, from resampled pairs (percentiles)."""
    draw = np.random.default_rng(0)
    found = [statistic(draw.choice(values_J, len(values_J))) for _ in range(RESAMPLED)]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def with_bootstrap(statistic: Callable[[NDArray], float], values_J: NDArray) -> str:
    """A statistic with its 95% interval from resampled pairs."""
    low, high = bootstrap(statistic, values_J)
    return f"{statistic(values_J):.3f} [{low:.3f}, {high:.3f}]"
