"""Measures rates for `ray-rl plan --rates`: here, in a process with torch, or from the metrics of a run."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ray_rl.errors import UserError

if TYPE_CHECKING:
    from ray_rl.config import RunConfig

PROBE = "ray_rl.preflight.rate_probe"
PROBE_S = 600.0
"""Limit of the measurement, of which importing torch takes most."""


def print_rates(arguments: argparse.Namespace) -> int:
    """Prints the file that `--rates` reads.

    Raises:
        ConfigError: the configuration or the run cannot be calibrated with.
        UserError: the measurement failed.
    """
    from ray_rl.config.loading.load import load_config

    path = Path(arguments.config).expanduser()
    if path.is_dir():
        print(_of_run(path, load_config(path / "config.yaml", arguments.overrides), arguments))
        return 0
    config = load_config(arguments.config, arguments.overrides)
    print(_of_machine(config))
    return 0


def _of_machine(config: RunConfig) -> str:
    from ray_rl.planner.calibration import as_json, rates_of_machine
    from ray_rl.planner.memory import Bounds

    kind = "cuda" if config.cluster.accelerator == "gpu" else "cpu"
    dtype = Bounds(config).dtype
    rates = rates_of_machine(_probe(dtype, kind), kind)
    return as_json(rates, measured_on=kind, dtype=dtype)


def _probe(dtype: str, kind: str) -> Mapping[str, float]:
    """Returns what the probe measured in a process of its own, so that the base install needs no torch."""
    command = [sys.executable, "-m", PROBE, dtype, kind]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"--calibrate: the measurement did not end within {PROBE_S:g} s; end other programs") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(
            f"--calibrate: the measurement in {dtype} on {kind} failed: {reason}; it needs torch"
            + (" and a GPU" if kind == "cuda" else "")
        )
    measured: Mapping[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _of_run(folder: Path, config: RunConfig, arguments: argparse.Namespace) -> str:
    from ray_rl.planner.assess import assess
    from ray_rl.planner.calibration import CPU, as_json, lengths_of, rates_of_run, read_phases
    from ray_rl.planner.gpus import ClusterShape
    from ray_rl.planner.lengths import parse_lengths
    from ray_rl.planner.memory import Bounds
    from ray_rl.planner.rates import Rates, read_rates

    cluster = ClusterShape.of(config, gpu=arguments.gpu)
    start = CPU
    if config.cluster.accelerator == "gpu":
        assert cluster.gpu.speed is not None, "without --gpu-memory, a GPU is one that the planner knows"
        start = Rates.of(cluster.gpu.speed, Bounds(config).dtype)
    if arguments.rates is not None:
        start = read_rates(arguments.rates, start)
    phases = read_phases(folder)
    lengths = lengths_of(config, phases, parse_lengths(arguments.lengths, maximum=config.most_tokens))
    rates = rates_of_run(config, assess(config, cluster), phases, lengths=lengths, start=start)
    return as_json(rates, run=str(folder), steps=phases.steps)
