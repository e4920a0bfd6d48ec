"""A run on three Ray nodes; the one with the trainer is killed: `python -m tests.system.cluster.lost_node FOLDER`.

A process of its own, since a process is connected to one cluster at a time. FOLDER has a `run.yaml`; each node has room
for one worker, so that one node is spare. Prints one JSON object.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from ray_rl.cluster.environment import prepare_environment
from tests.driver_log import now

ROOT = Path(__file__).parents[3]
NODES = 3
KILL_AFTER_STEP = 3
"""And once there is a checkpoint: one is written beside the steps, which are short."""
LIMIT_S = 500.0


def main(folder: str) -> None:
    prepare_environment(local=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 2**27}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    try:
        nodes = [cluster.add_node(wait=False, num_cpus=1, **memory) for _ in range(NODES)]
        cluster.wait_for_nodes()
        print(json.dumps(observe(Path(folder), cluster.address, nodes)))
    finally:
        cluster.shutdown()


def observe(place: Path, address: str, nodes: list) -> dict[str, object]:
    """How the run ended, and the nodes (by number) on which its workers were before and after the loss."""
    command = [str(Path(sys.executable).with_name("ray-rl")), "train", "run.yaml", f"cluster.address={address}"]
    with (place / "output").open("wb") as output:
        run = subprocess.Popen(command, cwd=place, stdout=output, stderr=subprocess.STDOUT)
        metrics = place / "runs" / "lost-node" / "metrics.jsonl"
        try:
            wait_for(run, lambda: lines_of(metrics) >= KILL_AFTER_STEP, f"step {KILL_AFTER_STEP}")
            wait_for(run, lambda: any((metrics.parent / "checkpoints").glob("step_*")), "a checkpoint")
            raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
            before = where("ray::actor", raylets)
            kill_node(psutil.Process(raylets[before[0]]))
            killed_at = now()
            log = metrics.parent / "logs" / "driver.log"
            wait_for(
                run, lambda: log.exists() and "; training continues" in log.read_text(), "a new start of the trainer"
            )
            after = where("ray::actor", raylets)
            code = run.wait(timeout=LIMIT_S)
        finally:
            run.kill()
    return {
        "code": code,
        "before": before,
        "after": after,
        "killed_at": killed_at.isoformat(),
    }


def kill_node(raylet: psutil.Process) -> None:
    """Kills everything on a node at once. Workers may outlive their raylet for as long as Ray takes to see its end."""
    for process in (raylet, *raylet.children(recursive=True)):
        process.kill()


def lines_of(file: Path) -> int:
    """0 while it is not there."""
    return len(file.read_text().splitlines()) if file.exists() else 0


def wait_for(run: subprocess.Popen, condition: Callable[[], bool], what: str) -> None:
    """Until it holds, while the run lives."""
    give_up_s = time.monotonic() + LIMIT_S
    while not condition():
        if run.poll() is not None or time.monotonic() > give_up_s:
            raise SystemExit(f"the run did not come to {what}: {run.poll()}")
        time.sleep(0.02)


def where(title: str, raylets: list[int]) -> list[int]:
    """Numbers of the nodes on which processes with a title run."""
    return [
        number
        for number, raylet in enumerate(raylets)
        if psutil.pid_exists(raylet)
        for child in psutil.Process(raylet).children()
        if title in " ".join(child.cmdline())
    ]


if __name__ == "__main__":
    main(sys.argv[1])
