"""Places a recipe on a Ray cluster of its own, with light actors.

Usage: `python -m tests.system.cluster.six_nodes CONFIG NODES [OVERRIDE ...]`.

A process of its own, since a process is connected to one cluster at a time. Prints one JSON object.
"""

import json
import os
import sys
import time
from pathlib import Path

from ray_rl.cluster.environment import prepare_environment

ROOT = Path(__file__).parents[3]
GPUS_PER_NODE = 8
TIMEOUT_S = 240.0
SHORT_S = 5.0


def main(config_path: str, nodes: int, *overrides: str) -> None:
    prepare_environment(local=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    import ray
    from ray.cluster_utils import Cluster

    from ray_rl.config.loading.load import load_config
    from ray_rl.planner.plan import plan

    config = load_config(Path(config_path), ["cluster.cpus_per_worker=0.5", *overrides])
    layout = plan(config)
    node = {"num_cpus": GPUS_PER_NODE, "num_gpus": GPUS_PER_NODE, "object_store_memory": 2**27}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(wait=False, **node)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        answer = observe(layout, TIMEOUT_S if nodes >= layout.nodes else SHORT_S)
    finally:
        ray.shutdown()
        cluster.shutdown()
    print(json.dumps(answer))


def observe(layout, timeout_s: float) -> dict[str, object]:
    """Where every worker is and what it sees; or how the start failed."""
    import ray

    from ray_rl.cluster.placement import placed
    from ray_rl.errors import ClusterError
    from tests.system.cluster.light import Bystander

    start_s = time.monotonic()
    try:
        with placed(layout, timeout_s=timeout_s) as slots:
            reserved_s = time.monotonic() - start_s
            nodes = sorted(node["NodeID"] for node in ray.nodes())
            bystander = ray.remote(Bystander)
            handles = {
                role: [bystander.options(**slot.options()).remote() for slot in there] for role, there in slots.items()
            }
            seen = {role: ray.get([handle.sight.remote() for handle in there]) for role, there in handles.items()}
    except ClusterError as error:
        return {"error": str(error), "after_s": time.monotonic() - start_s}
    places = {
        role: [{"node": nodes.index(node), "gpus": gpus, "visible": visible} for node, gpus, visible in there]
        for role, there in seen.items()
    }
    return {"places": places, "reserved_s": reserved_s}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
