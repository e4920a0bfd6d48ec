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

from ray_rl.cli.launch import job_of
from ray_rl.config.loading.load import load_config
from ray_rl.launching.kuberay.drain import drivers
from ray_rl.launching.kuberay.manifest import manifests, render
from tests.launching.kuberay.api_server import ApiServer
from tests.launching.kuberay.operator import Operator
from tests.launching.kuberay.pods import missing_for_pods, network
from tests.system.e2e.command import place_for

MISSING = missing_for_pods()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING is not None, reason=f"tests/launching/kuberay: {MISSING}")]

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

    def operator(self, name: str, *overrides: str, steps: int, **launch) -> Operator:
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
        pods = self.server.place / name
        pods.mkdir()
        return Operator(self.server, documents[-1]["metadata"]["name"], claim=self.claim, place=pods)

    def metrics(self, name: str) -> list[dict]:
        file = self.claim / name / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


SECTIONS = {
    "checkpoint": {"export": False},
    "train": {"learning_rate": 1e-3},
}


@pytest.fixture
def cluster(place, server, monkeypatch):
    return Cluster(place, server, monkeypatch)


def driver_of(operator: Operator) -> int:
    """Its process id, as we see it: the one in the process namespace of the head's container."""
    namespace = os.readlink(f"/proc/{operator.head.containers['ray-head'].init}/ns/pid")
    (found,) = [pid for pid in drivers(operator.name) if os.readlink(f"/proc/{pid}/ns/pid") == namespace]
    return found


def test_a_run_is_suspended_goes_on_fails_is_tried_again_and_succeeds(cluster):
    def steps_done() -> int:
        return len(cluster.metrics("whole"))

    # Saved only when it is told to stop: a checkpoint proves that it was told.
    with cluster.operator("whole", "checkpoint.every_steps=null", steps=30, retries=1) as operator:
        operator.wait_for(lambda: steps_done() >= 1, "a first step", limit_s=ATTEMPT_S)

        operator.patch(suspend=True)
        operator.reach("Suspended", limit_s=60)
        saved = steps_done()
        assert (cluster.claim / "whole" / "checkpoints" / f"step_{saved}").is_dir()
        assert (operator.pods, operator.status["failed"]) == ([], 0)

        operator.patch(suspend=False)
        operator.wait_for(lambda: steps_done() > saved, "a step after the suspension", limit_s=ATTEMPT_S)
        os.kill(driver_of(operator), signal.SIGKILL)

        operator.reach("Complete", limit_s=ATTEMPT_S)
        assert operator.status["jobStatus"] == "SUCCEEDED"
        assert [state for state in operator.history if state] == [
            *("Initializing", "Running", "Suspending", "Suspended"),
            *("Initializing", "Running", "Retrying"),
            *("Initializing", "Running", "Complete"),
        ]
    assert [line["step"] for line in cluster.metrics("whole")] == list(range(1, 31))


WRONG = "model.path=./no-such-model"


def test_exit_code_2_is_tried_once_by_a_driver_with_the_right_to_say_so(cluster, server):
    with cluster.operator("wrong", WRONG, steps=1, retries=3) as operator:
        operator.reach("Failed", limit_s=90)
        assert (operator.clusters, operator.status["exitCode"], server.answers) == (1, 2, [200])
        assert operator.spec["backoffLimit"] == 0
        assert "RayJob wrong will not retry" in operator.status["message"]


def test_without_that_right_it_is_tried_as_often_as_launch_says(cluster, server):
    account = {"service_account": "someone"}
    with cluster.operator("other", WRONG, steps=1, retries=1, kuberay=account) as operator:
        operator.reach("Failed", limit_s=150)
        assert (operator.clusters, operator.status["exitCode"], server.answers) == (2, 2, [403, 403])
        assert "RayJob other could not be changed" in operator.status["message"]
