"""Processor seconds from the start of the demo to its first step, by process: what a user waits for on few cores.

Starts `ray-rl train` with one step, like a user, and reads the processor time of every process of its tree. Processor
time depends less than seconds on what else the machine does. The first run after an installation also compiles
Python's modules, so each count is the least of several runs. `python -m tests.benchmarks.startup 3` makes three.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from tests.benchmarks.end_to_end import CONFIG

RUNS = 2
SAMPLE_S = 0.1
"""Seconds between two readings; a process that ends loses its last part."""
LIMIT_S = 900.0

KINDS: Mapping[str, str] = {
    "ray::actor": "TrainWorker",
    "ray::rollout": "EngineWorker",
    "VLLM::EngineCore": "EngineCore",
    "multiprocessing.spawn": "EngineCore",
    "multiprocessing.resource_tracker": "EngineCore",
    "bin/ray-rl": "driver",
    "ray_rl.isolation.child": "reward workers",
    "gcs_server": "Ray: gcs_server, raylet",
    "raylet/raylet": "Ray: gcs_server, raylet",
    "default_worker.py": "Ray: workers without a task",
    "ray::IDLE": "Ray: workers without a task",
    "dashboard": "Ray: dashboard, agents, monitors",
    "ray::": "Ray: dashboard, agents, monitors",
    "monitor.py": "Ray: dashboard, agents, monitors",
}
"""Part of a command line, and the row of the table that counts the process; the first that fits."""
OTHERS = "others"


@dataclass(frozen=True)
class Start:
    """One start of the demo."""

    wall_s: float
    """Seconds until the first step began."""
    processor_s: Mapping[str, float]
    """User and system seconds until then, by kind of process."""


def started(folder: Path) -> Start:
    """Runs one step of the demo, and returns what happened before it."""
    command = [str(Path(sys.executable).with_name("ray-rl")), "train", str(CONFIG), f"run.dir={folder}"]
    command += ["run.name=startup", "run.steps=1", "checkpoint.export=false"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun_s = time.monotonic()
    readings: list[tuple[float, Counter[str]]] = []
    seen: dict[tuple[int, float], tuple[str, float]] = {}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            read(psutil.Process(process.pid), seen)
            kinds: Counter[str] = Counter()
            for kind, seconds in seen.values():
                kinds[kind] += seconds
            readings.append((time.monotonic() - begun_s, kinds))
            first = first_step_s(folder / "startup" / "metrics.jsonl")
            if first is not None:
                break
            if readings[-1][0] > LIMIT_S:
                process.terminate()
                raise TimeoutError(f"no step within {LIMIT_S:g} s")
            time.sleep(SAMPLE_S)
        else:
            raise RuntimeError(f"ray-rl ended with exit code {process.returncode} before its first step")
        begin_s = readings[-1][0] - first
        process.wait(timeout=LIMIT_S)
    wall_s, processor_s = [reading for reading in readings if reading[0] <= begin_s][-1]
    return Start(wall_s, processor_s)


def read(root: psutil.Process, seen: dict[tuple[int, float], tuple[str, float]]) -> None:
    """Notes the kind and the processor time of each process of a tree; a process that has ended keeps its last ones."""
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            times, line = process.cpu_times(), " ".join(process.cmdline())
            key = (process.pid, process.create_time())
        except psutil.Error:  # it has ended
            continue
        # A worker has its own title once it is an actor, which takes over what it did before.
        kind = next((name for part, name in KINDS.items() if part in line), OTHERS)
        seen[key] = (kind, times.user + times.system)


def first_step_s(metrics: Path) -> float | None:
    """Returns how long the first step took; None while it has not ended."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return float(json.loads(lines[0])["time/step_s"]) if lines else None


def main(runs: int = RUNS) -> None:
    starts = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as scratch:
            starts.append(started(Path(scratch)))
    table = Table(title="from `ray-rl train` to the first step of the demo")
    for column in ("process", "processor s", "runs"):
        table.add_column(column)
    kinds = sorted({kind for start in starts for kind in start.processor_s})
    rows = {kind: [start.processor_s.get(kind, 0.0) for start in starts] for kind in kinds}
    rows["all"] = [sum(start.processor_s.values()) for start in starts]
    for name, seconds in rows.items():
        table.add_row(name, f"{min(seconds):.1f}", " ".join(f"{each:.1f}" for each in seconds))
    table.add_row("wall clock", "", " ".join(f"{start.wall_s:.0f} s" for start in starts))
    Console(width=120).print(table)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
