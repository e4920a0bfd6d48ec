"""One virtual cluster for all tests of this folder, and runs on it."""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ray_rl.cli.launch import job_of
from ray_rl.config.loading.load import load_config
from ray_rl.launching.job import Job
from ray_rl.launching.slurm.commands import logs, status, submit
from ray_rl.launching.slurm.script import render
from tests.launching.slurm.virtual_cluster import (
    PREFIX,
    VirtualCluster,
    step_daemons,
    virtual_cluster,
    wait_for,
    why_not,
)
from tests.system.e2e.command import steps_done
from tests.test_architecture import ROOT
from tests.tiny_model import write_tiny_model

EXAMPLE = "examples/slurm/run.yaml"
HEARD_S = 5.0
"""In which the controller has heard what the daemons of steps said last; Slurm's own wait is two minutes."""
ATTEMPT_S = 150.0
"""Limit for Ray on three hosts, vLLM, DeepSpeed and a few steps of a tiny model, on two cores."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualCluster]:
    if reason := why_not():
        pytest.skip(f"no Slurm: {reason}")
    # Not below pytest's folder: sockets of Slurm and Ray have short names only.
    root = Path(tempfile.mkdtemp(prefix=PREFIX))
    kept = os.environ.get("SLURM_CONF")
    try:
        with virtual_cluster(root) as cluster:
            os.environ["SLURM_CONF"] = str(cluster.conf)
            yield cluster
    finally:
        os.environ.pop("SLURM_CONF", None)
        if kept is not None:
            os.environ["SLURM_CONF"] = kept
        shutil.rmtree(root)


@dataclass
class Submitted:
    """A job of the example's configuration under Slurm."""

    job: Job
    number: str
    place: Path
    cluster: VirtualCluster = field(repr=False)

    @property
    def run_folder(self) -> Path:
        return self.place / "runs" / self.job.name

    @property
    def logs(self) -> Path:
        return self.place / "slurm-logs" / f"{self.job.name}-{self.number}"

    @property
    def log(self) -> str:
        return self.logs.with_name(f"{self.logs.name}.log").read_text()

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.run_folder / "checkpoints").glob("step_*"))

    def of_attempt(self, attempt: int, name: str) -> str:
        file = self.logs / f"attempt-{attempt}" / name
        return file.read_text() if file.is_file() else ""

    @property
    def steps(self) -> int:
        return steps_done(self.run_folder)

    @property
    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.run_folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def state(self) -> str:
        return status(self.number).splitlines()[0].split()[2]

    def wait(self, condition: Callable[[], bool], what: str, limit_s: float = ATTEMPT_S) -> None:
        wait_for(condition, limit_s, what, self.everything)

    def hurry(self, restarts: int) -> None:
        """Spares a job that was queued again the two minutes that Slurm lets it wait."""
        self.wait(lambda: f"restarts: {restarts}\n" in status(self.number), "the job to be queued again")
        # Slurm takes the end of the attempt before for that of the next one if this begins too soon: hosts are idle
        # for Slurm while the daemon of the script's step has still to say how that ended.
        self.cluster.await_idle()
        self.wait(lambda: not step_daemons(self.number), "the daemons of its steps to end")
        time.sleep(HEARD_S)
        self.cluster.command("scontrol", "update", f"jobid={self.number}", "StartTime=now")

    def wait_for_end(self) -> str:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait(lambda: self.state in ended, "the job to end")
        return self.state

    def everything(self) -> str:
        """For the message of a test that fails."""
        files = [*sorted(self.logs.glob("attempt-*/*.log")), *sorted((self.run_folder / "logs").glob("*.log"))]
        tails = [f"--- {file}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-15:]) for file in files]
        return "\n".join([status(self.number), *logs(self.number, follow=False), *tails])


Submit = Callable[..., Submitted]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def example(cluster: VirtualCluster, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Submit]:
    """Submits the example for Slurm with a tiny model, on hosts that have one CPU each for it."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("judge"))
    monkeypatch.chdir(tmp_path)
    # What runs is this copy of the project.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    submitted: list[str] = []

    def submit_example(name: str, *overrides: str) -> Submitted:
        cluster.await_idle()
        values = [
            f"run.name={name}",
            "run.grace_s=40",
            f"model.path={model}",
            "model.dtype=float32",
            "data.maximum=4",
            "algorithm.prompts_per_step=4",
            "algorithm.group_size=4",
            "rollout.max_tokens=16",
            "rollout.max_sequences=16",
            "rollout.kv_cache_gib=0.05",
            "cluster.nodes=3",
            "cluster.threads=1",
            "cluster.start_timeout_s=90",
            "checkpoint.every_steps=1",
            "launch.queue=null",
            "launch.cpus_per_node=1",
            "launch.memory_gib_per_node=null",
            "launch.slurm.ready_timeout_s=90",
            "launch.slurm.warn_s=60",
            f'launch.slurm.setup=["PATH={Path(sys.executable).parent}:$PATH"]',
            'launch.environment={"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "200000000"}',
            *overrides,
        ]
        job = job_of(load_config(EXAMPLE, values), EXAMPLE, values)
        number = submit(job, render(job))
        submitted.append(number)
        return Submitted(job, number, tmp_path, cluster)

    yield submit_example
    for number in submitted:
        cluster.command("scancel", "--quiet", number)
