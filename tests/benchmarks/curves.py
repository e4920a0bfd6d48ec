"""The curve of an example, as its README shows it: rewards over some seeds.

`python -m tests.benchmarks.curves examples/custom_reward` trains the example once for each seed. Further words
are metrics, or overrides with a `=`. Not part of `make bench`: it takes two to five minutes a seed on two cores.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.staleness import SEEDS, trained

POINTS = 4
"""Columns of the table; each is the mean over an equal part of the steps."""


def table(runs: Sequence[Sequence[dict[str, float]]], key: str) -> str:
    """Markdown with the mean of a metric over the seeds, and with the lowest and the highest seed, by steps.

    Args:
        runs: the records of one run for each seed, all of the same length.
    """
    length = len(runs[0]) // POINTS
    parts = [range(start, start + length) for start in range(0, length * POINTS, length)]
    seeds = [[statistics.mean(run[step][key] for step in part) for run in runs] for part in parts]
    rows = [
        ["steps", *(f"{part[0] + 1}-{part[-1] + 1}" for part in parts)],
        ["---"] * (POINTS + 1),
        [f"`{key}`", *(f"{statistics.mean(values):.2f}" for values in seeds)],
        ["lowest to highest seed", *(f"{min(values):.2f} to {max(values):.2f}" for values in seeds)],
    ]
    return "\n".join(f"| {' | '.join(row)} |".replace(" --- ", "---") for row in rows)


def main(example: Path, keys: Sequence[str], overrides: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        runs = [
            trained(example / "run.yaml", Path(scratch), f"seed-{seed}", seed=seed, overrides=overrides)
            for seed in SEEDS
        ]
    for key in keys:
        print(table(runs, key))


if __name__ == "__main__":
    changes = tuple(word for word in sys.argv[2:] if "=" in word)
    main(Path(sys.argv[1]), [word for word in sys.argv[2:] if word not in changes] or ["reward/mean"], changes)
