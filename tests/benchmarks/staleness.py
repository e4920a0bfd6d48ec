"""Reward of the demo, trained synchronously and two steps stale with publishes in flight, over some seeds.

Not part of `make bench`: it trains the demo six times, which takes most of an hour.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

CONFIG = Path(__file__).parents[2] / "configs" / "grpo_addition_smollm2-135m_cpu.yaml"
MODES = {"synchronous": ("rollout.max_staleness=0",), "max_staleness 2": ("rollout.max_staleness=2",)}
SEEDS = (0, 1, 2)
LAST = 7
"""Steps at the end whose mean reward is compared: a quarter of the run."""
LIMIT_S = 3600


def trained(
    config: Path, folder: Path, name: str, *, seed: int, overrides: tuple[str, ...] = ()
) -> list[dict[str, float]]:
    """The records of a run that keeps no weights."""
    command = [str(Path(sys.executable).with_name("ray-rl")), "train", str(config), f"run.dir={folder}"]
    command += [f"run.name={name}", f"run.seed={seed}", "checkpoint={every_steps: null, export: false}", *overrides]
    subprocess.run(command, check=True, timeout=LIMIT_S, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    console = Console(width=140)
    table = Table(title=f"Reward of the demo, mean of the last {LAST} steps, by seed")
    for column in ("mode", *(f"seed {seed}" for seed in SEEDS), "mean +- sd", "first step", "staleness", "s/step"):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as scratch:
        rows: dict[str, list[list[dict[str, float]]]] = {mode: [] for mode in MODES}
        for seed in SEEDS:
            for i, (mode, overrides) in enumerate(MODES.items()):
                records = trained(CONFIG, Path(scratch), f"{i}-{seed}", seed=seed, overrides=overrides)
                rows[mode].append(records)
                console.print(f"{mode}, seed {seed}:", " ".join(f"{r['reward/mean']:.2f}" for r in records))
    for mode, runs in rows.items():
        ends = [statistics.mean(r["reward/mean"] for r in records[-LAST:]) for records in runs]
        flat = [record for records in runs for record in records]
        table.add_row(
            mode,
            *(f"{end:.3f}" for end in ends),
            f"{statistics.mean(ends):.3f} +- {statistics.stdev(ends):.3f}",
            f"{statistics.mean(records[0]['reward/mean'] for records in runs):.3f}",
            f"at most {max(r['rollout/staleness_max'] for r in flat):.0f}",
            f"{statistics.median(r['time/step_s'] for r in flat):.1f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
