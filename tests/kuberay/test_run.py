"""A rendered RayJob is carried out: by real Ray, over addresses of its own, with the configuration of the ConfigMap."""

import json
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import yaml

from ray_rl.config.load import load_config
from ray_rl.launching.drain import drivers
from ray_rl.launching.job import job_of
from ray_rl.launching.kuberay import manifests, render
from tests.e2e.command import place_for
from tests.kuberay.api_server import ApiServer
from tests.kuberay.operator import Operator
from tests.kuberay.pods import missing_for_pods, network

MISSING = missing_for_pods()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING is not None, reason=f"tests/kuberay: {MISSING}")]

ATTEMPT_S = 200.0


@pytest.fixture(scope="module")
def place():
    """A short path: Ray's sockets are below it, and their names have a limit."""
    folder = Path(tempfile.mkdtemp(prefix="rlk"))
    with network():
        yield folder
    shutil.rmtree(folder)


@pytest.fixture
def server(place, request):
    server = ApiServer(place / re.sub(r"\W", "", request.node.name)[-12:])
    with server.serving():
        yield server


class Cluster:
    """A claim with a tiny model on it, and RayJobs that use it."""

    def __init__(self, place: Path, server: ApiServer, monkeypatch) -> None:
        self.place, self.server, self.monkeypatch = place, server, monkeypatch
        self.claim = server.place / "claim"
        self.claim.mkdir()

    def operator(self, name: str, *, steps: int, overrides: tuple[str, ...] = (), **launch) -> Operator:
        """Renders the job of a configuration that is in the current folder, and hands it to the API server."""
        at = self.place / "pod"
        runs, work = at / "runs", at / "workspace"
        for folder in (runs, work):
            folder.mkdir(parents=True, exist_ok=True)
        laptop = place_for(self.server.place / "laptop", name, steps=steps, **SECTIONS)
        shutil.copytree(laptop / "model", self.claim / "model", dirs_exist_ok=True)
        config = yaml.safe_load((laptop / "run.yaml").read_text())
        config["model"]["path"] = str(runs / "model")
        config["run"]["dir"] = str(runs)
        kuberay = {"runs_path": str(runs), "shared_memory_gib": 1, "head_memory_gib": 2, **launch.pop("kuberay", {})}
        config["launch"] = {
            "image": "this-machine", "workdir": str(work), "cpus_per_node": 4, "memory_gib_per_node": 8, **launch,
            "kuberay": kuberay,
        }  # fmt: skip
        (laptop / "run.yaml").write_text(yaml.safe_dump(config))
        self.monkeypatch.chdir(laptop)
        job = job_of(load_config("run.yaml", overrides), "run.yaml", overrides)
        documents = list(yaml.safe_load_all(render(job)))
        assert documents == manifests(job)
        self.server.apply(documents)
        pods = self.server.place / "p"
        pods.mkdir()
        return Operator(self.server, documents[-1]["metadata"]["name"], claim=self.claim, place=pods)

    def metrics(self, name: str) -> list[dict]:
        file = self.claim / name / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


SECTIONS = {
    "checkpoint": {"every_steps": 1, "export": False},
    "train": {"learning_rate": 1e-3},
}


@pytest.fixture
def cluster(place, server, monkeypatch):
    return Cluster(place, server, monkeypatch)


def driver_of(operator: Operator) -> int:
    """Its process id, as we see it from outside."""
    inside = {str(pid) for pid in drivers()}
    assert len(inside) == 1, inside
    return int(inside.pop())


def test_a_run_is_suspended_goes_on_fails_is_tried_again_and_succeeds(cluster):
    with cluster.operator("whole", steps=4, retries=1) as operator:
        steps_done = lambda: len(cluster.metrics("whole"))  # noqa: E731
        operator.wait_for(lambda: steps_done() >= 1, "a first step", limit_s=ATTEMPT_S)

        operator.patch(suspend=True)
        operator.reach("Suspended", limit_s=90)
        saved = steps_done()
        assert "SIGTERM" in operator.log_of("ray-job-submitter")
        assert not list(drivers()), "the driver has ended"
        assert operator.status["failed"] == 0, "a suspension is no failure"

        operator.patch(suspend=False)
        operator.wait_for(lambda: steps_done() > saved, "a step after the suspension", limit_s=ATTEMPT_S)
        os.kill(driver_of(operator), signal.SIGKILL)

        operator.reach("Complete", limit_s=ATTEMPT_S)
        assert operator.history.count("Retrying") == 1
        assert operator.clusters == 3, "suspension and retry each made a new cluster"
        assert operator.status["jobStatus"] == "SUCCEEDED"
    assert [line["step"] for line in cluster.metrics("whole")] == [1, 2, 3, 4]
