"""A reference whose log-probabilities are stored needs no memory while DPO trains: the run holds one model."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.system.e2e.command import processes_of, run

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
MIB = 2**20
STEPS = 2
WEIGHTS = 4 * 134_515_008
"""Bytes of the model in float32."""
TITLES = re.compile(r" ray::(actor|reference)-")
"""In the command lines of workers that hold a model."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """DPO of a model of 135M weights in float32 on short pairs."""
    folder = tmp_path_factory.mktemp("memory")
    rows = [{"prompt": f"What is {i}+1?", "chosen": f"It is {i + 1}.", "rejected": "No idea."} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "run": {"name": "dpo", "steps": STEPS},
        "model": {"path": "smollm2-135m-instruct", "dtype": "float32"},
        "data": {"kind": "jsonl", "path": "rows.jsonl"},
        "algorithm": {"kind": "dpo", "batch_size": 4},
        "checkpoint": {"every_steps": None, "export": False},
        "cluster": {"accelerator": "cpu"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


def peaks(place: Path, when: str) -> tuple[int, list[int]]:
    """The most bytes that the workers of a run held at one time, and the most that each of them held."""
    together, alone = 0, dict[int, int]()

    def watch(process: subprocess.Popen) -> None:
        nonlocal together
        while process.poll() is None:
            workers = [int(line.split()[0]) for line in processes_of(process.pid) if TITLES.search(line)]
            held = {pid: private_bytes(pid) for pid in workers}
            together = max(together, sum(held.values()))
            alone.update({pid: max(size, alone.get(pid, 0)) for pid, size in held.items()})
            time.sleep(0.2)

    ended = run(place, f"run.name={when}", f"reference.when={when}", then=watch)
    assert ended.code == 0, ended.stderr + ended.stdout
    assert len((place / "runs" / when / "metrics.jsonl").read_text().splitlines()) == STEPS
    return together, sorted(alone.values())


def private_bytes(pid: int) -> int:
    """Memory of a process that it shares with no other; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def test_a_stored_reference_holds_one_model_less_than_a_live_one(place):
    (stored, one), (live, two) = peaks(place, "before"), peaks(place, "during")
    print(f"workers at their peak: {stored / MIB:.0f} MiB with a stored reference, {live / MIB:.0f} MiB live")
    print(f"each: {[size // MIB for size in one]} MiB stored, {[size // MIB for size in two]} MiB live")
    assert (len(one), len(two)) == (1, 2)
    assert two[0] > WEIGHTS
    assert live > stored
