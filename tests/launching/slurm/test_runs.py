"""The example for Slurm, with a tiny model, under a real Slurm, across three virtual hosts with one CPU each for Ray.

A job costs half a minute before its first step, so that a job shows several facts.
"""

import re
import time

import pytest

from ray_rl.errors import UserError
from ray_rl.launching.slurm.commands import logs, status, stop
from tests.launching.slurm.virtual_cluster import HOSTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROLES = ("actor", "rollout")
FOR_EVER = 100_000


def roles_on(cluster) -> dict[str, list[str]]:
    """Names of the roles that have a process on each host now."""
    return {
        host: [role for role in ROLES for line in cluster.processes(host) if line.startswith(f"ray::{role}")]
        for host in HOSTS
    }


def goes_on_behind(text: str) -> int:
    """The step that a driver says to continue from."""
    found = re.search(r"resuming after step (\d+) of", text)
    assert found is not None, text
    return int(found[1])


def test_a_killed_host_ends_the_attempt_at_once_and_the_next_one_finishes(example, cluster):
    job = example("plain", "run.steps=60", "train.workers=2", "run.grace_s=4")
    job.wait(lambda: job.checkpoints != [], "the first checkpoint")
    placed = roles_on(cluster)
    assert sorted(role for roles in placed.values() for role in roles) == sorted([*ROLES, "actor"])
    assert all(len(roles) == 1 for roles in placed.values()), "a role on each host"

    away = next(host for host in HOSTS if host != "node1" and "actor" in placed[host])
    cluster.kill_host(away)
    killed_s = time.monotonic()
    job.wait(lambda: "queued again" in job.log, "the loss to be noticed", 60)
    assert time.monotonic() - killed_s < 40, job.log
    assert re.search(r"(a worker node|a node \(see nodes\.log\)) is lost", job.log), job.log
    assert "failed: retry 1 of launch.retries=3; queued again" in job.log
    assert (job.logs / "attempt-0" / "outcome").read_text() == "failed\n"

    cluster.start_host(away)
    job.hurry(restarts=1)
    assert job.wait_for_end() == "COMPLETED", job.everything()
    assert 1 <= goes_on_behind(job.of_attempt(1, "driver.log")) < 60
    assert [line["step"] for line in job.metrics] == list(range(1, 61))
    assert (job.logs / "attempt-1" / "outcome").read_text() == "done\n"
    assert not [*job.logs.glob("*/token")], "tokens are gone"
    assert "restarts: 1" in status(job.number)


def test_usr1_saves_and_queues_again_and_a_stop_saves_and_does_not(example, cluster, tmp_path):
    mounts = f'launch.mounts=["{tmp_path}:{tmp_path}"]'
    containers = ["launch.slurm.container=pyxis", "launch.image=registry/image:1", f"launch.workdir={tmp_path}", mounts]
    job = example("pyxis", f"run.steps={FOR_EVER}", *containers)
    job.wait(lambda: job.steps >= 2, "two steps")
    assert "fake-pyxis: opt 1=registry/image:1" in job.of_attempt(0, "workers.log")
    assert f"fake-pyxis: opt 2={tmp_path}:{tmp_path},{job.logs}/attempt-0:" in job.of_attempt(0, "head.log")
    assert f"fake-pyxis: opt 3={tmp_path}" in job.of_attempt(0, "driver.log")

    cluster.command("scancel", "--batch", "--signal=USR1", job.number)
    job.wait(lambda: "saved; queued again" in job.log, "it to be queued again")
    saved = job.steps
    assert f"stopped by SIGUSR1 after step {saved} of {FOR_EVER}, saved; " in job.of_attempt(0, "driver.log")
    job.hurry(restarts=1)
    job.wait(lambda: job.steps >= saved + 2, "further steps")
    assert goes_on_behind(job.of_attempt(1, "driver.log")) == saved

    assert "was told to save and end" in stop(job.number)
    assert job.wait_for_end() == "FAILED", "75 is not success"
    assert f"step_{job.steps}" in job.checkpoints
    assert "stopped; submit the job again to continue" in job.log
    assert "exit code: 75:0" in status(job.number)
    assert "restarts: 1" in status(job.number), "it did not come back"
    with pytest.raises(UserError, match="has ended already: FAILED"):
        stop(job.number)


def test_a_group_of_cpu_nodes_takes_the_driver_and_gives_its_cpus(example, cluster):
    """On CPU all nodes are equal for Ray: the group of one and the group of two are one cluster of three."""
    job = example("mixed", "run.steps=2", "train.workers=2", "cluster.nodes=2", "launch.slurm.cpu_nodes=1")
    job.wait(lambda: job.steps >= 1, "a step")
    assert job.wait_for_end() == "COMPLETED", job.everything()
    nodes = job.of_attempt(0, "nodes.log")
    assert all(f"{host} (10.77.0.1" in nodes for host in HOSTS), nodes
    assert "Ray's head on node1" in job.log
    assert cluster.command("scontrol", "show", "job", "--oneliner", job.number).count("HetJobOffset=") == 2


def test_a_wrong_configuration_is_not_queued_again(example):
    job = example("wrong", "run.steps=2", "cluster.nodes=1", "model.path=./nowhere")
    assert job.wait_for_end() == "FAILED"
    assert "exit code: 2:0" in status(job.number)
    assert "restarts: 0" in status(job.number)
    assert "nowhere" in job.log, "the end of the driver's log is shown"
    assert any("ended with exit code 2" in line for line in logs(job.number, follow=True))
